"""A data set that is larger than what a process may hold, streamed.

It is made when the test begins; LARGE_DATA_MB says how large, 400 MB by default.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from tests.helpers import run_trainer
from trainer import devices
from trainer.config import TrainConfig
from trainer.datasets import open_dataset
from trainer.datasets.checking import Picture
from trainer.datasets.writing import write_dataset
from trainer.run.job import prepare
from trainer.run.order import compile_epoch_on_host
from trainer.run.store import open_store

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
]

SHAPE = (64, 64, 3)
NUM_TEST = 500
MEGABYTES = int(os.environ.get("LARGE_DATA_MB", "400"))
NUM_TRAIN = MEGABYTES * 10**6 // (64 * 64 * 3)
# Of a process that trains, whatever the data: Python, jax, and the programs.
LARGEST = 1.5e9

FLAGS = (
    *("--dataset=large/noise:1.0.0", "--model=mlp", "--batch_size=128", "--steps_per_cycle=100"),
    *("--data_placement=streamed", "--noreport", "--notensorboard", "--num_cpu_devices=1"),
)
SAY_LARGEST = (
    "import atexit, resource, sys; atexit.register(lambda: print('largest resident set', "
    "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr))"
)


def image(split: str, index: int) -> np.ndarray:
    """Noise: nothing that could be compressed."""
    seed = index + NUM_TRAIN * (split == "test")
    return np.random.Generator(np.random.SFC64(seed)).integers(0, 256, SHAPE, np.uint8)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with the data set, written in one pass."""
    root = tmp_path_factory.mktemp("large")

    def pictures() -> Iterator[Picture]:
        for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
            for index in range(count):
                yield Picture(split, index % 10, f"{split}[{index}]", image(split, index))

    names = [str(digit) for digit in range(10)]
    write_dataset(root / "large" / "noise" / "1.0.0", pictures(), names, "Noise.")
    return root


def largest_set(*flags: str) -> float:
    """The largest resident set of a run, in bytes."""
    done = run_trainer(*FLAGS, *flags, patch=SAY_LARGEST)
    assert done.returncode == 0, done.stderr
    (said,) = re.findall(r"largest resident set (\d+)", done.stderr)
    print(f"{flags}: {int(said) / 1e6:.0f} MB; {done.stderr.splitlines()[-6:]}")
    return float(said)


def test_memory_does_not_grow_with_the_data(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Every image of a whole epoch and more passes through, or 500 steps of it."""
    data = f"--data_dir={data_dir}"
    few = largest_set(
        data, f"--workdir={tmp_path}/few", "--num_steps=500", "--train_split=train[:5%]"
    )
    all_of_it = largest_set(data, f"--workdir={tmp_path}/all", "--num_steps=500")
    assert all_of_it < LARGEST
    assert all_of_it - few < 0.25e6 * MEGABYTES


def test_batches_and_a_late_start(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Twenty batches are those of the permutation; step 1,000,000 comes as soon as step 0."""
    config = TrainConfig(
        dataset="large/noise:1.0.0",
        data_dir=str(data_dir),
        model="mlp",
        data_placement="streamed",
        num_devices=2,
        num_steps=2_000_000,
        steps_per_cycle=100,
    )
    job = prepare(config, tmp_path)
    order = compile_epoch_on_host(job)
    seconds = []
    for first in (0, 1_000_000):
        begin = time.monotonic()
        store = open_store(job.source, job.placement, job.mesh, (), lambda _: (0.0, 1.0))
        rows = store.training(job.plan, 128, first, order)
        counter = devices.place(np.array(first, np.int32), devices.replicated(job.mesh))
        found, expected = hashlib.sha256(), hashlib.sha256()
        for step in range(first, first + 20):
            examples, _ = rows.at(step, counter)
            if step == first:
                seconds.append(time.monotonic() - begin)
            found.update(np.asarray(examples.images).tobytes())
        rows.close()
        for step in range(first, first + 20):
            epoch, batch = divmod(step, job.plan.steps_per_epoch)
            key = jax.random.fold_in(jax.random.key(0), epoch)
            permutation = np.asarray(jax.random.permutation(key, NUM_TRAIN))
            for index in permutation[batch * 128 : (batch + 1) * 128].tolist():
                expected.update(image("train", index).tobytes())
        assert found.hexdigest() == expected.hexdigest()
    print(f"first rows after {seconds[0]:.2f} s at step 0, {seconds[1]:.2f} s at step 1,000,000")
    assert abs(seconds[1] - seconds[0]) < 1


def test_its_identity_needs_no_pass(data_dir: pathlib.Path) -> None:
    source = open_dataset("large/noise:1.0.0", str(data_dir))
    begin = time.monotonic()
    facts = source.facts()
    assert time.monotonic() - begin < 1
    assert sum(facts.train.class_counts) == NUM_TRAIN
    assert dataclasses.replace(source).facts().identity == facts.identity
