"""The train step, sharded over the devices: here the learning rate is read, applied, returned."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from trainer.devices import DATA_AXIS
from trainer.step.accumulation import loops_are_fast, sum_in_loop, sums_in_turn
from trainer.step.augmentation import Augmentation
from trainer.step.averages import NO_AVERAGES, Averaging
from trainer.step.examples import REPLICATED, Examples, specs, take
from trainer.step.functional import Arrays, Network
from trainer.step.randomness import augmentation_keys, dropout_key
from trainer.step.reductions import ALL_REDUCE, TREE, all_reduce_sum, tree_sum
from trainer.step.shard_programs import ShardPrograms, create_shard_programs
from trainer.step.state import TrainState

Metrics = dict[str, jax.Array]
# Of gradient, statistics and metrics, over a shard; or their means over the batch.
_Sums = tuple[optax.Params, Arrays, Metrics]


@dataclasses.dataclass(frozen=True)
class TwoPrograms:
    """A train step whose gradient and update are programs of their own, at any of jax's stages.

    Attributes:
      gradient: (state, examples, batches) -> (grads, statistics, metrics).
      update: (state, grads, statistics) -> (state, applied); the state is donated.
    """

    gradient: Any
    update: Any

    def __call__(
        self, state: TrainState, examples: Examples, batches: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Take one step; see `create_train_step`."""
        grads, statistics, metrics = self.gradient(state, examples, batches)
        state, applied = self.update(state, grads, statistics)
        return state, metrics | applied

    def lower(self, state: TrainState, examples: Examples, batches: Any) -> "TwoPrograms":
        """Return both programs lowered for arguments of these shapes, as jax.stages does."""
        gradient = self.gradient.lower(state, examples, batches)
        grads, statistics, _ = gradient.out_info
        return TwoPrograms(gradient, self.update.lower(state, grads, statistics))

    def compile(self) -> "TwoPrograms":
        """Return both lowered programs compiled, as jax.stages does."""
        return TwoPrograms(self.gradient.compile(), self.update.compile())

    def parts(self) -> dict[str, Any]:
        """Return the programs by name."""
        apart = isinstance(self.gradient, ShardPrograms)
        gradient = self.gradient.parts() if apart else {"gradient": self.gradient}
        return {**gradient, "update": self.update}


