"""What is drawn: through the data on the axes, and as real images."""

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from trainer.errors import UsageError
from trainer.records import figures
from trainer.schedules.cyclical import create_triangular_schedule
from trainer.schedules.range_curves import analyze
from trainer.workdir.files import RunHistory, note_resume, read_history


def history(
    num_steps: int, steps_per_cycle: int, resumes: tuple[int, ...] = (), momentum: bool = False
) -> RunHistory:
    """A run in epochs of 468 steps with one odd loss and one odd accuracy, tested every epoch."""
    steps = np.arange(num_steps, dtype=np.float64)
    schedule = create_triangular_schedule(0.003, 0.03, steps_per_cycle)
    rates = np.asarray(schedule(np.arange(num_steps)))
    loss, accuracy = 2.3 / (1 + steps / 50), 1 - 0.9 / (1 + steps / 50)
    loss[num_steps // 2], accuracy[num_steps // 2] = 7.0, 0.5
    train = {
        "step": steps,
        "epoch": steps // 468,
        "learning_rate": rates.astype(np.float64),
        "loss": loss,
        "accuracy": accuracy,
    }
    if momentum:
        train["momentum"] = 0.95 - train["learning_rate"]
    tests = np.arange(468, num_steps + 1, 468, dtype=np.float64)
    test = {"step": tests, "loss": 1 / tests, "accuracy": 1 - 1 / tests}
    config = {"dataset": "mnist", "model": "cnn", "optimizer": "sgd", "batch_size": 128}
    return RunHistory({**config, "num_steps": num_steps}, train, test, list(resumes))


def extents(axes) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest point of each curve and each filled area."""
    curves = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) > 2]
    curves += [area.get_paths()[0].vertices[:, 1] for area in axes.collections]
    return min(map(np.min, curves)), max(map(np.max, curves))


def vertical_lines(axes) -> list[float]:
    return sorted({line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2})


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize("num_steps", [1, 2, 50, 468, 4680, 50_000])
@pytest.mark.parametrize("steps_per_cycle", [2, 117, 2340])
def test_the_extremes_of_every_step_are_drawn(num_steps: int, steps_per_cycle: int) -> None:
    run = history(num_steps, steps_per_cycle)
    rates, losses, _ = figures.report_figure(run).axes[:3]
    if num_steps > 2:
        for axes, name in ((rates, "learning_rate"), (losses, "loss")):
            values = run.train[name]
            assert extents(axes)[1] == values.max()
        assert extents(rates)[0] == run.train["learning_rate"].min()
    assert rates.get_ylim()[0] == 0
    assert rates.get_xlim() == (0, num_steps)


def test_marks_of_epochs_cycles_and_resumes() -> None:
    axes = figures.report_figure(history(1500, 250, resumes=(300, 900))).axes
    epochs, resumes, cycles = [468, 936, 1404], [300, 900], [250, 500, 750, 1000, 1250]
    assert vertical_lines(axes[0]) == sorted(epochs + resumes + cycles)
    assert vertical_lines(axes[1]) == vertical_lines(axes[2]) == sorted(epochs + resumes)
    labels = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert labels == ["end of every cycle", "resumed 2 times"]
    assert [text.get_text() for text in axes[1].get_legend().get_texts()][-1].startswith("test")


def test_marks_are_thinned_out() -> None:
    axes = figures.report_figure(history(50_000, 117)).axes
    assert vertical_lines(axes[1]) == [468 * 10 * k for k in range(1, 11)]
    cycles = set(vertical_lines(axes[0])) - set(vertical_lines(axes[1]))
    assert cycles == {117 * 50 * k for k in range(1, 9)} - set(vertical_lines(axes[1]))


@pytest.mark.parametrize(
    ("count", "every"),
    [(0, 1), (16, 1), (17, 2), (32, 2), (33, 5), (81, 10), (427, 50), (900, 100)],
)
def test_every_which_mark(count: int, every: int) -> None:
    assert figures.mark_every(count) == every


def test_a_run_with_momentum_has_a_panel_more() -> None:
    panels = figures.report_figure(history(468, 117, momentum=True)).axes
    assert [axes.get_ylabel() for axes in panels] == [
        "learning rate",
        "momentum",
        "loss",
        "accuracy, %",
    ]
    momentum = history(468, 117, momentum=True).train["momentum"]
    np.testing.assert_array_equal(panels[1].lines[0].get_ydata(), momentum)


def test_envelope_keeps_extremes_and_order() -> None:
    values = np.random.default_rng(0).standard_normal(10_000)
    steps, kept = figures.envelope(np.arange(10_000.0), values, most_bins=100)
    assert len(steps) <= 202
    assert (np.diff(steps) > 0).all()
    np.testing.assert_array_equal(values[steps.astype(int)], kept)
    for low in range(0, 10_000, 100):
        within = kept[(steps >= low) & (steps < low + 100)]
        part = values[low : low + 100]
        assert (within.min(), within.max()) == (part.min(), part.max())
    few = np.arange(200.0)
    assert figures.envelope(few, few, most_bins=100)[0] is few


@pytest.mark.parametrize("steps_per_cycle", [2, 3, 7, 117])
def test_cycles_are_read_from_the_rates(steps_per_cycle: int) -> None:
    schedule = create_triangular_schedule(0.003, 0.03, steps_per_cycle)
    starts = figures.cycle_starts(np.asarray(schedule(np.arange(500))))
    expected = np.arange(steps_per_cycle, 499, steps_per_cycle)
    np.testing.assert_array_equal(starts, expected)
    assert len(figures.cycle_starts(np.full(100, 0.1))) == 0


def test_the_accuracy_axis_shows_tests_and_what_follows_the_start() -> None:
    train = np.concatenate([np.linspace(0.1, 0.9, 100), np.full(900, 0.97)])
    low, high = figures.accuracy_limits(train, np.array([0.96, 0.99]), 1)
    assert 95 < low < 96
    assert 100 < high < 101
    assert figures.accuracy_limits(np.full(10, 0.1), np.array([]), 1)[0] == 0


def test_report_while_the_run_goes_on(tmp_path: Path) -> None:
    """The last line is cut off; no test has been made."""
    line = {"split": "train", "epoch": 0, "learning_rate": 0.1, "loss": 2.0, "accuracy": 0.1}
    lines = [json.dumps({**line, "step": step}) for step in range(50)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines)[:-20])
    (tmp_path / "config.json").write_text(json.dumps(history(99, 7).config))
    note_resume(epath.Path(tmp_path), 30)
    run = read_history(tmp_path)
    np.testing.assert_array_equal(run.train["step"], np.arange(49))
    assert (len(run.test["step"]), run.resumes) == (0, [30])
    path = figures.draw_report(tmp_path)
    assert png_size(path) == (1000, 900)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "report.png",
        "resumes.json",
    ]


@pytest.mark.parametrize("files", [{}, {"metrics.jsonl": ""}, {"config.json": "{}"}])
def test_no_records(files: dict[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=f"--workdir={tmp_path}: there are no records .* valid"):
        figures.draw_report(tmp_path)
    assert not (tmp_path / "report.png").exists()


def test_resumes_outlive_rewinds(tmp_path: Path) -> None:
    workdir, config = epath.Path(tmp_path), history(1, 7).config
    (tmp_path / "config.json").write_text(json.dumps(config))
    line = {"split": "train", "step": 0, "epoch": 0, "learning_rate": 0.1}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({**line, "loss": 1, "accuracy": 0}) + "\n")
    seen = []
    for first_step in (0, 20, 20, 50, 30, 0):
        note_resume(workdir, first_step)
        seen.append(read_history(tmp_path).resumes)
    assert seen == [[], [20], [20], [20, 50], [20, 30], []]


def test_picture_of_the_schedule(tmp_path: Path) -> None:
    schedule = create_triangular_schedule(0.003, 0.03, 117)
    path = figures.draw_schedule(schedule, 4680, 468, tmp_path / "new")
    assert path == epath.Path(tmp_path / "new" / "schedule.png")
    assert png_size(Path(path)) == (1000, 420)
    (axes,) = figures.schedule_figure(np.asarray(schedule(np.arange(200))), 100).axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), schedule(np.arange(200)))
    assert vertical_lines(axes) == [100, 117]


@pytest.mark.parametrize("exponential", [True, False])
@pytest.mark.parametrize("diverged", [True, False])
def test_picture_of_a_range_test(diverged: bool, exponential: bool, tmp_path: Path) -> None:
    rates = np.geomspace(1e-5, 10, 600) if exponential else np.linspace(0, 1, 600)
    rise = np.clip((np.arange(600) - 200) / 200, 0, 1)
    losses = 2.3 - 2 * rise
    losses[550:] = np.inf if diverged else losses[550:]
    test = analyze(rates, losses, 0.1 + 0.8 * rise, 25)
    figure = figures.range_test_figure(test, exponential)
    accuracy, loss = figure.axes
    marks = [test.lr_min, test.lr_max] + [rates[550]] * diverged
    assert vertical_lines(accuracy) == vertical_lines(loss) == pytest.approx(marks)
    assert accuracy.get_xscale() == ("log" if exponential else "linear")
    assert loss.lines[-1].get_xdata()[0] == test.steepest
    np.testing.assert_array_equal(accuracy.lines[0].get_ydata(), 100 * test.accuracies)
    path = figures.draw_range_test(test, exponential, epath.Path(tmp_path) / "a.png")
    assert png_size(Path(path)) == (1000, 750)
    unclear = dataclasses.replace(test, lr_min=None, lr_max=None, steepest=None)
    bare = figures.range_test_figure(unclear, exponential).axes
    assert vertical_lines(bare[0]) == [rates[550]] * diverged
