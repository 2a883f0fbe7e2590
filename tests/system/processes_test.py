"""Several processes: what they must agree on, and how each of their ends is met."""

import dataclasses
import pathlib
import re
import signal
import socket
import time

import numpy as np
import pytest

from tests.helpers import (
    assert_no_traceback,
    checkpoint_steps,
    free_port,
    read_metrics,
    trainer_environment,
    wait_for_checkpoint,
    wait_for_step,
)
from trainer.commands.inspection import inspect
from trainer.config import TrainConfig
from trainer.run.loop import train

pytestmark = pytest.mark.system

# The processes are told of a failure at once; jax alone would take up to 100 seconds.
SECONDS_TO_END = 30

LONG = ("--model=mlp", "--num_steps=1000000", "--checkpoint_every_steps=50", "--num_cpu_devices=2")


@pytest.mark.parametrize("victim", [0, 1])
def test_process_that_dies_ends_the_other(
    start_one_of, tmp_path: pathlib.Path, victim: int
) -> None:
    port = free_port()
    pair = [start_one_of(i, 2, port, *LONG, "--workdir=run") for i in range(2)]
    wait_for_checkpoint(tmp_path / "run")
    pair[victim].kill()
    _, error = pair[1 - victim].communicate(timeout=SECONDS_TO_END)
    assert pair[1 - victim].returncode == 2, error
    assert f"error: process {victim} " in error
    assert "died or cannot be reached; the same command resumes from the newest checkpoint" in error
    assert_no_traceback(error)


def test_signal_to_one_stops_all_at_the_same_step(start_one_of, tmp_path: pathlib.Path) -> None:
    port = free_port()
    pair = [start_one_of(i, 2, port, *LONG, "--workdir=run") for i in range(2)]
    wait_for_checkpoint(tmp_path / "run")
    pair[1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=SECONDS_TO_END)[1] for process in pair]
    assert [process.returncode for process in pair] == [75, 75], errors
    stopped = [line for error in errors for line in error.splitlines() if "stopped by" in line]
    assert "a signal to another process" in stopped[0]
    assert "SIGTERM" in stopped[1]
    steps = {line.split("at step ")[1].split(" ")[0] for line in stopped}
    saved = max(checkpoint_steps(tmp_path / "run"))
    assert steps == {str(saved)}
    lines = read_metrics(tmp_path / "run", "train")
    assert [line["step"] for line in lines] == list(range(saved))


def test_proxies_are_not_asked(start_one_of, tmp_path: pathlib.Path) -> None:
    """Between two processes of one host; nobody answers at the port of this one."""
    names = ("http_proxy", "HTTP_PROXY", "https_proxy", "grpc_proxy", "all_proxy")
    env = trainer_environment() | dict.fromkeys(names, "http://127.0.0.1:9")
    port = free_port()
    flags = ("--workdir=run", "--model=mlp", "--num_steps=3", "--num_cpu_devices=1", "--noreport")
    pair = [start_one_of(i, 2, port, *flags, env=env) for i in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], errors
    assert checkpoint_steps(tmp_path / "run") == {3}


def test_save_that_fails_ends_all_within_seconds(start_one_of, tmp_path: pathlib.Path) -> None:
    """Process 0 may not make files larger than 50 kB: as on a full disk, a save fails midway."""
    small_files = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    )
    port = free_port()
    first = start_one_of(0, 2, port, *LONG, "--workdir=run", patch=small_files)
    second = start_one_of(1, 2, port, *LONG, "--workdir=run")
    _, error = first.communicate(timeout=120)
    ended = time.monotonic()
    _, other_error = second.communicate(timeout=SECONDS_TO_END)
    assert time.monotonic() - ended < 10
    assert (first.returncode, second.returncode) == (2, 2), error + other_error
    assert "could not be written" in error
    assert "could not be written" in other_error
    assert "process 0" in other_error


def pair_of(start_one_of, tmp_path: pathlib.Path, count: int) -> list[str]:
    """What two processes say whose own.npz differ: the second has `count` examples, other ones."""
    port, pair = free_port(), []
    for i, size in enumerate((64, count)):
        folder = tmp_path / f"host{i}"
        folder.mkdir()
        rng = np.random.default_rng(i)
        images, labels = rng.integers(0, 256, (size + 16, 6, 6), np.uint8), np.arange(size + 16) % 4
        parts = {"x_train": images[16:], "y_train": labels[16:]}
        np.savez(folder / "own.npz", **parts, x_test=images[:16], y_test=labels[:16])
        flags = ("--dataset=own.npz", "--batch_size=16", "--num_steps=8", "--steps_per_cycle=4")
        flags += (f"--workdir={tmp_path}/run", "--model=mlp", "--num_cpu_devices=1", "--noreport")
        pair.append(start_one_of(i, 2, port, *flags, f"--data_dir={folder}/data", cwd=folder))
    errors = [process.communicate(timeout=60)[1] for process in pair]
    assert [process.returncode for process in pair] == [1, 1], errors
    assert not (tmp_path / "run" / "checkpoints").exists()
    return errors


@pytest.mark.parametrize(
    ("count", "difference"),
    [
        (64, "other pixels or labels in the train split in process 1; "),
        (90, "64 training examples, in process 1 90"),
    ],
)
def test_processes_with_other_data_are_refused(
    start_one_of, tmp_path: pathlib.Path, count: int, difference: str
) -> None:
    """Each host has its own own.npz; a run on both would be that of neither."""
    errors = pair_of(start_one_of, tmp_path, count)
    assert "own.npz are not the same in all processes: " in errors[0]
    assert difference in errors[0]


