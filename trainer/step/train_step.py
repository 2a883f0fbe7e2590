"""The train step and the evaluation step, sharded over the devices."""

import dataclasses
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trainer.devices import DATA_AXIS, place
from trainer.errors import UsageError
from trainer.step.networks import scale_pixels
from trainer.step.reductions import ALL_REDUCE, TREE, all_reduce_mean, tree_mean
from trainer.step.state import TrainState

Metrics = dict[str, jax.Array]

# Where a step takes less time than the host needs to start it.
_STEPS_PER_CALL = 32


@flax.struct.dataclass
class Examples:
    """A split of a data set as it lies on every device; batches are indices into it.

    Attributes:
      images: uint8[N, H, W, C].
      labels: int32[N], 0 <= label < num_classes.
      mean: float32[], subtracted from the scaled pixels (0: inputs in [0, 1]).
      std: float32[] > 0, divides them (1: inputs in [0, 1]).
    """

    images: jax.Array
    labels: jax.Array
    mean: jax.Array
    std: jax.Array


def place_examples(
    images: np.ndarray, labels: np.ndarray, mean: float, std: float, sharding: NamedSharding
) -> Examples:
    """Put a split on the devices; see `Examples` for the arguments."""
    arrays = (images, labels, np.array(mean, np.float32), np.array(std, np.float32))
    return Examples(*(place(array, sharding) for array in arrays))


