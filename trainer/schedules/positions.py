"""Where a step lies in the epochs and cycles of a run."""

import dataclasses

from trainer.schedules.tables import rise_and_fall


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a step lies: counts from 0, `rising` in the part of a cycle that goes up.

    `step` is the value of `state.step` that the next update reads.
    """

    step: int
    epoch: int
    cycle: int
    cycle_step: int
    steps_per_cycle: int
    rising: bool

    def __str__(self) -> str:
        """Say it in words, with epoch and cycle counted from 1."""
        return (
            f"step {self.step}: epoch {self.epoch + 1}, cycle {self.cycle + 1}, step "
            f"{self.cycle_step} of {self.steps_per_cycle} of the cycle, "
            f"{'rising' if self.rising else 'falling'}"
        )


def position_at(
    step: int, steps_per_epoch: int, steps_per_cycle: int, cycle_up_fraction: float
) -> Position:
    """Return where `step` lies in epochs and cycles.

    Args:
      step: >= 0.
      steps_per_epoch: >= 1.
      steps_per_cycle: >= 2.
      cycle_up_fraction: see `schedules.create_triangular_schedule`.
    """
    cycle_step = step % steps_per_cycle
    return Position(
        step=step,
        epoch=step // steps_per_epoch,
        cycle=step // steps_per_cycle,
        cycle_step=cycle_step,
        steps_per_cycle=steps_per_cycle,
        rising=cycle_step < rise_and_fall(steps_per_cycle, cycle_up_fraction)[0],
    )
