"""Output that nobody takes is lost, and nothing else."""

import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import QUICK, ROOT, checkpoint_steps, trainer_environment

pytestmark = pytest.mark.system

CODE = """\
import contextlib, os, sys
from trainer.processes import output
output.protect()
for _ in range(3):
    print("x" * 100_000)
    print("y" * 100, file=sys.stderr)
file = open("kept", "w")
with contextlib.suppress(OSError):
    os.write(2, b"a library's line")
file.write("whole")
file.close()
problem = output.problem()
sys.exit(5 if problem is None else 6)
"""


@pytest.mark.parametrize(
    ("redirection", "status"),
    [
        ("", 5),
        (">/dev/null 2>&1", 5),
        ("2>&-", 5),
        (">&- 2>&-", 5),
        ("<&- >&- 2>&-", 5),
        ("2>/dev/full", 5),
        (">/dev/full", 6),  # Whoever wants the output must know.
        ("> >(head -c 3) 2> >(true)", 5),
    ],
)
def test_a_program_lives_on(tmp_path, redirection: str, status: int) -> None:
    command = f"{sys.executable} -c {shlex.quote(CODE)} {redirection}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=trainer_environment(), capture_output=True
    )
    assert done.returncode == status, done.stderr
    assert b"Traceback" not in done.stderr
    assert (tmp_path / "kept").read_text() == "whole"
    if not redirection:
        assert len(done.stdout) == 300_003
        assert len(done.stderr.splitlines()) == 4


@pytest.mark.parametrize(
    "command",
    ["--help", "train --help", "predict {digit} {digit} {digit} --workdir={run}"],
)
def test_a_command_whose_reader_leaves_is_quiet(unbroken: Path, command: str) -> None:
    (digit,) = (ROOT / "tests" / "digits").glob("4_printed.png")
    words = command.format(digit=digit, run=unbroken)
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m trainer {words} | head -1"],
        env=trainer_environment(),
        capture_output=True,
        text=True,
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_a_reader_that_pauses(start, tmp_path: Path) -> None:
    """A pager: the run trains to its end, and no hang is seen where nobody reads."""
    flags = ("--batch_size=32", "--num_steps=2000", "--log_every_steps=1", "--hang_seconds=5")
    process = start("--workdir=run", *QUICK, *flags)
    assert process.wait(120) == 0  # More is said than a pipe holds, and nothing has been read.
    assert len(process.stderr.read()) > 60_000
    assert 2000 in checkpoint_steps(tmp_path / "run")


def test_a_terminal_that_is_gone(start, tmp_path: Path) -> None:
    """In the middle of a run: it trains to its end."""
    parent, child = pty.openpty()
    process = start("--workdir=run", *QUICK, "--num_steps=300", stdout=child, stderr=child)
    os.close(child)
    said = b""
    while b"first step after" not in said:
        said += os.read(parent, 4096)
    os.close(parent)
    assert process.wait(120) == 0
    assert checkpoint_steps(tmp_path / "run") == {300}
