"""A run meets its own data again, or is told how they differ; nothing is changed then."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.datasets import foreign_test as foreign
from trainer.commands import inspection
from trainer.config import TrainConfig
from trainer.errors import UsageError
from trainer.run.loop import train


def write(
    path: Path, *, flip: bool = False, more: int = 0, size: int = 6, classes: int = 4
) -> None:
    """An .npz of noise; `flip` changes one bit of one pixel."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80 + more, size, size), np.uint8)
    images[40, 2, 3] ^= flip
    labels = np.arange(len(images)) % classes
    np.savez(
        path,
        x_train=images[16:],
        y_train=labels[16:],
        x_test=images[:16],
        y_test=labels[:16],
    )


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    write(tmp_path / "own.npz")
    return TrainConfig(
        dataset=str(tmp_path / "own.npz"),
        data_dir=str(tmp_path / "data"),
        model="mlp",
        batch_size=16,
        num_steps=4,
        steps_per_cycle=4,
        num_devices=1,
        tensorboard=False,
        report=False,
    )


def contents(workdir: Path) -> dict[str, bytes]:
    files = [path for path in workdir.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"flip": True}, "other pixels or labels in the train split"),
        ({"more": 16}, "64 training examples, now 80"),
        ({"size": 7}, "images of 6x6x1, now 7x7x1"),
        ({"classes": 3}, "4 classes, now 3"),
    ],
)
def test_other_data_are_refused(
    config: TrainConfig, tmp_path: Path, other: dict, difference: str
) -> None:
    train(config, tmp_path / "run")
    before = contents(tmp_path / "run")
    write(tmp_path / "own.npz", **other)
    with pytest.raises(UsageError, match=difference) as refused:
        train(dataclasses.replace(config, num_steps=8), tmp_path / "run")
    assert "cannot be used to resume from it" in str(refused.value)
    with pytest.raises(UsageError, match=f"cannot be used to evaluate it: .*{difference}"):
        inspection.evaluate(tmp_path / "run", TrainConfig(num_devices=1))
    assert contents(tmp_path / "run") == before


def test_another_version_of_a_tfds_set_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TFDS takes the newest that is there, with other pixels here, or the same."""
    features = {"image": foreign.GRAY, "label": foreign.CLASSES}
    splits = {"train": foreign.gray_examples(16), "test": foreign.gray_examples(4)}
    foreign.prepare_foreign(tmp_path, monkeypatch, features, splits)
    config = TrainConfig(
        dataset="foreign",
        data_dir=str(tmp_path),
        model="mlp",
        batch_size=8,
        num_steps=4,
        steps_per_cycle=2,
        num_devices=1,
        tensorboard=False,
        report=False,
    )
    train(config, tmp_path / "run")
    monkeypatch.setattr(foreign.Foreign, "VERSION", tfds.core.Version("1.1.0"))
    foreign.prepare_foreign(tmp_path, monkeypatch, features, splits)
    before = contents(tmp_path / "run")
    for use in (
        lambda: train(dataclasses.replace(config, num_steps=8), tmp_path / "run"),
        lambda: inspection.evaluate(tmp_path / "run", TrainConfig(num_devices=1)),
    ):
        with pytest.raises(
            UsageError, match=r"foreign are not those .*version 1\.0\.0, now 1\.1\.0"
        ):
            use()
    assert contents(tmp_path / "run") == before


def test_the_same_data_elsewhere_are_the_same(config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "run")
    moved = dataclasses.replace(config, data_dir=str(tmp_path / "elsewhere"), num_steps=8)
    assert train(moved, tmp_path / "run").step == 8


def test_a_path_means_the_same_in_every_folder(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given relative to the current folder, it is stored so that another folder finds it."""
    (tmp_path / "elsewhere").mkdir()
    config = dataclasses.replace(config, dataset="own.npz", data_dir="data")
    monkeypatch.chdir(tmp_path)
    train(config, "run")
    stored = inspection.inspect("run")["config"]
    assert stored["dataset"] == str(tmp_path / "own.npz")
    assert stored["data_dir"] == str(tmp_path / "data")
    monkeypatch.chdir(tmp_path / "elsewhere")
    longer = dataclasses.replace(config, num_steps=6)
    assert train(longer, "../run", given={"num_steps"}).step == 6
    config = dataclasses.replace(config, dataset="../own.npz", data_dir="../data", num_steps=8)
    assert train(config, "../run").step == 8
    assert inspection.evaluate("../run", TrainConfig(num_devices=1))["step"] == 8


def test_files_that_moved_are_the_same(config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "run")
    (tmp_path / "moved").mkdir()
    (tmp_path / "own.npz").rename(tmp_path / "moved" / "own.npz")
    moved = dataclasses.replace(config, dataset=str(tmp_path / "moved" / "own.npz"), num_steps=8)
    assert train(moved, tmp_path / "run").step == 8


def test_other_files_of_the_same_name_are_refused(config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "run")
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "own.npz", flip=True)
    other = dataclasses.replace(config, dataset=str(tmp_path / "other" / "own.npz"), num_steps=8)
    with pytest.raises(UsageError, match=r"--dataset=.*/other/own.npz are not those .* pixels"):
        train(other, tmp_path / "run")
