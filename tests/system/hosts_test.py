"""Several hosts, as network namespaces: what happens on the way between them is met, and named."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import (
    ROOT,
    assert_no_traceback,
    assert_same_run,
    run_trainer,
    trainer_command,
    trainer_environment,
    wait_for_checkpoint,
    wait_for_step,
)

pytestmark = pytest.mark.system

LAN = "trainer-test-lan"
PORT = 5555
# Seconds within which a host that vanished is named.
NAMED = 30
RUN = ("--workdir=run", "--model=mlp", "--num_cpu_devices=1", "--steps_per_cycle=14", "--noreport")
LONG = (*RUN, "--num_steps=1500", "--checkpoint_every_steps=20")
SHORT = (*RUN, "--num_steps=4")


def ip(*words: str) -> None:
    """Configure the network."""
    subprocess.run(["ip", *words], check=True)


class Hosts:
    """Hosts of names and addresses of their own, each with a cable to one switch."""

    def __init__(self, count: int, data_dir: Path, folder: Path) -> None:
        self._data_dir, self._folder = data_dir, folder
        self._processes: list[subprocess.Popen] = []
        self.names = [f"trainer-test-{i}" for i in range(count)]
        for name in (LAN, *self.names):
            ip("netns", "add", name)
        ip("-n", LAN, "link", "add", "switch", "type", "bridge")
        ip("-n", LAN, "link", "set", "switch", "up")
        for i, name in enumerate(self.names):
            self._connect(i, name)

    def _connect(self, i: int, name: str) -> None:
        """Plug a host in. What its own name resolves to: on Debian 127.0.1.1, or nothing at all."""
        names = [f"127.0.1.1 {name}", f"{self.address(i)} {name}", ""][i % 3]
        hosts = Path("/etc/netns") / name / "hosts"
        hosts.parent.mkdir(parents=True)
        hosts.write_text(f"127.0.0.1 localhost\n{names}\n")
        ip("link", "add", "cable", "netns", name, "type", "veth", "peer", f"port{i}", "netns", LAN)
        ip("-n", LAN, "link", "set", f"port{i}", "master", "switch", "up")
        ip("-n", name, "addr", "add", f"{self.address(i)}/24", "dev", "cable")
        for device in ("lo", "cable"):
            ip("-n", name, "link", "set", device, "up")

    @staticmethod
    def address(i: int) -> str:
        """The address of a host."""
        return f"10.77.9.{i + 1}"

    def close(self) -> None:
        """Unplug all."""
        for process in self._processes:
            process.kill()
            process.communicate()
        for name in (LAN, *self.names):
            subprocess.run(["ip", "netns", "del", name])
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)

    def start(self, *flags: str, **options: str) -> list[subprocess.Popen]:
        """Start a process on each host; there is a proxy that cannot be reached."""
        return [self.start_one(i, *flags, **options) for i in range(len(self.names))]

    def start_one(self, i: int, *flags: str, port: int = PORT, patch: str = "") -> subprocess.Popen:
        """Start process i on host i."""
        cluster = (f"--coordinator_address={self.address(0)}:{port}", f"--process_id={i}")
        count = f"--num_processes={len(self.names)}"
        trainer = trainer_command(
            *cluster, count, f"--data_dir={self._data_dir}", *flags, patch=patch
        )
        # Every word after its own replaces the program before: one process.
        here = ["ip", "netns", "exec", self.names[i]]
        as_host = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.names[i]]
        proxies = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
        self._processes.append(
            subprocess.Popen(
                [*here, *as_host, *trainer],
                env=trainer_environment() | proxies,
                cwd=self._folder,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return self._processes[-1]

    def train(self, *flags: str) -> None:
        """Train to the end on all hosts."""
        group = self.start(*flags)
        errors = [process.communicate(timeout=200)[1] for process in group]
        assert [process.returncode for process in group] == [0] * len(group), errors


@pytest.fixture
def hosts(data_dir: Path, tmp_path: Path) -> Iterator[Callable[[int], Hosts]]:
    """Make so many hosts."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs Linux, root and iproute2 for network namespaces")
    made: list[Hosts] = []

    def make(count: int) -> Hosts:
        made.append(Hosts(count, data_dir, tmp_path))
        return made[-1]

    yield make
    for group in made:
        group.close()


