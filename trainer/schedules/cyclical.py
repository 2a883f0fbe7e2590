"""Learning rates, and momenta, that are a pure function of the step counter."""

import math
from collections.abc import Callable

import numpy as np
import optax

from trainer.config.options import (
    EXP_RANGE,
    EXP_RANGE_BOUNDARIES,
    FRACTION,
    GAMMA,
    LEARNING_RATE,
    STEPS_PER_CYCLE,
    TRIANGULAR,
    TRIANGULAR2,
    Range,
)
from trainer.schedules.tables import decaying, periodic, triangle


def create_triangular_schedule(
    lr_min: float, lr_max: float, steps_per_cycle: int, cycle_up_fraction: float = 0.5
) -> optax.Schedule:
    """Return a learning rate that rises and falls in a straight line, cycle after cycle.

        top = (steps_per_cycle + 1) // 2
        cycle_step = count % steps_per_cycle
        lr = lr_min + cycle_step / top * (lr_max - lr_min)          if cycle_step < top
             lr_max - (cycle_step - top) / top * (lr_max - lr_min)  otherwise

    With another `cycle_up_fraction`, top = cycle_up_fraction * steps_per_cycle, rounded, halves up,
    and at least 1 and at most steps_per_cycle - 1; the rate then falls by
    (cycle_step - top) / (steps_per_cycle - top).

    The rate is `lr_min` at step 0 and at every multiple of `steps_per_cycle`, and `lr_max` exactly
    at `top` of every cycle. With equal halves and an odd `steps_per_cycle` the fall is one step
    shorter than the rise. One cycle is computed in float64, rounded once to float32, and kept as a
    table; the step indexes it. So Python, eager, jit, vmap and every device give the same bits at
    every step; a closed formula in float32 does not (XLA divides by multiplying with a rounded
    reciprocal, and fuses multiply and add).

    Args:
      lr_min: lowest rate, 0 <= lr_min <= lr_max, a plain number.
      lr_max: highest rate, finite in float32, a plain number.
      steps_per_cycle: length of a whole cycle (rise and fall) in steps, an int >= 2, and at
        most 2**26. The paper's stepsize is half of it.
      cycle_up_fraction: the part of a cycle that rises, 0 <= cycle_up_fraction < 1.

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
    _check_cycle(steps_per_cycle, cycle_up_fraction)
    return periodic(triangle(lr_min, lr_max, steps_per_cycle, cycle_up_fraction))


def create_triangular2_schedule(
    lr_min: float, lr_max: float, steps_per_cycle: int, cycle_up_fraction: float = 0.5
) -> optax.Schedule:
    """Return a triangular learning rate whose height above `lr_min` halves with every cycle.

        lr = lr_min + (triangular(count) - lr_min) / 2**(count // steps_per_cycle)

    It is within one unit in the last place of this formula; the halving is exact, so cycle after
    cycle it stays finite and tends to `lr_min`: from cycle 127 on it is `lr_min`. The first cycle
    is that of `create_triangular_schedule`. The same bits everywhere, see `tables.decaying`.

    Args:
      lr_min: see `create_triangular_schedule`.
      lr_max: see `create_triangular_schedule`; of the first cycle.
      steps_per_cycle: see `create_triangular_schedule`.
      cycle_up_fraction: see `create_triangular_schedule`.

    Returns:
      A schedule `count -> float32[...]`, 0 <= count < 2**31.

    Raises:
      ValueError: an argument is out of its range; the message names it and its value.

    Example:
      >>> schedule = create_triangular2_schedule(0.0, 1.0, steps_per_cycle=4)
      >>> [float(schedule(count)) for count in range(8)]
      [0.0, 0.5, 1.0, 0.5, 0.0, 0.25, 0.5, 0.25]

    Reference:
      Smith, 2017, section 3.1: "the learning rate difference is cut in half at the end of each
      cycle".
    """
    lr_min, lr_max = _check_rates(lr_min, lr_max)
    _check_cycle(steps_per_cycle, cycle_up_fraction)
    height = triangle(0.0, lr_max - lr_min, steps_per_cycle, cycle_up_fraction)
    return decaying(lr_min, height, -1.0)


def create_exp_range_schedule(
    lr_min: float,
    lr_max: float,
    steps_per_cycle: int,
    lr_gamma: float,
    cycle_up_fraction: float = 0.5,
) -> optax.Schedule:
    """Return a triangular learning rate whose height above `lr_min` declines with every step.

        lr = lr_min + (triangular(count) - lr_min) * lr_gamma**count

    This is "exp_range" of PyTorch, of Keras' callbacks and of TensorFlow Addons. The paper words
    it otherwise, see `create_exp_range_boundaries_schedule`. It is within 8 units in the last place
    of this formula, and the same bits everywhere, see `tables.decaying`.

    Args:
      lr_min: see `create_triangular_schedule`.
      lr_max: see `create_triangular_schedule`; never quite reached if lr_gamma < 1.
      steps_per_cycle: see `create_triangular_schedule`.
      lr_gamma: the factor of a step, 0 < lr_gamma <= 1, a plain number.
      cycle_up_fraction: see `create_triangular_schedule`.

    Returns:
      A schedule `count -> float32[...]`, 0 <= count < 2**31.

    Raises:
      ValueError: an argument is out of its range; the message names it and its value.

    Example:
      >>> schedule = create_exp_range_schedule(1.0, 2.0, steps_per_cycle=2, lr_gamma=0.5)
      >>> [float(schedule(count)) for count in range(4)]
      [1.0, 1.5, 1.0, 1.125]

    Reference:
      torch.optim.lr_scheduler.CyclicLR, mode="exp_range".
    """
    lr_min, lr_max = _check_rates(lr_min, lr_max)
    _check_cycle(steps_per_cycle, cycle_up_fraction)
    log2_gamma = _check_gamma(lr_gamma)
    height = triangle(0.0, lr_max - lr_min, steps_per_cycle, cycle_up_fraction)
    return _declining(lr_min, height, log2_gamma)


def create_exp_range_boundaries_schedule(
    lr_min: float,
    lr_max: float,
    steps_per_cycle: int,
    lr_gamma: float,
    cycle_up_fraction: float = 0.5,
) -> optax.Schedule:
    """Return a triangular learning rate both of whose boundaries decline with every step.

        lr = triangular(count) * lr_gamma**count

    This is what the paper says; "exp_range" of its implementations keeps the lower boundary, see
    `create_exp_range_schedule`. It is within 8 units in the last place of this formula, and the
    same bits everywhere, see `tables.decaying`.

    Args:
      lr_min: see `create_triangular_schedule`; lower boundary at step 0.
      lr_max: see `create_triangular_schedule`; upper boundary at step 0.
      steps_per_cycle: see `create_triangular_schedule`.
      lr_gamma: the factor of a step, 0 < lr_gamma <= 1, a plain number.
      cycle_up_fraction: see `create_triangular_schedule`.

    Returns:
      A schedule `count -> float32[...]`, 0 <= count < 2**31.

    Raises:
      ValueError: an argument is out of its range; the message names it and its value.

    Example:
      >>> schedule = create_exp_range_boundaries_schedule(1.0, 2.0, steps_per_cycle=2, lr_gamma=0.5)
      >>> [float(schedule(count)) for count in range(4)]
      [1.0, 1.0, 0.25, 0.25]

    Reference:
      Smith, 2017, section 3.1: "each boundary value declines by an exponential factor of
      gamma^iteration".
    """
    lr_min, lr_max = _check_rates(lr_min, lr_max)
    _check_cycle(steps_per_cycle, cycle_up_fraction)
    log2_gamma = _check_gamma(lr_gamma)
    height = triangle(lr_min, lr_max, steps_per_cycle, cycle_up_fraction)
    return _declining(0.0, height, log2_gamma)


def create_constant_schedule(learning_rate: float) -> optax.Schedule:
    """Return a schedule that is `learning_rate` at every step.

    Args:
      learning_rate: the rate, finite and >= 0, a plain number.

    Returns:
      A schedule `count -> float32[...]`, of the shape of `count`.

    Raises:
      ValueError: the rate is negative or not finite.
    """
    _check("learning_rate", learning_rate, LEARNING_RATE)
    return periodic(np.full(1, learning_rate, np.float64))


def create_momentum_schedule(
    name: str,
    momentum_min: float,
    momentum_max: float,
    steps_per_cycle: int,
    lr_gamma: float,
    cycle_up_fraction: float,
) -> optax.Schedule:
    """Return the momentum that falls as the learning rate of the schedule `name` rises.

        momentum = momentum_max - (momentum_max - momentum_min) * height(count)

    where `height` goes from 0 to 1 and back in every cycle, and shrinks as that of the learning
    rate does: by half every cycle (triangular2), or by lr_gamma every step (exp_range and
    exp_range_boundaries). The same bits everywhere, in the same way.

    Args:
      name: a cyclical schedule; see `create_schedule`.
      momentum_min: at the highest rate, 0 <= momentum_min <= momentum_max.
      momentum_max: at the lowest rate, < 1.
      steps_per_cycle: see `create_triangular_schedule`.
      lr_gamma: see `create_exp_range_schedule`.
      cycle_up_fraction: see `create_triangular_schedule`.

    Returns:
      A schedule `count -> float32[...]`, 0 <= count < 2**31.

    Raises:
      KeyError: no cyclical schedule has that name.
      ValueError: an argument is out of its range; the message names it and its value.

    Example:
      >>> schedule = create_momentum_schedule("triangular", 0.5, 0.75, 4, 1.0, 0.5)
      >>> [float(schedule(count)) for count in range(5)]
      [0.75, 0.625, 0.5, 0.625, 0.75]

    Reference:
      torch.optim.lr_scheduler.CyclicLR, cycle_momentum; Smith, A disciplined approach to neural
      network hyper-parameters, 2018, section 4.3 (https://arxiv.org/abs/1803.09820).
    """
    _check("momentum_min", momentum_min, FRACTION)
    _check("momentum_max", momentum_max, FRACTION)
    if momentum_min > momentum_max:
        raise ValueError(f"momentum_min={momentum_min} must be <= momentum_max={momentum_max}")
    _check_cycle(steps_per_cycle, cycle_up_fraction)
    cycle = steps_per_cycle, cycle_up_fraction
    height = triangle(0.0, momentum_min - momentum_max, *cycle)
    create: dict[str, Callable[[], optax.Schedule]] = {
        TRIANGULAR: lambda: periodic(triangle(momentum_max, momentum_min, *cycle)),
        TRIANGULAR2: lambda: decaying(momentum_max, height, -1.0),
        EXP_RANGE: lambda: _declining(momentum_max, height, _check_gamma(lr_gamma)),
    }
    create[EXP_RANGE_BOUNDARIES] = create[EXP_RANGE]
    return create[name]()


def _declining(valley: float, height: np.ndarray, log2_gamma: float) -> optax.Schedule:
    """Return valley + height[count % T] * gamma**count."""
    within_cycle = np.exp2(log2_gamma * np.arange(len(height)))
    return decaying(valley, height * within_cycle, log2_gamma * len(height))


def _check_rates(lr_min: float, lr_max: float) -> tuple[float, float]:
    """Return both rates as floats, or raise a ValueError that names them."""
    _check("lr_min", lr_min, LEARNING_RATE)
    _check("lr_max", lr_max, LEARNING_RATE)
    if lr_min > lr_max:
        raise ValueError(f"lr_min={lr_min} and lr_max={lr_max} must satisfy lr_min <= lr_max")
    return float(lr_min), float(lr_max)


def _check_cycle(steps_per_cycle: int, cycle_up_fraction: float) -> None:
    """Raise a ValueError that names what makes no cycle."""
    if not isinstance(steps_per_cycle, (int, np.integer)):
        raise ValueError(f"steps_per_cycle={steps_per_cycle!r} must be a whole number")
    _check("steps_per_cycle", steps_per_cycle, STEPS_PER_CYCLE)
    _check("cycle_up_fraction", cycle_up_fraction, FRACTION)


def _check_gamma(lr_gamma: float) -> float:
    """Return log2(gamma), or raise a ValueError that names it."""
    _check("lr_gamma", lr_gamma, GAMMA)
    return math.log2(lr_gamma)


def _check(name: str, value: object, valid: Range) -> None:
    """Raise a ValueError if an argument is no plain number in its range."""
    if not isinstance(value, (int, float, np.number)):
        raise ValueError(f"{name}={value!r} must be a finite number, {valid.describe(name)}")
    if value not in valid:
        raise ValueError(f"{name}={value!r} must be a finite number, {valid.describe(name, value)}")
