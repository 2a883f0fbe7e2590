"""Gradient accumulation: a device's part of a batch in pieces, one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from trainer.errors import UsageError


def check_accumulation_steps(
    accumulation_steps: int, shards_per_device: int | None, batch_size: int, num_devices: int
) -> None:
    """Refuse pieces that a device's part of a batch cannot be cut into.

    Args:
      accumulation_steps: pieces, >= 1.
      shards_per_device: gradient shards of a device, or None with all-reduce.
      batch_size: global batch size, which the devices divide.
      num_devices: that train together.

    Raises:
      UsageError: the pieces are no equal parts; the message says what would be.
    """
    whole = shards_per_device or batch_size // num_devices
    if whole % accumulation_steps == 0:
        return
    parts = "gradient shards" if shards_per_device else "examples"
    fitting = [str(n) for n in range(1, whole + 1) if whole % n == 0]
    shown = fitting if len(fitting) <= 8 else [*fitting[:7], "..."]
    raise UsageError(
        f"--accumulation_steps={accumulation_steps} cannot cut the {whole} {parts} of a device "
        f"into equal pieces; use {', '.join(shown)}"
    )


def pieces_in_turn(
    gradient_of: Callable[[jax.Array, jax.Array], Any],
    indices: jax.Array,
    num_pieces: int,
    in_loop: bool,
) -> list[Any]:
    """Return what each piece of a device's examples gives, computed one after the other.

    So the memory that a network needs between its two passes is that of one piece.

    Args:
      gradient_of: (indices int32[b / num_pieces], number int32[] of the piece) -> sums.
      indices: int32[b], the examples of a device.
      num_pieces: divides b.
      in_loop: whether the program holds one piece in a loop, or all of them unrolled.

    Returns:
      The sums of each piece, in order.
    """
    pieces, numbers = indices.reshape(num_pieces, -1), jnp.arange(num_pieces)
    if in_loop and num_pieces > 1:
        rows = jax.lax.map(lambda piece: gradient_of(*piece), (pieces, numbers))
        return [jax.tree.map(lambda row, i=i: row[i], rows) for i in range(num_pieces)]
    sums: list[Any] = []
    for i in range(num_pieces):
        piece = _after(sums[-1], pieces[i]) if sums else pieces[i]
        sums.append(gradient_of(piece, numbers[i]))
    return sums


def _after(sums: Any, indices: jax.Array) -> jax.Array:
    """Return the indices, which nobody can know before the sums are there."""
    # What is independent XLA:CPU would compute side by side, with the memory of all pieces; an
    # optimization_barrier is gone by the time that it puts operations in order.
    infinite = [leaf.ravel()[0] == -jnp.inf for leaf in jax.tree.leaves(sums)]
    return jnp.where(jnp.stack(infinite).all(), -1, indices)
