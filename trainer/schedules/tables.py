"""Functions of the step that are read from tables made in float64, with the same bits everywhere.

XLA divides by a constant by multiplying with its rounded reciprocal, has its own pow and exp, and
fuses a product into the addition that reads it; which of these happens depends on the program
around. So a step only looks up, multiplies and adds, in a form that leaves no choice.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

_SMALLEST = np.finfo(np.float32).smallest_normal
_LOWEST = np.finfo(np.float32).min


def rise_and_fall(steps_per_cycle: int, cycle_up_fraction: float) -> tuple[int, int]:
    """Return in how many steps a cycle goes from valley to peak, and at which pace it comes back.

        rise = cycle_up_fraction * steps_per_cycle, rounded, halves up
        fall = steps_per_cycle - rise;  with cycle_up_fraction = 0.5: fall = rise

    Both are at least 1. With equal halves an odd cycle has one step less to fall, and falls at the
    pace of the rise.

    Args:
      steps_per_cycle: >= 2.
      cycle_up_fraction: 0 <= fraction < 1.

    Returns:
      The step of the cycle at which the peak is, and the steps that a whole fall would take.
    """
    rise = min(max(math.floor(cycle_up_fraction * steps_per_cycle + 0.5), 1), steps_per_cycle - 1)
    return rise, rise if cycle_up_fraction == 0.5 else steps_per_cycle - rise


def triangle(
    valley: float, peak: float, steps_per_cycle: int, cycle_up_fraction: float
) -> np.ndarray:
    """Return one cycle of straight lines from `valley` to `peak` and back.

    Args:
      valley: value at step 0 of the cycle.
      peak: value at step `rise` of the cycle; it may be below the valley.
      steps_per_cycle: see `rise_and_fall`.
      cycle_up_fraction: see `rise_and_fall`.

    Returns:
      float64[steps_per_cycle].
    """
    rise, fall = rise_and_fall(steps_per_cycle, cycle_up_fraction)
    cycle_step = np.arange(steps_per_cycle, dtype=np.float64)
    rising = valley + cycle_step / rise * (peak - valley)
    falling = peak - (cycle_step - rise) / fall * (peak - valley)
    return np.where(cycle_step < rise, rising, falling)


def periodic(cycle: np.ndarray) -> optax.Schedule:
    """Return the function that repeats one cycle for ever, rounded once to float32.

    Args:
      cycle: float64[steps_per_cycle].

    Returns:
      count -> float32[...], `count` an int or an integer array, 0 <= count < 2**31.
    """
    table = _rounded(cycle)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        # The remainder is taken before anything else: integers are exact at any size, and no
        # product is formed that could leave int32.
        return jnp.asarray(table)[count % len(table)]  # type: ignore[operator]

    return schedule


def decaying(valley: float, height: np.ndarray, log2_ratio: float) -> optax.Schedule:
    """Return a function whose height above the valley shrinks by a constant ratio every cycle.

        value = valley + height[count % T] * 2**(log2_ratio * (count // T)),  T = len(height)

    The power comes from two tables, over the cycles in a block and over the blocks, each as long
    as the square root of the number of cycles that it takes to vanish. Below 2**-126, where some
    devices lose digits and others do not, a product is 0. The first cycle is a table of its own,
    rounded once, so that it goes exactly to its peak.

    Args:
      valley: the value that remains.
      height: float64[T], positive or negative.
      log2_ratio: log2 of the ratio of a cycle to the one before it, <= 0; -1 halves, and is exact.

    Returns:
      count -> float32[...], `count` an int or an integer array, 0 <= count < 2**31.
    """
    period = len(height)
    first_cycle, heights = _rounded(valley + height), _rounded(height)
    cycles_to_vanish = 126 / -log2_ratio if log2_ratio else math.inf
    block = math.isqrt(math.ceil(min(cycles_to_vanish, 2**31 / period))) + 1
    powers = _rounded(np.exp2(log2_ratio * np.arange(block)))
    powers_of_blocks = np.exp2(log2_ratio * block * np.arange(block))
    powers_of_blocks = _rounded(np.append(powers_of_blocks, 0))

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        cycle, cycle_step = count // period, count % period  # type: ignore[operator]
        power = _product(
            jnp.asarray(powers_of_blocks)[jnp.minimum(cycle // block, block)],
            jnp.asarray(powers)[cycle % block],
        )
        later = np.float32(valley) + _product(jnp.asarray(heights)[cycle_step], power)
        return jnp.where(cycle == 0, jnp.asarray(first_cycle)[cycle_step], later)

    return schedule


def _rounded(table: np.ndarray) -> np.ndarray:
    """Return a float64 table in float32; what is below the normal numbers is 0, see `decaying`."""
    return np.where(np.abs(table) < _SMALLEST, 0, table).astype(np.float32)


def _product(one: jax.Array, other: jax.Array) -> jax.Array:
    """Return one * other as a number that no compiler fuses into an addition; 0 if it is tiny.

    A product that is added may become a fused multiply-add, with other bits, in one program and
    not in another. A maximum cannot; that with the lowest number of all changes nothing.
    """
    product = jnp.maximum(one * other, _LOWEST)
    return jnp.where(jnp.abs(product) < _SMALLEST, np.float32(0), product)
