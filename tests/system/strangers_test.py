"""Two processes start while strangers talk to the port on which they meet."""

import contextlib
import json
import random
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import assert_no_traceback, free_port, read_metrics, wait_until
from trainer.processes import hello
from trainer.processes.cluster import Cluster

pytestmark = pytest.mark.system

STRINGS = 1000
RUN = ("--workdir=run", "--model=mlp", "--num_steps=3", "--num_cpu_devices=1", "--noreport")
# Megabytes by which process 0 may grow while half of the strings come in.
MOST_GROWTH = 30


class Strangers:
    """Who say random bytes, or the beginning of what a process would say, and leave or stay."""

    def __init__(self, port: int, seed: int) -> None:
        self._port, self._rng = port, random.Random(seed)
        own = hello.hello(Cluster(f"127.0.0.1:{port}", 2, 1), {"lr_max": 0.1}, "")
        self._whole = json.dumps(own).encode() + b"\n"
        self._open: list[socket.socket] = []
        self.heard = 0

    def talk(self, count: int, pause: float = 0) -> None:
        """Connect `count` times, whether anybody listens or not."""
        for _ in range(count):
            with contextlib.suppress(OSError):
                stranger = socket.create_connection(("127.0.0.1", self._port), 5)
                self._open.append(stranger)
                stranger.settimeout(1)
                stranger.sendall(self._words())
                self.heard += 1
            while len(self._open) > self._rng.randrange(20):
                self._open.pop(self._rng.randrange(len(self._open))).close()
            time.sleep(pause)

    def leave(self) -> None:
        """Close what is open."""
        for stranger in self._open:
            stranger.close()

    def _words(self) -> bytes:
        if self._rng.random() < 0.5:
            return self._rng.randbytes(self._rng.choice([1, 30, 3000, 300_000]))
        return self._whole[: self._rng.randrange(1, len(self._whole) + 1)]


def peak_memory(pid: int) -> float:
    """The most memory that a process has had, in megabytes."""
    [found] = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found) / 1024


def listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 5).close()
        return True
    return False


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 21))]
)
def test_the_run_starts_among_a_thousand_strangers(
    start_one_of: Callable, tmp_path: Path, seed: int
) -> None:
    port = free_port()
    strangers = Strangers(port, seed)
    first = start_one_of(0, 2, port, *RUN)
    wait_until(lambda: listens(port), first)
    before = peak_memory(first.pid)
    strangers.talk(STRINGS // 2)
    grown = peak_memory(first.pid) - before
    second = start_one_of(1, 2, port, *RUN)
    # While it starts; then the port is that of jax.
    strangers.talk(STRINGS // 2, pause=0.004)
    errors = [process.communicate(timeout=120)[1] for process in (first, second)]
    strangers.leave()
    assert [process.returncode for process in (first, second)] == [0, 0], errors
    for error in errors:
        assert_no_traceback(error)
    assert [line["step"] for line in read_metrics(tmp_path / "run", "train")] == [0, 1, 2]
    assert grown < MOST_GROWTH
    assert strangers.heard > STRINGS // 2
