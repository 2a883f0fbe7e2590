"""Every hyperparameter of a run in one frozen dataclass: default, unit, range; flags mirror it.

It imports nothing but the standard library, so that `--help` and a mistyped flag answer at once.
"""

from trainer.config.flagfiles import flagfile as flagfile
from trainer.config.flagfiles import flagfile_of_run as flagfile_of_run
from trainer.config.options import AVERAGE as AVERAGE
from trainer.config.options import CONSTANT as CONSTANT
from trainer.config.options import EMA as EMA
from trainer.config.options import EXP_RANGE as EXP_RANGE
from trainer.config.options import EXP_RANGE_BOUNDARIES as EXP_RANGE_BOUNDARIES
from trainer.config.options import LR_SCHEDULES as LR_SCHEDULES
from trainer.config.options import TRIANGULAR as TRIANGULAR
from trainer.config.options import TRIANGULAR2 as TRIANGULAR2
from trainer.config.options import Range as Range
from trainer.config.train_config import LENGTH_FIELDS as LENGTH_FIELDS
from trainer.config.train_config import TrainConfig as TrainConfig
