"""Augmentation through the life of a run: exact resumes, changes, and every command."""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import assert_same_run, read_metrics, smallest_run
from trainer.checkpoints import read_newest
from trainer.commands import find_lr, inspection, verify_resume
from trainer.config import TrainConfig
from trainer.errors import RunError, UsageError
from trainer.records.metrics import Records
from trainer.run.job import prepare
from trainer.run.loop import train
from trainer.run.programs import lower_steps
from trainer.run.stored import load_checkpoint

SOURCE = """
import jax

def augment(key, image):
    return image + 0.2 * jax.random.normal(key, image.shape)
"""


@pytest.fixture(params=["shift", pytest.param("own.py:augment", marks=pytest.mark.slow)])
def config(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrainConfig:
    """Runs of 10 steps, 4 an epoch, with the built-in one and with one of one's own."""
    (tmp_path / "own.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return smallest_run(tmp_path, augment=request.param, steps_per_cycle=3, num_steps=10)


@pytest.mark.system
def test_a_resumed_run_is_the_unbroken_one(config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "unbroken")
    for num_steps, num_devices in ((3, 2), (4, 1), (7, 4), (10, 1)):
        part = dataclasses.replace(config, num_steps=num_steps, num_devices=num_devices)
        train(part, tmp_path / "broken")
    paths = [tmp_path / name for name in ("broken", "unbroken")]
    records = [read_metrics(path, "train") for path in paths]
    assert records[0] == records[1]
    digests = [inspection.inspect(path)["digest"] for path in paths]
    assert digests[0] == digests[1]


def test_a_killed_run_goes_on_as_the_unbroken_one(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends after 8 steps, of which a checkpoint has 6."""
    config = dataclasses.replace(config, checkpoint_every_steps=3)
    train(config, tmp_path / "unbroken")
    real = Records.train

    def dying(self: Records, step: int, *rest: object) -> None:
        real(self, step, *rest)
        if step == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(Records, "train", dying)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "killed")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert read_newest(tmp_path / "killed").step == 6
    train(config, tmp_path / "killed")
    assert_same_run(tmp_path / "killed", tmp_path / "unbroken")


@pytest.mark.system
def test_the_same_with_several_steps_a_call(config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, reduction="allreduce")
    for steps in (1, 4):
        train(dataclasses.replace(config, steps_per_call=steps), tmp_path / str(steps))
    assert_same_run(tmp_path / "1", tmp_path / "4")


def test_it_changes_what_is_trained_and_not_what_is_tested(
    config: TrainConfig, tmp_path: Path
) -> None:
    train(config, tmp_path / "with")
    train(dataclasses.replace(config, augment=""), tmp_path / "without")
    records = [read_metrics(tmp_path / name) for name in ("with", "without")]
    assert records[0][0]["loss"] != records[1][0]["loss"]
    # The parameters differ, and the images do not: the same ones evaluate to what was recorded.
    assert f" augmented by {config.augment}," in inspection.summary(
        inspection.inspect(tmp_path / "with")
    )
    found = inspection.evaluate(tmp_path / "with", TrainConfig(num_devices=1))
    assert found["loss"] == pytest.approx(records[0][-1]["loss"], rel=1e-6)


def test_a_change_is_refused_or_allowed_by_name(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(config, tmp_path / "run")
    off = dataclasses.replace(config, augment="", num_steps=12)
    with pytest.raises(UsageError, match=rf"\n +augment +{re.escape(config.augment)}"):
        train(off, tmp_path / "run")
    with caplog.at_level(logging.INFO):
        train(off, tmp_path / "run", allow_config_change=["augment"])
    assert "changed augment: " in caplog.text
    history = read_newest(tmp_path / "run").meta["config_history"]
    assert history == [{"step": 10, "changes": {"augment": [config.augment, ""]}}]
    again = dataclasses.replace(config, augment="shift", num_steps=14)
    train(again, tmp_path / "run", allow_config_change=["augment"])
    assert "is not the file" not in caplog.text


@pytest.mark.system
def test_the_commands(config: TrainConfig, tmp_path: Path) -> None:
    """A range test trains with it, and the proof of the resume holds."""
    with contextlib.suppress(RunError):  # There is little to learn, and the curves are written.
        find_lr.find_lr(config, tmp_path / "test", 1e-3, 1e-2, 40, "linear")
    with_it = (tmp_path / "test/find_lr.csv").read_text()
    plain = dataclasses.replace(config, augment="")
    with contextlib.suppress(RunError):
        find_lr.find_lr(plain, tmp_path / "test", 1e-3, 1e-2, 40, "linear")
    assert (tmp_path / "test/find_lr.csv").read_text() != with_it
    compared = verify_resume.verify_resume(
        dataclasses.replace(config, num_steps=None, num_epochs=2), [1, 2]
    )
    assert verify_resume.kept(compared)
    assert all(each.promised for each in compared)


def own(config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(config, augment="own.py:augment")


def test_a_file_that_has_changed_is_said(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = own(config)
    train(config, tmp_path / "run")
    meta = read_newest(tmp_path / "run").meta
    assert set(meta["sources"]) == {"augment"}
    assert meta["config"]["augment"] == f"{tmp_path}/own.py:augment"
    (tmp_path / "own.py").write_text(SOURCE + "# A remark.\n")
    train(dataclasses.replace(config, num_steps=11), tmp_path / "run")
    assert f"--augment={tmp_path}/own.py:augment is not the file that checkpoint" in caplog.text


def test_a_trained_network_does_not_need_it(config: TrainConfig, tmp_path: Path) -> None:
    train(own(config), tmp_path / "run")
    (tmp_path / "own.py").unlink()
    assert inspection.evaluate(tmp_path / "run", TrainConfig(num_devices=1))["step"] == 10
    assert load_checkpoint(tmp_path / "run").step == 10
    with pytest.raises(UsageError, match=r"there is no file .*own\.py.*\nan augmentation of"):
        train(dataclasses.replace(own(config), num_steps=11), tmp_path / "run")


def test_a_mistake_is_found_before_anything_is_written(
    config: TrainConfig, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "own.py").write_text("def augment(image):\n    return image\n")
    flags = (f"--dataset={config.dataset}", "--model=mlp", "--batch_size=16", "--steps_per_cycle=3")
    assert command("--augment=own.py:augment", "--workdir=run", *flags) == 1
    error = capsys.readouterr().err
    said = f"error: --augment={tmp_path}/own.py:augment: it is called as augment(key, image)"
    assert said in error
    assert "image float32[6,6,1], pixels in [0, 1]" in error
    assert not (tmp_path / "run/config.json").exists()


@pytest.mark.parametrize("reduction", ["tree", "allreduce"])
def test_without_it_the_program_draws_nothing(config: TrainConfig, reduction: str) -> None:
    """Not one operation more: none of those that make random bits."""

    def text(augment: str) -> str:
        changed = dataclasses.replace(config, augment=augment, reduction=reduction)
        lowered = lower_steps(prepare(changed, Path("none")))  # type: ignore[arg-type]
        return (lowered.gradient if reduction == "tree" else lowered).as_text()

    assert "xor" not in text("")
    assert "xor" in text("shift")
    assert text("") == text("")


def test_a_run_of_an_older_version_had_none(config: TrainConfig) -> None:
    stored = dataclasses.asdict(config)
    del stored["augment"]
    assert TrainConfig.from_stored(stored).augment == ""
