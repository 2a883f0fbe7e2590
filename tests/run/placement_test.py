"""Wherever the examples lie, a run takes the same batches and arrives at the same bits."""

import contextlib
import dataclasses
import errno
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.helpers import assert_same_run, read_metrics, smallest_run
from trainer import devices
from trainer.checkpoints import read_newest
from trainer.commands import inspection
from trainer.commands.find_lr import find_lr
from trainer.config import TrainConfig
from trainer.datasets import DatasetSource, decode, open_dataset, prepared
from trainer.errors import RunError, UsageError
from trainer.run import job as job_module
from trainer.run import streaming
from trainer.run.data import open_store
from trainer.run.job import Job, prepare
from trainer.run.loop import train
from trainer.run.memory import Memory, measure_memory
from trainer.run.placement import choose_placement
from trainer.run.programs import compile_epoch_on_host, start
from trainer.run.selection import Selection
from trainer.step.batches import epoch_batches

PLACEMENTS = ("replicated", "sharded", "streamed")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Fifteen steps, six to an epoch; neither 8 devices nor a batch divide the examples."""
    return smallest_run(
        tmp_path_factory.mktemp("smallest"),
        num_train=101,
        steps_per_cycle=7,
        num_steps=15,
        checkpoint_every_steps=5,
        keep_checkpoints=10,
        ema_decay=0.5,
        reduction="tree",
    )


@pytest.fixture(scope="module")
def reference(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of the run with all examples on one device."""
    workdir = tmp_path_factory.mktemp("reference")
    train(dataclasses.replace(config, data_placement="replicated"), workdir)
    return workdir


