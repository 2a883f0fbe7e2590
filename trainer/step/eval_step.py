"""Evaluation of a whole split: every example counted once, on any number of devices."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trainer.devices import DATA_AXIS, place, replicated, sharded
from trainer.step.batches import evaluation_batches
from trainer.step.examples import REPLICATED, SHARDED, Examples, specs, take
from trainer.step.exchange import fetch
from trainer.step.functional import Arrays, Ensemble, Network
from trainer.step.train_step import Metrics

# Examples a device takes at once: small enough for the caches of a CPU core.
_EXAMPLES_PER_DEVICE = 125


# Parameters, statistics.
Model = tuple[Arrays, Arrays]
# Examples, and int32[B]: which of them make a batch; see `create_eval_step`.
Batches = Iterable[tuple[Examples, jax.Array]]


def evaluation_batch_size(mesh: Mesh) -> int:
    """Return how many examples all devices together take at once."""
    return _EXAMPLES_PER_DEVICE * mesh.size


def create_eval_step(
    network: Network | Ensemble, mesh: Mesh, placement: str = REPLICATED
) -> jax.stages.Wrapped:
    """Return the jitted evaluation step, which adds one batch to running sums.

    Args:
      network: the network.
      mesh: the devices, one axis "data".
      placement: where the examples lie: "replicated", "sharded" or "streamed".

    Returns:
      eval_step(params, statistics, examples, indices, sums) -> sums. `examples` is the split, of
      which each device has all or a part, or if it is streamed the rows of a batch. `indices` is
      int32[B], cut over the devices, indices into the split or places among a device's rows; -1
      fills a batch up and counts nothing. The sums, replicated: "loss" float32[], "correct"
      int32[], "examples" int32[]; start from `zero_sums`.
    """

    def eval_step(
        params: Arrays, statistics: Arrays, examples: Examples, indices: jax.Array, sums: Metrics
    ) -> Metrics:
        if placement == SHARDED:
            examples, indices = fetch(examples, indices)
        counts = indices >= 0
        inputs, labels = take(examples, jnp.maximum(indices, 0))
        logits = network.apply(params, statistics, inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        batch = {
            "loss": jnp.where(counts, losses, 0).sum(),
            "correct": (counts & (logits.argmax(-1) == labels)).sum(dtype=jnp.int32),
            "examples": counts.sum(dtype=jnp.int32),
        }
        # One after the other, in the order of the examples: the same bits on any number of devices.
        parts = jax.lax.all_gather(batch, DATA_AXIS, to="invarying")
        return jax.tree.map(lambda total, part: reduce(jnp.add, part, total), sums, parts)

    in_specs = (P(), P(), specs(placement), P(DATA_AXIS), P())
    # Unchecked for networks of the user's own: see `create_train_step`.
    mapped = jax.shard_map(
        eval_step, mesh=mesh, in_specs=in_specs, out_specs=P(), check_vma=network.built_in
    )
    return jax.jit(mapped)


_SUMS = {"loss": np.float32, "correct": np.int32, "examples": np.int32}


def zero_sums(sharding: NamedSharding) -> Metrics:
    """Return the sums of an evaluation before its first batch."""
    return {name: place(np.zeros((), dtype), sharding) for name, dtype in _SUMS.items()}


def lower_eval_step(
    network: Network | Ensemble,
    mesh: Mesh,
    params: Arrays,
    statistics: Arrays,
    examples: Examples,
    placement: str = REPLICATED,
) -> jax.stages.Lowered:
    """Return the evaluation step, lowered for batches of `evaluation_batch_size`.

    Args:
      network: see `create_evaluate`.
      mesh: see `create_evaluate`.
      params: see `create_evaluate`.
      statistics: see `create_evaluate`.
      examples: see `create_evaluate`.
      placement: see `create_evaluate`.
    """
    everywhere = replicated(mesh)
    size = evaluation_batch_size(mesh)
    indices = jax.ShapeDtypeStruct((size,), np.int32, sharding=sharded(mesh))
    sums = {
        name: jax.ShapeDtypeStruct((), dtype, sharding=everywhere) for name, dtype in _SUMS.items()
    }
    eval_step = create_eval_step(network, mesh, placement)
    return eval_step.lower(params, statistics, examples, indices, sums)


def create_evaluate(
    network: Network | Ensemble,
    mesh: Mesh,
    params: Arrays,
    statistics: Arrays,
    examples: Examples,
    placement: str = REPLICATED,
) -> Callable[[Sequence[Model], Batches], list[Metrics]]:
    """Return the compiled function that evaluates parameters on a split.

    Args:
      network: the network.
      mesh: the devices.
      params: its parameters, or their shapes, dtypes and shardings.
      statistics: its statistics, likewise.
      examples: those of a batch, see `create_eval_step`; or their shapes, dtypes and shardings.
      placement: where the examples lie.

    Returns:
      evaluate(models, batches) -> for each of the models, which are parameters and statistics,
      its sums over all batches, see `create_eval_step`; it does not wait for the devices.
      sums["examples"] is the size of the split.
    """
    program = lower_eval_step(network, mesh, params, statistics, examples, placement).compile()
    zeros = zero_sums(replicated(mesh))

    def evaluate(models: Sequence[Model], batches: Batches) -> list[Metrics]:
        sums = [zeros for _ in models]
        # Batch by batch: whatever they are read from, each is read once for all models.
        for examples, indices in batches:
            for i, (params, statistics) in enumerate(models):
                sums[i] = program(params, statistics, examples, indices, sums[i])
        return sums

    return evaluate


def batches_of(examples: Examples, num_examples: int, mesh: Mesh) -> Batches:
    """Return the batches of a split that lies on the devices, for `create_evaluate`.

    Args:
      examples: the split, of which each device has all or a part.
      num_examples: its size; what fills up the parts does not count.
      mesh: the devices.
    """
    rows = evaluation_batches(num_examples, evaluation_batch_size(mesh))
    return [(examples, place(row, sharded(mesh))) for row in rows]


def mean_metrics(sums: Any) -> dict[str, Any]:
    """Return loss and accuracy (a fraction) over the examples that an evaluation counted.

    Args:
      sums: loss, correct and examples; and for each kind of averaged parameters that was
        evaluated, too, its name and a dict of its loss and correct.

    Returns:
      loss, accuracy and examples; and for each kind its name and a dict of its loss and accuracy.
      An average over the ends of cycles of which there was none yet is no number, and left out.
    """
    examples = int(sums["examples"])

    def means(of: Any) -> dict[str, Any]:
        return {
            "loss": float(of["loss"]) / examples,
            "accuracy": int(of["correct"]) / examples,
        }

    kinds = {kind: means(of) for kind, of in sums.items() if isinstance(of, dict)}
    known = {kind: found for kind, found in kinds.items() if not math.isnan(found["loss"])}
    return {**means(sums), "examples": examples, **known}
