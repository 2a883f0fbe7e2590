"""Evaluation of a whole split: every example counted once, on any number of devices."""

import math
from collections.abc import Callable
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
from trainer.step.examples import Examples, take
from trainer.step.functional import Arrays, Ensemble, Network
from trainer.step.train_step import Metrics

# Examples a device takes at once: small enough for the caches of a CPU core.
_EXAMPLES_PER_DEVICE = 125


def create_eval_step(network: Network | Ensemble, mesh: Mesh) -> jax.stages.Wrapped:
    """Return the jitted evaluation step, which adds one batch to running sums.

    Args:
      network: the network.
      mesh: the devices, one axis "data".

    Returns:
      eval_step(params, statistics, examples, indices, sums) -> sums. `indices` is int32[B], cut
      over the devices; an index of -1 fills a batch up and counts nothing. The sums, replicated:
      "loss" float32[], "correct" int32[], "examples" int32[]; start from `zero_sums`.
    """

    def eval_step(
        params: Arrays, statistics: Arrays, examples: Examples, indices: jax.Array, sums: Metrics
    ) -> Metrics:
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

    in_specs = (P(), P(), P(), P(DATA_AXIS), P())
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
    network: Network | Ensemble, mesh: Mesh, params: Arrays, statistics: Arrays, examples: Examples
) -> jax.stages.Lowered:
    """Return the evaluation step, lowered for the batches that `create_evaluate` makes.

    Args:
      network: see `create_evaluate`.
      mesh: see `create_evaluate`.
      params: see `create_evaluate`.
      statistics: see `create_evaluate`.
      examples: see `create_evaluate`.
    """
    everywhere = replicated(mesh)
    size = _EXAMPLES_PER_DEVICE * mesh.size
    indices = jax.ShapeDtypeStruct((size,), np.int32, sharding=sharded(mesh))
    sums = {
        name: jax.ShapeDtypeStruct((), dtype, sharding=everywhere) for name, dtype in _SUMS.items()
    }
    eval_step = create_eval_step(network, mesh)
    return eval_step.lower(params, statistics, examples, indices, sums)


def create_evaluate(
    network: Network | Ensemble, mesh: Mesh, params: Arrays, statistics: Arrays, examples: Examples
) -> Callable[[Arrays, Arrays, Examples], Metrics]:
    """Return the compiled function that evaluates parameters on a split.

    Args:
      network: the network.
      mesh: the devices.
      params: its parameters, or their shapes, dtypes and shardings.
      statistics: its statistics, likewise.
      examples: the split, or its shapes, dtypes and shardings.

    Returns:
      evaluate(params, statistics, examples) -> sums, see `create_eval_step`; it does not wait for
      the devices. sums["examples"] is the size of the split.
    """
    program = lower_eval_step(network, mesh, params, statistics, examples).compile()
    num_examples = examples.labels.shape[0]
    rows = evaluation_batches(num_examples, _EXAMPLES_PER_DEVICE * mesh.size)
    batches = [place(row, sharded(mesh)) for row in rows]
    zeros = zero_sums(replicated(mesh))

    def evaluate(params: Arrays, statistics: Arrays, examples: Examples) -> Metrics:
        sums = zeros
        for indices in batches:
            sums = program(params, statistics, examples, indices, sums)
        return sums

    return evaluate


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
