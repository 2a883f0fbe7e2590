"""What tests of several rooms share: states, records, and the trainer as a process."""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from trainer.checkpoints.store import restore
from trainer.cli.commands import COMMANDS
from trainer.commands.inspection import inspect
from trainer.config import TrainConfig
from trainer.datasets import Dataset
from trainer.schedules import create_plan, create_schedule

ROOT = Path(__file__).parents[1]

# A run of a second; the end of a cycle, an epoch (20 steps) and a checkpoint never fall together.
QUICK = ("--model=mlp", "--batch_size=3000", "--steps_per_cycle=7", "--noreport")
# A run of seconds that nearly always saves.
SAVING = (*QUICK, "--num_steps=100", "--checkpoint_every_steps=5", "--keep_checkpoints=2")


def also(*values: Any) -> Any:
    """More parameters of a quick test, for the system tier."""
    return pytest.param(*values, marks=pytest.mark.system)


# Configurations


def smallest_run(folder: Path, num_train: int = 64, **changes: Any) -> TrainConfig:
    """The smallest run there is, of images of 6x6 pixels in a file that is written to a folder."""
    rng, count = np.random.default_rng(0), num_train + 16
    images, labels = rng.integers(0, 256, (count, 6, 6), np.uint8), np.arange(count) % 4
    train = {"x_train": images[16:], "y_train": labels[16:]}
    np.savez(folder / "own.npz", **train, x_test=images[:16], y_test=labels[:16])
    config = TrainConfig(
        dataset=str(folder / "own.npz"),
        data_dir=str(folder / "data"),
        model="mlp",
        batch_size=16,
        num_devices=1,
        tensorboard=False,
        report=False,
    )
    return dataclasses.replace(config, **changes)


# States


def assert_same_bits(one: Any, other: Any) -> None:
    """Fail with the name of the first leaf that differs in a bit, in dtype or in its place."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), jax.tree_util.keystr(path)
        assert a.tobytes() == b.tobytes(), jax.tree_util.keystr(path)


def stored_state(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """The leaves of a checkpoint by name, verified."""
    return restore(epath.Path(workdir) / "checkpoints" / str(step), step).leaves


def resolved(config: TrainConfig, num_examples: int = 60000) -> TrainConfig:
    """The configuration as a run on CPU stores it."""
    plan = create_plan(config, num_examples)
    return dataclasses.replace(
        config,
        num_steps=plan.num_steps,
        num_cycles=None,
        steps_per_cycle=plan.steps_per_cycle,
        eval_every_steps=plan.eval_every_steps,
        reduction="tree",
        gradient_shards=8,
        steps_per_call=1,
    )


def schedule_named(
    name: str,
    lr_min: float,
    lr_max: float,
    steps_per_cycle: int,
    lr_gamma: float,
    cycle_up_fraction: float,
) -> Any:
    """The learning rate of a run with these flags."""
    config = TrainConfig(
        lr_schedule=name,
        lr_min=lr_min,
        lr_max=lr_max,
        steps_per_cycle=steps_per_cycle,
        lr_gamma=lr_gamma,
        cycle_up_fraction=cycle_up_fraction,
    )
    return create_schedule(config)


def checkpoint_steps(workdir: epath.PathLike) -> set[int]:
    """The steps of all checkpoints, intact or not, that are in place."""
    folder = epath.Path(workdir) / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return {int(name) for name in names if name.isdecimal()}


# Records


def read_metrics(workdir: epath.PathLike, split: str | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, of one split ("train", "test") or of both."""
    text = (epath.Path(workdir) / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if split in (None, line["split"])]


def assert_same_run(broken: epath.PathLike, unbroken: epath.PathLike) -> None:
    """Fail unless two finished runs have every record and every bit of the final state alike."""
    assert read_metrics(broken) == read_metrics(unbroken)
    digests = [inspect(workdir)["digest"] for workdir in (broken, unbroken)]
    assert digests[0] == digests[1]


# Processes


def trainer_command(*arguments: str, patch: str = "") -> list[str]:
    """`python -m trainer` with these arguments; `patch` is a line of Python to execute first."""
    code = f"{patch}; from trainer import cli; cli.main()"
    return [sys.executable, *(("-c", code) if patch else ("-m", "trainer")), *arguments]


def with_data_dir(arguments: Sequence[str], data_dir: object) -> list[str]:
    """The arguments of a command, and where its data are, if it has a flag for that."""
    command = next((word for word in arguments if not word.startswith("-")), "train")
    has_it = "data_dir" in COMMANDS[command].flags if command in COMMANDS else False
    return [*arguments, f"--data_dir={data_dir}"] if has_it else list(arguments)


def trainer_environment() -> dict[str, str]:
    """The environment in which Python finds this checkout."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


def start_trainer(*arguments: str, patch: str = "", **options: Any) -> subprocess.Popen[str]:
    """Start `python -m trainer`; its standard error is a pipe."""
    options = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL} | options
    options.setdefault("env", trainer_environment())
    return subprocess.Popen(trainer_command(*arguments, patch=patch), text=True, **options)


def run_trainer(
    *arguments: str, patch: str = "", **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run `python -m trainer` to its end."""
    options.setdefault("env", trainer_environment())
    return subprocess.run(
        trainer_command(*arguments, patch=patch),
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def one_of(index: int, count: int, port: int) -> tuple[str, ...]:
    """The flags of one of several processes on this machine."""
    address = f"--coordinator_address=127.0.0.1:{port}"
    return address, f"--num_processes={count}", f"--process_id={index}"


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # It has just ended.
            # pid (name) state parent ...
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return sorted(found)


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_until(
    condition: Callable[[], object],
    process: subprocess.Popen | None = None,
    what: Callable[[], str] = lambda: "never happened",
    seconds: float = 120,
) -> None:
    """Wait for a condition; fail if it takes too long, or if the process ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process and process.poll() is not None:
            raise AssertionError(process.stderr.read() if process.stderr else what())
        assert time.monotonic() < deadline, what()
        time.sleep(0.01)


def wait_for_step(workdir: Path, step: int, process: subprocess.Popen | None = None) -> None:
    """Wait until the records of a running trainer have a step."""
    path = workdir / "metrics.jsonl"
    wait_until(lambda: path.exists() and f'"step": {step},' in path.read_text(), process)


def wait_for_checkpoint(
    workdir: Path, step: int = 0, process: subprocess.Popen | None = None
) -> None:
    """Wait until a running trainer has saved a checkpoint of this step or a later one."""
    wait_until(lambda: any(saved >= step for saved in checkpoint_steps(workdir)), process)


def assert_no_traceback(error: str) -> None:
    """Fail if a program showed its user a traceback."""
    assert "Traceback" not in error, error


def save_first(mnist: Dataset, path: Path, num_train: int, num_test: int) -> None:
    """Write the first examples of MNIST as an .npz file."""
    np.savez(
        path,
        x_train=mnist.train_images[:num_train],
        y_train=mnist.train_labels[:num_train],
        x_test=mnist.test_images[:num_test],
        y_test=mnist.test_labels[:num_test],
    )
