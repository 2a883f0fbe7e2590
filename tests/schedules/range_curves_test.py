"""The rates of a range test, where it ends, and how its curves are smoothed."""

import numpy as np
import pytest

from trainer.schedules.range_curves import (
    EXPONENTIAL,
    LINEAR,
    divergence_step,
    ramp,
    smooth,
    standard_errors,
    window_of,
)


def test_an_exponential_ramp() -> None:
    rates = ramp(1e-5, 10, 601, EXPONENTIAL)
    assert rates.dtype == np.float32
    np.testing.assert_allclose(rates[1:] / rates[:-1], 10**0.01, rtol=1e-5)
    np.testing.assert_allclose(rates[[0, -1]], [1e-5, 10], rtol=1e-6)


def test_a_linear_ramp() -> None:
    rates = ramp(0, 1, 200, LINEAR)
    assert rates.dtype == np.float32
    np.testing.assert_allclose(np.diff(rates), 1 / 199, rtol=1e-4)


@pytest.mark.parametrize(("steps", "window"), [(40, 3), (200, 17), (600, 51), (1200, 101)])
def test_a_window_is_a_12th_of_the_steps(steps: int, window: int) -> None:
    assert window_of(steps) == window


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
    assert divergence_step(losses, 5) == step


def test_smoothing_is_a_centered_mean() -> None:
    values = np.random.default_rng(0).standard_normal(50)
    slow = [values[i - min(i, 49 - i, 3) : i + min(i, 49 - i, 3) + 1].mean() for i in range(50)]
    np.testing.assert_allclose(smooth(values, 7), slow, rtol=1e-9)
    np.testing.assert_allclose(smooth(np.arange(50.0), 7), np.arange(50.0), rtol=1e-9)
    assert smooth(np.array([1.0, np.nan, 3.0]), 3).tolist() == [1.0, 2.0, 3.0]
    assert np.isnan(smooth(np.array([1.0, 2.0, np.nan]), 3)).tolist() == [False, False, True]


@pytest.mark.parametrize("window", [3, 17, 51])
def test_standard_errors_are_those_of_many_repetitions(window: int) -> None:
    """What they say of one curve is how much the means of many such curves scatter."""
    truth = np.linspace(0.1, 0.9, 300)
    random = np.random.default_rng(0)
    curves = random.binomial(32, truth, (400, 300)) / 32
    means = np.array([smooth(curve, window) for curve in curves])
    said = np.array(
        [standard_errors(c, mean, window) for c, mean in zip(curves, means, strict=True)]
    )
    scatter = means.std(axis=0)
    expected = np.sqrt((said**2).mean(axis=0))
    # At the very ends the scatter of one step is taken from its neighbours.
    np.testing.assert_allclose(expected, scatter, rtol=0.35)
    inside = slice(window, -window)
    np.testing.assert_allclose(expected[inside].mean(), scatter[inside].mean(), rtol=0.05)
