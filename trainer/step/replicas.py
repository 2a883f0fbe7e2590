"""Do all devices hold the same bits? What is called replicated is never compared by jax itself."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from trainer.devices import DATA_AXIS, compile_quickly, replicated
from trainer.errors import RunError
from trainer.step.state import TrainState, leaf_name


def create_replica_check(mesh: Mesh, state: TrainState) -> Callable[[TrainState], None]:
    """Return a compiled check that every device holds the same bits of every leaf.

    Each device hashes its own copy; only the hashes, 4 bytes a leaf and device, are compared. A
    hash sees every single flipped bit: bits are weighted with odd numbers, modulo 2**32.

    Args:
      mesh: the devices.
      state: the state, or its shapes, dtypes and shardings.

    Returns:
      check(state), which waits for the state and raises a RunError that names the first leaf and
      device that differ from the majority.
    """
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    if mesh.size == 1:
        return lambda state: None
    program = compile_quickly(lower_replica_hashes(mesh, state), mesh)

    def check(state: TrainState) -> None:
        found = jax.device_get(program(state))
        for name, column in zip(names, found.T, strict=True):
            values, counts = np.unique(column, return_counts=True)
            if len(values) > 1:
                wrong = np.flatnonzero(column != values[counts.argmax()])
                device = mesh.devices.flat[wrong[0]]
                raise RunError(
                    f"the devices hold different bits of {name}: {device} differs from the "
                    "others; the state was not saved; older checkpoints are intact; the same "
                    "command resumes from the newest; if it happens again, leave that device out"
                )

    return check


def lower_replica_hashes(mesh: Mesh, state: TrainState) -> jax.stages.Lowered:
    """Return the program behind the check, lowered: state -> uint32[devices, leaves].

    Args:
      mesh: the devices.
      state: the state, or its shapes, dtypes and shardings.
    """

    def hashes(state: TrainState) -> jax.Array:
        return jnp.stack([bits_hash(leaf) for leaf in jax.tree.leaves(state)])[None]

    # The specification P() hands each device its own copy, unlike any operation outside.
    each = jax.shard_map(hashes, mesh=mesh, in_specs=P(), out_specs=P(DATA_AXIS))
    return jax.jit(each, out_shardings=replicated(mesh)).lower(state)


def bits_hash(leaf: jax.Array) -> jax.Array:
    """Return a uint32[] that changes with every single bit of an array."""
    leaf = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
    # Of 8 bytes it makes two numbers.
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32).ravel()
    weights = 2 * jax.lax.iota(jnp.uint32, bits.size) + 1
    return (bits * weights).sum(dtype=jnp.uint32)
