"""A process that hangs, or is frozen, is named; all leave with status 2."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import (
    assert_no_traceback,
    free_port,
    trainer_command,
    trainer_environment,
    wait_for_checkpoint,
)

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,  # Minutes, and two of them wait for time-outs of half a minute.
]

LONG = ("--workdir=run", "--model=mlp", "--num_steps=1000000", "--num_cpu_devices=1")
SLEEP = (
    "import time; import trainer.run.outputs as m; "
    "m.{who}.{where} = lambda self, *a: time.sleep(600) if a[-1 if {save} else 0] >= 6 else None"
)


def sleeping(who: str, where: str) -> str:
    """A line that lets a process sleep at step 6."""
    return SLEEP.format(who=who, where=where, save=where == "save")


@pytest.mark.parametrize("where", ["begin", "save"])
def test_a_process_that_is_alone(start: Callable, where: str) -> None:
    patch = sleeping("Writer", where)
    process = start(*LONG, "--hang_seconds=5", "--checkpoint_every_steps=6", patch=patch)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert "error: no progress for 5 s: this process is behind, at step 6, in a " in error
    assert "(most recent call first)" in error
    assert "in _take_steps" in error


def test_one_of_two_is_named(start_one_of: Callable) -> None:
    port = free_port()
    flags = (*LONG, "--hang_seconds=8")
    pair = [start_one_of(0, 2, port, *flags)]
    pair.append(start_one_of(1, 2, port, *flags, patch=sleeping("Silent", "begin")))
    errors = [process.communicate(timeout=180)[1] for process in pair]
    assert [process.returncode for process in pair] == [2, 2], errors
    for error in errors:
        assert f"process 1 on {socket.gethostname()} is behind, at step 6, in a step" in error
        assert "in _take_steps" in error


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_is_frozen(start_one_of: Callable, tmp_path: Path, victim: int) -> None:
    port = free_port()
    pair = [start_one_of(i, 2, port, *LONG, "--checkpoint_every_steps=20") for i in range(2)]
    wait_for_checkpoint(tmp_path / "run")
    pair[victim].send_signal(signal.SIGSTOP)
    _, error = pair[1 - victim].communicate(timeout=60)
    assert pair[1 - victim].returncode == 2, error
    assert f"process {victim} " in error
    assert "has not answered for" in error
    assert_no_traceback(error)


HOSTS = ("trainer-test-0", "trainer-test-1")
ADDRESSES = ("10.77.9.1", "10.77.9.2")


@pytest.fixture
def hosts():
    """Two hosts with a cable between them, whose own names resolve to 127.0.1.1, as on Debian."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 for network namespaces")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    folders = [Path("/etc/netns") / host for host in HOSTS]
    for host, folder in zip(HOSTS, folders, strict=True):
        ip("netns", "add", host)
        folder.mkdir(parents=True)
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {socket.gethostname()}\n")
    ip("link", "add", "tv0", "netns", HOSTS[0], "type", "veth", "peer", "tv1", "netns", HOSTS[1])
    for i, host in enumerate(HOSTS):
        ip("-n", host, "addr", "add", f"{ADDRESSES[i]}/24", "dev", f"tv{i}")
        ip("-n", host, "link", "set", f"tv{i}", "up")
        ip("-n", host, "link", "set", "lo", "up")
    yield lambda: ip("-n", HOSTS[1], "link", "set", "tv1", "down")
    for host, folder in zip(HOSTS, folders, strict=True):
        subprocess.run(["ip", "netns", "del", host])
        shutil.rmtree(folder)


def test_two_hosts_and_a_cable(hosts: Callable, data_dir: Path, tmp_path: Path) -> None:
    """They train, though there is a proxy that cannot be reached; then the cable is cut."""
    proxies = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    pair = []
    for i, host in enumerate(HOSTS):
        flags = (f"--coordinator_address={ADDRESSES[0]}:5555", "--num_processes=2")
        command = trainer_command(*flags, f"--process_id={i}", f"--data_dir={data_dir}", *LONG)
        pair.append(
            subprocess.Popen(
                ["ip", "netns", "exec", host, *command, "--checkpoint_every_steps=20"],
                env=trainer_environment() | proxies,
                cwd=tmp_path,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        wait_for_checkpoint(tmp_path / "run", 0, pair[0])
        hosts()
        errors = [process.communicate(timeout=40)[1] for process in pair]
        assert [process.returncode for process in pair] == [2, 2], errors
        for i, error in enumerate(errors):
            assert f"error: process {1 - i} " in error
            assert "cannot be reached" in error
    finally:
        for process in pair:
            process.kill()
            process.communicate()
