"""Recorded range tests of many data sets, networks and batch sizes, five seeds each.

tests/data/range_tests.npz holds 600 steps at rates from 1e-5 to 10, in equal factors, with SGD and
momentum 0.9: losses, and how many of a batch were right. "digits" are scikit-learn's, 1,437 for
training; "rgb" are 3,000 noisy pictures of bars, 12x12x3, in 6 classes, which a network learns to
70 %.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from trainer.schedules.range_analysis import Suggestion, analyze
from trainer.schedules.range_curves import EXPONENTIAL, ramp, window_of

DATA = Path(__file__).parents[1] / "data"
RATES = ramp(1e-5, 10, 600, EXPONENTIAL).astype(np.float64)

# The lr_max with which a few epochs in cycles of an epoch were measured to end no worse than with
# the default rates, by more than half a point: the outermost of 0.006, 0.0125, 0.025, ..., 0.4, or
# between the last good one and the first bad one.
GOOD = {
    "mnist-mlp-8": (0.008, 0.035),
    "mnist-mlp-16": (0.018, 0.07),
    "mnist-mlp-32": (0.025, 0.2),
    "mnist-mlp-64": (0.025, 0.4),
    "mnist-mlp-128": (0.025, 0.4),
    "mnist-cnn-64": (0.02, 0.4),
    "mnist-cnn-128": (0.02, 0.4),
    "digits-mlp-32": (0.025, 0.4),
    "digits-cnn-32": (0.03, 0.3),
    "rgb-mlp-32": (0.0125, 0.04),
    "rgb-cnn-32": (0.005, 0.04),
}


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(DATA / "range_tests.npz") as file:
        return {name: file[name].astype(np.float64) for name in file.files}


def suggestions(case: str, recorded: dict[str, np.ndarray]) -> Iterator[Suggestion]:
    batch_size = int(case.split("-")[-1])
    curves = zip(recorded[f"{case}-losses"], recorded[f"{case}-correct"], strict=True)
    for losses, correct in curves:
        test = analyze(RATES, losses, correct / batch_size, window_of(600))
        assert test.suggestion is not None, test.refusal
        yield test.suggestion


@pytest.mark.parametrize("case", GOOD)
def test_a_rise_is_never_refused_and_trains_well(
    case: str, recorded: dict[str, np.ndarray]
) -> None:
    low, high = GOOD[case]
    found = list(suggestions(case, recorded))
    assert len(found) == (2 if case == "mnist-cnn-128" else 5)
    for each in found:
        assert low <= each.lr_max <= high, each
        assert each.steepest is not None
        assert each.lr_max >= each.steepest
        assert 0 < each.lr_min <= each.lr_max / 4


@pytest.mark.parametrize("case", GOOD)
def test_the_steepest_fall_is_found_in_spite_of_noise(
    case: str, recorded: dict[str, np.ndarray]
) -> None:
    """The seeds agree on it; with single slopes they differed by a factor of 10."""
    steepest = [each.steepest for each in suggestions(case, recorded)]
    assert max(steepest) < 2.5 * min(steepest)


@pytest.mark.parametrize(
    ("case", "confidence"), [("mnist-mlp-128", "clear"), ("rgb-cnn-32", "rough")]
)
def test_how_sure(case: str, confidence: str, recorded: dict[str, np.ndarray]) -> None:
    assert {each.confidence for each in suggestions(case, recorded)} == {confidence}


def test_the_cnn_at_the_defaults() -> None:
    """A batch of 128, SGD with momentum 0.9, real MNIST."""
    columns = np.loadtxt(DATA / "range_test_cnn.csv", delimiter=",", skiprows=1).T
    # Where the recording ends, the loss had diverged.
    rates, losses, accuracies = (np.append(column, column[-1]) for column in columns)
    losses[-1] = np.inf
    test = analyze(rates, losses, accuracies, window_of(600))
    assert test.diverged
    assert test.suggestion is not None
    # Read off the raw curve, by means of 20 steps.
    blocks = accuracies[:500].reshape(-1, 20).mean(1)
    good = rates[:500:20][blocks > blocks.max() - 0.02]
    assert good[0] <= test.suggestion.lr_max <= good[-1]
    assert blocks[rates[:500:20] < test.suggestion.lr_min][:-1].max() < 0.2
    assert test.suggestion.confidence == "clear"
