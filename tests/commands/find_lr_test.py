"""The range test as a user runs it: what it finds, what it writes, and what it leaves alone."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from sklearn.datasets import load_digits

from tests.helpers import read_metrics
from trainer import cli
from trainer.cli import actions
from trainer.cli.arguments import parse as arguments_of
from trainer.commands.find_lr import cycle_length, find_lr, free_workdir
from trainer.config import TrainConfig
from trainer.errors import RunError, UsageError
from trainer.run.loop import train
from trainer.schedules import create_plan
from trainer.schedules.range_curves import EXPONENTIAL
from trainer.workdir.lock import lock

FILES = ["find_lr.cfg", "find_lr.csv", "find_lr.png"]


@pytest.fixture
def mlp(config: TrainConfig) -> TrainConfig:
    """With all that a flagfile must carry away from its default."""
    return dataclasses.replace(
        config,
        steps_per_cycle=None,
        standardize=True,
        nesterov=True,
        seed=3,
    )


def parse(path: Path) -> tuple[TrainConfig, str]:
    arguments = arguments_of(["trainer", f"--flagfile={path}"])
    return arguments.config, arguments.workdir


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_beside_a_run_that_holds_the_workdir(mlp: TrainConfig, tmp_path: Path) -> None:
    """Nothing of the run changes, and the flagfile trains, elsewhere, with what was found."""
    workdir = tmp_path / "run"
    train(dataclasses.replace(mlp, num_steps=5, lr_max=0.1), workdir)
    with lock(epath.Path(workdir)):
        before = contents(workdir)
        found = find_lr(mlp, workdir, 1e-4, 10, 150, EXPONENTIAL)
    after = contents(workdir)
    assert sorted(after.keys() - before.keys()) == FILES
    assert {name: after[name] for name in before} == before
    config, other = parse(workdir / "find_lr.cfg")
    assert config == dataclasses.replace(
        mlp, lr_min=found["lr_min"], lr_max=found["lr_max"], steps_per_cycle=20
    )
    assert other == f"{workdir}-find_lr"
    test = train(dataclasses.replace(config, num_epochs=1), other)
    assert test.test_accuracy > 0.5
    rates = [line["learning_rate"] for line in read_metrics(other, "train")]
    assert min(rates) == pytest.approx(found["lr_min"])
    assert max(rates) == pytest.approx(found["lr_max"])


@pytest.mark.system
def test_the_steps_are_those_of_training(mlp: TrainConfig, tmp_path: Path) -> None:
    """With a rate that hardly rises, on other devices, it is the run at a constant rate."""
    on_four = dataclasses.replace(mlp, num_devices=4)
    found = find_lr(on_four, tmp_path / "range", 0.01, 0.01 + 1e-8, 40, EXPONENTIAL)
    assert found["confidence"] == "rough"
    constant = dataclasses.replace(mlp, lr_schedule="constant", lr_max=0.01, num_steps=40)
    train(constant, tmp_path / "run")
    losses = [line["loss"] for line in read_metrics(tmp_path / "run", "train")]
    table = np.loadtxt(tmp_path / "range" / "find_lr.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(table[:, 2], losses, rtol=1e-5)


@pytest.mark.system
def test_small_noisy_data(data_dir: Path, tmp_path: Path) -> None:
    """Of 1,437 pictures of 8x8, trained in batches of 32, the rates found beat the default ones."""
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    parts = {"train": order[:1437], "test": order[1437:]}
    arrays = {f"x_{name}": images[part] for name, part in parts.items()}
    arrays |= {f"y_{name}": digits.target[part] for name, part in parts.items()}
    np.savez(tmp_path / "digits.npz", **arrays)
    config = TrainConfig(
        dataset=str(tmp_path / "digits.npz"),
        data_dir=str(tmp_path / "data"),
        model="mlp",
        batch_size=32,
        num_epochs=2,
        num_devices=1,
        tensorboard=False,
        report=False,
    )
    found = find_lr(config, tmp_path / "range", 1e-5, 10, 600, EXPONENTIAL)
    assert found["confidence"] == "clear"
    assert found["lr_max"] >= found["steepest_loss"] > 10 * found["lr_min"]
    suggested, _ = parse(tmp_path / "range" / "find_lr.cfg")
    accuracy = train(suggested, tmp_path / "suggested").test_accuracy
    assert accuracy > train(config, tmp_path / "default").test_accuracy
    assert accuracy > 0.9


def test_stops_early_where_the_loss_diverges(
    mlp: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO, "trainer"),
        pytest.raises(RunError, match="no clear answer: the loss diverged at"),
    ):
        find_lr(mlp, tmp_path, 10, 1e4, 200, EXPONENTIAL)
    rows = (tmp_path / "find_lr.csv").read_text().splitlines()
    assert rows[0] == "step,learning_rate,loss,accuracy,smoothed_loss,smoothed_accuracy"
    rates = [float(row.split(",")[1]) for row in rows[1:]]
    assert 2 <= len(rates) < 200
    expected = np.geomspace(10, 1e4, 200).astype(np.float32)[: len(rates)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert f"stopped early: the loss diverged at step {len(rates) - 1} of 200" in caplog.text
    assert not (tmp_path / "find_lr.cfg").exists()


def test_no_clear_answer_leaves_no_flagfile(
    mlp: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "find_lr.cfg").write_text("--lr_max=1\n")
    with (
        caplog.at_level(logging.INFO, "trainer"),
        pytest.raises(RunError, match="the accuracy never rose, up to 1e-06; raise --find_lr_max"),
    ):
        find_lr(mlp, tmp_path, 1e-7, 1e-6, 40, EXPONENTIAL)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES[1:]
    assert "40 steps, learning rate 1e-07 to 1e-06 (exponential)" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--find_lr_min=0"], "--find_lr_min=0 cannot rise by equal factors; use a rate above 0"),
        (["--find_lr_min=-1"], "--find_lr_min=-1.0 is not valid; use a finite number"),
        (["--find_lr_max=nan"], "--find_lr_max=nan is not valid; use a finite number"),
        (["--find_lr_min=0.1", "--find_lr_max=0.1"], "--find_lr_min=0.1 is not below"),
        (["--find_lr_steps=39"], "--find_lr_steps=39 is too few; use 40 or more"),
        (
            ["--find_lr_ramp=log"],
            "--find_lr_ramp=log is not valid; use exponential or linear",
        ),
        (["--lr_schedule=constant"], "--lr_schedule=constant has one rate"),
        (["--batch_size=70000"], "--batch_size=70000 is more than the 60000 training examples"),
    ],
)
def test_mistakes(
    arguments: list[str],
    message: str,
    data_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actions, "_configure_devices", lambda config: None)  # The tests' own stay.
    flags = [f"--data_dir={data_dir}", f"--workdir={tmp_path}/run", "--num_devices=2"]
    assert cli.run(["trainer", "find_lr", *arguments, *flags]) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {message}")
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_that_cannot_be_made(mlp: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file is not a folder"):
        find_lr(mlp, tmp_path / "file" / "run", 1e-4, 1, 40, EXPONENTIAL)


@pytest.mark.parametrize(
    ("workdir", "runs", "free"),
    [
        ("run", [], "run"),
        (".", [], "."),
        ("run", ["run"], "run-find_lr"),
        ("run", ["run", "run-find_lr"], "run-find_lr2"),
        ("run", ["run", "run-find_lr", "run-find_lr2"], "run-find_lr3"),
        (".", ["."], "{here}-find_lr"),
        ("..", [".."], "{parent}-find_lr"),
        ("run/..", ["."], "{here}-find_lr"),
    ],
)
def test_where_the_flagfile_trains(
    workdir: str, runs: list[str], free: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a run is already, beside it; also beside a folder that is named by dots."""
    here = tmp_path / "parent" / "here"
    (here / "run").mkdir(parents=True)
    monkeypatch.chdir(here)
    for run in runs:
        Path(run).mkdir(exist_ok=True)
        (Path(run) / "config.json").touch()
    expected = free.format(here=here, parent=here.parent)
    assert str(free_workdir(epath.Path(workdir))) == expected


def test_a_whole_bucket_or_disk_has_nothing_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"/config.json", "gs://bucket/config.json"}
    for path in (type(epath.Path("/")), type(epath.Path("gs://bucket"))):
        monkeypatch.setattr(path, "exists", lambda self: str(self) in held)
    assert str(free_workdir(epath.Path("/"))) == "/find_lr"
    assert str(free_workdir(epath.Path("gs://bucket"))) == "gs://bucket/find_lr"
    assert str(free_workdir(epath.Path("gs://bucket/run"))) == "gs://bucket/run"


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (TrainConfig(), 468),
        (TrainConfig(num_epochs=1), 468),
        (TrainConfig(num_steps=200), 200),
        (TrainConfig(num_steps=1), 2),
        (TrainConfig(batch_size=64), 937),
    ],
)
def test_a_cycle_is_an_epoch_or_the_whole_run(config: TrainConfig, steps: int) -> None:
    assert cycle_length(create_plan(config, 60000)) == steps
