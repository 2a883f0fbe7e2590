"""A run that stops and resumes is the run that never stopped, bit for bit."""

import dataclasses
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import assert_same_bits, checkpoint_steps, read_metrics, resolved, stored_state
from trainer import devices
from trainer.commands import inspection
from trainer.config import TrainConfig
from trainer.errors import UsageError
from trainer.records.metrics import Records
from trainer.run import loop, outputs, programs
from trainer.run.describe import describe
from trainer.run.job import Job
from trainer.run.loop import train
from trainer.schedules.cyclical import create_momentum_schedule, create_triangular_schedule
from trainer.step.several_steps import choose_steps_per_call


def test_stop_and_resume_is_no_stop(config: TrainConfig, tmp_path: Path) -> None:
    """Stops in mid-cycle, at the end of an epoch, and before the end of one."""
    train(config, tmp_path / "unbroken")
    for stop in (3, 20, 39, 60):
        train(dataclasses.replace(config, num_steps=stop), tmp_path / "broken")
    states = [stored_state(tmp_path / name, 60) for name in ("broken", "unbroken")]
    assert_same_bits(*states)
    ours, theirs = (read_metrics(tmp_path / name, "train") for name in ("broken", "unbroken"))
    assert ours == theirs
    assert [line["step"] for line in ours] == list(range(60))


@pytest.mark.system
def test_resume_of_the_cnn(config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, model="cnn", batch_size=64, num_steps=6)
    train(config, tmp_path / "unbroken")
    train(dataclasses.replace(config, num_steps=4), tmp_path / "broken")
    train(config, tmp_path / "broken")
    states = [stored_state(tmp_path / name, 6) for name in ("broken", "unbroken")]
    assert_same_bits(*states)


def test_steps_are_taken_while_the_evaluation_is_compiled(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_programs: dict
) -> None:
    steps_taken, compile_evaluation = threading.Event(), programs._compile_evaluation

    def wait_and_compile(job: Job) -> programs.Evaluate:
        assert steps_taken.wait(60)
        return compile_evaluation(job)

    def written(records: Records, step: int, *arguments: Any) -> None:
        if step == 19:  # The last one before the first test.
            steps_taken.set()
        take(records, step, *arguments)

    take = Records.train
    monkeypatch.setattr(programs, "_compile_evaluation", wait_and_compile)
    monkeypatch.setattr(Records, "train", written)
    shared_programs.clear()
    train(config, tmp_path)
    shared_programs.clear()
    assert [line["step"] for line in read_metrics(tmp_path, "test")] == [20, 40, 60]


def test_records_of_a_whole_run(config: TrainConfig, tmp_path: Path) -> None:
    result = train(config, tmp_path)
    found = read_metrics(tmp_path)
    train_lines = [line for line in found if line["split"] == "train"]
    schedule = create_triangular_schedule(config.lr_min, config.lr_max, 7)
    rates = [np.float32(line["learning_rate"]) for line in train_lines]
    np.testing.assert_array_equal(rates, schedule(np.arange(60)))
    tests = [line for line in found if line["split"] == "test"]
    assert [line["step"] for line in tests] == [20, 40, 60]
    assert [line["examples"] for line in tests] == [500] * 3
    assert (result.step, result.complete, result.workdir) == (60, True, str(tmp_path))
    assert (tests[-1]["loss"], tests[-1]["accuracy"]) == (result.test_loss, result.test_accuracy)
    assert result.test_accuracy > 0.8
    assert train_lines[-1]["loss"] < train_lines[0]["loss"]
    stored = json.loads((tmp_path / "config.json").read_text())
    assert TrainConfig(**stored) == resolved(config, 2560)


def test_a_checkpoint_is_found_at_every_interval_and_at_the_end(
    config: TrainConfig, tmp_path: Path
) -> None:
    train(dataclasses.replace(config, num_steps=25), tmp_path)
    assert checkpoint_steps(tmp_path) == {10, 20, 25}


