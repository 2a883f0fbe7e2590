"""What a comparison draws: through the data on the axes, and as a real image."""

import dataclasses
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from etils import epath

from trainer.config import TrainConfig
from trainer.records import comparison_figure
from trainer.records.history import RunHistory
from trainer.schedules import create_triangular_schedule


def history(num_steps: int, lr_max: float = 0.03, tests: int = 3) -> RunHistory:
    """A run whose loss and accuracy get better evenly."""
    steps = np.arange(num_steps, dtype=np.float64)
    rates = np.asarray(create_triangular_schedule(0.003, lr_max, 50)(np.arange(num_steps)))
    train = {
        "step": steps,
        "epoch": steps // 100,
        "learning_rate": rates.astype(np.float64),
        "loss": 2.3 / (1 + steps),
        "accuracy": 1 - 0.9 / (1 + steps),
    }
    at = np.linspace(num_steps / 3, num_steps, tests)
    test = {"step": at, "loss": 1 / at, "accuracy": 1 - 1 / at}
    return RunHistory(epath.Path("runs/a"), TrainConfig(), train, test, {}, [])


def drawn(axes) -> list:
    """The lines with data; those of a legend have none."""
    return [line for line in axes.lines if len(line.get_xdata())]


def labels(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_every_run_is_on_every_panel_in_its_colour() -> None:
    runs = [("a", history(300)), ("b", history(600, 0.1)), ("c", history(60, tests=0))]
    figure = comparison_figure.comparison_figure(runs, ["lr_max", "seed"])
    rates, losses, accuracies = figure.axes
    assert [len(drawn(axes)) for axes in figure.axes] == [3, 5, 5]
    for line, (_, run) in zip(drawn(rates), runs, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), run.train["step"])
        np.testing.assert_array_equal(line.get_ydata(), run.train["learning_rate"])
    assert rates.get_xlim() == (0, 600)
    assert rates.get_ylim() == (0, pytest.approx(0.108))
    colors = [line.get_color() for line in drawn(rates)]
    assert len(set(colors)) == 3
    for axes, name, factor in ((losses, "loss", 1), (accuracies, "accuracy", 100)):
        tests = [line for line in drawn(axes) if line.get_marker() == "o"]
        assert [line.get_color() for line in tests] == colors[:2]
        for line, (_, run) in zip(tests, runs, strict=False):
            np.testing.assert_array_equal(line.get_ydata(), factor * run.test[name])
    smoothed = drawn(losses)[0].get_ydata()
    # A 60th of the longest run, 11 steps: the same for both.
    expected = np.convolve(runs[0][1].train["loss"], np.full(11, 1 / 11), "valid")
    np.testing.assert_allclose(smoothed, expected)
    assert labels(rates) == ["a, last test 99.67 %", "b, last test 99.83 %", "c"]
    assert labels(losses) == ["training, moving mean", "test"]
    assert figure.get_suptitle() == "3 runs; highest accuracy in the last test 99.83 %, of b"
    assert figure.get_supxlabel().startswith("what differs: lr_max, seed\n")


def test_a_run_of_one_step_alone() -> None:
    figure = comparison_figure.comparison_figure([("a", history(1, tests=0))], [])
    assert figure.get_suptitle() == "1 run"
    assert drawn(figure.axes[1])[0].get_marker() == "o"
    assert labels(figure.axes[1]) == ["training, moving mean"]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_flat_curves_are_drawn_without_a_warning(value: float, tmp_path: Path) -> None:
    run = history(500)
    for columns in (run.train, run.test):
        columns["loss"][:] = columns["accuracy"][:] = value
    run.train["learning_rate"][:] = 0
    runs = [("a", run), ("b", run)]
    comparison_figure.comparison_figure(runs, []).savefig(tmp_path / "a.png")


def test_many_runs_with_long_names_leave_room(tmp_path: Path) -> None:
    """Each has colour and line of its own, and names that mean something to matplotlib are text."""
    names = ["_hidden", "$x^2_", "y" * 300, *(f"sweep/lr_{i}" for i in range(25))]
    runs = [(name, history(100)) for name in names]
    figure = comparison_figure.comparison_figure(runs, ["seed"])
    path = comparison_figure.draw_comparison(runs, ["seed"], epath.Path(tmp_path / "new/a.png"))
    assert path.read_bytes().startswith(b"\x89PNG")
    figure.savefig(tmp_path / "b.png")
    rates = figure.axes[0]
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn(rates)}) == 28
    assert len(labels(rates)) == 28
    assert labels(rates)[2].startswith("…yyy")
    width = rates.get_position().width
    assert width > 0.8
    inside = figure.bbox
    for axes in figure.axes:
        box = axes.get_legend().get_window_extent()
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
    assert matplotlib.get_backend()  # No state of pyplot's is needed.


def test_runs_that_end_alike_are_counted() -> None:
    runs = [("a", history(300)), ("b", dataclasses.replace(history(300)))]
    figure = comparison_figure.comparison_figure(runs, [])
    assert figure.get_suptitle().endswith("99.67 %, of 2 runs")
    assert "differs" not in figure.get_supxlabel()
