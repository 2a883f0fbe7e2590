"""A run that has learned nothing is told so, and only such a run."""

import pytest

from trainer.config import TrainConfig
from trainer.records.hints import guessing_accuracy, hint_at_chance

MNIST = 0.1135


@pytest.mark.parametrize(
    ("correct", "examples", "guessing", "hinted"),
    [
        (980, 10_000, MNIST, True),
        (1135, 10_000, MNIST, True),
        (1229, 10_000, MNIST, True),
        (1231, 10_000, MNIST, False),
        (9900, 10_000, MNIST, False),
        (50, 10_000, 1 / 200, True),
        (80, 10_000, 1 / 200, False),
        (9010, 10_000, 0.9, True),
        (10, 10, 1.0, False),
        (0, 10, 1.0, False),
    ],
)
def test_chance(correct: int, examples: int, guessing: float, hinted: bool) -> None:
    test = {"accuracy": correct / examples, "examples": examples}
    assert (hint_at_chance(test, guessing, TrainConfig()) is not None) == hinted


def test_words() -> None:
    test = {"accuracy": 0.098, "examples": 10_000}
    hint = hint_at_chance(test, MNIST, TrainConfig(lr_max=50))
    assert hint is not None
    assert "test accuracy of 9.80 % is that of guessing" in hint
    assert "--lr_min=0.003 to --lr_max=50" in hint
    assert "find_lr" in hint
    nothing = hint_at_chance(test, MNIST, TrainConfig(lr_min=0, lr_max=0))
    assert nothing is not None
    assert "with --lr_max=0 nothing is learned" in nothing
    constant = hint_at_chance(test, MNIST, TrainConfig(lr_schedule="constant"))
    assert constant is not None
    assert "lr_min" not in constant


def test_the_most_frequent_class() -> None:
    assert guessing_accuracy([1, 1, 0, 2]) == 0.5
    assert guessing_accuracy([0, 0, 1]) == 1
