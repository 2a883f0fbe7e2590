"""Curves whose answer is known, and one that was recorded."""

from pathlib import Path

import numpy as np
import pytest

from trainer.schedules.range_curves import (
    EXPONENTIAL,
    LINEAR,
    RangeTest,
    analyze,
    divergence_step,
    ramp,
    smooth,
    window_of,
)

STEPS = 500
RATES = ramp(1e-5, 10, STEPS, EXPONENTIAL).astype(np.float64)
RECORDED = Path(__file__).parents[1] / "data" / "range_test_cnn.csv"


def accuracies(rise: float, top: float, fall: float = np.inf, noise: float = 0.02) -> np.ndarray:
    """10 % up to the rate `rise`, then in a straight line over log(rate) to 90 % at `top`.

    At `fall` it drops to 10 %.
    """
    part = np.clip(np.log(RATES / rise) / np.log(top / rise), 0, 1)
    values = np.where(fall > RATES, 0.1 + 0.8 * part, 0.1)
    return values + noise * np.random.default_rng(0).standard_normal(STEPS)


def suggestion(accuracies: np.ndarray, losses: np.ndarray | None = None) -> RangeTest:
    losses = np.full(len(accuracies), 2.3) if losses is None else losses
    return analyze(RATES[: len(accuracies)], losses, accuracies, window_of(STEPS))


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
@pytest.mark.parametrize(
    ("rise", "top", "fall"),
    [
        (1e-4, 1e-2, np.inf),  # Flattens, and that is all.
        (1e-4, 1e-2, 0.5),  # Flattens, and falls much later.
        (1e-4, 1e-2, 1.1e-2),  # Falls as soon as it is up.
        (3e-2, 1, 5),  # Learns late.
        (2e-5, 1e-3, 0.1),  # Learns early.
    ],
)
def test_where_the_rise_starts_and_ends(rise: float, top: float, fall: float, noise: float) -> None:
    test = suggestion(accuracies(rise, top, fall, noise))
    starts = rise * (top / rise) ** 0.1  # A tenth of the way up.
    assert test.lr_min == pytest.approx(starts, rel=0.3)
    # A standard error below the top, or half a window before a fall, is earlier. The mean of a
    # window rounds the corner at the top off, which is later. On a plateau of decades, whose rates
    # are equally good, noise decides.
    plateau_ends = fall < np.inf
    assert 0.5 * top < test.lr_max < (1.6 * top if plateau_ends or not noise else np.inf)
    assert test.lr_max < fall
    assert ("falls at" in test.verdict) == (fall < np.inf)


def test_a_fall_ends_the_search_even_if_the_accuracy_comes_back_higher() -> None:
    values = accuracies(1e-4, 1e-2, noise=0.01) - 0.1
    values[(RATES > 0.1) & (RATES < 0.2)] = 0.2
    values[RATES >= 0.2] += 0.1
    assert suggestion(values).lr_max == pytest.approx(1e-2, rel=0.3)


def test_ragged_is_a_fall() -> None:
    values = accuracies(1e-4, 1, noise=0.01)
    ragged = RATES > 2e-2
    values[ragged] *= np.random.default_rng(1).uniform(0.2, 1, ragged.sum())
    assert suggestion(values).lr_max == pytest.approx(2e-2, rel=0.4)


def test_a_drop_of_single_steps_is_no_fall() -> None:
    values = accuracies(1e-4, 1e-1, 5)
    values[200::50] -= 0.5
    assert suggestion(values).lr_max > 0.05


def test_steepest_fall_of_the_loss() -> None:
    losses = 2.3 / (1 + (RATES / 3e-3) ** 2)  # Steepest over log(rate) at 3e-3.
    test = suggestion(accuracies(1e-4, 1e-2), losses + 0.1)
    assert test.steepest == pytest.approx(3e-3, rel=0.05)


def test_what_the_loss_does_after_it_diverged_is_not_looked_at() -> None:
    losses = 2.3 / (1 + (RATES / 3e-3) ** 2) + 0.1
    values = accuracies(1e-4, 1e-2, fall=0.5)
    expected = suggestion(values[RATES < 1.5], losses[RATES < 1.5])
    losses[RATES > 1] = np.where(np.arange((RATES > 1).sum()) % 2, 1e9, np.nan)
    test = suggestion(values, losses)
    assert test.diverged
    assert len(test.losses) == np.argmax(RATES > 1) + 1
    assert (test.lr_min, test.lr_max) == (expected.lr_min, expected.lr_max)
    assert test.steepest == pytest.approx(3e-3, rel=0.05)