def create_train_step(
    network: Network,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    *,
    seed: int = 0,
    reduction: str = ALL_REDUCE,
    gradient_shards: int = 8,
    momentum_schedule: optax.Schedule | None = None,
    averaging: Averaging = NO_AVERAGES,
    augmentation: Augmentation | None = None,
    label_smoothing: float = 0.0,
    accumulation_steps: int = 1,
    placement: str = REPLICATED,
) -> jax.stages.Wrapped | TwoPrograms:
    """Return the jitted train step over all devices of the mesh.

    The step computes, with g the mean gradient over the whole global batch,

        lr = schedule(state.step);  direction, opt_state = tx(g);  params -= lr * direction

    Args:
      network: the network.
      tx: the optimizer, without a learning rate.
      schedule: step -> learning rate.
      mesh: the devices, one axis "data".
      seed: of the random layers of the network, if it has any, and of the augmentation.
      reduction: "allreduce", or "tree": the same bits on every number of devices.
      gradient_shards: with "tree", the equal parts of a batch whose gradients are added, a power
        of two that the number of devices divides and that divides B.
      momentum_schedule: step -> momentum, if `tx` takes it as an argument of its update.
      averaging: which averages the state holds.
      augmentation: of the images of a batch; None: they are trained on as they are.
      label_smoothing: the part a of a label, 0 <= a < 1, that is spread evenly over the K classes:
        the target is (1 - a) * one_hot + a / K (Szegedy et al. 2016, section 7).
      accumulation_steps: equal pieces of a device's part of a batch whose gradients are computed
        one after the other; see `accumulation.check_accumulation`.
      placement: whether all devices hold the same examples ("replicated"), or each its own rows,
        see `examples.specs`.

    Returns:
      train_step(state, examples, batches) -> (state, metrics), with `lower` and `compile` as
      jax.jit gives them. `state` is replicated and donated: the argument is gone after the call.
      `examples` is the replicated training split. `batches` is int32[steps_per_epoch, B], the
      batches of the epoch that state.step lies in, its axis 1 cut over the devices. If each device
      holds its own rows, `examples` are those of one batch, and `batches` is int32[1, B], the
      places of a device's shards among its rows. The metrics
      are float32 scalars: "loss" (of smoothed labels, if they are) and "accuracy" (a fraction) of
      the batch before the update, and "learning_rate", and "momentum" if it has a schedule: those
      that were applied.
    """
    gradients = shard_gradients(
        network,
        mesh,
        seed=seed,
        reduction=reduction,
        gradient_shards=gradient_shards,
        augmentation=augmentation,
        label_smoothing=label_smoothing,
        accumulation_steps=accumulation_steps,
    )
    add_up = tree_sum if reduction == TREE else all_reduce_sum
    shards_per_device, built_in = gradients.per_device, gradients.built_in

    def mean(sums: list[_Sums], num_examples: int) -> _Sums:
        grads, statistics, metrics = add_up(sums)
        return (
            _scale(grads, 1 / num_examples),
            _scale(statistics, 1 / (shards_per_device * mesh.size)),
            _scale(metrics, 1 / num_examples),
        )

    def gradient(state: TrainState, examples: Examples, batches: jax.Array) -> _Sums:
        shards = gradients.select(state.step, batches)
        of_shard = partial(gradients.of_shard, state, examples)
        if accumulation_steps > 1 and reduction == ALL_REDUCE and loops_are_fast(mesh):
            sums = sum_in_loop(of_shard, shards)
        else:
            sums = sums_in_turn(of_shard, shards, accumulation_steps)
        return mean(sums, batches.shape[1] * mesh.size)

    update = partial(_update, tx, schedule, momentum_schedule, averaging)

    def train_step(
        state: TrainState, examples: Examples, batches: jax.Array
    ) -> tuple[TrainState, Metrics]:
        grads, statistics, metrics = gradient(state, examples, batches)
        state, applied = update(state, grads, statistics)
        return state, metrics | applied

    def over_devices(function: Callable, *in_specs: Any, donate: tuple[int, ...]) -> Any:
        # A lax.scan whose carry begins with zeros, such as that of nnx.RNN, is no function of
        # values that vary over the devices, as the types would have it.
        mapped = jax.shard_map(
            function, mesh=mesh, in_specs=in_specs, out_specs=P(), check_vma=built_in
        )
        return jax.jit(mapped, donate_argnums=donate)

    data_specs = specs(placement), P(None, DATA_AXIS)
    if reduction == TREE:
        # In one program with the sums, XLA:CPU would fuse the update with them, and contract
        # multiplications and additions differently on one device than on several.
        return TwoPrograms(
            over_devices(gradient, P(), *data_specs, donate=())
            if built_in
            else create_shard_programs(gradients.select, gradients.of_shard, mean, mesh, placement),
            over_devices(update, P(), P(), P(), donate=(0,)),
        )
    return over_devices(train_step, P(), *data_specs, donate=(0,))


@dataclasses.dataclass(frozen=True)
class ShardGradients:
    """The shards of a batch that a device computes one by one; inside `jax.shard_map`.

    Attributes:
      per_device: shards of a device.
      select: (step, batches) -> for each shard of this device its indices and its number.
      of_shard: (state, examples, indices, number) -> gradient, statistics and metrics, summed
        over the shard.
      built_in: whether all of it is the trainer's own code.
    """

    per_device: int
    select: Callable[[jax.Array, jax.Array], list[tuple[jax.Array, jax.Array]]]
    of_shard: Callable[[TrainState, Examples, jax.Array, jax.Array], _Sums]
    built_in: bool


