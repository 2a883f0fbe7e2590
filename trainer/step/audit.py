"""Do the devices compute the same gradient? A device may compute wrongly and never fail."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from trainer.devices import DATA_AXIS, place, replicated
from trainer.errors import RunError
from trainer.step.accumulation import sums_in_turn
from trainer.step.examples import REPLICATED, SHARDED, Examples, specs
from trainer.step.exchange import fetch
from trainer.step.replicas import bits_hash
from trainer.step.state import TrainState, leaf_name
from trainer.step.train_step import ShardGradients

Audit = Callable[[TrainState, Examples, jax.Array], None]


def create_audit(lowered: jax.stages.Lowered, state: TrainState, mesh: Mesh) -> Audit:
    """Return a compiled check that neighbours compute the same gradients.

    Each device computes the gradient of its own part of a batch, then the next device's part, by
    the same program. Hashes are compared, 4 bytes for each leaf, shard and device. The replica
    check cannot see this: a wrong gradient reaches all replicas alike.

    Args:
      lowered: see `lower_audit`.
      state: the state, or its shapes, dtypes and shardings.
      mesh: the devices.

    Returns:
      audit(state, examples, batches), which waits for the devices and raises a RunError that names
      step, leaf and devices if two of them differ. The batch is that of state.step.
    """
    program, names = lowered.compile(), _leaf_names(state)
    # On the devices already: nothing is transferred in the loop.
    turns = [place(np.array(turn), replicated(mesh)) for turn in (False, True)]

    def audit(state: TrainState, examples: Examples, batches: jax.Array) -> None:
        found = [program(state, examples, batches, turn) for turn in turns]
        own, by_neighbour, step = jax.device_get((*found, state.step))
        # Device i computed the part of device i + 1.
        differs = (own != np.roll(by_neighbour, 1, axis=0)).any(axis=1)
        if differs.any():
            raise _describe(int(step), differs, names, mesh)

    return audit


def lower_audit(
    gradients: ShardGradients,
    mesh: Mesh,
    state: TrainState,
    examples: Examples,
    batches: Any,
    *,
    placement: str = REPLICATED,
    accumulation_steps: int = 1,
) -> jax.stages.Lowered:
    """Return the program behind the audit, lowered.

    Args:
      gradients: of the shards of a device.
      mesh: the devices, at least two.
      state: shapes, dtypes and shardings.
      examples: of those of the train step, likewise.
      batches: likewise.
      placement: where the examples lie, see `examples.specs`.
      accumulation_steps: see `train_step.create_train_step`.

    Returns:
      (state, examples, batches, turn bool[]) -> uint32[devices, shards of a device, leaves]: hashes
      of the gradients that each device computed, of its own shards of the batch, or with `turn`
      of the next device's.
    """
    to_the_one_before = [(i, (i - 1) % mesh.size) for i in range(mesh.size)]

    def hashes(
        state: TrainState, examples: Examples, batches: jax.Array, turn: jax.Array
    ) -> jax.Array:
        def own_or_next(leaf: jax.Array) -> jax.Array:
            return jnp.where(turn, jax.lax.ppermute(leaf, DATA_AXIS, to_the_one_before), leaf)

        if placement == SHARDED:
            row = batches[state.step % len(batches)]
            examples, row = fetch(examples, row)
            batches = row[None]
        shards = jax.tree.map(own_or_next, gradients.select(state.step, batches))
        if placement != REPLICATED:
            examples = dataclasses.replace(
                examples, images=own_or_next(examples.images), labels=own_or_next(examples.labels)
            )
        sums = sums_in_turn(
            lambda *shard: gradients.of_shard(state, examples, *shard), shards, accumulation_steps
        )
        return jnp.stack(
            [jnp.stack([bits_hash(leaf) for leaf in jax.tree.leaves(part)]) for part in sums]
        )[None]

    mapped = jax.shard_map(
        hashes,
        mesh=mesh,
        in_specs=(P(), specs(placement), P(None, DATA_AXIS), P()),
        out_specs=P(DATA_AXIS),
        check_vma=gradients.built_in,
    )
    turn = jax.ShapeDtypeStruct((), np.bool_, sharding=replicated(mesh))
    program = jax.jit(mapped, out_shardings=replicated(mesh))
    return program.lower(state, examples, batches, turn)


def _leaf_names(state: TrainState) -> list[str]:
    """Return what the leaves of the sums over a shard are called."""
    names = [f"the gradient of {name}" for name in _names(state.params)]
    names += [f"the statistics {name}" for name in _names(state.statistics)]
    return [*names, "the accuracy", "the loss"]


def _names(tree: Any) -> list[str]:
    """Return the names of the leaves of a pytree."""
    return [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _describe(step: int, differs: np.ndarray, names: list[str], mesh: Mesh) -> RunError:
    """Return what is wrong, in words."""
    parts, leaves = np.nonzero(differs)
    first = parts[0]
    pair = [mesh.devices.flat[first], mesh.devices.flat[(first - 1) % mesh.size]]
    more = len(leaves[parts == first]) - 1
    what = names[leaves[0]] + (f" and {more} more" if more else "")
    wrong = np.flatnonzero(differs.any(axis=1))
    # A device that computes wrongly differs in its own part, and in that of the next one.
    suspects = [i for i in wrong if (i + 1) % mesh.size in wrong and mesh.size > 2]
    who = f"; {mesh.devices.flat[suspects[0]]} is in both pairs that differ" if suspects else ""
    return RunError(
        f"the audit of step {step} found that {pair[0]} and {pair[1]} compute other bits of {what} "
        f"from the same examples{who}; nothing was saved since, older checkpoints are intact; the "
        "same command resumes from the newest; if it happens again, leave that device out"
    )
