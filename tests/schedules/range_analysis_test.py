"""Curves whose answer is known, and curves that were recorded."""

import dataclasses

import numpy as np
import pytest

from trainer.schedules.range_analysis import CLEAR, ROUGH, RangeTest, Suggestion, analyze
from trainer.schedules.range_curves import EXPONENTIAL, LINEAR, ramp, window_of

STEPS = 500
RATES = ramp(1e-5, 10, STEPS, EXPONENTIAL).astype(np.float64)
# A window is half a decade: what happens at one rate is seen up to a quarter of a decade away.
BLUR = 10**0.25


def accuracies(rise: float, top: float, fall: float = np.inf, noise: float = 0.02) -> np.ndarray:
    """10 % up to the rate `rise`, then in a straight line over log(rate) to 90 % at `top`.

    At `fall` it drops to 10 %.
    """
    part = np.clip(np.log(RATES / rise) / np.log(top / rise), 0, 1)
    values = np.where(fall > RATES, 0.1 + 0.8 * part, 0.1)
    return values + noise * np.random.default_rng(0).standard_normal(STEPS)


def analyzed(accuracies: np.ndarray, losses: np.ndarray | None = None) -> RangeTest:
    losses = np.full(len(accuracies), 2.3) if losses is None else losses
    return analyze(RATES[: len(losses)], losses, accuracies[: len(losses)], window_of(STEPS))


def suggested(accuracies: np.ndarray, losses: np.ndarray | None = None) -> Suggestion:
    found = analyzed(accuracies, losses).suggestion
    assert found is not None
    return found


def falling(steepest: float) -> np.ndarray:
    """A loss that falls from 2.4 to 0.1, over log(rate) fastest at `steepest`."""
    return 2.3 / (1 + (RATES / steepest) ** 2) + 0.1


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
@pytest.mark.parametrize(
    ("rise", "top", "fall"),
    [
        (1e-4, 1e-2, 1.0),  # Flattens, and falls much later.
        (1e-4, 1e-2, 2e-2),  # Falls as soon as it is up.
        (3e-2, 1, 5),  # Learns late.
        (2e-5, 1e-3, 0.1),  # Learns early.
    ],
)
def test_where_the_rise_starts_and_ends(rise: float, top: float, fall: float, noise: float) -> None:
    found = suggested(accuracies(rise, top, fall, noise))
    starts = rise * (top / rise) ** 0.1  # A tenth of the way up.
    assert starts / BLUR < found.lr_min < starts * BLUR
    assert found.falls_at is not None
    assert fall / BLUR < found.falls_at < fall * BLUR
    low, high = found.equally_good
    assert top / BLUR**2 < low < high < fall
    middle = np.sqrt(low * high)
    # Two digits were kept of each.
    assert found.lr_max == pytest.approx(min(middle, found.falls_at / 3), rel=0.06)


def test_what_flattens_and_never_falls_is_rough() -> None:
    found = suggested(accuracies(1e-4, 1e-2))
    assert 1e-2 / BLUR < found.lr_max <= 10
    assert found.falls_at is None
    assert found.confidence == ROUGH
    assert any("raise --find_lr_max" in doubt for doubt in found.doubts)


@pytest.mark.parametrize("dip", [(2e-4, 4e-4), (2e-3, 8e-3), (0.05, 0.2)])
def test_a_dip_that_the_accuracy_comes_back_from_ends_nothing(dip: tuple[float, float]) -> None:
    values = accuracies(1e-4, 0.3, 2)
    whole = suggested(values)
    values[(dip[0] < RATES) & (dip[1] > RATES)] -= 0.3
    found = suggested(values)
    assert found.lr_max == pytest.approx(whole.lr_max, rel=0.1)
    assert found.falls_at == whole.falls_at


def test_ragged_is_a_fall() -> None:
    values = accuracies(1e-4, 2e-2, noise=0.01)
    ragged = RATES > 5e-2
    values[ragged] *= np.random.default_rng(1).uniform(0.2, 1, ragged.sum())
    found = suggested(values)
    assert found.falls_at is not None
    assert 5e-2 / BLUR < found.falls_at < 5e-2 * BLUR
    assert found.lr_max < 5e-2


def test_single_steps_decide_nothing() -> None:
    values = accuracies(1e-4, 1e-1, 5)
    losses = falling(3e-3) + 0.1 * np.random.default_rng(1).standard_normal(STEPS)
    whole = suggested(values, losses)
    for at in (0, 1, 5, 250, 499):
        odd_values, odd_losses = values.copy(), losses.copy()
        odd_values[at], odd_losses[at] = 1 - values[at], losses[at] + 1
        found = suggested(odd_values, odd_losses)
        assert found.lr_min == pytest.approx(whole.lr_min, rel=0.2), at
        assert found.lr_max == pytest.approx(whole.lr_max, rel=0.2), at


