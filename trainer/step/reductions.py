"""From sums over parts of a batch to the mean over the whole of it, across the devices."""

import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from trainer.devices import DATA_AXIS
from trainer.errors import UsageError

AUTO, TREE, ALL_REDUCE = "auto", "tree", "allreduce"

# Smaller leaves travel together: below this, an exchange costs more than what it moves.
_SMALL_LEAF = 2**16

# Measured on 2 cores, one device a core (README, Devices): with shards of 16 examples the tree was
# 3 % slower than the platform's sum, with shards of 8 a quarter.
_SMALLEST_FAST_SHARD = 16

logger = logging.getLogger(__name__)


def choose_reduction(reduction: str, gradient_shards: int, batch_size: int, mesh: Mesh) -> str:
    """Return the reduction that a run uses, "tree" or "allreduce".

    Args:
      reduction: what is asked for; "auto": the tree on CPU where it applies and is not slower,
        else allreduce.
      gradient_shards: equal parts of a batch, the leaves of the tree; a power of two.
      batch_size: global batch size.
      mesh: the devices.

    Raises:
      UsageError: "tree" is asked for, and devices or batch do not fit the shards.
    """
    obstacle = _find_obstacle(gradient_shards, batch_size, mesh)
    if reduction == TREE and obstacle:
        raise UsageError(
            f"--reduction=tree (asked for, or of the run in the workdir): {obstacle}; or "
            "--reduction=allreduce, whose last bits depend on the number of devices (for a run "
            "that has begun together with --allow_config_change=reduction)"
        )
    if reduction != AUTO:
        return reduction
    # Measured on CPU only (README, Devices).
    if mesh.devices.flat[0].platform != "cpu":
        return ALL_REDUCE
    if not obstacle and batch_size // gradient_shards < _SMALLEST_FAST_SHARD:
        obstacle = f"shards of {batch_size // gradient_shards} examples would be slower"
    if obstacle:
        logger.info("--reduction=auto takes allreduce, not tree: %s", obstacle)
    return ALL_REDUCE if obstacle else TREE


def _find_obstacle(gradient_shards: int, batch_size: int, mesh: Mesh) -> str:
    """Say why the tree cannot be used and what would be valid; empty if it can."""
    if gradient_shards % mesh.size:
        powers = [str(2**i) for i in range(gradient_shards.bit_length())]
        return (
            f"{mesh.size} devices cannot share --gradient_shards={gradient_shards} equally; "
            f"valid: --num_devices={' or '.join(powers)}"
        )
    rest = batch_size % gradient_shards
    if rest:
        fitting = [
            size for size in (batch_size - rest, batch_size - rest + gradient_shards) if size
        ]
        return (
            f"--batch_size={batch_size} cannot be cut into --gradient_shards={gradient_shards} "
            f"equal parts; valid: a multiple of {gradient_shards}, such as "
            f"{' or '.join(map(str, fitting))}"
        )
    return ""


def all_reduce_mean(parts: Sequence[Any], count: int) -> Any:
    """Return the mean over the batch; its last bits depend on the number of devices.

    Args:
      parts: one pytree of float32 sums over this device's part of the batch.
      count: examples in the whole batch.

    Returns:
      A pytree like parts[0], the same on every device.
    """
    (part,) = parts
    return _scale(jax.lax.psum(part, DATA_AXIS), 1 / count)


def tree_mean(parts: Sequence[Any], count: int) -> Any:
    """Return the mean over the batch, the same bits on every number of devices.

    The shards of a batch are the leaves of one binary tree of additions, whoever holds them:

        ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))

    A device adds up the subtree of its own shards; `_add_devices` adds what is above. Scaling
    comes last: between additions, only a power of two would leave the bits alone.

    Args:
      parts: pytrees of float32 sums over this device's shards, in order; a power of two of them.
      count: examples in the whole batch.

    Returns:
      A pytree like parts[0], the same on every device.
    """
    leaves, structure = jax.tree.flatten(_add_pairwise(parts))
    packed, unpack = ravel_pytree([leaf for leaf in leaves if leaf.size < _SMALL_LEAF])
    small = iter(unpack(_add_devices(packed)))
    sums = [next(small) if leaf.size < _SMALL_LEAF else _add_devices(leaf) for leaf in leaves]
    return _scale(jax.tree.unflatten(structure, sums), 1 / count)


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


def _scale(tree: Any, factor: float) -> Any:
    """Multiply every leaf."""
    return jax.tree.map(lambda leaf: leaf * factor, tree)
