"""What is refused in a configuration, with what would be valid."""

import dataclasses
import difflib
from typing import TYPE_CHECKING, Any

from trainer.config.options import CONSTANT, describe_valid, is_valid
from trainer.config.own import is_own
from trainer.errors import UsageError

if TYPE_CHECKING:
    from trainer.config.train_config import TrainConfig

_TYPES = {
    "bool": (bool,),
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "str": (str,),
}


def check_field(field: dataclasses.Field, value: Any) -> None:
    """Refuse a value of another type, or out of the range, than its field declares.

    Args:
      field: of the configuration.
      value: for it.

    Raises:
      UsageError: the message names flag, value and range.
    """
    declared = getattr(field.type, "__name__", str(field.type))
    is_flag = isinstance(value, bool)
    if not isinstance(value, _TYPES[declared]) or is_flag != (declared == "bool"):
        raise UsageError(f"--{field.name}={value!r} is not valid; its type is {declared}")
    if not is_valid(field, value):
        near = (
            difflib.get_close_matches(str(value), field.metadata["valid"], n=1)
            if (isinstance(field.metadata["valid"], tuple))
            else []
        )
        hint = f" (did you mean {near[0]}?)" if near else ""
        valid = describe_valid(field, value)
        raise UsageError(f"--{field.name}={value} is not valid{hint}; use {valid}")


def check_together(config: "TrainConfig") -> None:
    """Refuse values that are valid each on its own, and do not go together.

    Args:
      config: of a run.

    Raises:
      UsageError: the message names the flags.
    """
    if config.lr_min > config.lr_max:
        raise UsageError(
            f"--lr_min={config.lr_min} is above --lr_max={config.lr_max}; use 0 <= lr_min <= lr_max"
        )
    _check_own_optimizer(config)
    _check_momentum_range(config)
    if config.num_steps is not None and config.num_cycles is not None:
        raise UsageError(
            f"--num_steps={config.num_steps} and --num_cycles={config.num_cycles} both say how "
            "long to train; give one of them"
        )
    if config.gradient_shards and config.gradient_shards.bit_count() != 1:
        raise UsageError(
            f"--gradient_shards={config.gradient_shards} makes no binary tree; use a power of two"
        )


def _check_own_optimizer(config: "TrainConfig") -> None:
    """Refuse what an optimizer of the user's own would never be told."""
    if not is_own(config.optimizer):
        return
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        of_built_in = field.metadata["group"] == "Optimizer" and field.name != "optimizer"
        if of_built_in and value != field.default:
            raise UsageError(
                f"--{field.name}={value} is for sgd and adamw, and has no effect on "
                f"--optimizer={config.optimizer}; write it into your optimizer, and leave the "
                "flag out"
            )


def _check_momentum_range(config: "TrainConfig") -> None:
    """Check the two ends between which the momentum cycles, if it does."""
    low, high = config.momentum_min, config.momentum_max
    if low is None and high is None:
        return
    if low is None or high is None:
        given = f"--momentum_min={low}" if high is None else f"--momentum_max={high}"
        raise UsageError(
            f"{given} is one end only; give both --momentum_min and --momentum_max, or "
            "neither for a constant --momentum"
        )
    if low > high:
        raise UsageError(
            f"--momentum_min={low} is above --momentum_max={high}; "
            "use 0 <= momentum_min <= momentum_max < 1"
        )
    if config.lr_schedule == CONSTANT:
        raise UsageError(
            f"--momentum_min={low} and --momentum_max={high} move against the learning rate, "
            f"which --lr_schedule={CONSTANT} keeps still; use a cyclical --lr_schedule, or a "
            "constant --momentum"
        )
