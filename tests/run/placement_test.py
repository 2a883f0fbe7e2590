"""Wherever the examples lie, a run takes the same batches and arrives at the same bits."""

import contextlib
import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.helpers import also, assert_same_run, read_metrics, smallest_run
from trainer import devices
from trainer.commands import inspection
from trainer.commands.find_lr import find_lr
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.records.clock import Clock
from trainer.run.job import Job, prepare
from trainer.run.loop import train
from trainer.run.order import compile_epoch_on_host
from trainer.run.programs import start
from trainer.run.selection import Selection
from trainer.run.store import open_store
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
    _, data, _ = start(job, Clock())
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


@pytest.mark.parametrize("num_devices", [also(1), also(2), 4, also(8)])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_one_digest(
    config: TrainConfig, reference: Path, tmp_path: Path, placement: str, num_devices: int
) -> None:
    """Parameters, averages, and every record of a step or a test."""
    given = dataclasses.replace(config, data_placement=placement, num_devices=num_devices)
    train(given, tmp_path)
    assert_same_run(tmp_path, reference)


@pytest.mark.system
@pytest.mark.parametrize("num_devices", [pytest.param(1, marks=pytest.mark.slow), 4])
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


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("num_devices", [1, 4])
def test_evaluate(config: TrainConfig, reference: Path, placement: str, num_devices: int) -> None:
    given = dataclasses.replace(config, data_placement=placement, num_devices=num_devices)
    for params in ("last", "ema"):
        found = inspection.evaluate(reference, given, Selection(params=params))
        record = read_metrics(reference, "test")[-1]
        expected = record if params == "last" else record["ema"]
        assert (found["loss"], found["accuracy"]) == (expected["loss"], expected["accuracy"])


@pytest.mark.system
def test_find_lr(config: TrainConfig, tmp_path: Path) -> None:
    curves = set()
    for placement in PLACEMENTS:
        given = dataclasses.replace(config, data_placement=placement, num_devices=2)
        with contextlib.suppress(RunError):  # The images are noise: there may be no answer.
            find_lr(given, tmp_path / placement, 1e-4, 1.0, 40, "exponential")
        curves.add((tmp_path / placement / "find_lr.csv").read_text())
    assert len(curves) == 1


SOURCE = """
from flax import nnx

class Network(nnx.Module):
    def __init__(self, *, image_shape, num_classes, dtype, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.dense = nnx.Linear(288, num_classes, rngs=rngs)

    def __call__(self, inputs):
        hidden = nnx.relu(self.norm(self.conv(inputs)))
        return self.dense(self.dropout(hidden.reshape(inputs.shape[0], -1)))
"""


@pytest.mark.slow
def test_one_digest_of_an_own_network(config: TrainConfig, tmp_path: Path) -> None:
    """Statistics and masks belong to a gradient shard, whoever brought its rows."""
    (tmp_path / "own.py").write_text(SOURCE)
    given = dataclasses.replace(config, model=f"{tmp_path}/own.py:Network", standardize=True)
    for num_devices in (1, 4):
        for placement in PLACEMENTS:
            changes = {"num_devices": num_devices, "data_placement": placement}
            train(dataclasses.replace(given, **changes), tmp_path / f"{placement}{num_devices}")
            assert_same_run(tmp_path / f"{placement}{num_devices}", tmp_path / "replicated1")
