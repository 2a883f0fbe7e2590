"""A signal to the program: it saves, says so, and the same command resumes."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import (
    QUICK,
    assert_no_traceback,
    checkpoint_steps,
    read_metrics,
    wait_for_step,
)

pytestmark = pytest.mark.system

# A save that takes ten minutes, and says when it begins.
SLOW_SAVE = """\
import sys, time
from trainer.checkpoints.store import Checkpointer
def save(self, *_): print("saving", file=sys.stderr, flush=True), time.sleep(600)
Checkpointer.save = save
"""


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGUSR1)),
    ],
)
def test_stop_with_a_checkpoint_and_resume(
    start: Callable, trainer: Callable, tmp_path: Path, number: signal.Signals
) -> None:
    """On the CNN, in less time than schedulers give."""
    process = start("--workdir=run", "--noreport", "--num_steps=2000")
    wait_for_step(tmp_path / "run", 20, process)
    process.send_signal(number)
    sent = time.monotonic()
    _, err = process.communicate()
    assert time.monotonic() - sent < 20
    assert process.returncode == 75, err
    last = err.strip().splitlines()[-1]
    assert f"stopped by {number.name} at step" in last
    assert_no_traceback(err)
    step = int(last.split(" at step ")[1].split()[0])
    assert checkpoint_steps(tmp_path / "run") == {step}
    done = trainer("--workdir=run", "--noreport", f"--num_steps={step + 3}")
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {step}:" in done.stderr
    lines = read_metrics(tmp_path / "run", "train")
    assert [line["step"] for line in lines] == list(range(step + 3))


def test_a_signal_while_compiling(start: Callable) -> None:
    process = start("--workdir=run", "--num_steps=2000")
    for line in process.stderr:
        if line.startswith("start"):
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 130, err  # There is nothing to save yet.
    assert err.endswith("interrupted\n")


def test_a_second_interrupt_leaves_at_once(
    start: Callable, trainer: Callable, tmp_path: Path
) -> None:
    """The first one has led to a save, which takes long; an older checkpoint is there."""
    flags = ("--workdir=run", *QUICK, "--checkpoint_every_steps=100")
    assert trainer(*flags, "--num_steps=20").returncode == 0
    process = start(*flags, "--num_steps=100000", patch=f"exec({SLOW_SAVE!r})")
    wait_for_step(tmp_path / "run", 30, process)
    process.send_signal(signal.SIGINT)
    while process.stderr.readline() != "saving\n":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - sent < 5
    assert process.returncode == 130
    assert_no_traceback(err)
    assert checkpoint_steps(tmp_path / "run") == {20}
    done = trainer(*flags, "--num_steps=25")
    assert done.returncode == 0, done.stderr
    assert "resuming at step 20:" in done.stderr
