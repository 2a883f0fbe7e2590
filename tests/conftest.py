"""Eight virtual CPU devices for every test, and MNIST prepared once for all of them."""

import jax
import pytest

from trainer import devices
from trainer.datasets import Dataset, load

# Before anything touches a device.
devices.configure("cpu", num_cpu_devices=8, batch_size=128)
# A shape that broadcasts by accident is a bug.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder in which MNIST is prepared."""
    path = str(tmp_path_factory.mktemp("data"))
    load("mnist", path)
    return path


@pytest.fixture(scope="session")
def mnist(data_dir: str) -> Dataset:
    """The real data set."""
    return load("mnist", data_dir)
