"""Eight virtual CPU devices for every test, and MNIST prepared once for all of them."""

import dataclasses
import gc
import logging
import os
import pathlib
from collections.abc import Callable, Iterator

# The suite compiles the same programs again and again, in many processes: once is enough.
_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402 - it reads the environment
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from trainer import cli, devices  # noqa: E402
from trainer.cli import actions  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402
from trainer.datasets import Dataset, load, open_dataset  # noqa: E402
from trainer.run import programs  # noqa: E402
from trainer.run.job import Job  # noqa: E402
from trainer.run.loop import train  # noqa: E402

pytest.register_assert_rewrite("tests.helpers")
from tests.helpers import save_first, with_data_dir  # noqa: E402

# What jax and pytest keep would be looked through again and again. Many runs in one process leave
# garbage, though, as a command does not.
gc.set_threshold(100_000)
# Before anything touches a device.
devices.configure("cpu", num_cpu_devices=8, batch_size=128)
# A shape that broadcasts by accident is a bug.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The quick tier on up to four cores; the others start processes, and wait for some of them."""
    cores = len(os.sched_getaffinity(0))
    quick = "not system" in config.option.markexpr
    return min(cores, 4) if quick else min(cores + 1, 3)


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
def small_config(mnist: Dataset, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Three epochs of 20 steps of the first images of MNIST; boundaries never fall together."""
    folder = tmp_path_factory.mktemp("small")
    save_first(mnist, folder / "small_mnist.npz", 2560, 500)
    return TrainConfig(
        dataset=str(folder / "small_mnist.npz"),
        data_dir=str(folder),
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


@pytest.fixture
def config(small_config: TrainConfig) -> TrainConfig:
    """A run of a second, which a file of tests may replace by its own."""
    return small_config


@pytest.fixture(scope="session")
def trained(small_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of a finished run of 60 steps; tests do not write to it."""
    workdir = tmp_path_factory.mktemp("trained")
    train(dataclasses.replace(small_config, standardize=True), workdir)
    return workdir


# What a run is told that its programs do not depend on, beside the shapes of its data.
_NOT_COMPILED = {
    *("dataset", "data_dir", "num_steps", "num_epochs", "num_cycles", "tensorboard", "report"),
    *("checkpoint_every_steps", "keep_checkpoints", "eval_every_steps", "log_every_steps"),
    *("check_replicas_every_steps", "profile"),
}


@pytest.fixture(scope="session")
def shared_programs() -> dict[tuple, programs.Programs]:
    """The programs of the runs in this process; who wants them compiled anew clears it."""
    return {}


@pytest.fixture(autouse=True)
def _programs_are_shared(shared_programs: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """To trace and lower the same programs for each of a hundred runs takes minutes."""
    real = programs.compile_programs

    def compile_programs(job: Job) -> programs.Programs:
        config = {k: v for k, v in vars(job.config).items() if k not in _NOT_COMPILED}
        source = job.source
        shapes = (source.num_train, source.num_test, source.image_shape, source.num_classes)
        rates = np.asarray(job.schedule(np.arange(100))).tobytes()  # A range test has its own.
        chosen = (job.placement, devices.platform_of(job.mesh))
        key = (*config.items(), *job.sources.items(), *chosen, *shapes, rates)
        if key not in shared_programs:
            shared_programs[key] = real(job)
        return shared_programs[key]

    monkeypatch.setattr(programs, "compile_programs", compile_programs)


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
