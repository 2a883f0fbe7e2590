"""From sums over parts of a batch to the mean over the whole of it, across the devices."""

import logging
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from trainer.devices import DATA_AXIS, platform_of
from trainer.errors import UsageError

AUTO, TREE, ALL_REDUCE = "auto", "tree", "allreduce"

# Smaller leaves travel together: below this, an exchange costs more than what it moves.
_SMALL_LEAF = 2**16

# The shards of a batch when nobody says: at least so many, of at most about so many examples.
_FEWEST_SHARDS, _SHARD_EXAMPLES = 8, 16

logger = logging.getLogger(__name__)


def choose_reduction(
    reduction: str, gradient_shards: int, batch_size: int, mesh: Mesh
) -> tuple[str, int]:
    """Return the reduction that a run uses, "tree" or "allreduce", and its gradient shards.

    Args:
      reduction: what is asked for; "auto": the tree on CPU where it applies, else allreduce.
      gradient_shards: equal parts of a batch, the leaves of the tree, a power of two; 0 chooses
        them by the batch alone, so that the choice is the same on all devices.
      batch_size: global batch size.
      mesh: the devices.

    Raises:
      UsageError: "tree" is asked for, and devices or batch do not fit the shards.
    """
    gradient_shards = gradient_shards or _choose_gradient_shards(batch_size)
    obstacle = _find_obstacle(gradient_shards, batch_size, mesh)
    if reduction == TREE and obstacle:
        raise UsageError(
            f"--reduction=tree (asked for, or of the run in the workdir): {obstacle}; or "
            "--reduction=allreduce, whose last bits depend on the number of devices (for a run "
            "that has begun together with --allow_config_change=reduction)"
        )
    if reduction == AUTO:
        on_cpu = platform_of(mesh) == "cpu"
        if on_cpu and obstacle:
            logger.info("--reduction=auto takes allreduce, not tree: %s", obstacle)
        # On GPU and TPU it has not been measured.
        reduction = TREE if on_cpu and not obstacle else ALL_REDUCE
    return reduction, gradient_shards


def _choose_gradient_shards(batch_size: int) -> int:
    """Return the fewest shards that are small enough to be fast; powers of two that divide it."""
    shards = _FEWEST_SHARDS
    while batch_size > _SHARD_EXAMPLES * shards and batch_size % (2 * shards) == 0:
        shards *= 2
    return shards


def _find_obstacle(gradient_shards: int, batch_size: int, mesh: Mesh) -> str:
    """Say why the tree cannot be used and what would be valid; empty if it can."""
    if mesh.size.bit_count() != 1 or gradient_shards % mesh.size:
        powers = [str(2**i) for i in range(gradient_shards.bit_length())]
        return (
            f"{mesh.size} devices cannot share --gradient_shards={gradient_shards} equally; use "
            f"--num_devices={' or '.join(powers)}"
        )
    rest = batch_size % gradient_shards
    if rest:
        fitting = [
            size for size in (batch_size - rest, batch_size - rest + gradient_shards) if size
        ]
        return (
            f"--batch_size={batch_size} cannot be cut into --gradient_shards={gradient_shards} "
            f"equal parts; use a multiple of {gradient_shards}, such as "
            f"{' or '.join(map(str, fitting))}"
        )
    return ""


def all_reduce_sum(parts: Sequence[Any]) -> Any:
    """Return the sum over the batch; its last bits depend on the number of devices.

    Args:
      parts: pytrees of float32 sums over pieces of this device's part of the batch.

    Returns:
      A pytree like parts[0], the same on every device.
    """
    return jax.lax.psum(reduce(partial(jax.tree.map, jnp.add), parts), DATA_AXIS)


def tree_sum(parts: Sequence[Any]) -> Any:
    """Return the sum over the batch, the same bits on every number of devices.

    The shards of a batch are the leaves of one binary tree of additions, whoever holds them:

        ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))

    A device adds up the subtree of its own shards; `_add_devices` adds what is above. Scale the
    sum, not the parts: between additions, only a power of two would leave the bits alone.

    Args:
      parts: pytrees of float32 sums over this device's shards, in order; a power of two of them.

    Returns:
      A pytree like parts[0], the same on every device.
    """
    leaves, structure = jax.tree.flatten(_add_pairwise(parts))
    packed, unpack = ravel_pytree([leaf for leaf in leaves if leaf.size < _SMALL_LEAF])
    small = iter(unpack(_add_devices(packed)))
    sums = [next(small) if leaf.size < _SMALL_LEAF else _add_devices(leaf) for leaf in leaves]
    return jax.tree.unflatten(structure, sums)


def _add_devices(leaf: jax.Array) -> jax.Array:
    """Add the devices' leaves [N, ...] pairwise; all get the whole sum."""
    # No collective adds, because the order of its additions is not ours. Each device gets the
    # same rows of all devices, adds those, and all gather the sums of the rows. That moves less
    # than partners that exchange whole leaves, and gather can promise equal results to the types.
    num_rows, num_devices = len(leaf), jax.lax.axis_size(DATA_AXIS)
    padded = jnp.pad(leaf, [(0, -num_rows % num_devices)] + [(0, 0)] * (leaf.ndim - 1))
    blocks = padded.reshape(num_devices, -1, *leaf.shape[1:])
    blocks = jax.lax.all_to_all(blocks, DATA_AXIS, split_axis=0, concat_axis=0)
    rows = _add_pairwise(list(blocks))
    return jax.lax.all_gather(rows, DATA_AXIS, tiled=True, to="invarying")[:num_rows]


def _add_pairwise(parts: Sequence[Any]) -> Any:
    """Add neighbours until one is left; the number of parts is a power of two."""
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [jax.tree.map(jnp.add, left, right) for left, right in pairs]
    return parts[0]
