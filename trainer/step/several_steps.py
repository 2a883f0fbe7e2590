"""Several train steps in one call of the devices."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from trainer.errors import UsageError
from trainer.step.examples import STREAMED, Examples
from trainer.step.reductions import TREE
from trainer.step.state import TrainState
from trainer.step.train_step import Metrics

# Where a step takes less time than the host needs to start it.
_STEPS_PER_CALL = 32


def choose_steps_per_call(
    asked: int, reduction: str, platform: str, placement: str, interval: int
) -> int:
    """Return how many steps a run takes in one call of the devices, at most.

    Args:
      asked: by the user; 0 chooses.
      reduction: "tree" or "allreduce".
      platform: of the devices.
      placement: of the examples: "replicated", "sharded" or "streamed".
      interval: steps, >= 1, after which the host has something to do, such as a test. A number
        that is chosen cuts it into calls of nearly equal length; no call can take more.

    Raises:
      UsageError: more than 1 are asked for together with "tree", or with streamed examples.
    """
    if reduction == TREE and asked > 1:
        raise UsageError(
            f"--steps_per_call={asked} with --reduction=tree: its steps are two programs each; "
            "use --steps_per_call=1, or --reduction=allreduce"
        )
    if placement == STREAMED and asked > 1:
        raise UsageError(
            f"--steps_per_call={asked} with --data_placement=streamed: a call takes the rows of "
            "one step, so that it need not wait for those of others; use --steps_per_call=1, or "
            "--data_placement=sharded"
        )
    one = reduction == TREE or placement == STREAMED
    # XLA:CPU runs convolutions in a loop 17 times slower (jax 0.10.2).
    if asked or one or platform == "cpu":
        return min(asked or 1, interval)
    calls = math.ceil(interval / _STEPS_PER_CALL)
    return math.ceil(interval / calls)


def create_train_steps(
    train_step: jax.stages.Wrapped,
    most: int,
    sharding: NamedSharding,
    *,
    fixed_length: bool = False,
) -> jax.stages.Wrapped:
    """Return the jitted function that takes several train steps in one call.

    The number of steps is an argument, so that one program serves all: the bits of a run do not
    depend on how its steps fall into calls, and a stop anywhere changes nothing.

    Args:
      train_step: of one program, see `create_train_step`.
      most: steps that a call can take, >= 1.
      sharding: of state and metrics.
      fixed_length: whether the loop takes `most` turns, those after `count` without effect. For
        GPUs: of a loop whose length is not known when it is compiled, the host reads the condition
        before every turn.

    Returns:
      train_steps(state, examples, batches, count) -> (state, metrics), for `count` int32[], at most
      `most`, all in the epoch of `batches`. Row i < count of each metric, float32[most], is that of
      the i-th step; the others are 0. `state` is donated.
    """

    def train_steps(
        state: TrainState, examples: Examples, batches: jax.Array, count: jax.Array
    ) -> tuple[TrainState, Metrics]:
        _, shapes = jax.eval_shape(train_step, state, examples, batches)
        rows = {name: jnp.zeros(most, shape.dtype) for name, shape in shapes.items()}

        def body(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, rows = carry
            new, metrics = train_step(state, examples, batches)
            if fixed_length:
                zeros = jax.tree.map(jnp.zeros_like, metrics)
                new, metrics = _select(i < count, (new, metrics), (state, zeros))
            return new, {name: rows[name].at[i].set(metrics[name]) for name in rows}

        return jax.lax.fori_loop(0, most if fixed_length else count, body, (state, rows))

    return jax.jit(train_steps, donate_argnums=(0,), out_shardings=sharding)


def _select(condition: jax.Array, there: Any, otherwise: Any) -> Any:
    """Return one of two pytrees of arrays."""
    return jax.tree.map(partial(jnp.where, condition), there, otherwise)
