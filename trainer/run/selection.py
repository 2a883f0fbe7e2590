"""Which parameters of a run a command uses: of which checkpoint, last or averaged, one or many."""

import dataclasses

from etils import epath

from trainer.checkpoints import read_newest, stored_steps
from trainer.config import AVERAGE
from trainer.errors import UsageError
from trainer.run.stored import Checkpoint, create_stored_network, load_checkpoint
from trainer.step import Ensemble
from trainer.workdir.storage import open_workdir

NEWEST, BEST, LAST = "newest", "best", "last"

# Of a step; Python reads no number of thousands of digits.
_MOST_DIGITS = 20


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which parameters to use.

    Attributes:
      checkpoint: "newest" (that is good), "best" (by test accuracy, of a run with --keep_best), or
        a step.
      params: "last", "average" (of the ends of cycles) or "ema".
      ensemble: how many checkpoints at the last ends of cycles answer together; 0: one answers.

    Raises:
      UsageError: these do not go together, or there is no such checkpoint.
    """

    checkpoint: str = NEWEST
    params: str = LAST
    ensemble: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked without a run."""
        if self.checkpoint not in (NEWEST, BEST) and not self.checkpoint.isdecimal():
            raise UsageError(
                f"--checkpoint={self.checkpoint} is not valid; use newest, best or a step"
            )
        if len(self.checkpoint) > _MOST_DIGITS:
            raise UsageError(
                f"--checkpoint={self.checkpoint[:_MOST_DIGITS]}... is not valid: no run has so "
                "many steps; use newest, best or a step"
            )
        if self.ensemble < 0:
            raise UsageError(f"--ensemble={self.ensemble} is not valid; use ensemble >= 0")
        if self.ensemble and (self.checkpoint, self.params) != (NEWEST, LAST):
            raise UsageError(
                f"--ensemble={self.ensemble} uses the parameters at the last ends of cycles; leave "
                "out --checkpoint and --params"
            )

    def load(self, workdir: epath.PathLike) -> Checkpoint:
        """Return the checkpoint, with the chosen parameters in it.

        Of an ensemble it is the newest of its checkpoints, with the parameters and statistics of
        all of them by step, and a network that takes those.

        Args:
          workdir: of a run.

        Raises:
          UsageError: there is no such checkpoint, or the run does not keep what was chosen.
          RunError: it is damaged, or none is good.
        """
        if self.ensemble:
            return self._load_ensemble(workdir)
        checkpoint = load_checkpoint(workdir, self._step(workdir))
        if self.params == LAST:
            return checkpoint
        if self.params not in checkpoint.averages:
            raise UsageError(_no_average(checkpoint, self.params))
        params, statistics = checkpoint.averages[self.params]
        return dataclasses.replace(checkpoint, params=params, statistics=statistics)

    def _step(self, workdir: epath.PathLike) -> int | None:
        """Return the step of the checkpoint, or None for the newest good one."""
        if self.checkpoint == NEWEST:
            return None
        if self.checkpoint != BEST:
            return int(self.checkpoint)
        best = read_newest(workdir).meta.get("best")
        if best is None:
            raise UsageError(
                f"--checkpoint=best: the run in {workdir} keeps no best checkpoint; train with "
                "--keep_best, or use --checkpoint=newest or a step"
            )
        return best["step"]

    def _load_ensemble(self, workdir: epath.PathLike) -> Checkpoint:
        """Return the checkpoints at the last ends of cycles as one."""
        newest = load_checkpoint(workdir)
        per_cycle = newest.config.steps_per_cycle or 1  # It is resolved.
        stored = reversed(stored_steps(open_workdir(workdir)))
        ends = [step for step in stored if step and step % per_cycle == 0 and step <= newest.step]
        if len(ends) < self.ensemble:
            found = ", ".join(map(str, ends)) or "none"
            raise UsageError(
                f"--ensemble={self.ensemble}: of the checkpoints in {workdir} these are at the end "
                f"of a cycle of {per_cycle} steps: {found}; use --ensemble up to {len(ends)}, or "
                f"train with --keep_cycle_ends={self.ensemble}"
            )
        members = [load_checkpoint(workdir, step) for step in ends[-self.ensemble :]]
        return dataclasses.replace(
            members[-1],
            params={str(member.step): member.params for member in members},
            statistics={str(member.step): member.statistics for member in members},
            network=Ensemble(create_stored_network(members[-1].config, members[-1].inputs)),
            ensemble=tuple(member.step for member in members),
        )


# The last parameters of the newest good checkpoint.
AS_TRAINED = Selection()


def _no_average(checkpoint: Checkpoint, kind: str) -> str:
    """Return what is wrong with asking for an average that a checkpoint does not hold."""
    config = checkpoint.config
    if kind == AVERAGE and config.average_cycles:
        return (
            f"--params={kind}: checkpoint {checkpoint.step} holds none yet, as no cycle has ended "
            f"since --average_cycles={config.average_cycles}; train on, or use --params=last"
        )
    flag = "--average_cycles=1" if kind == AVERAGE else "--ema_decay=0.999"
    return f"--params={kind}: the run keeps none; train with {flag}, or use --params=last"
