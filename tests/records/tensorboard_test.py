"""TensorBoard's own reader shows what metrics.jsonl says, whatever happened to the run."""

import dataclasses
import itertools
import types
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import read_metrics
from trainer.config import TrainConfig
from trainer.records.metrics import Records
from trainer.records.tensorboard import TENSORBOARD_DIR
from trainer.schedules import create_plan
from trainer.workdir.files import METRICS_FILE

CONFIG = TrainConfig(num_steps=100, batch_size=50)
RATE = "train/images_per_second"


def write(
    workdir: Path,
    first: int,
    last: int,
    tests: tuple[int, ...] = (),
    config: TrainConfig = CONFIG,
    more: Callable[[int], dict] = lambda step: {},
    more_sums: dict | None = None,
) -> None:
    with Records(epath.Path(workdir), config, create_plan(config, 1000), first) as records:
        for step in range(first, last):
            metrics = {
                "loss": jnp.float32(1 / (step + 1)),
                "accuracy": jnp.float32(0.5),
                "learning_rate": jnp.float32(0.1 + step / 1000),
            }
            records.train(step, 1, metrics | more(step))
            if step + 1 in tests:
                sums = {"loss": jnp.float32(step), "correct": jnp.int32(7)}
                records.test(step + 1, sums | {"examples": jnp.int32(10)} | (more_sums or {}))
        records.flush()


def event_files(workdir: Path) -> list[Path]:
    return sorted((workdir / TENSORBOARD_DIR).iterdir())


def open_board(workdir: Path) -> EventAccumulator:
    board = EventAccumulator(str(workdir / TENSORBOARD_DIR), {"scalars": 0})
    return board.Reload()


def shown(board: EventAccumulator) -> dict[str, list[tuple[int, float]]]:
    """Tag to the steps and values that TensorBoard shows, but for images per second."""
    tags = [tag for tag in board.Tags()["scalars"] if tag != RATE]
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in tags}


