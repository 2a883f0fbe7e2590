"""Eight virtual CPU devices for every test, and MNIST prepared once for all of them."""

import dataclasses
import logging
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

# The suite compiles the same programs again and again, in many processes: once is enough.
_CACHE = tempfile.TemporaryDirectory(prefix="trainer-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402 - it reads the environment
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tensorflow_datasets as tfds  # noqa: E402

from trainer import cli, devices  # noqa: E402
from trainer.cli import actions  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402
from trainer.datasets import Dataset, load, open_dataset  # noqa: E402
from trainer.run.loop import train  # noqa: E402

pytest.register_assert_rewrite("tests.helpers")
from tests.helpers import with_data_dir  # noqa: E402

# Before anything touches a device.
devices.configure("cpu", num_cpu_devices=8, batch_size=128)
# A shape that broadcasts by accident is a bug.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder in which MNIST is prepared; tests do not write to it."""
    path = tmp_path_factory.mktemp("data")
    open_dataset("mnist", str(path))
    return path


@pytest.fixture(scope="session")
def mnist(data_dir: pathlib.Path) -> Dataset:
    """The real data set."""
    return load("mnist", str(data_dir))


@pytest.fixture(scope="session")
def small_data_dir(mnist: Dataset, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder in which `small_mnist` is prepared: the first 2560 and 500 images of MNIST."""
    path = tmp_path_factory.mktemp("small")
    arrays = {
        "train": (mnist.train_images[:2560], mnist.train_labels[:2560]),
        "test": (mnist.test_images[:500], mnist.test_labels[:500]),
    }
    SmallMnist.examples = {
        split: [{"image": x, "label": y} for x, y in zip(*both, strict=True)]
        for split, both in arrays.items()
    }
    SmallMnist(data_dir=path, file_format="array_record").download_and_prepare()
    return path


class SmallMnist(tfds.core.GeneratorBasedBuilder):
    """A data set of other people's, as far as the trainer knows."""

    VERSION = tfds.core.Version("1.0.0")
    examples: dict[str, list]

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8)
        features = {"image": image, "label": tfds.features.ClassLabel(num_classes=10)}
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: object) -> dict:
        return {split: enumerate(examples) for split, examples in self.examples.items()}

    def _generate_examples(self) -> None:
        raise NotImplementedError


@pytest.fixture
def config(small_data_dir: pathlib.Path) -> TrainConfig:
    """Three epochs of 20 steps, cycles of 7: boundaries never fall together."""
    return _config(small_data_dir)


def _config(small_data_dir: pathlib.Path) -> TrainConfig:
    return TrainConfig(
        dataset="small_mnist",
        data_dir=str(small_data_dir),
        model="mlp",
        batch_size=128,
        steps_per_cycle=7,
        num_epochs=3,
        checkpoint_every_steps=10,
        keep_checkpoints=100,
        num_devices=2,
        tensorboard=False,
        report=False,
    )


@pytest.fixture(scope="session")
def trained(small_data_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of a finished run of 60 steps; tests do not write to it."""
    workdir = tmp_path_factory.mktemp("trained")
    train(dataclasses.replace(_config(small_data_dir), standardize=True), workdir)
    return workdir


@pytest.fixture(autouse=True)
def _logger_as_it_was() -> Iterator[None]:
    """A command in this process takes the trainer's log lines for itself; give them back."""
    logger = logging.getLogger("trainer")
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture
def command(data_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command in this process, on its devices; the answer is the exit status."""
    monkeypatch.setattr(actions, "_configure_devices", lambda *_: None)

    def run(*arguments: str) -> int:
        return cli.run(["trainer", *with_data_dir(arguments, data_dir)])

    return run
