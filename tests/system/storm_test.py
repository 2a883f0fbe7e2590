"""One run against failures of all kinds, at random moments: it ends as if there had been none."""

import contextlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import (
    ROOT,
    assert_same_run,
    children,
    save_first,
    trainer_environment,
    wait_until,
)
from trainer.datasets import Dataset

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,  # A minute, and a quarter of an hour or more.
    pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc"),
]

# Each kind of failure, and what the run says of it; the quickest first.
KINDS = {
    "kill": "was ended by SIGKILL",
    "fail": "a fault that was asked for",
    "wrong": "error: the audit of step",
    "full disk": "could not be written.*File too large",
    "stop": "has not answered for|did not report to process 0|could not report to process 0",
    "data": "no progress for 10 s: process {} .* is behind",
    "step": "no progress for 10 s: process {} .* is behind",
    "save": "no progress for 10 s: process {} .* is behind",
}


class Run:
    """A run of two processes under the launcher, which starts them again."""

    def __init__(self, folder: Path, process: subprocess.Popen, err: Path) -> None:
        self._folder, self._err, self._read = folder, err, 0
        self.process = process

    def err(self) -> str:
        """What it has said so far."""
        return self._err.read_text()

    def _pids(self) -> dict[int, int]:
        """The processes that run, by their number."""
        pids = {}
        for pid in children(self.process.pid):
            with contextlib.suppress(OSError):  # It has just ended.
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                pids |= {i: pid for i in range(2) if f"--process_id={i}" in words}
        return pids

    def wait_for_both(self) -> None:
        """Wait until both processes have been started."""
        self.wait(lambda: len(self._pids()) == 2)

    def strike(self, kind: str, victim: int) -> str:
        """Let a process fail, and wait until it is started again; what was said meanwhile."""
        before = self.err().count("[launch] restart ")
        fault, pid = self._folder / f"fault{victim}", self._pids()[victim]
        if kind in ("kill", "stop"):
            os.kill(pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        elif kind == "full disk":  # Larger files fail.
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1000, 1000))
        else:
            fault.write_text(kind)
        self.wait(lambda: self.err().count("[launch] restart ") > before)
        fault.unlink(missing_ok=True)
        text = self.err()[self._read :]
        self._read += len(text)
        return text

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait for a condition, while the launcher runs."""
        wait_until(lambda: condition() or self.process.poll() is not None, None, self.err, 300)
        assert self.process.poll() is None, self.err()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable]:
    """Start the launcher with two processes, given its own flags and those of the trainer."""
    started: list[subprocess.Popen] = []

    def start(max_restarts: int, flags: tuple[str, ...]) -> Run:
        own = ("-n", "2", "--gpus=none", "--grace=2", f"--max_restarts={max_restarts}")
        with (tmp_path / "err").open("w") as err:
            started.append(
                subprocess.Popen(
                    [sys.executable, str(ROOT / "launch/local.py"), *own, "--", *flags],
                    cwd=tmp_path,
                    env=trainer_environment() | {"TRAINER_TEST_FAULTS": str(tmp_path)},
                    stdout=subprocess.DEVNULL,
                    stderr=err,
                )
            )
        return Run(tmp_path, started[-1], tmp_path / "err")

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("failures", [4, 50])
def test_failures_of_all_kinds_leave_no_trace(
    run: Callable, trainer: Callable, mnist: Dataset, tmp_path: Path, failures: int
) -> None:
    """Each is named as what it was, and followed by one restart, while they start, train, save."""
    save_first(mnist, tmp_path / "small.npz", 2560, 500)
    flags = (
        *(f"--model={ROOT}/tests/system/faulty.py:Network", "--dataset=small.npz"),
        *("--data_dir=.", f"--num_steps={60 * failures}", "--steps_per_cycle=7"),
        *("--num_cpu_devices=2", "--gradient_shards=4", "--notensorboard", "--noreport"),
    )
    guards = ("--checkpoint_every_steps=5", "--audit_every_steps=5", "--hang_seconds=10")
    nowhere = {"TRAINER_TEST_FAULTS": str(tmp_path / "nowhere")}
    unbroken = trainer(*flags, "--workdir=unbroken", env=trainer_environment() | nowhere)
    assert unbroken.returncode == 0, unbroken.stderr

    kinds = [list(KINDS)[i % len(KINDS)] for i in range(failures)]
    rng = random.Random(failures)
    rng.shuffle(kinds)
    (tmp_path / "slow").touch()
    began = time.time()
    storm = run(failures, (*flags, *guards, "--num_cpu_devices=1", "--workdir=broken"))
    for kind in kinds:
        time.sleep(rng.uniform(0.5, 8 if failures < 10 else 20))
        storm.wait_for_both()
        # Only process 0 writes.
        victim, since = rng.randrange(2) if kind != "full disk" else 0, time.time()
        said = storm.strike(kind, victim)
        assert re.search(KINDS[kind].format(victim), said), f"{kind} of process {victim}:\n{said}"
        print(f"{kind} of process {victim}: started again after {time.time() - since:.1f} s")
    (tmp_path / "slow").unlink()
    status = storm.process.wait(timeout=600)
    assert status == 0, storm.err()
    assert storm.err().count("[launch] restart ") == failures
    assert_same_run(tmp_path / "broken", tmp_path / "unbroken")
    print(f"{failures} failures, {time.time() - began:.0f} s")
