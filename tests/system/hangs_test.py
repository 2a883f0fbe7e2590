"""A process that hangs, or is frozen, is named; all leave with status 2."""

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import (
    ROOT,
    assert_no_traceback,
    free_port,
    trainer_environment,
    wait_for_checkpoint,
)

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,  # Minutes, and two of them wait for time-outs of half a minute.
]

LONG = ("--workdir=run", "--num_steps=1000000", "--num_cpu_devices=1")
FAULTY = (f"--model={ROOT}/tests/system/faulty.py:Network", "--checkpoint_every_steps=5")
HANG_SECONDS = 5
# What the trainer calls the place where the network of `faulty.py` sleeps.
PLACES = {"data": ["in a step"], "step": ["in a step", "in a callback"], "save": ["in a save"]}


@pytest.mark.parametrize("repeat", range(int(os.environ.get("TRAINER_TEST_HANGS", 1))))
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize(("count", "victim"), [(1, 0), (2, 0), (2, 1)])
def test_a_process_that_sleeps_is_named(
    start: Callable,
    start_one_of: Callable,
    tmp_path: Path,
    count: int,
    victim: int,
    where: str,
    repeat: int,
) -> None:
    """All leave within 15 s of the time that a hang may take, and show where every thread was."""
    flags = (*LONG, *FAULTY, f"--hang_seconds={HANG_SECONDS}")
    options = {"env": trainer_environment() | {"TRAINER_TEST_FAULTS": str(tmp_path)}}
    if count == 1:
        group, name = [start(*flags, **options)], "this process"
    else:
        port, name = free_port(), f"process {victim} on {socket.gethostname()}"
        group = [start_one_of(i, count, port, *flags, **options) for i in range(count)]
    wait_for_checkpoint(tmp_path / "run", 5, group[0])
    (tmp_path / f"fault{victim}").write_text(where)
    errors = [process.communicate(timeout=60)[1] for process in group]
    seconds = time.time() - (tmp_path / f"hangs{victim}").stat().st_mtime
    assert [process.returncode for process in group] == [2] * count, errors
    for error in errors:
        assert f"error: no progress for {HANG_SECONDS} s: {name} is behind, at step " in error
        behind = error[error.index(" is behind, at step ") :].split(";")[0]
        assert any(place in behind for place in PLACES[where]), behind
        assert "(most recent call first)" in error
        assert "in _take_steps" in error
    assert HANG_SECONDS - 1 < seconds < HANG_SECONDS + 15
    print(f"{count} processes, {victim} sleeps in its {where}: all had left after {seconds:.1f} s")


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_is_frozen(start_one_of: Callable, tmp_path: Path, victim: int) -> None:
    port = free_port()
    flags = (*LONG, "--model=mlp", "--checkpoint_every_steps=20")
    pair = [start_one_of(i, 2, port, *flags) for i in range(2)]
    wait_for_checkpoint(tmp_path / "run")
    pair[victim].send_signal(signal.SIGSTOP)
    _, error = pair[1 - victim].communicate(timeout=60)
    assert pair[1 - victim].returncode == 2, error
    assert f"process {victim} " in error
    assert "has not answered for" in error
    assert_no_traceback(error)
