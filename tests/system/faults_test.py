"""A full disk, a second trainer, a kill at any moment: none costs a good checkpoint."""

import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import (
    QUICK,
    SAVING,
    assert_no_traceback,
    assert_same_run,
    read_metrics,
    trainer_command,
    trainer_environment,
    wait_for_step,
)
from trainer.schedules.cyclical import create_triangular_schedule

pytestmark = pytest.mark.system


@pytest.mark.parametrize(
    ("kilobytes", "message"),
    [
        (300, "a checkpoint could not be written to"),
        (2, "metrics.jsonl could not be written"),
        (1, "config.json could not be written"),
    ],
)
def test_a_file_that_cannot_be_written_ends_the_run(
    trainer: Callable, data_dir: Path, tmp_path: Path, kilobytes: int, message: str
) -> None:
    """Larger files fail, as on a full disk; a checkpoint fails in the background."""
    flags = ["--workdir=run", *QUICK, "--num_steps=40", "--checkpoint_every_steps=20"]
    limited = ["bash", "-c", f'ulimit -f {kilobytes} && exec "$@"', "bash"]
    done = subprocess.run(
        [*limited, *trainer_command(*flags, f"--data_dir={data_dir}")],
        cwd=tmp_path,
        env=trainer_environment() | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert_no_traceback(done.stderr)
    error = done.stderr[done.stderr.index("error: ") :]
    assert message in error
    assert "File too large" in error
    assert len(error.splitlines()) == 1
    again = trainer(*flags)
    assert again.returncode == 0, again.stderr
    steps = [line["step"] for line in read_metrics(tmp_path / "run", "train")]
    assert steps == list(range(40))


def test_a_second_trainer_is_refused(start: Callable, trainer: Callable, tmp_path: Path) -> None:
    flags = ["--workdir=run", *QUICK, "--num_steps=100000"]
    first = start(*flags)
    wait_for_step(tmp_path / "run", 0, first)
    second = trainer(*flags)
    assert second.returncode == 1, second.stderr
    assert f"is being written by process {first.pid} on " in second.stderr
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    first.communicate()
    assert first.returncode == 75


def test_killed_in_mid_cycle(
    start: Callable, trainer: Callable, unbroken: Path, tmp_path: Path
) -> None:
    """Nothing in the same command says that there was a kill; all that is left is as if not."""
    workdir = tmp_path / "broken"
    for step in (30, 65):
        process = start("--workdir=broken", *SAVING)
        wait_for_step(workdir, step, process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    done = trainer("--workdir=broken", *SAVING)
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stderr
    assert_same_run(workdir, unbroken)
    lines = read_metrics(workdir, "train")
    assert [line["step"] for line in lines] == list(range(100))
    rates = create_triangular_schedule(3e-3, 3e-2, 7)(np.arange(100))
    np.testing.assert_array_equal([np.float32(line["learning_rate"]) for line in lines], rates)
    board = EventAccumulator(str(workdir / "tensorboard"), {"scalars": 0})
    board.Reload()
    assert [event.step for event in board.Scalars("train/learning_rate")] == list(range(100))


@pytest.mark.slow
def test_killed_at_random_moments(start: Callable, trainer: Callable, tmp_path: Path) -> None:
    """Kill -9 while it starts, restores, trains and saves; a save is nearly always under way."""
    flags = (*SAVING, "--num_steps=300")
    assert trainer("--workdir=unbroken", *flags).returncode == 0
    kills = int(os.environ.get("TRAINER_TEST_KILLS", 50))
    rng, done, rounds = random.Random(kills), 0, 0
    while done < kills:
        workdir, rounds = tmp_path / f"broken{rounds}", rounds + 1
        while True:
            process = start(f"--workdir={workdir}", *flags)
            try:
                _, err = process.communicate(timeout=rng.uniform(0.5, 6) if done < kills else None)
                assert process.returncode == 0, err
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                done += 1
        assert_same_run(workdir, tmp_path / "unbroken")
    print(f"{done} kills in {rounds} runs")
