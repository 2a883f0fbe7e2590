"""Augmentation as a user runs it: the page works as pasted, and the bits are the same anywhere."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import (
    ROOT,
    assert_no_traceback,
    assert_same_run,
    checkpoint_steps,
    free_port,
    save_first,
    wait_for_checkpoint,
)
from trainer.datasets import Dataset

pytestmark = pytest.mark.system

[OWN] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/augmentation.md").read_text(), re.DOTALL)


@pytest.fixture(params=["shift", pytest.param("own.py:augment", marks=pytest.mark.slow)])
def flags(request: pytest.FixtureRequest, tmp_path: Path, mnist: Dataset) -> tuple[str, ...]:
    """A run on the first images of MNIST, 4 steps an epoch; the page's own augmentation."""
    (tmp_path / "own.py").write_text(OWN)
    save_first(mnist, tmp_path / "small.npz", 256, 100)
    return (
        f"--augment={request.param}",
        "--dataset=small.npz",
        "--batch_size=64",
        "--steps_per_cycle=5",
        "--reduction=tree",
        "--standardize",
    )


QUIET = ("--noreport", "--notensorboard", "--model=mlp", "--num_steps=60")


@pytest.mark.slow
def test_the_proof_of_the_resume_with_the_cnn(trainer: Callable, flags: tuple[str, ...]) -> None:
    """Stops on 1, 2 and 8 devices: every parameter and every record of the unbroken run."""
    done = trainer("verify_resume", *flags, "--devices=1,2,8", "--num_steps=7")
    assert done.returncode == 0, done.stderr
    assert "Stopping and resuming changed nothing that is promised." in done.stderr
    assert "DIFFERENT" not in done.stderr


@pytest.mark.slow
def test_two_processes_have_the_bits_of_one(
    trainer: Callable, start_one_of: Callable, flags: tuple[str, ...], tmp_path: Path
) -> None:
    done = trainer(*flags, *QUIET, "--num_cpu_devices=1", "--workdir=alone")
    assert done.returncode == 0, done.stderr
    port = free_port()
    shared = (*flags, *QUIET, "--num_cpu_devices=2", "--workdir=shared")
    processes = [start_one_of(index, 2, port, *shared) for index in range(2)]
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        assert_no_traceback(error)
    assert_same_run(tmp_path / "shared", tmp_path / "alone")


@pytest.mark.slow
def test_kills_on_other_devices_change_no_bit(
    trainer: Callable, start: Callable, flags: tuple[str, ...], tmp_path: Path
) -> None:
    saving = (*flags, *QUIET, "--num_cpu_devices=8", "--checkpoint_every_steps=5")
    done = trainer(*saving, "--workdir=whole", "--num_devices=1")
    assert done.returncode == 0, done.stderr
    for count, step in ((8, 10), (2, 25)):
        process = start(*saving, "--workdir=killed", f"--num_devices={count}")
        wait_for_checkpoint(tmp_path / "killed", step, process)
        process.kill()
        process.wait()
        assert max(checkpoint_steps(tmp_path / "killed")) < 60
    assert trainer(*saving, "--workdir=killed", "--num_devices=4").returncode == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
