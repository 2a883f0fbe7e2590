"""The durations of a run in steps, and where a step lies in its epochs and cycles."""

import dataclasses

from trainer.config import TrainConfig
from trainer.config.options import MOST_STEPS
from trainer.errors import UsageError
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The durations of a run in steps; beyond this point nothing else counts time.

    Attributes:
      steps_per_epoch: whole batches of the training split.
      steps_per_cycle: a rise and a fall of the learning rate.
      top: the step of a cycle at which the rate is highest.
      num_steps: of the whole run.
      eval_every_steps: between tests on the test split.
    """

    steps_per_epoch: int
    steps_per_cycle: int
    top: int
    num_steps: int
    eval_every_steps: int

    def position(self, step: int) -> Position:
        """Return where `step` lies in epochs and cycles; step >= 0."""
        cycle_step = step % self.steps_per_cycle
        return Position(
            step=step,
            epoch=step // self.steps_per_epoch,
            cycle=step // self.steps_per_cycle,
            cycle_step=cycle_step,
            steps_per_cycle=self.steps_per_cycle,
            rising=cycle_step < self.top,
        )


def create_plan(config: TrainConfig, num_examples: int) -> Plan:
    """Return every duration of a run in steps.

    Args:
      config: of the run.
      num_examples: size of the training split.

    Raises:
      UsageError: a batch is larger than the split, a cycle shorter than two steps, or the run
        longer than its step counter can count.
    """
    if config.batch_size > num_examples:
        raise UsageError(
            f"--batch_size={config.batch_size} is more than the {num_examples} training examples "
            f"of --dataset={config.dataset}; use 1 to {num_examples}"
        )
    steps_per_epoch = num_examples // config.batch_size
    steps_per_cycle = config.steps_per_cycle or steps_per_epoch // config.cycles_per_epoch
    if steps_per_cycle < 2:
        raise UsageError(_no_room_for_a_cycle(config, steps_per_epoch))
    num_steps = config.asked_steps(steps_per_cycle) or config.num_epochs * steps_per_epoch
    if num_steps > MOST_STEPS:
        asked = (
            f"--num_cycles={config.num_cycles}"
            if config.num_cycles
            else f"--num_epochs={config.num_epochs}"
        )
        raise UsageError(
            f"{asked} makes {num_steps} steps, and a run can count up to {MOST_STEPS}; use fewer"
        )
    return Plan(
        steps_per_epoch=steps_per_epoch,
        steps_per_cycle=steps_per_cycle,
        top=rise_and_fall(steps_per_cycle, config.cycle_up_fraction)[0],
        num_steps=num_steps,
        eval_every_steps=config.eval_every_steps or steps_per_epoch,
    )


def _no_room_for_a_cycle(config: TrainConfig, steps_per_epoch: int) -> str:
    """Return why an epoch is too short for its cycles, and which flag makes it work."""
    most = steps_per_epoch // 2
    fewer = f"--cycles_per_epoch={most}" + (" or less, or " if most > 1 else ", or ")
    return (
        f"--cycles_per_epoch={config.cycles_per_epoch} does not fit: an epoch has "
        f"{steps_per_epoch} step{'' if steps_per_epoch == 1 else 's'} (--batch_size="
        f"{config.batch_size}), and a cycle needs 2; use {fewer if most else ''}"
        f"--steps_per_cycle={max(4 * steps_per_epoch, 2)} for cycles of several epochs"
    )
