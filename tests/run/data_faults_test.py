"""What goes wrong with the files of the data is named and never trained on."""

import dataclasses
import errno
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.helpers import also, assert_same_run, read_metrics, smallest_run
from trainer.checkpoints import read_newest
from trainer.config import TrainConfig
from trainer.datasets import decode, open_dataset, prepared
from trainer.errors import RunError
from trainer.run import streaming
from trainer.run.loop import train
from trainer.step.batches import epoch_batches

PLACEMENTS = ("replicated", "sharded", "streamed")


def files_of(config: TrainConfig, split: str) -> list[Path]:
    """The files of a split, once it is prepared."""
    open_dataset(config.dataset, config.data_dir)
    return sorted(Path(config.data_dir).glob(f"**/*-{split}.array_record*"))


def spoil(path: Path, config: TrainConfig, example: int) -> None:
    """Flip a bit of the pixels of a training example."""
    with np.load(config.dataset) as file:
        pixels = file["x_train"][example].tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(pixels) + 17] ^= 4
    path.write_bytes(content)


@pytest.fixture
def broken_config(tmp_path: Path) -> TrainConfig:
    """A run whose files a test may damage; as many blocks are read ahead as it has steps."""
    return smallest_run(
        tmp_path,
        num_train=4096,
        num_steps=230,
        steps_per_cycle=7,
        checkpoint_every_steps=5,
        data_placement="streamed",
        reduction="tree",
    )


def example_of(config: TrainConfig, step: int) -> int:
    """A training example that this step is the first to take."""
    return int(np.asarray(epoch_batches(config.seed, 0, 4096, 16))[step][3])


@pytest.mark.parametrize("placement", [also("replicated"), also("sharded"), "streamed"])
def test_a_flipped_bit_is_never_trained_on(
    broken_config: TrainConfig, tmp_path: Path, placement: str
) -> None:
    given = dataclasses.replace(broken_config, data_placement=placement)
    (path,) = files_of(given, "train")
    example = example_of(given, 200)
    spoil(path, given, example)
    with pytest.raises(RunError) as error:
        train(given, tmp_path / "run")
    assert error.value.exit_status == 2
    assert f"{path.name} is damaged: " in str(error.value)
    assert f"(record {example})" in str(error.value)
    if placement == "streamed":
        # Everything before was good, and is trained on: the block of step 200 begins at 192.
        assert read_newest(tmp_path / "run").step == 190
        assert max(line["step"] for line in read_metrics(tmp_path / "run")) < 192
    else:
        assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("check*"))


@pytest.mark.system
def test_a_file_that_is_cut_short_while_it_is_read(
    broken_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the file is restored, the run ends where the unbroken run ends."""
    given = dataclasses.replace(broken_config, num_steps=400)
    train(given, tmp_path / "unbroken")
    (path,) = files_of(broken_config, "train")
    content, real = path.read_bytes(), streaming.StreamedTraining.at

    def at(rows: streaming.StreamedTraining, step: int, counter: jax.Array) -> tuple:
        if step == 10:
            path.write_bytes(content[: len(content) // 2])
        return real(rows, step, counter)

    monkeypatch.setattr(streaming.StreamedTraining, "at", at)
    with pytest.raises(RunError) as error:
        train(given, tmp_path / "run")
    monkeypatch.undo()
    assert f"{path.name} is damaged: " in str(error.value)
    assert read_newest(tmp_path / "run").step >= 60
    path.write_bytes(content)
    train(given, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_missing_file_is_named(
    broken_config: TrainConfig, tmp_path: Path, placement: str
) -> None:
    given = dataclasses.replace(broken_config, data_placement=placement)
    for split in ("test", "train"):
        (path,) = files_of(given, split)
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(RunError, match=f"{path.name} is missing"):
            train(dataclasses.replace(given, num_steps=5), tmp_path / "run")
        path.write_bytes(content)


def test_a_file_system_that_is_away_for_a_while(
    broken_config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error of such a kind is no damage: the rows are asked for again, and come."""
    monkeypatch.setattr(prepared, "_PAUSES", (0.01, 0.01, 0.01))
    failures, real = [OSError(errno.ESTALE, "Stale file handle")], decode.SplitReader.read
    failures.append(RuntimeError("Input/output error; reading x"))

    def read(reader: decode.SplitReader, indices: list[int]) -> tuple:
        if failures and len(indices) > 500:
            raise failures.pop()
        return real(reader, indices)

    monkeypatch.setattr(decode.SplitReader, "read", read)
    train(dataclasses.replace(broken_config, num_steps=70), tmp_path / "run")
    assert not failures
    assert "Stale file handle; trying again in 0.01 s" in caplog.text
    assert "Input/output error; trying again" in caplog.text
