"""Learning rates and momenta: pure functions of the step counter, with the same bits everywhere.

The cyclical family, the tables it is read from, the durations of a run, the range test's curves.
"""

from trainer.schedules.chosen import create_momentum as create_momentum
from trainer.schedules.chosen import create_schedule as create_schedule
from trainer.schedules.cyclical import create_constant_schedule as create_constant_schedule
from trainer.schedules.cyclical import (
    create_exp_range_boundaries_schedule as create_exp_range_boundaries_schedule,
)
from trainer.schedules.cyclical import create_exp_range_schedule as create_exp_range_schedule
from trainer.schedules.cyclical import create_momentum_schedule as create_momentum_schedule
from trainer.schedules.cyclical import create_triangular2_schedule as create_triangular2_schedule
from trainer.schedules.cyclical import create_triangular_schedule as create_triangular_schedule
from trainer.schedules.plan import Plan as Plan
from trainer.schedules.plan import Position as Position
from trainer.schedules.plan import create_plan as create_plan