def trained_alone(flags: tuple[str, ...], data_dir: Path, folder: Path) -> Path:
    """The workdir of the same run by one process that nobody disturbed."""
    done = run_trainer(*flags, f"--data_dir={data_dir}", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def unbroken(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long run, undisturbed."""
    return trained_alone(LONG, data_dir, tmp_path_factory.mktemp("unbroken"))


@pytest.mark.slow
def test_four_hosts_train(
    hosts: Callable, data_dir: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever their own names resolve to; with the bits of one process."""
    hosts(4).train(*SHORT)
    alone = trained_alone(SHORT, data_dir, tmp_path_factory.mktemp("alone"))
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_messages_that_take_200_ms(
    hosts: Callable, data_dir: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Steps take long, and change no bit."""
    pair = hosts(2)
    command = [sys.executable, str(ROOT / "tests/system/slow_cable.py"), *pair.names, "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as cable:
        assert cable.stdout.readline() == "ready\n"
        for i, name in enumerate(pair.names):
            ip("-n", name, "link", "set", "cable", "down")
            ip("-n", name, "link", "set", "slow", "up")
            ip("-n", name, "addr", "add", f"{pair.address(i)}/24", "dev", "slow")
        began = time.monotonic()
        pair.train(*SHORT)
        seconds = time.monotonic() - began
        cable.kill()
    assert seconds > 4 * 0.4  # Each step exchanges twice at least.
    alone = trained_alone(SHORT, data_dir, tmp_path_factory.mktemp("alone"))
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_cable_is_pulled(hosts: Callable, tmp_path: Path, unbroken: Path) -> None:
    pair = hosts(2)
    processes = pair.start(*LONG)
    wait_for_checkpoint(tmp_path / "run", 20, processes[0])
    ip("-n", LAN, "link", "set", "port1", "down")
    errors = [process.communicate(timeout=NAMED)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    for error, other in zip(errors, ("1 on trainer-test-1", "0 at 10.77.9.1:5555"), strict=True):
        assert f"error: process {other} " in error
        assert " cannot be reached; the same command resumes from the newest" in error
    ip("-n", LAN, "link", "set", "port1", "up")
    pair.train(*LONG)
    assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_is_frozen_and_comes_back(
    hosts: Callable, tmp_path: Path, unbroken: Path, victim: int
) -> None:
    """After 10 s the run goes on; after more than 25 s the other has left, and so does the host."""
    pair = hosts(2)
    processes = pair.start(*LONG)
    wait_for_checkpoint(tmp_path / "run", 20, processes[0])
    processes[victim].send_signal(signal.SIGSTOP)
    time.sleep(10)
    processes[victim].send_signal(signal.SIGCONT)
    steps = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    wait_for_step(tmp_path / "run", steps + 40, processes[0])
    processes[victim].send_signal(signal.SIGSTOP)
    _, error = processes[1 - victim].communicate(timeout=NAMED)
    assert processes[1 - victim].returncode == 2, error
    name = ["process 0 at 10.77.9.1:5555", "process 1 on trainer-test-1"][victim]
    assert f"error: {name} has not answered for 25 s: it is stopped, has died or" in error
    assert_no_traceback(error)
    processes[victim].send_signal(signal.SIGCONT)
    _, error = processes[victim].communicate(timeout=NAMED)
    assert processes[victim].returncode == 2, error
    pair.train(*LONG)
    assert_same_run(tmp_path / "run", unbroken)


def test_a_port_that_is_closed(hosts: Callable) -> None:
    """Process 0 listens on another one: both say soon for whom they wait, and at last who it is."""
    patch = "from trainer.processes import roll_call; roll_call._ROLL_CALL_SECONDS = 12"
    pair = hosts(2)
    processes = [pair.start_one(i, *SHORT, port=PORT + i, patch=patch) for i in range(2)]
    errors = [process.communicate(timeout=NAMED)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    assert "of 2 processes, 1 did not report to process 0 at 10.77.9.1:5555" in errors[0]
    assert "waiting for process 0 at 10.77.9.1:5556 (Connection refused)" in errors[1]
    assert "process 1 could not report to process 0 at 10.77.9.1:5556" in errors[1]
    assert "(Connection refused); is process 0 running there" in errors[1]