def recorded(workdir: Path) -> dict[str, list[tuple[int, float]]]:
    """The same out of metrics.jsonl."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in read_metrics(workdir):
        for name in line.keys() - {"split", "step", "epoch", "examples"}:
            tag = f"{line['split']}/{name}"
            found.setdefault(tag, []).append((line["step"], np.float32(line[name])))
    return found


def test_a_run(tmp_path: Path) -> None:
    write(tmp_path, 0, 45, tests=(20, 45))
    board = open_board(tmp_path)
    assert shown(board) == recorded(tmp_path)
    assert [event.step for event in board.Scalars(RATE)] == list(range(45))
    assert all(event.value > 0 for event in board.Scalars(RATE))


@pytest.mark.parametrize("resumed_at", [0, 1, 9, 30, 40])
def test_a_resumed_run_shows_every_step_once(tmp_path: Path, resumed_at: int) -> None:
    write(tmp_path, 0, 40, tests=(10, 30, 40))
    before = open_board(tmp_path).Scalars(RATE)
    (file,) = event_files(tmp_path)
    content = file.read_bytes()
    write(tmp_path, resumed_at, 60, tests=(50,))
    board = open_board(tmp_path)
    assert shown(board) == recorded(tmp_path)
    # What was not made again keeps its time and its rate, in a file that nobody touched.
    assert board.Scalars(RATE)[:resumed_at] == before[:resumed_at]
    assert file.read_bytes() == content


def test_a_tensorboard_that_looks_on_shows_no_step_twice(tmp_path: Path) -> None:
    write(tmp_path, 0, 40, tests=(20, 40))
    board = open_board(tmp_path)
    assert len(board.Scalars("train/loss")) == 40
    for resumed_at, last in ((20, 50), (50, 60), (45, 70)):
        write(tmp_path, resumed_at, last)
        assert shown(board.Reload()) == recorded(tmp_path)


def test_a_kill_after_a_flush_loses_nothing(tmp_path: Path) -> None:
    """What `flush` has been called for is on disk, without a word to the writer."""
    records = Records(epath.Path(tmp_path), CONFIG, create_plan(CONFIG, 1000), 0)
    metrics = {name: jnp.float32(1) for name in ("loss", "accuracy", "learning_rate")}
    for step in range(30):
        records.train(step, 1, metrics)
    records.flush()
    board = open_board(tmp_path)
    assert shown(board) == recorded(tmp_path)
    assert len(board.Scalars(RATE)) == 30
    records.__exit__()


@pytest.mark.parametrize("kept", [0, 5, 100, 2000, 3333])
@pytest.mark.parametrize("rest", [b"", b"\xff" * 40])
def test_an_event_file_that_was_cut_off_or_damaged(tmp_path: Path, kept: int, rest: bytes) -> None:
    """Whatever TensorBoard can read of it, what comes later is whole, and nothing is twice."""
    write(tmp_path, 0, 40, tests=(10, 30))
    (file,) = event_files(tmp_path)
    file.write_bytes(file.read_bytes()[:kept] + rest)
    write(tmp_path, 35, 60, tests=(50,))
    expected = recorded(tmp_path)
    found = shown(open_board(tmp_path))
    assert len(found) == len(expected)
    for tag, values in found.items():
        steps = [step for step, _ in values]
        assert steps == sorted(set(steps))
        assert set(values) <= set(expected[tag])
        assert [value for value in values if value[0] >= 35] == [
            value for value in expected[tag] if value[0] >= 35
        ]


def test_records_without_an_event_file(tmp_path: Path) -> None:
    """Switched on later, or the folder was deleted: metrics.jsonl has it all."""
    write(tmp_path, 0, 40, (10,), dataclasses.replace(CONFIG, tensorboard=False))
    assert not (tmp_path / TENSORBOARD_DIR).exists()
    write(tmp_path, 30, 50)
    assert shown(open_board(tmp_path)) == recorded(tmp_path)


def test_event_files_outlive_metrics(tmp_path: Path) -> None:
    """When metrics.jsonl is gone they are the only copy."""
    write(tmp_path, 0, 40, tests=(10, 30))
    before = shown(open_board(tmp_path))
    (tmp_path / METRICS_FILE).unlink()
    write(tmp_path, 40, 50)
    after = shown(open_board(tmp_path))
    for tag, values in before.items():
        assert after[tag][: len(values)] == values
    assert [step for step, _ in after["train/loss"]] == list(range(50))


def test_a_clock_that_is_behind_changes_no_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is resumed on another host, on another, and by the version before this one."""
    write(tmp_path, 0, 40)
    (file,) = event_files(tmp_path)
    file.rename(file.with_name("events.out.tfevents.1900000000.host"))
    for resumed_at, clock in ((20, 1.8e9), (30, 1.7e9), (35, 1.6e9)):
        fake = types.SimpleNamespace(time=lambda clock=clock: clock)
        monkeypatch.setattr("tensorboardX.event_file_writer.time", fake)
        write(tmp_path, resumed_at, 40)
        assert shown(open_board(tmp_path)) == recorded(tmp_path)
    assert len(event_files(tmp_path)) == 4


def test_momentum_and_averages_are_shown_where_there_are_any(tmp_path: Path) -> None:
    kinds = {
        "average": {"loss": jnp.float32(5), "correct": jnp.int32(8)},
        "ema": {"loss": jnp.float32(np.inf), "correct": jnp.int32(9)},
    }
    momentum = [0.9 - step / 100 for step in range(5)]
    write(tmp_path, 0, 5, (5,), more=lambda i: {"momentum": momentum[i]}, more_sums=kinds)
    found = shown(open_board(tmp_path))
    assert found["train/momentum"] == list(zip(range(5), map(np.float32, momentum), strict=True))
    assert found["test/average/loss"] == [(5, 0.5)]
    assert found["test/average/accuracy"] == [(5, np.float32(0.8))]
    assert found["test/ema/accuracy"] == [(5, np.float32(0.9))]
    assert "test/ema/loss" not in found
    assert read_metrics(tmp_path, "test") == [
        {
            "split": "test",
            "step": 5,
            "loss": 0.4,
            "accuracy": 0.7,
            "examples": 10,
            "average": {"loss": 0.5, "accuracy": 0.8},
            "ema": {"loss": None, "accuracy": 0.9},
        }
    ]


def test_a_long_run_is_thinned_out(tmp_path: Path) -> None:
    """At most 10,000 points a curve; tests are all there."""
    config = dataclasses.replace(CONFIG, num_steps=25_000)
    for first, last in itertools.pairwise((0, 50, 100)):
        write(tmp_path, first, last, (50,), config)
    found = shown(open_board(tmp_path))
    assert [step for step, _ in found["train/loss"]] == list(range(0, 100, 3))
    assert [step for step, _ in found["test/loss"]] == [50]
