"""The rows of the batch of any step, wherever the examples lie: one interface for all of them."""

from collections.abc import Callable
from typing import Protocol

import jax

from trainer.schedules import Plan
from trainer.step import Examples


class TrainingRows(Protocol):
    """What the train step is given: `rows.at(step, state.step)` are the rows of its batch."""

    def at(self, step: int, counter: jax.Array) -> tuple[Examples, jax.Array]:
        """Return the examples and the batches that `train_step.create_train_step` wants.

        Args:
          step: that is to be taken.
          counter: the same step, on the devices.
        """

    def close(self) -> None:
        """Read no further."""


class ResidentTraining:
    """A training split that lies on the devices; batches are indices into it.

    Args:
      examples: the split, of which each device has all or a part.
      epoch_batches: step int32[] -> the batches of the epoch that it lies in.
      plan: of the run.
    """

    def __init__(
        self, examples: Examples, epoch_batches: Callable[[jax.Array], jax.Array], plan: Plan
    ) -> None:
        self._examples, self._epoch_batches, self._plan = examples, epoch_batches, plan
        self._epoch: int | None = None

    def at(self, step: int, counter: jax.Array) -> tuple[Examples, jax.Array]:
        """Return the split, and the batches of the epoch: see `TrainingRows`."""
        epoch = step // self._plan.steps_per_epoch
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._epoch_batches(counter)
        return self._examples, self._batches

    def close(self) -> None:
        """Read nothing: all of it has been read."""
