"""Where the examples lie is chosen by what is free, told, and refused where it does not fit."""

import dataclasses
import json
import logging
import time
from pathlib import Path

import pytest
from etils import epath

from tests.helpers import smallest_run
from trainer import devices
from trainer.config import TrainConfig
from trainer.datasets import DatasetSource, open_dataset
from trainer.errors import UsageError
from trainer.records.timing import read_duration
from trainer.run import job as job_module
from trainer.run import memory as memory_module
from trainer.run import streaming
from trainer.run.loop import train
from trainer.run.memory import Memory, measure_memory
from trainer.run.placement import choose_placement


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The smallest run."""
    folder = tmp_path_factory.mktemp("smallest")
    return smallest_run(folder, num_train=101, steps_per_cycle=7, num_steps=5)


@pytest.fixture(scope="module")
def large(config: TrainConfig) -> DatasetSource:
    """As if it had 8.1 GB of training images."""
    source = open_dataset(config.dataset, config.data_dir)
    return dataclasses.replace(source, num_train=660_000, num_test=10_000, image_shape=(64, 64, 3))


@pytest.mark.parametrize(
    ("asked", "device", "host", "chosen", "reason"),
    [
        ("auto", 80e9, 80e9, "replicated", "there is room for them"),
        ("auto", 16e9, 80e9, "sharded", "replicated needs 8.24 GB on each device, more than half "),
        ("auto", 1e9, 80e9, "streamed", "sharded needs 2.06 GB on each device, more than half of"),
        ("auto", None, 90e9, "replicated", "there is room for them"),
        ("auto", None, 40e9, "sharded", "replicated needs 41.18 GB in each process, more than ha"),
        ("auto", None, 8e9, "streamed", "sharded needs 12.29 GB in each process, more than half"),
        ("auto", None, None, "replicated", "there is room for them"),
        ("replicated", 10e9, 10e9, "replicated", "as asked for"),
        ("sharded", None, 15e9, "sharded", "as asked for"),
        ("streamed", 1e9, 1e9, "streamed", "as asked for"),
    ],
)
def test_the_first_that_fits(
    large: DatasetSource,
    asked: str,
    device: float | None,
    host: float | None,
    chosen: str,
    reason: str,
) -> None:
    mesh, memory = devices.create_mesh("cpu", 4), Memory(device, host)
    found, why = choose_placement(asked, large, mesh, 128, memory)
    assert found == chosen
    assert reason in why


@pytest.mark.parametrize(
    ("asked", "device", "message"),
    [
        (
            "replicated",
            8e9,
            "--data_placement=replicated: replicated examples of --dataset=own.npz need 8.24 GB on "
            "each device, more than the 8.00 GB that are free there; use --data_placement=sharded "
            "or streamed or auto, or more devices or memory",
        ),
        ("sharded", 2e9, "sharded examples .* use --data_placement=streamed or auto, or more"),
        ("streamed", 1e6, "streamed examples of .* 1.0 MB that are free there; use more devices"),
        ("auto", 1e6, "--data_placement=auto: streamed examples of .* use more devices or memory"),
    ],
)
def test_what_does_not_fit_is_refused(
    large: DatasetSource, asked: str, device: float, message: str
) -> None:
    mesh = devices.create_mesh("cpu", 4)
    with pytest.raises(UsageError, match=message):
        choose_placement(asked, large, mesh, 128, Memory(device, None))


def test_what_does_not_fit_is_refused_before_it_is_read(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "measure_memory", lambda _: Memory(None, 1000))
    monkeypatch.setattr(DatasetSource, "rows", None)
    with pytest.raises(UsageError, match=r"--data_placement=auto: .* 0.0 MB that are free"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_free_memory_is_found() -> None:
    """Of a CPU the devices have no memory of their own."""
    memory = measure_memory(devices.create_mesh("cpu", 2))
    assert memory.device is None
    assert memory.host is not None
    assert 2**20 < memory.host < 2**50


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        (".", ("memory.max", "memory.current", "inactive_file")),
        ("memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
)
def test_the_limit_of_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, names: tuple[str, str, str]
) -> None:
    """Files that were read fill its memory, and give it back."""
    limit, usage, cache = names
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / limit).write_text("5000\n")
    (tmp_path / folder / usage).write_text("4000\n")
    (tmp_path / folder / "memory.stat").write_text(f"anon 1000\n{cache} 2500\n")
    monkeypatch.setattr(memory_module, "_CGROUP", tmp_path)
    assert measure_memory(devices.create_mesh("cpu", 1)).host == 3500
    (tmp_path / folder / limit).write_text("max\n")
    assert measure_memory(devices.create_mesh("cpu", 1)).host > 2**20


def test_the_choice_is_told(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "trainer"):
        train(dataclasses.replace(config, data_placement="streamed"), tmp_path)
    assert "placement streamed: rows read from the files" in caplog.text
    # What is chosen belongs to a start, and not to the run.
    assert json.loads((tmp_path / "config.json").read_text())["data_placement"] == "streamed"


def test_waiting_for_a_slow_disk_is_time_of_data(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = streaming.StreamedTraining._read

    def read_slowly(rows: streaming.StreamedTraining, block: streaming.Block) -> list:
        time.sleep(0.5)
        return real(rows, block)

    monkeypatch.setattr(streaming.StreamedTraining, "_read", read_slowly)
    train(dataclasses.replace(config, data_placement="streamed"), tmp_path)
    duration = read_duration(epath.Path(tmp_path))
    assert duration.account["data"] >= 0.4


def test_several_steps_to_a_call_are_refused(config: TrainConfig, tmp_path: Path) -> None:
    given = dataclasses.replace(
        config, data_placement="streamed", steps_per_call=4, reduction="allreduce"
    )
    with pytest.raises(UsageError, match=r"--steps_per_call=4 with --data_placement=streamed"):
        train(given, tmp_path)


def test_a_wrong_word_is_refused() -> None:
    with pytest.raises(UsageError, match=r"stream is not valid \(did you mean streamed\?\); use a"):
        TrainConfig(data_placement="stream")