def test_steepest_fall_of_the_loss() -> None:
    assert suggested(accuracies(1e-4, 1e-2), falling(3e-3)).steepest == pytest.approx(3e-3, rel=0.1)
    assert suggested(accuracies(1e-4, 1e-2)).steepest is None


def test_lr_max_is_never_below_the_steepest_fall() -> None:
    """Where the accuracy falls soon after it, a third of that rate would be."""
    found = suggested(accuracies(1e-3, 2e-2, 4e-2), falling(3e-2))
    assert found.falls_at is not None
    assert found.steepest is not None
    assert found.falls_at / 3 < found.steepest
    assert found.lr_max == found.steepest
    assert found.reasons[-1] == f"lr_max {found.lr_max:g} is where the loss falls fastest"


def test_what_the_loss_does_after_it_diverged_is_not_looked_at() -> None:
    losses, values = falling(3e-3), accuracies(1e-4, 1e-2, fall=0.3)
    expected = analyzed(values, losses[RATES < 1])
    losses[RATES >= 1] = np.where(np.arange((RATES >= 1).sum()) % 2, 1e9, np.nan)
    test = analyzed(values, losses)
    assert test.diverged
    assert len(test.losses) == np.argmax(RATES >= 1) + 1
    assert test.suggestion is not None
    assert expected.suggestion is not None
    assert test.suggestion.lr_max == pytest.approx(expected.suggestion.lr_max, rel=0.1)
    assert test.suggestion.steepest == pytest.approx(3e-3, rel=0.1)


@pytest.mark.parametrize("batch_size", [8, 32, 512])
def test_confidence_grows_with_the_examples(batch_size: int) -> None:
    truth = accuracies(1e-3, 1e-1, 2, noise=0) * 0.4
    values = np.random.default_rng(0).binomial(batch_size, truth) / batch_size
    found = suggested(values, 2.3 - truth)
    assert found.confidence == (ROUGH if batch_size == 8 else CLEAR)
    assert (found.confidence == CLEAR) == (found.rise_in_errors >= 20) == (not found.doubts)


@pytest.mark.parametrize(
    ("values", "losses", "refusal"),
    [
        (accuracies(100, 1000), None, "never rose, up to 10; raise --find_lr_max"),
        (accuracies(100, 1000, noise=0.1), None, "never rose"),
        (accuracies(1e-3, 1), np.full(39, 2.3), "39 steps are too few; use --find_lr_steps=40 or"),
        (accuracies(1e-3, 1), np.array([2.3] * 9 + [np.inf]), "diverged at 1.3e-05, after 10"),
        (
            accuracies(1e-2, 1),
            np.array([2.3] * 150 + [50.0] * 50),
            "before the accuracy rose; lower --find_lr_min",
        ),
    ],
)
def test_no_clear_answer(values: np.ndarray, losses: np.ndarray | None, refusal: str) -> None:
    test = analyzed(values, losses)
    assert test.suggestion is None
    assert refusal in test.refusal


@pytest.mark.parametrize("batch_size", [8, 32, 128])
def test_noise_alone_gives_no_answer(batch_size: int) -> None:
    random = np.random.default_rng(batch_size)
    for _ in range(100):
        values = random.binomial(batch_size, 0.1, STEPS) / batch_size
        losses = random.normal(2.3, 1 / np.sqrt(batch_size), STEPS)
        assert analyzed(values, losses).suggestion is None


def test_a_linear_ramp() -> None:
    rates = ramp(0, 1, 200, LINEAR)
    values = 0.1 + 0.8 * np.clip((rates - 0.1) / 0.3, 0, 1) * (rates < 0.8)
    found = analyze(rates, np.full(200, 2.3), values, window_of(200)).suggestion
    assert found is not None
    assert found.lr_min == pytest.approx(min(0.13, found.lr_max / 4), rel=0.1)
    assert found.lr_max == pytest.approx(0.8 / 3, rel=0.1)


def test_the_curves_come_back_as_they_were_given() -> None:
    values, losses = accuracies(1e-4, 1e-2), falling(3e-3)
    test = analyzed(values, losses)
    np.testing.assert_array_equal(test.accuracies, values)
    np.testing.assert_array_equal(test.losses, losses)
    assert {len(value) for value in dataclasses.astuple(test) if isinstance(value, np.ndarray)} == {
        STEPS
    }
