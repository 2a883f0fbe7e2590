"""The schedules that a configuration asks for."""

import optax

from trainer.config import (
    CONSTANT,
    EXP_RANGE,
    EXP_RANGE_BOUNDARIES,
    TRIANGULAR,
    TRIANGULAR2,
    TrainConfig,
)
from trainer.schedules.cyclical import (
    create_constant_schedule,
    create_exp_range_boundaries_schedule,
    create_exp_range_schedule,
    create_momentum_schedule,
    create_triangular2_schedule,
    create_triangular_schedule,
)


def create_schedule(config: TrainConfig) -> optax.Schedule:
    """Return the learning rate of a run, a function of the step.

    Args:
      config: of the run, with its steps_per_cycle resolved.

    Raises:
      ValueError: an argument is out of its range.
    """
    assert config.steps_per_cycle is not None
    rates = config.lr_min, config.lr_max, config.steps_per_cycle
    up = config.cycle_up_fraction
    if config.lr_schedule == CONSTANT:
        return create_constant_schedule(config.lr_max)
    if config.lr_schedule in (TRIANGULAR, TRIANGULAR2):
        create = {
            TRIANGULAR: create_triangular_schedule,
            TRIANGULAR2: create_triangular2_schedule,
        }[config.lr_schedule]
        return create(*rates, cycle_up_fraction=up)
    create_declining = {
        EXP_RANGE: create_exp_range_schedule,
        EXP_RANGE_BOUNDARIES: create_exp_range_boundaries_schedule,
    }[config.lr_schedule]
    return create_declining(*rates, lr_gamma=config.lr_gamma, cycle_up_fraction=up)


def create_momentum(config: TrainConfig) -> optax.Schedule | None:
    """Return the momentum of a run, a function of the step, or None if it stays the same.

    Args:
      config: of the run, with its steps_per_cycle resolved.

    Raises:
      ValueError: an argument is out of its range.
    """
    if config.momentum_min is None or config.momentum_max is None:
        return None
    assert config.steps_per_cycle is not None
    return create_momentum_schedule(
        config.lr_schedule,
        config.momentum_min,
        config.momentum_max,
        config.steps_per_cycle,
        config.lr_gamma,
        config.cycle_up_fraction,
    )
