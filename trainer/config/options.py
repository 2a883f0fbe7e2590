"""How a field of the configuration is declared: what it means, and what it may be."""

import dataclasses
import math
from typing import Any

from trainer.config.own import describe_form, is_own

TRIANGULAR, TRIANGULAR2 = "triangular", "triangular2"
EXP_RANGE, EXP_RANGE_BOUNDARIES = "exp_range", "exp_range_boundaries"
CONSTANT = "constant"
LR_SCHEDULES = (TRIANGULAR, TRIANGULAR2, EXP_RANGE, EXP_RANGE_BOUNDARIES, CONSTANT)
# Kinds of averaged parameters, as records and checkpoints name them.
AVERAGE, EMA = "average", "ema"


# As many updates as an int32, the step counter, can tell apart.
MOST_STEPS = 2**31
# A cycle is kept as a table, of 4 bytes a step on the devices.
_MOST_IN_A_CYCLE = 2**26
# Of a float32. Above it a rate would be infinite on the devices.
_LARGEST = 3.4028234e38


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers between two bounds; a bound belongs to them unless it is said to be open.

    Attributes:
      low: lower bound.
      high: upper bound.
      low_open: whether `low` itself is left out.
      high_open: whether `high` itself is left out.
    """

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: Any) -> bool:
        """Return whether a plain number lies between the bounds."""
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            return False
        if not math.isfinite(number):
            return False
        above = number > self.low or (number == self.low and not self.low_open)
        below = number < self.high or (number == self.high and not self.high_open)
        return above and below

    def describe(self, name: str, value: Any = 0) -> str:
        """Return such as "0 <= momentum < 1", or "batch_size >= 1" where dtypes or memory end it.

        Args:
          name: of what lies in the range.
          value: one that may lie outside.
        """
        if self.high in (MOST_STEPS, _MOST_IN_A_CYCLE, _LARGEST) and not value > self.high:
            return f"{name} {'>' if self.low_open else '>='} {self.low:.10g}"
        signs = ("<" if self.low_open else "<="), ("<" if self.high_open else "<=")
        return f"{self.low:.10g} {signs[0]} {name} {signs[1]} {self.high:.10g}"


LEARNING_RATE = Range(0, _LARGEST)
GAMMA = Range(0, 1, low_open=True)
FRACTION = Range(0, 1, high_open=True)
STEPS_PER_CYCLE = Range(2, _MOST_IN_A_CYCLE)
COUNT, COUNT_OR_NONE = Range(1, MOST_STEPS), Range(0, MOST_STEPS)
# A run with 256 took 49 s on 2 cores; with 1,024 XLA aborts the process.
CPU_DEVICES = Range(0, 256)
# jax takes 32 bits of a seed: a larger one would be another's run.
SEED = Range(0, 2**32 - 1)
NOT_NEGATIVE = Range(0, _LARGEST)


def option(
    default: Any,
    group: str,
    help: str,
    *,
    valid: Range | tuple[str, ...] | None = None,
    own: str = "",
    trajectory: bool = True,
) -> Any:
    """Declare a field of the configuration.

    Args:
      default: of field and flag.
      group: under which `--help` lists it.
      help: what it means, with its unit.
      valid: a range, or the words to choose from.
      own: if the user may also name something of their own, what that is called in examples.
      trajectory: whether it changes the parameters that a run arrives at.
    """
    metadata = {"group": group, "help": help, "valid": valid, "own": own}
    return dataclasses.field(default=default, metadata=metadata | {"trajectory": trajectory})


def describe_valid(field: dataclasses.Field, value: Any = 0) -> str:
    """Return what a field may be, in words, such as "0 <= momentum < 1"; "" for anything."""
    valid = field.metadata["valid"]
    if isinstance(valid, Range):
        return valid.describe(field.name, value)
    if valid is None:
        return ""
    own = field.metadata["own"]
    names = [word or "empty" for word in valid]
    words = ", ".join(names[:-1]) + " or " + names[-1]
    return f"{words}, or your own: {describe_form(own)}" if own else words


def is_valid(field: dataclasses.Field, value: Any) -> bool:
    """Return whether a value is in the range that its field declares; None means unset."""
    valid = field.metadata["valid"]
    return (
        value is None
        or valid is None
        or value in valid
        or bool(field.metadata["own"] and is_own(value))
    )
