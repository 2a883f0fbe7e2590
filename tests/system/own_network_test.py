"""The page about networks of one's own works as pasted; its network has the same bits anywhere."""

import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.helpers import (
    ROOT,
    assert_no_traceback,
    checkpoint_steps,
    free_port,
    read_metrics,
    save_first,
    trainer_environment,
    wait_for_checkpoint,
)
from trainer.commands.inspection import inspect
from trainer.datasets import Dataset

pytestmark = pytest.mark.system

PAGE = (ROOT / "docs" / "own_network.md").read_text()
NETWORK = (
    f"--model={ROOT}/docs/flax_mnist.py:Network",
    f"--optimizer={ROOT}/docs/flax_mnist.py:create",
)
QUIET = ("--noreport", "--notensorboard", "--reduction=tree", "--workdir=run")


@pytest.fixture
def flags(tmp_path: pathlib.Path, mnist: Dataset) -> tuple[str, ...]:
    """A run of the page's network on the first images of MNIST, 8 steps an epoch."""
    save_first(mnist, tmp_path / "small.npz", 512, 100)
    rates = ("--lr_min=5e-4", "--lr_max=5e-3", "--steps_per_cycle=5")
    return (*NETWORK, *QUIET, *rates, "--dataset=small.npz", "--batch_size=64")


@pytest.mark.slow
def test_the_page_works_as_pasted(tmp_path: pathlib.Path, data_dir: pathlib.Path) -> None:
    """Its networks, its optimizer and its commands, each command with fewer steps."""
    network, optimizer = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/small.py").write_text(network)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/networks.py").write_text(network + optimizer)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    commands = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    short = " --num_steps=3 --steps_per_cycle=3 --batch_size=16 --num_cpu_devices=8"
    lines = [
        line if " evaluate " in line else line + short
        for line in commands.replace("1,2,4,8", "1,8").splitlines()
    ]
    assert len(lines) == 5
    environment = trainer_environment() | {
        "TFDS_DATA_DIR": str(data_dir),
        "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples"] == 10000
    assert "Stopping and resuming changed nothing that is promised." in done.stderr
    (leaves,) = re.findall(r"leaves of the final state +(\d+)  the same", done.stderr)
    assert int(leaves) > 20  # The statistics of batch norms are among them.


@pytest.mark.slow
def test_two_processes_have_the_bits_of_one(
    trainer: Callable, start_one_of: Callable, flags: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    flags = (*flags, "--num_steps=6")
    done = trainer(*flags, "--workdir=alone", "--num_cpu_devices=1")
    assert done.returncode == 0, done.stderr
    alone = inspect(tmp_path / "alone")
    port = free_port()
    pair = [start_one_of(i, 2, port, *flags, "--num_cpu_devices=1") for i in range(2)]
    for process in pair:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    found = inspect(tmp_path / "run")
    assert (alone["num_devices"], found["num_devices"], found["num_processes"]) == (1, 2, 2)
    assert alone["digest"] == found["digest"]


@pytest.mark.slow
def test_three_kills_with_other_devices_change_no_bit(
    trainer: Callable, start: Callable, flags: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    """On 8, 2 and 4 devices, and the rest on 1, against runs that were never stopped."""
    flags = (*flags, "--num_steps=60", "--checkpoint_every_steps=5", "--num_cpu_devices=8")
    for number in (1, 2, 4, 8):
        done = trainer(*flags, f"--workdir=whole{number}", f"--num_devices={number}")
        assert done.returncode == 0, done.stderr
    digests = {inspect(tmp_path / f"whole{number}")["digest"] for number in (1, 2, 4, 8)}
    for number, step in ((8, 10), (2, 25), (4, 40)):
        process = start(*flags, f"--num_devices={number}")
        wait_for_checkpoint(tmp_path / "run", step, process)
        process.kill()
        process.wait()
        assert max(checkpoint_steps(tmp_path / "run")) < 60
    done = trainer(*flags, "--num_devices=1")
    assert done.returncode == 0, done.stderr
    assert {inspect(tmp_path / "run")["digest"]} == digests
    lines = [read_metrics(tmp_path / name, "train") for name in ("run", "whole8")]
    assert lines[0] == lines[1]


def test_an_error_in_ones_own_code_is_one_message(
    trainer: Callable, tmp_path: pathlib.Path
) -> None:
    """As a user sees it: status 1, the line, no traceback, nothing written."""
    (tmp_path / "own.py").write_text("import jax\n\nkey = jax.random.kye(0)\n")
    done = trainer("--model=own.py:Network", "--workdir=run")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"({tmp_path}/own.py, line 3: key = jax.random.kye(0))\na network of" in done.stderr
    assert_no_traceback(done.stderr)
    assert not (tmp_path / "run" / "checkpoints").exists()
