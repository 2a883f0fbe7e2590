"""A picture shows the extremes of every step, however many there are."""

import numpy as np
import pytest

from trainer.config import TrainConfig
from trainer.records import curves
from trainer.schedules import create_schedule, create_triangular_schedule


def test_envelope_keeps_extremes_and_order() -> None:
    values = np.random.default_rng(0).standard_normal(10_000)
    steps, kept = curves.envelope(np.arange(10_000.0), values, most_bins=100)
    assert len(steps) <= 202
    assert (np.diff(steps) > 0).all()
    np.testing.assert_array_equal(values[steps.astype(int)], kept)
    for low in range(0, 10_000, 100):
        within = kept[(steps >= low) & (steps < low + 100)]
        part = values[low : low + 100]
        assert (within.min(), within.max()) == (part.min(), part.max())
    few = np.arange(200.0)
    assert curves.envelope(few, few, most_bins=100)[0] is few


@pytest.mark.parametrize("steps_per_cycle", [2, 3, 7, 117])
def test_cycles_are_read_from_the_rates(steps_per_cycle: int) -> None:
    schedule = create_triangular_schedule(0.003, 0.03, steps_per_cycle)
    starts = curves.cycle_starts(np.asarray(schedule(np.arange(500))))
    expected = np.arange(steps_per_cycle, 499, steps_per_cycle)
    np.testing.assert_array_equal(starts, expected)
    assert len(curves.cycle_starts(np.full(100, 0.1))) == 0


def test_the_accuracy_axis_shows_tests_and_what_follows_the_start() -> None:
    train = np.concatenate([np.linspace(0.1, 0.9, 100), np.full(900, 0.97)])
    low, high = curves.accuracy_limits(train, np.array([0.96, 0.99]), 1)
    assert 95 < low < 96
    assert 100 < high < 101
    assert curves.accuracy_limits(np.full(10, 0.1), np.array([]), 1)[0] == 0


def test_moving_mean_is_numpys() -> None:
    values = np.random.default_rng(0).random(1000)
    values[500] = 1e20
    for window in (1, 3, 77):
        expected = np.convolve(values, np.full(window, 1 / window), mode="valid")
        np.testing.assert_allclose(curves.moving_mean(values, window), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("count", "every"),
    [(0, 1), (16, 1), (17, 2), (32, 2), (33, 5), (81, 10), (427, 50), (900, 100)],
)
def test_every_which_mark(count: int, every: int) -> None:
    assert curves.mark_every(count) == every


@pytest.mark.parametrize(("period", "num_steps"), [(1, 1), (7, 7), (7, 8), (7, 50), (468, 50_000)])
def test_marks_of_a_period_are_those_of_its_multiples(period: int, num_steps: int) -> None:
    each = curves.marks_each(period, num_steps)
    at = curves.marks_at(np.arange(period, num_steps, period))
    np.testing.assert_array_equal(each.steps, at.steps)
    assert (each.every, each.count) == (at.every, at.count)


def test_marks_of_the_longest_run_are_few() -> None:
    marks = curves.marks_each(1, 2**31)
    assert len(marks.steps) == 10
    assert marks.steps[-1] == 2_000_000_000


@pytest.mark.parametrize("num_steps", [1, 3, 468, 20_000])
def test_a_short_schedule_is_drawn_step_by_step(num_steps: int) -> None:
    steps = curves.steps_to_draw(num_steps, 117, 59)
    np.testing.assert_array_equal(steps, np.arange(num_steps))


@pytest.mark.parametrize("num_steps", [20_001, 1_170_000, 2**31 - 1, 2**31])
@pytest.mark.parametrize("steps_per_cycle", [2, 3, 117, 100_000, 2**20, 2**31 - 1])
def test_few_steps_of_a_long_schedule_have_its_extremes(
    num_steps: int, steps_per_cycle: int
) -> None:
    top = (steps_per_cycle + 1) // 2
    steps = curves.steps_to_draw(num_steps, steps_per_cycle, top)
    assert len(steps) < 10_000
    assert (np.diff(steps) > 0).all()
    assert (steps[0], steps[-1]) == (0, num_steps - 1)
    # Each part of the run is seen at its lowest and its highest.
    for low, high in curves.bins(num_steps, 100):
        within = steps[(steps >= low) & (steps < high)] % steps_per_cycle
        if high - low > 2 * steps_per_cycle:
            assert {0, top} <= set(within.tolist())
        else:
            assert len(within) >= 10


def test_few_rates_are_those_of_all_steps() -> None:
    config = TrainConfig(lr_schedule="triangular2", steps_per_cycle=1000)
    schedule, num_steps = create_schedule(config), 50_000
    steps = curves.steps_to_draw(num_steps, 1000, 500)
    rates = np.asarray(schedule(np.arange(num_steps)))
    interpolated = np.interp(np.arange(num_steps), steps, np.asarray(schedule(steps)))
    np.testing.assert_allclose(interpolated, rates, rtol=1e-5)