def shard_gradients(
    network: Network,
    mesh: Mesh,
    *,
    seed: int,
    reduction: str,
    gradient_shards: int,
    augmentation: Augmentation | None = None,
    label_smoothing: float = 0.0,
    accumulation_steps: int = 1,
) -> ShardGradients:
    """Return how a device computes the gradients of its shards of a batch.

    Args:
      network: see `create_train_step`, and so the others.
      mesh: the devices.
      seed: of the random layers.
      reduction: "tree", or "allreduce", with as many shards on a device as there are pieces.
      gradient_shards: of the tree.
      augmentation: or None.
      label_smoothing: 0 <= label_smoothing < 1.
      accumulation_steps: pieces.
    """
    per_device = gradient_shards // mesh.size if reduction == TREE else accumulation_steps
    # Its own jit: traced once, however many shards there are.
    gradient_sum = jax.jit(partial(_gradient_sum, network, label_smoothing))

    def select(step: jax.Array, batches: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        indices = batches[step % len(batches)]
        first = jax.lax.axis_index(DATA_AXIS) * per_device
        shards = jnp.split(indices, per_device)
        return [(shard, first + i) for i, shard in enumerate(shards)]

    def of_shard(
        state: TrainState, examples: Examples, indices: jax.Array, number: jax.Array
    ) -> _Sums:
        augment = None
        if augmentation is not None:
            places = number * len(indices) + jnp.arange(len(indices), dtype=jnp.int32)
            augment = partial(augmentation, augmentation_keys(seed, state.step, places))
        batch = take(examples, indices, augment)
        return gradient_sum(state, *batch, dropout_key(seed, state.step, number))

    built_in = network.built_in and (augmentation is None or augmentation.built_in)
    return ShardGradients(per_device, select, of_shard, built_in)


def _gradient_sum(
    network: Network,
    label_smoothing: float,
    state: TrainState,
    inputs: jax.Array,
    labels: jax.Array,
    key: jax.Array,
) -> _Sums:
    """Return gradient and metrics of the loss, summed over a shard, and its new statistics."""

    def loss_fn(params: optax.Params) -> tuple[jax.Array, tuple[Arrays, jax.Array]]:
        logits, statistics = network.apply_in_training(params, state.statistics, inputs, key)
        losses = _losses(logits, labels, label_smoothing)
        correct = (logits.argmax(-1) == labels).sum(dtype=jnp.float32)
        return losses.sum(), (statistics, correct)

    # The gradient with respect to replicated parameters would come out summed over the devices
    # already, and the sum that follows would then be N times too large. Marked as varying, the
    # parameters give each device the gradient of its own part.
    params = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, DATA_AXIS, to="varying"), state.params)
    (loss, (statistics, correct)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return grads, statistics, {"loss": loss, "accuracy": correct}


def _losses(logits: jax.Array, labels: jax.Array, label_smoothing: float) -> jax.Array:
    """Return the cross-entropy of each example."""
    if not label_smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(one_hot, label_smoothing))


def _update(
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    momentum_schedule: optax.Schedule | None,
    averaging: Averaging,
    state: TrainState,
    grads: optax.Params,
    statistics: Arrays,
) -> tuple[TrainState, Metrics]:
    """Return the state after one step along the optimizer's direction, and the rates applied."""
    learning_rate = schedule(state.step)
    momentum = {} if momentum_schedule is None else {"momentum": momentum_schedule(state.step)}
    direction, opt_state = tx.update(grads, state.opt_state, state.params, **momentum)
    params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, direction)
    done = state.step + 1
    averages = averaging.update(state.averages, done, params, statistics)
    return (
        TrainState(done, params, statistics, opt_state, averages),
        {"learning_rate": learning_rate} | momentum,
    )


def _scale(tree: Any, factor: float) -> Any:
    """Multiply every leaf."""
    return jax.tree.map(lambda leaf: leaf * factor, tree)
