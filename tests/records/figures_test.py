"""What is drawn: through the data on the axes, and as real images."""

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from trainer.config import TrainConfig
from trainer.records import figures
from trainer.records.history import Resume, RunHistory
from trainer.schedules import create_plan, create_schedule, create_triangular_schedule


def history(
    num_steps: int,
    steps_per_cycle: int,
    resumes: tuple[Resume, ...] = (),
    momentum: bool = False,
    averages: tuple[str, ...] = (),
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
    config = TrainConfig(num_steps=num_steps, steps_per_cycle=steps_per_cycle)
    kinds = {kind: {name: values[1:] for name, values in test.items()} for kind in averages}
    return RunHistory(epath.Path("runs/a"), config, train, test, kinds, list(resumes))


def extents(axes) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest point of each curve and each filled area."""
    curves = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) > 2]
    curves += [area.get_paths()[0].vertices[:, 1] for area in axes.collections]
    values = np.concatenate(curves)
    return values.min(), values.max()


def vertical_lines(axes) -> list[float]:
    return sorted({line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2})


def labels(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize(
    ("num_steps", "steps_per_cycle"),
    [(1, 2), (2, 2), (50, 2), (468, 117), (4680, 2), (50_000, 117), (50_000, 2340)],
)
def test_the_extremes_of_every_step_are_drawn(num_steps: int, steps_per_cycle: int) -> None:
    run = history(num_steps, steps_per_cycle)
    rates, losses, _ = figures.report_figure(run).axes[:3]
    if num_steps > 2:
        for axes, name in ((rates, "learning_rate"), (losses, "loss")):
            values = run.train[name]
            assert extents(axes)[1] == values.max()
        assert extents(rates)[0] == run.train["learning_rate"].min()
    else:
        # A line of one point would show nothing.
        assert {line.get_marker() for line in (rates.lines[0], losses.lines[0])} == {"o"}
    assert rates.get_ylim()[0] == 0
    assert rates.get_xlim() == (0, num_steps)


def test_marks_of_epochs_cycles_and_resumes() -> None:
    resumes = Resume(300), Resume(900, {"lr_max": (0.03, 0.1)})
    axes = figures.report_figure(history(1500, 250, resumes)).axes
    epochs, cycles = [468, 936, 1404], [250, 500, 750, 1000, 1250]
    assert vertical_lines(axes[0]) == sorted([*epochs, 300, 900, *cycles])
    assert vertical_lines(axes[1]) == vertical_lines(axes[2]) == sorted([*epochs, 300, 900])
    assert labels(axes[0]) == ["end of every cycle", "resumed 2 times"]
    assert labels(axes[1])[-1].startswith("test, last 0.0007")


def test_marks_are_thinned_out() -> None:
    axes = figures.report_figure(history(50_000, 117)).axes
    assert vertical_lines(axes[1]) == [468 * 10 * k for k in range(1, 11)]
    cycles = set(vertical_lines(axes[0])) - set(vertical_lines(axes[1]))
    assert cycles == {117 * 50 * k for k in range(1, 9)} - set(vertical_lines(axes[1]))
    assert labels(axes[0]) == ["lowest to highest, 428 cycles", "end of every 50 cycles"]


def test_a_run_with_momentum_has_a_panel_more() -> None:
    run = history(468, 117, momentum=True)
    run.train["momentum"][:100] = np.nan  # It was switched on at a resume.
    panels = figures.report_figure(run).axes
    names = ["learning rate", "momentum", "loss", "accuracy, %"]
    assert [axes.get_ylabel() for axes in panels] == names
    np.testing.assert_array_equal(panels[1].lines[0].get_xdata(), np.arange(100, 468))
    np.testing.assert_array_equal(panels[1].lines[0].get_ydata(), run.train["momentum"][100:])


def test_averages_are_drawn_beside_the_test() -> None:
    figure = figures.report_figure(history(1500, 250, averages=("average", "ema")))
    accuracy = figure.axes[2]
    assert labels(accuracy)[-3:] == [
        "test, last 99.93 %",
        "average, last 99.93 %",
        "ema, last 99.93 %",
    ]
    drawn = {line.get_label(): list(line.get_xdata()) for line in accuracy.lines}
    assert drawn["test, last 99.93 %"] == [468, 936, 1404]
    assert drawn["ema, last 99.93 %"] == [936, 1404]


def test_a_picture_says_what_run_it_is_of() -> None:
    changes = {"lr_max": (0.03, 0.1), "momentum": (0.9, 0.5)}
    run = history(1500, 250, (Resume(300), Resume(900, changes)))
    figure = figures.report_figure(run)
    assert figure.get_suptitle() == "test accuracy 99.93 % after 1,500 steps"
    assert figure.get_supxlabel() == (
        "mnist, cnn, sgd, batches of 128; triangular, learning rate 0.003 to 0.03 in cycles of "
        "250 steps; seed 0\n"
        "runs/a; resumed at step 300, 900 (lr_max 0.03 → 0.1, momentum 0.9 → 0.5)"
    )


def test_a_picture_says_that_labels_are_smoothed() -> None:
    run = history(20, 10)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, label_smoothing=0.1))
    text = figures.report_figure(run).get_supxlabel()
    assert text.startswith("mnist, labels smoothed by 0.1, cnn, sgd")


@pytest.mark.parametrize(
    ("num_steps", "asked", "headline"),
    [
        (1, 1, "1 step"),
        (20, 10, "20 steps"),
        (20, 4680, "20 of 4,680 steps"),
        (500, 600, "test accuracy 99.79 % after 500 of 600 steps"),
    ],
)
def test_the_headline(num_steps: int, asked: int, headline: str) -> None:
    """Of 20 steps no run makes 10."""
    run = history(num_steps, 7)
    config = dataclasses.replace(run.config, num_steps=asked)
    figure = figures.report_figure(dataclasses.replace(run, config=config))
    assert figure.get_suptitle() == headline


def test_many_resumes_and_a_long_path_leave_room_for_the_run(tmp_path: Path) -> None:
    resumes = tuple(Resume(step, {"lr_max": (0.1, 0.2)}) for step in range(1, 400))
    run = dataclasses.replace(history(468, 117, resumes), workdir=epath.Path("a" * 500 + "end"))
    figure = figures.report_figure(run)
    text = figure.get_supxlabel()
    assert text.count("\n") < 6
    assert "aend; resumed at step 1 (lr_max 0.1 → 0.2), 2" in text.replace("\n", " ")
    assert "… 391 more …" in text.replace("\n", " ")
    figure.savefig(tmp_path / "a.png")
    assert figure.axes[0].get_position().width > 0.8


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_flat_curves_are_drawn_without_a_warning(value: float, tmp_path: Path) -> None:
    run = history(500, 117, averages=("ema",))
    for columns in (run.train, run.test, *run.averages.values()):
        columns["loss"][:] = columns["accuracy"][:] = value
    run.train["learning_rate"][:] = 0
    figures.report_figure(run).savefig(tmp_path / "a.png")


def test_report_of_a_workdir(tmp_path: Path) -> None:
    line = {"split": "train", "epoch": 0, "learning_rate": 0.1, "loss": 2.0, "accuracy": 0.1}
    lines = [json.dumps({**line, "step": step}) + "\n" for step in range(50)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    (tmp_path / "config.json").write_text("{}")
    path = figures.draw_report(tmp_path)
    assert png_size(Path(path)) == (1500, 1350)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["config.json", "metrics.jsonl", "report.png"]


def draw(num_steps: int, workdir: Path, **fields):
    config = TrainConfig(num_steps=num_steps, steps_per_cycle=117, **fields)
    plan = create_plan(config, 60_000)
    return figures.schedule_figure(create_schedule(config), config, plan, workdir)


def test_picture_of_the_schedule(tmp_path: Path) -> None:
    config = TrainConfig(steps_per_cycle=117)
    plan = create_plan(config, 60_000)
    path = figures.draw_schedule(create_schedule(config), config, plan, tmp_path / "new")
    assert path == epath.Path(tmp_path / "new" / "schedule.png")
    assert png_size(Path(path)) == (1500, 660)
    figure = draw(600, Path("runs/a"))
    (axes,) = figure.axes
    expected = create_triangular_schedule(3e-3, 3e-2, 117)(np.arange(600))
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), expected)
    assert vertical_lines(axes) == [117, 234, 351, 468, 585]
    assert figure.get_suptitle() == "planned: 600 steps, 1.28 epochs of 468 steps"
    assert figure.get_supxlabel() == (
        "mnist, cnn, sgd, batches of 128; triangular, learning rate 0.003 to 0.03 in cycles of "
        "117 steps; seed 0\nruns/a"
    )


@pytest.mark.parametrize(
    ("num_steps", "lr_schedule"),
    [(1, "triangular"), (3, "constant"), (468, "exp_range"), (1_170_000, "triangular")]
    + [(2**31, name) for name in ("triangular", "exp_range", "constant")],
)
def test_the_schedule_of_a_run_of_any_length(num_steps: int, lr_schedule: str) -> None:
    axes = draw(num_steps, Path("runs/a"), lr_schedule=lr_schedule).axes[0]
    assert axes.get_xlim() == (0, num_steps)
    if num_steps > 117:
        highest = 0.0298 if lr_schedule == "exp_range" else 0.03
        assert extents(axes)[1] == pytest.approx(highest, rel=1e-2)
        lowest = 0.03 if lr_schedule == "constant" else 0.003
        assert extents(axes)[0] == pytest.approx(lowest, rel=1e-6)