def test_a_resume_says_where(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(dataclasses.replace(config, num_steps=24), tmp_path)
    with caplog.at_level(logging.INFO, "trainer"):
        train(dataclasses.replace(config, num_steps=25), tmp_path)
    assert (
        "resuming at step 24: epoch 2, cycle 4, step 3 of 7 of the cycle, rising, "
        "learning rate 0.02325" in caplog.text
    )
    assert caplog.text.count("step 24") == 1


def test_a_run_that_learned_nothing_is_told_so(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(dataclasses.replace(config, num_steps=2, lr_min=0.0, lr_max=0.0), tmp_path)
    assert caplog.text.count("with --lr_max=0 nothing is learned") == 1


def test_a_complete_run_says_so_and_how_to_train_further(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = train(dataclasses.replace(config, num_epochs=1), tmp_path)
    before = written(tmp_path)
    with caplog.at_level(logging.INFO, "trainer"):
        again = train(dataclasses.replace(config, num_epochs=1), tmp_path)
    assert again == first
    assert "is complete: 20 steps; to train an epoch more: --num_steps=40" in caplog.text
    assert "resuming" not in caplog.text
    assert written(tmp_path) == before


def test_a_run_of_an_older_version_resumes(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint whose configuration has none of the later fields."""
    real = outputs.checkpoint_meta

    def older(*arguments) -> dict:
        meta = real(*arguments)
        for name in (
            "lr_gamma",
            "cycle_up_fraction",
            "momentum_min",
            "momentum_max",
            "num_cycles",
        ):
            del meta["config"][name]
        return meta

    train(dataclasses.replace(config, num_steps=12), tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "checkpoint_meta", older)
        train(dataclasses.replace(config, num_steps=8), tmp_path / "broken")
    assert inspection.inspect(tmp_path / "broken")["cycle_step"] == 1
    train(dataclasses.replace(config, num_steps=12), tmp_path / "broken")
    states = [stored_state(tmp_path / name, 12) for name in ("broken", "unbroken")]
    assert_same_bits(*states)


def test_cycled_momentum_is_recorded(config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(
        config,
        num_cycles=2,
        num_epochs=1,
        lr_schedule="triangular2",
        momentum_min=0.8,
        momentum_max=0.9,
        optimizer="adamw",
        cycle_up_fraction=0.3,
    )
    train(config, tmp_path)
    lines = read_metrics(tmp_path, "train")
    assert list(lines[0]) == [
        "split", "step", "epoch", "learning_rate", "momentum", "loss", "accuracy",
    ]  # fmt: skip
    momenta = create_momentum_schedule("triangular2", 0.8, 0.9, 7, 1.0, 0.3)
    found = [np.float32(line["momentum"]) for line in lines]
    np.testing.assert_array_equal(found, momenta(np.arange(14)))


def test_labels_are_smoothed_in_training_alone(config: TrainConfig, tmp_path: Path) -> None:
    """Before the first update, the loss is a linear function of the part that is spread."""
    # So small a rate moves no parameter: all are tested with the first ones.
    config, training, test = dataclasses.replace(config, num_steps=1, lr_min=1e-30), [], []
    for smoothing in (0.0, 0.4, 0.8):
        train(dataclasses.replace(config, label_smoothing=smoothing), tmp_path / str(smoothing))
        (line,) = read_metrics(tmp_path / str(smoothing), "train")
        training.append(line["loss"])
        test.append(read_metrics(tmp_path / str(smoothing), "test")[-1]["loss"])
    np.testing.assert_allclose(training[1], (training[0] + training[2]) / 2, rtol=1e-5)
    assert abs(training[0] - training[2]) > 0.01
    assert test[0] == test[1] == test[2]


def written(workdir: Path) -> dict[Path, int]:
    """When each file but the lock was written."""
    paths = [path for path in workdir.rglob("*") if path.is_file() and path.name != "lock"]
    return {path: path.stat().st_mtime_ns for path in paths}


def test_another_trajectory_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    train(dataclasses.replace(config, num_steps=2), tmp_path)
    stored = (tmp_path / "config.json").read_text()
    with pytest.raises(UsageError, match=r"lr_max +0.03 +0.1\n"):
        train(dataclasses.replace(config, lr_max=0.1), tmp_path)
    assert (tmp_path / "config.json").read_text() == stored


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 101}, "--batch_size=101 .* such as 100 or 102"),
        ({"batch_size": 3000}, "--batch_size=3000 is more than the 2560"),
        ({"platform": "tpu"}, "--platform=tpu"),
        ({"num_devices": 9}, "--num_devices=9"),
        ({"steps_per_cycle": None, "cycles_per_epoch": 11}, "--cycles_per_epoch=11"),
        ({"dataset": "no_such_data"}, "--dataset=no_such_data"),
    ],
)
def test_what_cannot_run_writes_nothing(
    config: TrainConfig, tmp_path: Path, wrong: dict, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(dataclasses.replace(config, **wrong), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_workdir_that_cannot_be_made(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--workdir=.*file/run: .*file is not a folder"):
        train(config, tmp_path / "file" / "run")


def test_the_plan_in_words(config: TrainConfig, tmp_path: Path) -> None:
    text = describe(loop.plan(config, tmp_path / "run"))
    for words in (
        "2 devices (cpu), each 64 of the 128 examples",
        "2560 training and 500 test examples of ",
        "60 steps, 3 epochs of 20",
        "8.57 cycles of 7 steps",
        str(tmp_path / "run"),
        "from the beginning",
    ):
        assert words in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "length"),
    [
        ({"num_steps": 2**31}, "2147483648 steps, 107,374,182 epochs of 20 steps"),
        ({"num_steps": 19}, "19 steps, 0.95 epochs of 20 steps"),
        ({"num_steps": 20}, "20 steps, 1 epoch of 20 steps"),
        ({"num_steps": 1, "batch_size": 2560, "steps_per_cycle": 2}, "1 step, 1 epoch of 1 step"),
    ],
)
def test_every_length_is_readable(
    config: TrainConfig, tmp_path: Path, given: dict, length: str
) -> None:
    text = describe(loop.plan(dataclasses.replace(config, **given), tmp_path / "run"))
    assert f"length    {length}\n" in text


@pytest.mark.parametrize("kept", [False, True])
def test_a_run_says_that_it_compiles(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: bool
) -> None:
    config = dataclasses.replace(config, num_steps=1, compilation_cache=kept)
    with caplog.at_level(logging.INFO, "trainer"):
        train(config, tmp_path)
    text = caplog.text
    assert text.index("start     ") < text.index("compiling ") < text.index("first step after")
    assert ("the next start takes less" in text) == kept


@pytest.mark.parametrize("standardize", [False, True])
def test_inspect_and_evaluate(config: TrainConfig, tmp_path: Path, standardize: bool) -> None:
    config = dataclasses.replace(config, standardize=standardize, num_steps=24)
    result = train(config, tmp_path)
    found = inspection.inspect(tmp_path)
    schedule = create_triangular_schedule(config.lr_min, config.lr_max, 7)
    assert {name: found[name] for name in ("step", "epoch", "cycle", "cycle_step")} == {
        "step": 24,
        "epoch": 1,
        "cycle": 3,
        "cycle_step": 3,
    }
    assert np.float32(found["learning_rate"]) == schedule(24)
    assert found["config"]["standardize"] == standardize
    for num_devices in (2, 3):
        given = TrainConfig(data_dir=config.data_dir, num_devices=num_devices)
        again = inspection.evaluate(tmp_path, given)
        assert (again["step"], again["examples"]) == (24, 500)
        assert again["accuracy"] == result.test_accuracy
        np.testing.assert_allclose(again["loss"], result.test_loss, rtol=1e-5)


@pytest.mark.parametrize(
    "command", [inspection.inspect, lambda w: inspection.evaluate(w, TrainConfig())]
)
def test_no_checkpoint(tmp_path: Path, command) -> None:
    with pytest.raises(UsageError, match="there is no checkpoint in"):
        command(tmp_path)


def test_where_a_run_was_resumed(config: TrainConfig, tmp_path: Path) -> None:
    for stop in (3, 7, 9):
        train(dataclasses.replace(config, num_steps=stop, report=stop == 9), tmp_path)
    resumes = json.loads((tmp_path / "resumes.json").read_text())
    assert [resume["step"] for resume in resumes] == [3, 7]
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    timing = json.loads((tmp_path / "timing.json").read_text())
    assert [start["parts"]["picture"] > 0 for start in timing] == [False, False, True]


def test_a_picture_that_fails_does_not_fail_the_run(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "report.png").mkdir()  # No file can take its place.
    config = dataclasses.replace(config, num_steps=2, report=True)
    assert train(config, tmp_path).step == 2
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    (warning,) = [message for message in said if message.startswith("no picture of the run: ")]
    assert "\n" not in warning


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_files_have_the_permissions_that_the_umask_says(
    config: TrainConfig, tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        train(dataclasses.replace(config, num_steps=2), tmp_path / "run")
    finally:
        os.umask(before)
    paths = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
    assert len(paths) > 10
    for path in paths:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_steps_in_calls_are_the_steps_one_by_one(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    """The same program takes any number of steps, so stops that shift the calls change no bit.

    Also in the form for GPUs, whose loop has a fixed length.
    """
    monkeypatch.setattr(devices, "platform_of", lambda mesh: platform)
    momentum = {"momentum_min": 0.8, "momentum_max": 0.95}
    config = dataclasses.replace(config, reduction="allreduce", num_steps=45, **momentum)
    train(config, tmp_path / "one")
    several = dataclasses.replace(config, steps_per_call=8)
    train(several, tmp_path / "several")
    for stop in (14, 45):
        train(dataclasses.replace(several, num_steps=stop), tmp_path / "stopped")
    one, unbroken, stopped = (read_metrics(tmp_path / run) for run in ("one", "several", "stopped"))
    digests = [inspection.inspect(tmp_path / run)["digests"] for run in ("several", "stopped")]
    assert digests[0] == digests[1]
    assert [x for x in stopped if x["split"] == "train"] == [
        x for x in unbroken if x["split"] == "train"
    ]
    # Tests, checkpoints and the ends of epochs cut calls short: all is where it was.
    assert [(x["split"], x["step"]) for x in unbroken] == [(x["split"], x["step"]) for x in one]
    assert checkpoint_steps(tmp_path / "several") == checkpoint_steps(tmp_path / "one")
    for name in ("learning_rate", "momentum", "loss"):
        values = [[x[name] for x in run if x["split"] == "train"] for run in (one, unbroken)]
        np.testing.assert_allclose(*values, rtol=0 if name != "loss" else 1e-5)


def test_several_steps_a_call_and_the_tree_exclude_each_other(
    config: TrainConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, reduction="tree", steps_per_call=2)
    with pytest.raises(UsageError, match="--steps_per_call=2 with --reduction=tree"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "reduction", "platform", "interval", "chosen"),
    [
        (0, "allreduce", "cpu", 100, 1),
        (0, "tree", "gpu", 100, 1),
        (0, "allreduce", "gpu", 468, 32),
        (0, "allreduce", "tpu", 100, 25),
        (0, "allreduce", "gpu", 33, 17),
        (0, "allreduce", "gpu", 1, 1),
        (4, "allreduce", "cpu", 3, 3),
        (10**9, "allreduce", "gpu", 468, 468),
        (1, "allreduce", "gpu", 100, 1),
    ],
)
def test_steps_per_call(
    asked: int, reduction: str, platform: str, interval: int, chosen: int
) -> None:
    """What is chosen cuts the interval into calls of nearly equal length."""
    assert choose_steps_per_call(asked, reduction, platform, "replicated", interval) == chosen