def rows_of(job: Job, num_steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and labels that the devices take in each step, in the order of the batch."""
    _, data, _ = start(job)
    found = []
    for step in range(num_steps):
        counter = devices.place(np.array(step, np.int32), devices.replicated(job.mesh))
        examples, batches = data.train.at(step, counter)
        batch = np.asarray(batches)[step % len(batches)]
        if job.placement == "streamed":
            part = len(batch) // job.mesh.size
            batch = batch + np.repeat(np.arange(job.mesh.size), part) * part
        images, labels = np.asarray(examples.images), np.asarray(examples.labels)
        found.append((images[batch], labels[batch]))
    data.close()
    return found


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_one_digest(
    config: TrainConfig, reference: Path, tmp_path: Path, placement: str, num_devices: int
) -> None:
    """Parameters, averages, and every record of a step or a test."""
    given = dataclasses.replace(config, data_placement=placement, num_devices=num_devices)
    train(given, tmp_path)
    assert_same_run(tmp_path, reference)


@pytest.mark.parametrize("num_devices", [1, 4])
def test_one_digest_with_allreduce(config: TrainConfig, tmp_path: Path, num_devices: int) -> None:
    """The devices take the same rows and add in the same order; steps of several to a call, too."""
    given = dataclasses.replace(config, reduction="allreduce", num_devices=num_devices)
    train(given, tmp_path / "reference")
    for placement, steps_per_call in (("sharded", 1), ("sharded", 4), ("streamed", 0)):
        workdir = tmp_path / f"{placement}{steps_per_call}"
        changes = {"data_placement": placement, "steps_per_call": steps_per_call}
        train(dataclasses.replace(given, **changes), workdir)
        assert_same_run(workdir, tmp_path / "reference")


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("num_devices", [1, 4])
def test_batches_are_the_permutation(
    config: TrainConfig, tmp_path: Path, placement: str, num_devices: int
) -> None:
    """Computed by hand: two epochs and a half."""
    given = dataclasses.replace(config, data_placement=placement, num_devices=num_devices)
    job = prepare(given, tmp_path)
    assert job.placement == placement
    with np.load(config.dataset) as file:
        images, labels = file["x_train"][..., None], file["y_train"]
    for step, (found_images, found_labels) in enumerate(rows_of(job, 15)):
        key = jax.random.fold_in(jax.random.key(config.seed), step // 6)
        order = np.asarray(jax.random.permutation(key, 101))
        batch = order[step % 6 * 16 : (step % 6 + 1) * 16]
        np.testing.assert_array_equal(found_images, images[batch])
        np.testing.assert_array_equal(found_labels, labels[batch])


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_resume_may_change_it(
    config: TrainConfig, reference: Path, tmp_path: Path, placement: str
) -> None:
    """In mid-epoch, in mid-cycle, and on other devices; nothing has to be allowed for that."""
    others = [each for each in PLACEMENTS if each != placement]
    stops = {8: (placement, 2), 11: (others[0], 4), 15: (others[1], 1)}
    for num_steps, (each, num_devices) in stops.items():
        changes = {"data_placement": each, "num_devices": num_devices, "num_steps": num_steps}
        train(dataclasses.replace(config, **changes), tmp_path)
    lines = [read_metrics(workdir, "train") for workdir in (tmp_path, reference)]
    assert lines[0] == lines[1]
    digests = [inspection.inspect(workdir)["digest"] for workdir in (tmp_path, reference)]
    assert digests[0] == digests[1]
    assert inspection.inspect(tmp_path)["config_history"] == []


def test_a_late_step_is_found_at_once(config: TrainConfig, tmp_path: Path) -> None:
    """The order of its epoch is computed, not counted up to."""
    given = dataclasses.replace(config, data_placement="streamed")
    job, late = prepare(given, tmp_path), 1_000_001
    store = open_store(job.source, job.placement, job.mesh, (), lambda _: (0.0, 1.0))
    rows = store.training(job.plan, 16, late, compile_epoch_on_host(job))
    examples, _ = rows.at(late, jax.numpy.int32(late))
    rows.close()
    with np.load(config.dataset) as file:
        labels = file["y_train"]
    batch = np.asarray(epoch_batches(config.seed, late // 6, 101, 16))[late % 6]
    np.testing.assert_array_equal(examples.labels, labels[batch])


# What goes wrong with the files


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


@pytest.mark.parametrize("placement", PLACEMENTS)
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


def test_a_file_that_is_cut_short_while_it_is_read(
    broken_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then restored, the run goes on to where it would have come."""
    train(broken_config, tmp_path / "unbroken")
    (path,) = files_of(broken_config, "train")
    content, real = path.read_bytes(), streaming.StreamedTraining.at

    def at(rows: streaming.StreamedTraining, step: int, counter: jax.Array) -> tuple:
        if step == 100:
            path.write_bytes(content[: len(content) // 2])
        return real(rows, step, counter)

    monkeypatch.setattr(streaming.StreamedTraining, "at", at)
    with pytest.raises(RunError) as error:
        train(broken_config, tmp_path / "run")
    monkeypatch.undo()
    assert f"{path.name} is damaged: " in str(error.value)
    assert read_newest(tmp_path / "run").step >= 100
    path.write_bytes(content)
    train(broken_config, tmp_path / "run")
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


# Other commands


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("num_devices", [1, 4])
def test_evaluate(config: TrainConfig, reference: Path, placement: str, num_devices: int) -> None:
    given = dataclasses.replace(config, data_placement=placement, num_devices=num_devices)
    for params in ("last", "ema"):
        found = inspection.evaluate(reference, given, Selection(params=params))
        record = read_metrics(reference, "test")[-1]
        expected = record if params == "last" else record["ema"]
        assert (found["loss"], found["accuracy"]) == (expected["loss"], expected["accuracy"])


def test_find_lr(config: TrainConfig, tmp_path: Path) -> None:
    curves = set()
    for placement in PLACEMENTS:
        given = dataclasses.replace(config, data_placement=placement, num_devices=2)
        with contextlib.suppress(RunError):  # The images are noise: there may be no answer.
            find_lr(given, tmp_path / placement, 1e-4, 1.0, 40, "exponential")
        curves.add((tmp_path / placement / "find_lr.csv").read_text())
    assert len(curves) == 1


# The choice


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


def test_the_choice_is_told(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "trainer"):
        train(dataclasses.replace(config, data_placement="streamed"), tmp_path)
    assert "placement streamed: rows read from the files" in caplog.text
    assert "waiting for data" in caplog.text
    # What is chosen belongs to a start, and not to the run.
    assert json.loads((tmp_path / "config.json").read_text())["data_placement"] == "streamed"


def test_several_steps_to_a_call_are_refused(config: TrainConfig, tmp_path: Path) -> None:
    given = dataclasses.replace(
        config, data_placement="streamed", steps_per_call=4, reduction="allreduce"
    )
    with pytest.raises(UsageError, match=r"--steps_per_call=4 with --data_placement=streamed"):
        train(given, tmp_path)


def test_a_wrong_word_is_refused() -> None:
    with pytest.raises(UsageError, match=r"stream is not valid \(did you mean streamed\?\); use a"):
        TrainConfig(data_placement="stream")
