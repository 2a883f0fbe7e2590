"""What to try when a run has learned nothing."""

import math
from collections.abc import Sequence
from typing import Any

from trainer.config import CONSTANT, TrainConfig

# Guessing is right this many standard deviations more often than expected, at most.
_DEVIATIONS = 3.0


def guessing_accuracy(class_counts: Sequence[int]) -> float:
    """Return the accuracy of always naming the class that is most frequent.

    Args:
      class_counts: examples of each class in the test split, at least one in all.
    """
    return max(class_counts) / sum(class_counts)


def hint_at_chance(test: dict[str, Any], guessing: float, config: TrainConfig) -> str | None:
    """Return what to try after a run that is no better than guessing, or None if it is better.

    Args:
      test: the last test record.
      guessing: see `guessing_accuracy`.
      config: of the run.
    """
    deviation = math.sqrt(guessing * (1 - guessing) / test["examples"])
    if guessing == 1 or test["accuracy"] > guessing + _DEVIATIONS * deviation:
        return None
    result = (
        f"the test accuracy of {100 * test['accuracy']:.2f} % is that of guessing (naming the most "
        f"frequent class is right for {100 * guessing:.2f} %)"
    )
    if config.lr_max == 0:
        return f"{result}: with --lr_max=0 nothing is learned; use a higher --lr_max"
    rates = f"--lr_min={config.lr_min:g} to --lr_max={config.lr_max:g}"
    if config.lr_schedule == CONSTANT:
        rates = f"--lr_max={config.lr_max:g}"
    return (
        f"{result}: the learning rate ({rates}) may be too high or too low, or the run too short; "
        "python -m trainer find_lr suggests rates"
    )