@pytest.mark.parametrize(
    ("values", "losses", "verdict"),
    [
        (accuracies(100, 1000), None, "never rose, up to 10; raise --find_lr_max"),
        (accuracies(100, 1000, noise=0.1), None, "never rose"),
        (accuracies(1e-3, 9.9), None, "still rises at the end, 10; raise --find_lr_max"),
        (accuracies(1e-3, 100), None, "still rises at the end"),
        (accuracies(1e-3, 1)[:39], None, "39 steps are too few"),
        (accuracies(1e-3, 1), np.array([2.3] * 9 + [np.inf]), "diverged at 1.3e-05, after 10"),
        (
            accuracies(1e-2, 1)[:200],
            np.array([2.3] * 150 + [50.0] * 50),
            "diverged at 0.00069 before the accuracy rose; lower --find_lr_min",
        ),
    ],
)
def test_no_clear_answer(values: np.ndarray, losses: np.ndarray | None, verdict: str) -> None:
    test = suggestion(values if losses is None else values[: len(losses)], losses)
    assert (test.lr_min, test.lr_max) == (None, None)
    assert test.verdict.startswith("no clear answer: ")
    assert verdict in test.verdict


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_gives_no_answer(seed: int) -> None:
    correct = np.random.default_rng(seed).binomial(128, 0.1, STEPS)
    assert suggestion(correct / 128).lr_max is None


def test_recorded_curve_of_the_cnn() -> None:
    """The defaults of find_lr: a batch of 128, SGD with momentum 0.9, real MNIST."""
    rates, losses, accuracy = np.loadtxt(RECORDED, delimiter=",", skiprows=1).T
    test = analyze(rates, losses, accuracy, window_of(600))
    assert (test.lr_min, test.lr_max, test.steepest) == (0.00018, 0.22, 0.0037)
    assert test.diverged
    # Read off the raw curve, by means of 20 steps.
    blocks = accuracy[:500].reshape(-1, 20).mean(1)
    best = rates[20 * blocks.argmax()]
    assert 0.5 * best < test.lr_max < 1.5 * best
    assert blocks[rates[:500:20] < test.lr_min][:-1].max() < 0.2


def test_a_linear_ramp() -> None:
    rates = ramp(0, 1, 200, LINEAR)
    assert rates.dtype == np.float32
    np.testing.assert_allclose(np.diff(rates), 1 / 199, rtol=1e-4)
    values = 0.1 + 0.8 * np.clip((rates - 0.1) / 0.3, 0, 1)
    test = analyze(rates, np.full(200, 2.3), values, window_of(200))
    assert test.lr_min == pytest.approx(0.13, rel=0.1)
    assert test.lr_max == pytest.approx(0.4, rel=0.1)


def test_an_exponential_ramp() -> None:
    rates = ramp(1e-5, 10, 601, EXPONENTIAL)
    np.testing.assert_allclose(rates[1:] / rates[:-1], 10**0.01, rtol=1e-5)
    np.testing.assert_allclose(rates[[0, -1]], [1e-5, 10], rtol=1e-6)


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ([2.0, 1.9, 1.8, 1.0], None),
        ([2.0, np.nan, 1.0], 1),
        ([2.0, 1.0, np.inf], 2),
        ([1.0, 1.0, 1.0, 9.0, 9.0], 4),  # The mean of 3 steps is 11/3, then 19/3.
        ([1.0, 1.0, 1.0, 5.0, 5.0, 5.0], 5),
        ([9.0, 1.0, 1.0, 1.0, 3.9, 3.9, 3.9], None),
    ],
)
def test_divergence(losses: list[float], step: int | None) -> None:
    assert divergence_step(losses, 3) == step


def test_smoothing_is_a_centered_mean() -> None:
    values = np.random.default_rng(0).standard_normal(50)
    slow = [values[i - min(i, 49 - i, 3) : i + min(i, 49 - i, 3) + 1].mean() for i in range(50)]
    np.testing.assert_allclose(smooth(values, 7), slow, rtol=1e-9)
    np.testing.assert_allclose(smooth(np.arange(50.0), 7), np.arange(50.0), rtol=1e-9)
    assert smooth(np.array([1.0, np.nan, 3.0]), 3).tolist() == [1.0, 2.0, 3.0]
    assert np.isnan(smooth(np.array([1.0, 2.0, np.nan]), 3)).tolist() == [False, False, True]
