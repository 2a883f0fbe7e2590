"""Examples on every device, shared, or streamed: one run, on processes, when killed, of the CNN."""

import dataclasses
import pathlib

import numpy as np
import pytest

from tests.helpers import (
    assert_same_run,
    free_port,
    read_metrics,
    smallest_run,
    wait_for_step,
)
from trainer.commands.inspection import inspect
from trainer.config import TrainConfig
from trainer.datasets import open_dataset
from trainer.run.loop import train

pytestmark = pytest.mark.system

PLACEMENTS = ("replicated", "sharded", "streamed")
# All other tests of two processes and of kills have replicated examples.
QUICK_PLACEMENTS = (pytest.param("replicated", marks=pytest.mark.slow), *PLACEMENTS[1:])
FLAGS = (
    *("--model=mlp", "--batch_size=1000", "--steps_per_cycle=7", "--reduction=tree"),
    *("--checkpoint_every_steps=10", "--noreport", "--notensorboard"),
)


@pytest.fixture(scope="module")
def reference(data_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of a run of 70 steps, of which 60 are an epoch, on one device."""
    workdir = tmp_path_factory.mktemp("reference")
    config = TrainConfig(
        data_dir=str(data_dir),
        data_placement="replicated",
        model="mlp",
        batch_size=1000,
        steps_per_cycle=7,
        num_steps=70,
        checkpoint_every_steps=10,
        reduction="tree",
        num_devices=1,
        report=False,
        tensorboard=False,
    )
    train(config, workdir)
    return workdir


@pytest.mark.parametrize("placement", QUICK_PLACEMENTS)
def test_two_processes(
    start_one_of, reference: pathlib.Path, tmp_path: pathlib.Path, placement: str
) -> None:
    """Each reads and places the rows of its own two devices."""
    port = free_port()
    flags = (*FLAGS, "--num_steps=70", "--num_cpu_devices=2", f"--data_placement={placement}")
    pair = [start_one_of(i, 2, port, *flags, "--workdir=run") for i in range(2)]
    errors = [process.communicate(timeout=240)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], errors
    assert f"placement {placement}: " in errors[0]
    assert_same_run(tmp_path / "run", reference)


@pytest.mark.parametrize("placement", QUICK_PLACEMENTS)
def test_killed_and_resumed(
    start, trainer, reference: pathlib.Path, tmp_path: pathlib.Path, placement: str
) -> None:
    flags = (*FLAGS, "--workdir=run", "--num_cpu_devices=2", f"--data_placement={placement}")
    process = start(*flags, "--num_steps=70")
    wait_for_step(tmp_path / "run", 25, process)
    process.kill()
    process.wait()
    done = trainer(*flags, "--num_steps=70")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "run", reference)


def test_a_damaged_record_ends_both_processes(
    start_one_of, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Of one of them: it is named, and told to the other."""
    config = smallest_run(tmp_path, num_train=4096)
    folder = pathlib.Path(open_dataset(config.dataset, str(data_dir)).data_dir)
    (path,) = folder.glob("*-train.array_record*")
    content = bytearray(path.read_bytes())
    # Of the image of some example; the order of the epoch says when it comes.
    with np.load(config.dataset) as file:
        content[content.index(file["x_train"][1234].tobytes()) + 5] ^= 1
    path.write_bytes(content)
    port = free_port()
    flags = (
        *(f"--dataset={config.dataset}", "--model=mlp", "--batch_size=16", "--num_steps=300"),
        *("--steps_per_cycle=7", "--data_placement=streamed", "--workdir=run"),
    )
    pair = [start_one_of(i, 2, port, *flags) for i in range(2)]
    errors = [process.communicate(timeout=240)[1] for process in pair]
    assert [process.returncode for process in pair] == [2, 2], errors
    for error in errors:
        assert f"{path.name} is damaged: " in error
        assert "Traceback" not in error


@pytest.mark.parametrize(
    "num_devices", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 8))]
)
def test_one_digest_with_convolutions(
    data_dir: pathlib.Path, tmp_path: pathlib.Path, num_devices: int
) -> None:
    """The CNN of MNIST, on standardised images, across the end of an epoch."""
    config = TrainConfig(
        data_dir=str(data_dir),
        train_split="train[:600]",
        test_split="test[:300]",
        standardize=True,
        batch_size=64,
        steps_per_cycle=7,
        num_steps=12,
        reduction="tree",
        report=False,
        tensorboard=False,
    )
    train(dataclasses.replace(config, num_devices=1), tmp_path / "reference")
    for placement in PLACEMENTS:
        changes = {"num_devices": num_devices, "data_placement": placement}
        train(dataclasses.replace(config, **changes), tmp_path / placement)
        assert_same_run(tmp_path / placement, tmp_path / "reference")
    assert len(read_metrics(tmp_path / "sharded", "train")) == 12
    assert inspect(tmp_path / "sharded")["num_devices"] == num_devices
