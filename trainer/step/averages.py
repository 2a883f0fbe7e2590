"""Averages of the parameters: over the ends of cycles, and exponentially over all steps.

They are leaves of the train state, made by its update: digests, replica check and resume cover
them as they cover the parameters.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from trainer.config import AVERAGE, EMA
from trainer.step.functional import Arrays


@flax.struct.dataclass
class CycleSum:
    """The sum of what was there at the ends of cycles; scaled once, when it is read.

    Attributes:
      params: float32 sums of the parameters.
      statistics: float32 sums of the network's statistics.
      count: int32[], ends that were added.
    """

    params: Arrays
    statistics: Arrays
    count: jax.Array


@flax.struct.dataclass
class Ema:
    """Exponential moving averages of parameters and statistics."""

    params: Arrays
    statistics: Arrays


# "average" -> CycleSum and "ema" -> Ema, where they are on: nothing where they are off.
Averages = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Averaging:
    """Which averages a run keeps.

    Attributes:
      average_cycles: the first end of a cycle that is added, counted from 1; 0 keeps no sum.
      steps_per_cycle: a cycle ends where this divides the updates made.
      ema_decay: d of ema = d * ema + (1 - d) * params after every update; 0 keeps none.
    """

    average_cycles: int = 0
    steps_per_cycle: int = 1
    ema_decay: float = 0.0

    def start(self, params: Arrays, statistics: Arrays) -> Averages:
        """Return the averages before the first update: empty sums, and the parameters themselves.

        Args:
          params: of the state.
          statistics: of the state.
        """
        averages: Averages = {}
        if self.average_cycles:
            one = CycleSum(params, statistics, jnp.ones((), jnp.int32))
            averages[AVERAGE] = jax.tree.map(jnp.zeros_like, one)
        if self.ema_decay:
            # Copies: the update donates each array of the state on its own.
            averages[EMA] = Ema(*jax.tree.map(jnp.copy, (params, statistics)))
        return averages

    def update(
        self, averages: Averages, done: jax.Array, params: Arrays, statistics: Arrays
    ) -> Averages:
        """Return the averages after an update.

        Args:
          averages: before it.
          done: int32[], updates made, this one included.
          params: after it.
          statistics: after it.
        """
        updated: Averages = {}
        if self.average_cycles:
            at_end = done % self.steps_per_cycle == 0
            counts = at_end & (done // self.steps_per_cycle >= self.average_cycles)
            new = CycleSum(params, statistics, jnp.ones((), jnp.int32))
            updated[AVERAGE] = jax.lax.cond(
                counts,
                lambda old, new: jax.tree.map(jnp.add, old, new),
                lambda old, new: old,
                averages[AVERAGE],
                new,
            )
        if self.ema_decay:
            # Both factors rounded once, from their exact values.
            keep, take = np.float32(self.ema_decay), np.float32(1 - self.ema_decay)
            updated[EMA] = jax.tree.map(
                lambda old, new: keep * old + take * new, averages[EMA], Ema(params, statistics)
            )
        return updated


NO_AVERAGES = Averaging()


def averaged(averages: Averages, kind: str) -> tuple[Arrays, Arrays]:
    """Return averaged parameters and statistics.

    Args:
      averages: which hold this kind.
      kind: "average" or "ema".

    Returns:
      float32 parameters and statistics; NaN where no end of a cycle has been added yet.
    """
    found = averages[kind]
    if kind == EMA:
        return found.params, found.statistics
    count = found.count.astype(jnp.float32)
    return jax.tree.map(lambda leaf: leaf / count, (found.params, found.statistics))
