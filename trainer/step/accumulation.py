"""The gradient of a device's part of a batch in pieces, one after the other: less memory."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from trainer.devices import DATA_AXIS, platform_of
from trainer.errors import UsageError
from trainer.step.reductions import TREE

# int32[b], examples of a shard, and int32[], its number in the batch.
Shard = tuple[jax.Array, jax.Array]
# Sums over a shard: gradient, statistics, metrics.
Sums = Any


def check_accumulation(
    accumulation_steps: int, reduction: str, gradient_shards: int, batch_size: int, mesh: Mesh
) -> None:
    """Check that each device's part of a batch can be cut into so many pieces.

    Args:
      accumulation_steps: pieces, >= 1.
      reduction: "tree", whose pieces are of whole gradient shards, or "allreduce".
      gradient_shards: of a batch, with "tree".
      batch_size: global batch size.
      mesh: the devices, whose number divides both.

    Raises:
      UsageError: it cannot; the message names what would be valid.
    """
    tree = reduction == TREE
    size = (gradient_shards if tree else batch_size) // mesh.size
    if size % accumulation_steps == 0:
        return
    what = f"{size} gradient shards" if tree else f"{size} examples"
    fitting = [n for n in range(1, size + 1) if size % n == 0]
    shown = ", ".join(map(str, fitting[:8])) + (", ..." if len(fitting) > 8 else "")
    raise UsageError(
        f"--accumulation_steps={accumulation_steps} cannot cut the {what} that each of "
        f"{mesh.size} devices has of a batch into equal pieces; use one of {shown} (for a run that "
        "has begun together with --allow_config_change=accumulation_steps)"
    )


def sums_in_turn(
    function: Callable[[jax.Array, jax.Array], Sums], shards: Sequence[Shard], pieces: int
) -> list[Sums]:
    """Return the sums of each shard, those of a piece after those of the piece before.

    Unrolled, as XLA:CPU runs convolutions in a loop many times slower.

    Args:
      function: a shard -> its sums.
      shards: of a device.
      pieces: the number of shards is a multiple of it.
    """
    sums: list[Sums] = []
    for i, (indices, number) in enumerate(shards):
        if i and i % (len(shards) // pieces) == 0:
            indices = indices + _zero_after(sums[-1])
        sums.append(function(indices, number))
    return sums


def sum_in_loop(
    function: Callable[[jax.Array, jax.Array], Sums], shards: Sequence[Shard]
) -> list[Sums]:
    """Return the sum over all shards, which a loop adds up one by one, as the only one of a list.

    Args:
      function: a shard -> its sums.
      shards: of a device, of equal length.
    """
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *shards)
    shapes = jax.eval_shape(function, *shards[0])
    zeros = jax.tree.map(
        lambda leaf: jax.lax.pcast(jnp.zeros(leaf.shape, leaf.dtype), DATA_AXIS, to="varying"),
        shapes,
    )

    def add(total: Sums, shard: Shard) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, total, function(*shard)), None

    return [jax.lax.scan(add, zeros, stacked)[0]]


def loops_are_fast(mesh: Mesh) -> bool:
    """Return whether convolutions in a loop run as fast as outside."""
    return platform_of(mesh) != "cpu"


def _zero_after(sums: Sums) -> jax.Array:
    """Return int32[] zero that is known when all of some sums are, and not before.

    XLA:CPU drops jax.lax.optimization_barrier before it decides on an order, and then keeps the
    temporary memory of all pieces. It cannot know that 0 * x is 0: x may be NaN.
    """
    firsts = [leaf.reshape(-1)[0] for leaf in jax.tree.leaves(sums)]
    return sum((0 * first for first in firsts), jnp.float32(0)).astype(jnp.int32)