def test_processes_with_other_code_are_refused(start_one_of, tmp_path: pathlib.Path) -> None:
    """One host was not updated."""
    port = free_port()
    other = "import trainer.run.environment as m; m._code_digest = lambda: 'abcdef0123'"
    flags = ("--workdir=run", "--model=mlp", "--num_steps=3", "--num_cpu_devices=1", "--noreport")
    pair = [start_one_of(i, 2, port, *flags, patch=("pass", other)[i]) for i in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in pair]
    assert [process.returncode for process in pair] == [1, 1], errors
    assert re.search(
        "different programs: the code of the trainer [0-9a-f]{8}, in process 1 abcdef01", errors[0]
    )
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_deleted_ends_the_run(start, tmp_path: pathlib.Path) -> None:
    process = start(*LONG, "--workdir=run", "--noreport")
    wait_for_checkpoint(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    _, error = process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == 2, error
    assert_no_traceback(error)
    assert re.search("was deleted|could not be written: its folder was deleted or moved", error)
    assert not (tmp_path / "run").exists()


def test_unshared_workdir_is_refused(start_one_of, tmp_path: pathlib.Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    port = free_port()
    patch = "from trainer.workdir import lock; lock._SHARED_SECONDS = 0.5"
    pair = [
        start_one_of(i, 2, port, *LONG, "--workdir=run", cwd=folders[i], patch=patch)
        for i in range(2)
    ]
    for process in pair:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 1, error
        assert "process 1 cannot see" in error
        assert "gs://bucket/folder" in error
    assert [list(folder.iterdir()) for folder in folders] == [[], []]


def test_missing_process_is_named(start_one_of) -> None:
    port = free_port()
    patch = "from trainer.processes import roll_call; roll_call._ROLL_CALL_SECONDS = 3"
    pair = [start_one_of(i, 3, port, *LONG, "--workdir=run", patch=patch) for i in range(2)]
    for process in pair:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 2, error
        assert "of 3 processes, 2 did not report to process 0" in error
        assert f"127.0.0.1:{port}" in error


def test_missing_first_process_is_named(start_one_of) -> None:
    port = free_port()
    patch = "from trainer.processes import roll_call; roll_call._ROLL_CALL_SECONDS = 1"
    process = start_one_of(1, 2, port, *LONG, "--workdir=run", patch=patch)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert f"could not report to process 0 at 127.0.0.1:{port}" in error


def test_busy_port_is_refused(start_one_of) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start_one_of(0, 2, port, *LONG, "--workdir=run")
        _, error = process.communicate(timeout=120)
    assert process.returncode == 1, error
    assert f"--coordinator_address=127.0.0.1:{port}: process 0 cannot listen there" in error


def test_resume_on_other_processes_gives_the_same_bits(
    start_one_of, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """2 processes of 2 devices, stopped by a signal; then 1x1, 1x8 and 2x1; against 1x4."""
    config = TrainConfig(
        data_dir=str(data_dir), model="mlp", reduction="tree", steps_per_cycle=14, report=False
    )

    def train_alone(workdir: str, num_steps: int, num_devices: int) -> None:
        changed = {"num_steps": num_steps, "num_devices": num_devices}
        train(dataclasses.replace(config, **changed), tmp_path / workdir)

    def start_pair(num_steps: int, num_cpu_devices: int) -> list:
        flags = ("--workdir=run", "--model=mlp", "--steps_per_cycle=14", "--noreport")
        counts = (f"--num_steps={num_steps}", f"--num_cpu_devices={num_cpu_devices}")
        port = free_port()
        return [start_one_of(i, 2, port, *flags, *counts) for i in range(2)]

    pair = start_pair(num_steps=100000, num_cpu_devices=2)
    wait_for_step(tmp_path / "run", 0)
    pair[1].send_signal(signal.SIGTERM)
    for process in pair:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 75, error
    step = inspect(tmp_path / "run")["step"]
    train_alone("run", step + 5, num_devices=1)
    train_alone("run", step + 15, num_devices=8)
    last = step + 20
    for process in start_pair(last, num_cpu_devices=1):
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    train_alone("whole", last, num_devices=4)
    broken, whole = (inspect(tmp_path / workdir) for workdir in ("run", "whole"))
    assert broken["digests"] == whole["digests"]
    assert (broken["num_processes"], broken["num_devices"]) == (2, 2)
    lines = [read_metrics(tmp_path / workdir, "train") for workdir in ("run", "whole")]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == list(range(last))


def test_error_that_nobody_foresaw_ends_both(start_one_of) -> None:
    port = free_port()
    patch = "from trainer.run import loop; loop.describe = None"
    quick = "import trainer.processes.link as p; p._VERDICT_SECONDS = 0.5"
    first = start_one_of(0, 2, port, *LONG, "--workdir=run", patch=f"{patch}; {quick}")
    second = start_one_of(1, 2, port, *LONG, "--workdir=run")
    errors = [process.communicate(timeout=120)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (2, 2), errors
    assert "Traceback" in errors[0]
    assert "error: process 0 on " in errors[1]
    assert "TypeError: 'NoneType' object is not callable" in errors[1]
    assert_no_traceback(errors[1])
