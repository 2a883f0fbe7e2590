"""The train step and the evaluation step, sharded over the devices; the only collectives."""

from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trainer.devices import DATA_AXIS
from trainer.models import scale_pixels
from trainer.state import TrainState

Metrics = dict[str, jax.Array]


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
    arrays = (images, labels, np.float32(mean), np.float32(std))
    return Examples(*jax.device_put(arrays, sharding))


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


def create_train_step(
    model: nn.Module, tx: optax.GradientTransformation, schedule: optax.Schedule, mesh: Mesh
) -> jax.stages.Wrapped:
    """Return the jitted train step over all devices of the mesh.

    The step computes, with g the mean gradient over the whole global batch,

        lr = schedule(state.step);  direction, opt_state = tx(g);  params -= lr * direction

    Args:
      model: the network.
      tx: the optimizer, without a learning rate.
      schedule: step -> learning rate.
      mesh: the devices, one axis "data".

    Returns:
      train_step(state, examples, batches) -> (state, metrics). `state` is replicated and donated:
      the argument is gone after the call. `examples` is the replicated training split. `batches`
      is int32[steps_per_epoch, B], the batches of the epoch that state.step lies in, its axis 1
      cut over the devices. The metrics are float32 scalars: "loss" and "accuracy" (a fraction) of
      the batch before the update, and "learning_rate", the one that was applied.
    """

    def train_step(
        state: TrainState, examples: Examples, batches: jax.Array
    ) -> tuple[TrainState, Metrics]:
        indices = batches[state.step % len(batches)]
        grads, metrics = _gradient(model, state.params, examples, indices)
        grads, metrics = _all_reduce((grads, metrics))
        learning_rate = schedule(state.step)
        state = _update(tx, state, grads, learning_rate)
        return state, metrics | {"learning_rate": learning_rate}

    return jax.jit(
        jax.shard_map(
            train_step,
            mesh=mesh,
            in_specs=(P(), P(), P(None, DATA_AXIS)),
            out_specs=(P(), P()),
        ),
        donate_argnums=0,
    )


def _gradient(
    model: nn.Module, params: optax.Params, examples: Examples, indices: jax.Array
) -> tuple[optax.Params, Metrics]:
    """Return gradient and metrics of the mean loss over this device's part of the batch."""

    def loss_fn(params: optax.Params) -> tuple[jax.Array, jax.Array]:
        inputs, labels = _take(examples, indices)
        logits = _apply(model, params, inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (logits.argmax(-1) == labels).mean(dtype=jnp.float32)

    # The gradient with respect to replicated parameters would come out summed over the devices
    # already, and the mean below would then be N times too large. Marked as varying, the
    # parameters give each device the gradient of its own part.
    params = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, DATA_AXIS, to="varying"), params)
    (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return grads, {"loss": loss, "accuracy": accuracy}


def _all_reduce(tree: tuple[optax.Params, Metrics]) -> tuple[optax.Params, Metrics]:
    """Return the mean over the devices; their parts of the batch are equally large."""
    return jax.lax.pmean(tree, DATA_AXIS)


def _update(
    tx: optax.GradientTransformation,
    state: TrainState,
    grads: optax.Params,
    learning_rate: jax.Array,
) -> TrainState:
    """Return the state after one step along the optimizer's direction."""
    direction, opt_state = tx.update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, direction)
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state)


def create_eval_step(model: nn.Module, mesh: Mesh) -> jax.stages.Wrapped:
    """Return the jitted evaluation step, which adds one batch to running sums.

    Args:
      model: the network.
      mesh: the devices, one axis "data".

    Returns:
      eval_step(params, examples, indices, sums) -> sums. `indices` is int32[B], cut over the
      devices; an index of -1 fills a batch up and counts nothing. The sums, replicated: "loss"
      float32[], "correct" int32[], "examples" int32[]; start from `zero_sums()`.
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
        return jax.tree.map(jnp.add, sums, jax.lax.psum(batch, DATA_AXIS))

    return jax.jit(
        jax.shard_map(eval_step, mesh=mesh, in_specs=(P(), P(), P(DATA_AXIS), P()), out_specs=P())
    )


def zero_sums() -> Metrics:
    """Return the sums of an evaluation before its first batch."""
    return {
        "loss": jnp.zeros((), jnp.float32),
        "correct": jnp.zeros((), jnp.int32),
        "examples": jnp.zeros((), jnp.int32),
    }


def _take(examples: Examples, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return inputs float32[B, H, W, C] and labels int32[B] of the examples at `indices`."""
    # Every index was made from the size of the split: no clamping in the hot loop.
    images = examples.images.at[indices].get(mode="promise_in_bounds")
    labels = examples.labels.at[indices].get(mode="promise_in_bounds")
    return scale_pixels(images, examples.mean, examples.std), labels


def _apply(model: nn.Module, params: optax.Params, inputs: jax.Array) -> jax.Array:
    """Return the logits; linen's `apply` is typed for models that also return variables."""
    return cast(jax.Array, model.apply({"params": params}, inputs))
