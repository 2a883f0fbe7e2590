"""The program as a user runs it: real processes and a real terminal."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.helpers import QUICK, assert_no_traceback, trainer_environment

pytestmark = pytest.mark.system


def test_help_and_mistakes_import_nothing_heavy() -> None:
    program = (
        "import sys; from trainer import cli\n"
        "codes = [cli.run(['trainer', '--help']), cli.run(['trainer', '--stpes=1'])]\n"
        "heavy = {'jax', 'flax', 'orbax', 'tensorflow_datasets', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'{codes} {heavy}' if heavy or codes != [0, 1] else 0)"
    )
    command = [sys.executable, "-c", program]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=trainer_environment())


def test_commands_end_to_end(trainer, tmp_path: Path) -> None:
    done = trainer("--workdir=run", *QUICK, "--report", "--num_steps=30")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "test accuracy" in done.stderr
    assert_no_traceback(done.stderr)
    assert "WARNING" not in done.stderr
    evaluated = trainer("evaluate", "--workdir=run")
    assert json.loads(evaluated.stdout).keys() == {"step", "loss", "accuracy", "examples"}
    inspected = trainer("inspect", "--workdir=run")
    found = json.loads(inspected.stdout)
    assert (found["step"], found["cycle_step"]) == (30, 2)
    picture = tmp_path / "run/report.png"
    picture.unlink()  # That of the run does not know yet how long drawing it took.
    drawn = []
    for _ in range(2):
        reported = trainer("report", "--workdir=run")
        assert reported.returncode == 0, reported.stderr
        drawn.append(picture.read_bytes())
    assert drawn[0] == drawn[1]
    again = trainer("--workdir=run", *QUICK, "--report", "--num_steps=30")
    assert again.returncode == 0
    assert "is complete" in again.stderr


def test_what_the_command_does_not_use_is_not_imported(data_dir: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from trainer import cli; from trainer.run import loop\n"
        "assert 'matplotlib' not in sys.modules\n"  # Imported when the run has ended.
        f"code = cli.run(['trainer', '--num_steps=2', '--workdir={tmp_path}/run',"
        f" '--data_dir={data_dir}', '--model=mlp', '--notensorboard'])\n"
        "unused = {'tensorflow', 'torch', 'tensorboardX'} & set(sys.modules)\n"
        "sys.exit(f'{code} {unused}' if unused or code else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=trainer_environment())


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ({"JAX_DISABLE_JIT": "1"}, "JAX_DISABLE_JIT=True is set, and the trainer compiles its"),
        ({"JAX_NO_TRACING": "1"}, "JAX_NO_TRACING=True is set, and the trainer traces its steps"),
        ({"JAX_TRANSFER_GUARD": "disallow"}, "JAX_TRANSFER_GUARD=disallow is set, and the trai"),
        ({"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS=cuda: jax cannot start its devices ("),
    ],
)
def test_what_the_environment_asks_of_jax_and_cannot_be(
    trainer, tmp_path: Path, variable: dict[str, str], message: str
) -> None:
    done = trainer("--workdir=run", *QUICK, env=trainer_environment() | variable)
    assert done.returncode == 1, done.stderr
    assert_no_traceback(done.stderr)
    assert f"error: {message}" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("columns", [80, 150])
def test_the_progress_bar_of_a_terminal(start, columns: int) -> None:
    """One line that fits, the learning rate first, and a bar between the words."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = start(*QUICK, "--num_steps=60", stderr=child)
    os.close(child)
    output = b""
    while True:
        try:
            chunk = os.read(parent, 4096)
        except OSError:  # The other end is closed.
            break
        if not chunk:
            break
        output += chunk
    assert process.wait() == 0
    text = output.decode()
    assert "60/60" in text
    assert re.search(r"test accuracy \d\d\.\d\d % of 10000", text)
    frames = [frame for frame in re.split(r"[\r\n]+", text) if frame.startswith("lr ")]
    assert len(frames) > 5
    for frame in frames:
        assert len(frame) < columns
        assert re.match(r"lr 0\.0\d+ +loss \d\.\d{4}  .* *\d+%\|.{6,}\| \d+/60", frame), frame
    print(*frames[-2:], sep="\n")  # With pytest -s.
