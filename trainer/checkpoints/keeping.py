"""Which checkpoints stay: the newest, those at the last ends of cycles, the best."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Keeping:
    """What a run keeps of its checkpoints.

    Attributes:
      newest: how many of the newest, >= 1.
      cycle_ends: how many of those at ends of cycles.
      steps_per_cycle: a cycle ends where this divides the step.
    """

    newest: int
    cycle_ends: int = 0
    steps_per_cycle: int = 1

    def kept(self, steps: Sequence[int], best: int | None) -> list[bool]:
        """Return which checkpoints stay.

        Args:
          steps: of all checkpoints, rising.
          best: the step of the best one, which stays as well, or None.
        """
        ends = [step for step in steps if step and step % self.steps_per_cycle == 0]
        last_ends = ends[-self.cycle_ends :] if self.cycle_ends else []
        stay = {*steps[-self.newest :], *last_ends, best}
        return [step in stay for step in steps]
