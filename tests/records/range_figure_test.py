"""The picture of a range test, through what is drawn on its axes and as a real image."""

import struct
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from trainer.records.range_figure import draw_range_test, range_test_figure
from trainer.schedules.range_analysis import RangeTest, analyze

RUN = "mnist, mlp, sgd, batches of 128, seed 0: 600 steps"


def curves_of(exponential: bool, diverged: bool, noise: float) -> RangeTest:
    """Rises between steps 200 and 400, and the accuracy falls at 500."""
    rates = np.geomspace(1e-5, 10, 600) if exponential else np.linspace(0, 1, 600)
    rise = np.clip((np.arange(600) - 200) / 200, 0, 1)
    accuracies = 0.1 + 0.8 * rise * (np.arange(600) < 500)
    losses = 2.3 - 2 * rise
    losses[550:] = np.inf if diverged else losses[550:]
    random = np.random.default_rng(0)
    noise_of = [noise * random.standard_normal(600) for _ in range(2)]
    return analyze(rates, losses + noise_of[0], accuracies + noise_of[1], 51)


def vertical_lines(axes) -> list[float]:
    return [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2]


def words(figure) -> str:
    return f"{figure.get_suptitle()}\n{figure.get_supxlabel()}".replace("\n", " ")


@pytest.mark.parametrize("exponential", [True, False])
@pytest.mark.parametrize("diverged", [True, False])
def test_what_is_drawn(exponential: bool, diverged: bool) -> None:
    test = curves_of(exponential, diverged, 0.02)
    found = test.suggestion
    assert found is not None
    figure = range_test_figure(test, exponential, RUN)
    accuracy, loss = figure.axes
    marks = [found.lr_min, found.lr_max, found.falls_at]
    assert vertical_lines(accuracy) == vertical_lines(loss) == marks
    assert accuracy.get_xscale() == ("log" if exponential else "linear")
    np.testing.assert_array_equal(accuracy.lines[0].get_ydata(), 100 * test.accuracies)
    np.testing.assert_array_equal(loss.lines[1].get_ydata(), test.smoothed_losses)
    assert loss.lines[-1].get_xdata()[0] == found.steepest
    low, high = found.equally_good
    (good,) = (patch for patch in loss.patches if patch.get_label().endswith("do equally well"))
    assert (good.get_x(), good.get_x() + good.get_width()) == pytest.approx((low, high))


def test_how_sure_it_is_is_seen_and_said() -> None:
    """A band of two standard errors, and words."""
    for noise, confidence in ((0.02, "clear"), (0.4, "rough")):
        test = curves_of(True, False, noise)
        assert test.suggestion is not None
        figure = range_test_figure(test, True, RUN)
        assert f": {confidence}, the rise is" in words(figure)
        for line in (RUN, *test.suggestion.reasons, *test.suggestion.doubts):
            assert line in words(figure)
        (band,) = figure.axes[0].collections
        drawn = band.get_paths()[0].vertices
        middle = np.flatnonzero(np.isclose(drawn[:, 0], test.learning_rates[300]))
        height = np.ptp(drawn[middle, 1])
        assert height == pytest.approx(4 * 100 * test.accuracy_errors[300])


def test_a_refusal_has_curves_and_its_reason() -> None:
    rates = np.geomspace(1e-5, 10, 600)
    noise = 0.02 * np.random.default_rng(0).standard_normal(600)
    test = analyze(rates, 2.3 + noise, 0.1 + noise, 51)
    figure = range_test_figure(test, True, RUN)
    assert "no clear answer: the accuracy never rose" in words(figure)
    assert vertical_lines(figure.axes[0]) == []


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    path = draw_range_test(curves_of(True, True, 0.02), True, RUN, epath.Path(tmp_path) / "a.png")
    data = Path(path).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1500, 1125)