def abstract_examples(
    num_examples: int, image_shape: tuple[int, int, int], sharding: NamedSharding
) -> Examples:
    """Return shapes, dtypes and sharding of a split as jax.ShapeDtypeStruct leaves."""

    def abstract(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return Examples(
        images=abstract((num_examples, *image_shape), jnp.uint8),
        labels=abstract((num_examples,), jnp.int32),
        mean=abstract((), jnp.float32),
        std=abstract((), jnp.float32),
    )


@dataclasses.dataclass(frozen=True)
class _TwoPrograms:
    """A train step whose gradient and update are programs of their own, at any of jax's stages.

    Attributes:
      gradient: (state, examples, batches) -> (grads, metrics).
      update: (state, grads) -> (state, applied); the state is donated.
    """

    gradient: Any
    update: Any

    def __call__(
        self, state: TrainState, examples: Examples, batches: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Take one step; see `create_train_step`."""
        grads, metrics = self.gradient(state, examples, batches)
        state, applied = self.update(state, grads)
        return state, metrics | applied

    def lower(self, state: TrainState, examples: Examples, batches: Any) -> "_TwoPrograms":
        """Return both programs lowered for arguments of these shapes, as jax.stages does."""
        gradient = self.gradient.lower(state, examples, batches)
        grads, _ = gradient.out_info
        return _TwoPrograms(gradient, self.update.lower(state, grads))

    def compile(self) -> "_TwoPrograms":
        """Return both lowered programs compiled, as jax.stages does."""
        return _TwoPrograms(self.gradient.compile(), self.update.compile())


def create_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    reduction: str = ALL_REDUCE,
    gradient_shards: int = 8,
    momentum_schedule: optax.Schedule | None = None,
) -> jax.stages.Wrapped | _TwoPrograms:
    """Return the jitted train step over all devices of the mesh.

    The step computes, with g the mean gradient over the whole global batch,

        lr = schedule(state.step);  direction, opt_state = tx(g);  params -= lr * direction

    Args:
      model: the network.
      tx: the optimizer, without a learning rate.
      schedule: step -> learning rate.
      mesh: the devices, one axis "data".
      reduction: "allreduce", or "tree": the same bits on every number of devices.
      gradient_shards: with "tree", the equal parts of a batch whose gradients are added, a power
        of two that the number of devices divides and that divides B.
      momentum_schedule: step -> momentum, if `tx` takes it as an argument of its update.

    Returns:
      train_step(state, examples, batches) -> (state, metrics), with `lower` and `compile` as
      jax.jit gives them. `state` is replicated and donated: the argument is gone after the call.
      `examples` is the replicated training split. `batches` is int32[steps_per_epoch, B], the
      batches of the epoch that state.step lies in, its axis 1 cut over the devices. The metrics
      are float32 scalars: "loss" and "accuracy" (a fraction) of the batch before the update, and
      "learning_rate", and "momentum" if it has a schedule: those that were applied.
    """
    mean, parts_per_device = all_reduce_mean, 1
    if reduction == TREE:
        mean, parts_per_device = tree_mean, gradient_shards // mesh.size

    def gradient(
        state: TrainState, examples: Examples, batches: jax.Array
    ) -> tuple[optax.Params, Metrics]:
        indices = batches[state.step % len(batches)]
        parts = [
            _gradient_sum(model, state.params, examples, part)
            for part in jnp.split(indices, parts_per_device)
        ]
        return mean(parts, indices.size * mesh.size)

    update = partial(_update, tx, schedule, momentum_schedule)

    def train_step(
        state: TrainState, examples: Examples, batches: jax.Array
    ) -> tuple[TrainState, Metrics]:
        grads, metrics = gradient(state, examples, batches)
        state, applied = update(state, grads)
        return state, metrics | applied

    def over_devices(function: Callable, *in_specs: P, donate: tuple[int, ...]) -> Any:
        mapped = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=P())
        return jax.jit(mapped, donate_argnums=donate)

    batches_spec = P(None, DATA_AXIS)
    if reduction == TREE:
        # In one program with the sums, XLA:CPU would fuse the update with them, and contract
        # multiplications and additions differently on one device than on several.
        return _TwoPrograms(
            over_devices(gradient, P(), P(), batches_spec, donate=()),
            over_devices(update, P(), P(), donate=(0,)),
        )
    return over_devices(train_step, P(), P(), batches_spec, donate=(0,))


def choose_steps_per_call(asked: int, reduction: str, platform: str) -> int:
    """Return how many steps a run takes in one call of the devices, at most.

    Args:
      asked: by the user; 0 chooses.
      reduction: "tree" or "allreduce".
      platform: of the devices.

    Raises:
      UsageError: more than 1 are asked for together with "tree".
    """
    if reduction == TREE and asked > 1:
        raise UsageError(
            f"--steps_per_call={asked} with --reduction=tree: its steps are two programs each; "
            "valid: --steps_per_call=1, or --reduction=allreduce"
        )
    # XLA:CPU runs convolutions in a loop 17 times slower (jax 0.10.2).
    return asked or (1 if reduction == TREE or platform == "cpu" else _STEPS_PER_CALL)


def create_train_steps(
    train_step: jax.stages.Wrapped, most: int, sharding: NamedSharding
) -> jax.stages.Wrapped:
    """Return the jitted function that takes several train steps in one call.

    The number of steps is an argument, so that one program serves all: the bits of a run do not
    depend on how its steps fall into calls, and a stop anywhere changes nothing.

    Args:
      train_step: of one program, see `create_train_step`.
      most: steps that a call can take, >= 1.
      sharding: of state and metrics.

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
            state, metrics = train_step(state, examples, batches)
            return state, {name: rows[name].at[i].set(metrics[name]) for name in rows}

        return jax.lax.fori_loop(0, count, body, (state, rows))

    return jax.jit(train_steps, donate_argnums=(0,), out_shardings=sharding)


def _gradient_sum(
    model: nn.Module, params: optax.Params, examples: Examples, indices: jax.Array
) -> tuple[optax.Params, Metrics]:
    """Return gradient and metrics of the loss, summed over the examples at `indices`."""

    def loss_fn(params: optax.Params) -> tuple[jax.Array, jax.Array]:
        inputs, labels = _take(examples, indices)
        logits = _apply(model, params, inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.sum(), (logits.argmax(-1) == labels).sum(dtype=jnp.float32)

    # The gradient with respect to replicated parameters would come out summed over the devices
    # already, and the sum that follows would then be N times too large. Marked as varying, the
    # parameters give each device the gradient of its own part.
    params = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, DATA_AXIS, to="varying"), params)
    (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return grads, {"loss": loss, "accuracy": accuracy}


def _update(
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    momentum_schedule: optax.Schedule | None,
    state: TrainState,
    grads: optax.Params,
) -> tuple[TrainState, Metrics]:
    """Return the state after one step along the optimizer's direction, and the rates applied."""
    learning_rate = schedule(state.step)
    momentum = {} if momentum_schedule is None else {"momentum": momentum_schedule(state.step)}
    direction, opt_state = tx.update(grads, state.opt_state, state.params, **momentum)
    params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, direction)
    state = TrainState(step=state.step + 1, params=params, opt_state=opt_state)
    return state, {"learning_rate": learning_rate} | momentum


def create_eval_step(model: nn.Module, mesh: Mesh) -> jax.stages.Wrapped:
    """Return the jitted evaluation step, which adds one batch to running sums.

    Args:
      model: the network.
      mesh: the devices, one axis "data".

    Returns:
      eval_step(params, examples, indices, sums) -> sums. `indices` is int32[B], cut over the
      devices; an index of -1 fills a batch up and counts nothing. The sums, replicated: "loss"
      float32[], "correct" int32[], "examples" int32[]; start from `zero_sums`.
    """

    def eval_step(
        params: optax.Params, examples: Examples, indices: jax.Array, sums: Metrics
    ) -> Metrics:
        counts = indices >= 0
        inputs, labels = _take(examples, jnp.maximum(indices, 0))
        logits = _apply(model, params, inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        batch = {
            "loss": jnp.where(counts, losses, 0).sum(),
            "correct": (counts & (logits.argmax(-1) == labels)).sum(dtype=jnp.int32),
            "examples": counts.sum(dtype=jnp.int32),
        }
        # One after the other, in the order of the examples: the same bits on any number of devices.
        parts = jax.lax.all_gather(batch, DATA_AXIS, to="invarying")
        return jax.tree.map(lambda total, part: reduce(jnp.add, part, total), sums, parts)

    return jax.jit(
        jax.shard_map(eval_step, mesh=mesh, in_specs=(P(), P(), P(DATA_AXIS), P()), out_specs=P())
    )


def zero_sums(sharding: NamedSharding) -> Metrics:
    """Return the sums of an evaluation before its first batch."""
    dtypes = {"loss": np.float32, "correct": np.int32, "examples": np.int32}
    return {name: place(np.zeros((), dtype), sharding) for name, dtype in dtypes.items()}


def _take(examples: Examples, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return inputs float32[B, H, W, C] and labels int32[B] of the examples at `indices`."""
    # Every index was made from the size of the split: no clamping in the hot loop.
    images = examples.images.at[indices].get(mode="promise_in_bounds")
    labels = examples.labels.at[indices].get(mode="promise_in_bounds")
    return scale_pixels(images, examples.mean, examples.std), labels


def _apply(model: nn.Module, params: optax.Params, inputs: jax.Array) -> jax.Array:
    """Return the logits; linen's `apply` is typed for models that also return variables."""
    return cast(jax.Array, model.apply({"params": params}, inputs))
