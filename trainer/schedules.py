"""Learning rates that are a pure function of the step counter."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax


def create_triangular_schedule(
    lr_min: float, lr_max: float, steps_per_cycle: int
) -> optax.Schedule:
    """Return a learning rate that rises and falls in a straight line, cycle after cycle.

        top = (steps_per_cycle + 1) // 2
        cycle_step = count % steps_per_cycle
        lr = lr_min + cycle_step / top * (lr_max - lr_min)          if cycle_step < top
             lr_max - (cycle_step - top) / top * (lr_max - lr_min)  otherwise

    The rate is `lr_min` at step 0 and at every multiple of `steps_per_cycle`, and `lr_max` exactly
    at `top` of every cycle. With an odd `steps_per_cycle` the fall is one step shorter than the
    rise. One cycle is computed in float64, rounded once to float32, and kept as a table; the step
    indexes it. So Python, eager, jit, vmap and every device give the same bits at every step; a
    closed formula in float32 does not (XLA divides by multiplying with a rounded reciprocal, and
    fuses multiply and add).

    Args:
      lr_min: lowest rate, 0 <= lr_min <= lr_max, a plain number.
      lr_max: highest rate, finite, a plain number.
      steps_per_cycle: length of a whole cycle (rise and fall) in steps, an int >= 2. The paper's
        stepsize is half of it.

    Returns:
      A schedule `count -> float32[...]` for `count` an int or an integer array of any shape,
      0 <= count < 2**31 (a Python int may be larger).

    Raises:
      ValueError: an argument is out of its range; the message names it and its value.

    Example:
      >>> schedule = create_triangular_schedule(0.0, 1.0, steps_per_cycle=4)
      >>> [float(schedule(count)) for count in range(6)]
      [0.0, 0.5, 1.0, 0.5, 0.0, 0.5]

    Reference:
      Smith, Cyclical Learning Rates for Training Neural Networks, 2017, section 3.1
      (https://arxiv.org/abs/1506.01186).
    """
    lr_min, lr_max = _check_rates(lr_min, lr_max)
    if not isinstance(steps_per_cycle, (int, np.integer)) or steps_per_cycle < 2:
        raise ValueError(f"steps_per_cycle={steps_per_cycle!r} must be a whole number >= 2")
    top = _rise(steps_per_cycle)
    cycle_step = np.arange(steps_per_cycle, dtype=np.float64)
    rise = lr_min + cycle_step / top * (lr_max - lr_min)
    fall = lr_max - (cycle_step - top) / top * (lr_max - lr_min)
    table = np.where(cycle_step < top, rise, fall).astype(np.float32)
    return _periodic(table)


def create_constant_schedule(learning_rate: float) -> optax.Schedule:
    """Return a schedule that is `learning_rate` at every step.

    Args:
      learning_rate: the rate, finite and >= 0, a plain number.

    Returns:
      A schedule `count -> float32[...]`, of the shape of `count`.

    Raises:
      ValueError: the rate is negative or not finite.
    """
    _check_rates(learning_rate, learning_rate)
    return _periodic(np.full(1, learning_rate, np.float32))


def create_schedule(
    name: str, lr_min: float, lr_max: float, steps_per_cycle: int
) -> optax.Schedule:
    """Return the schedule called `name`: "triangular", or "constant" at `lr_max`.

    Raises:
      KeyError: no schedule has that name.
      ValueError: an argument is out of its range.
    """
    return {
        "triangular": lambda: create_triangular_schedule(lr_min, lr_max, steps_per_cycle),
        "constant": lambda: create_constant_schedule(lr_max),
    }[name]()


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a step lies: counts from 0, `rising` while the learning rate goes up.

    `step` is the value of `state.step` that the next update reads.
    """

    step: int
    epoch: int
    cycle: int
    cycle_step: int
    steps_per_cycle: int
    rising: bool

    def __str__(self) -> str:
        """Say it in words, with epoch and cycle counted from 1."""
        return (
            f"step {self.step}: epoch {self.epoch + 1}, cycle {self.cycle + 1}, step "
            f"{self.cycle_step} of {self.steps_per_cycle} of the cycle, "
            f"{'rising' if self.rising else 'falling'}"
        )


def position_at(step: int, steps_per_epoch: int, steps_per_cycle: int) -> Position:
    """Return where `step` lies in epochs and cycles.

    Args:
      step: >= 0.
      steps_per_epoch: >= 1.
      steps_per_cycle: >= 2.
    """
    cycle_step = step % steps_per_cycle
    return Position(
        step=step,
        epoch=step // steps_per_epoch,
        cycle=step // steps_per_cycle,
        cycle_step=cycle_step,
        steps_per_cycle=steps_per_cycle,
        rising=cycle_step < _rise(steps_per_cycle),
    )


def _rise(steps_per_cycle: int) -> int:
    """Return the number of steps from the lowest to the highest rate."""
    return (steps_per_cycle + 1) // 2


def _check_rates(lr_min: float, lr_max: float) -> tuple[float, float]:
    """Return both rates as floats, or raise a ValueError that names them."""
    for name, value in (("lr_min", lr_min), ("lr_max", lr_max)):
        if not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
            raise ValueError(f"{name}={value!r} must be a finite number")
    if not 0 <= lr_min <= lr_max:
        raise ValueError(f"lr_min={lr_min} and lr_max={lr_max} must satisfy 0 <= lr_min <= lr_max")
    return float(lr_min), float(lr_max)


def _periodic(table: np.ndarray) -> optax.Schedule:
    """Return the schedule that repeats `table` for ever."""

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        # The remainder is taken before anything else: integers are exact at any size, and no
        # product is formed that could leave int32.
        return jnp.asarray(table)[count % len(table)]  # type: ignore[operator]

    return schedule
