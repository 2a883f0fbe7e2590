"""TensorBoard reads what metrics.jsonl says: every step once, whatever happened to the run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from tests.helpers import read_metrics
from trainer.config import TrainConfig
from trainer.records.metrics import TENSORBOARD_DIR, Records

CONFIG = TrainConfig(num_steps=100, batch_size=50)
SCALARS = {
    "train": {"learning_rate", "loss", "accuracy", "images_per_second"},
    "test": {"loss", "accuracy"},
}


def write(
    workdir: Path,
    first: int,
    last: int,
    tests: tuple[int, ...] = (),
    config: TrainConfig = CONFIG,
    more: Callable[[int], dict] = lambda step: {},
) -> None:
    with Records(epath.Path(workdir), config, config.plan(1000), first) as records:
        for step in range(first, last):
            metrics = {
                "loss": jnp.float32(1 / (step + 1)),
                "accuracy": jnp.float32(0.5),
                "learning_rate": jnp.float32(0.1 + step / 1000),
            }
            records.train(step, 1, metrics | more(step))
            if step + 1 in tests:
                sums = {"loss": jnp.float32(20), "correct": jnp.int32(7), "examples": jnp.int32(10)}
                records.test(step + 1, sums)
        records.flush()


def events(workdir: Path) -> list:
    """Every event with a value, in the order of the files, as TensorBoard's own reader reads it."""
    paths = sorted((workdir / TENSORBOARD_DIR).iterdir())
    found = [event for path in paths for event in EventFileLoader(str(path)).Load()]
    return [event for event in found if event.summary.value]


def scalars(workdir: Path) -> dict[tuple[str, int], dict[str, float]]:
    """Split and step to name and value; no value twice."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for event in events(workdir):
        for value in event.summary.value:
            split, name = value.tag.split("/")
            values = found.setdefault((split, event.step), {})
            assert name not in values, (value.tag, event.step)
            values[name] = value.tensor.float_val[0]
    return found


def assert_like_metrics(workdir: Path) -> None:
    expected = {(line["split"], line["step"]): line for line in read_metrics(workdir)}
    found = scalars(workdir)
    assert list(found) == list(expected)
    for (split, step), values in found.items():
        assert values.keys() == SCALARS[split]
        for name in values.keys() - {"images_per_second"}:
            assert values[name] == np.float32(expected[split, step][name])


def test_a_run(tmp_path: Path) -> None:
    write(tmp_path, 0, 45, tests=(20, 45))
    assert_like_metrics(tmp_path)
    rates = [values.get("images_per_second") for values in scalars(tmp_path).values()]
    assert all(rate is None or rate > 0 for rate in rates)


@pytest.mark.parametrize("resumed_at", [0, 1, 9, 30, 40])
def test_a_resumed_run_has_every_step_once(tmp_path: Path, resumed_at: int) -> None:
    write(tmp_path, 0, 40, tests=(10, 30, 40))
    before = {(e.step, v.tag): e.wall_time for e in events(tmp_path) for v in e.summary.value}
    first = scalars(tmp_path)
    write(tmp_path, resumed_at, 60, tests=(50,))
    assert_like_metrics(tmp_path)
    again = scalars(tmp_path)
    for event in events(tmp_path):
        # What was not made again keeps the time and the rate that it had.
        if event.step < resumed_at:
            assert event.wall_time == before[event.step, event.summary.value[0].tag]
            split = event.summary.value[0].tag.split("/")[0]
            assert again[split, event.step] == first[split, event.step]


def test_a_tensorboard_that_looks_on_shows_no_step_twice(tmp_path: Path) -> None:
    write(tmp_path, 0, 40)
    (path,) = (tmp_path / TENSORBOARD_DIR).iterdir()
    # The next one is then the newer one, although it is made in the same second.
    path.rename(path.with_name("events.out.tfevents.1000000000.here"))
    board = EventAccumulator(str(tmp_path / TENSORBOARD_DIR), {"scalars": 0})
    board.Reload()
    assert len(board.Scalars("train/loss")) == 40
    write(tmp_path, 20, 50)
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(50))
    assert [bool(path.stat().st_size) for path in sorted(path.parent.iterdir())] == [False, True]


@pytest.mark.parametrize("kept", [0, 5, 100, 2000, 3333])
@pytest.mark.parametrize("rest", [b"", b"\xff" * 40])
def test_an_event_file_that_was_cut_off_or_damaged(tmp_path: Path, kept: int, rest: bytes) -> None:
    write(tmp_path, 0, 40, tests=(10, 30))
    (path,) = (tmp_path / TENSORBOARD_DIR).iterdir()
    path.write_bytes(path.read_bytes()[:kept] + rest)
    write(tmp_path, 40, 45)
    assert_rates_may_be_missing(tmp_path)


def assert_rates_may_be_missing(workdir: Path) -> None:
    """As `assert_like_metrics`, but the rates of events that were never on disk are not known."""
    expected = [(line["split"], line["step"]) for line in read_metrics(workdir)]
    found = scalars(workdir)
    assert list(found) == expected
    for (split, _), values in found.items():
        assert values.keys() | {"images_per_second"} == SCALARS[split] | {"images_per_second"}


def test_records_without_an_event_file(tmp_path: Path) -> None:
    """Switched on later, or the folder was deleted: metrics.jsonl has it all."""
    write(tmp_path, 0, 40, (10,), dataclasses.replace(CONFIG, tensorboard=False))
    assert not (tmp_path / TENSORBOARD_DIR).exists()
    write(tmp_path, 30, 50)
    assert_rates_may_be_missing(tmp_path)


def test_momentum_is_shown_where_a_step_has_one(tmp_path: Path) -> None:
    write(tmp_path, 0, 5, more=lambda step: {"momentum": jnp.float32(0.9 - step / 100)})
    for (_, step), values in scalars(tmp_path).items():
        assert values["momentum"] == np.float32(0.9 - step / 100)
    assert read_metrics(tmp_path)[0]["momentum"] == np.float32(0.9)


def test_a_long_run_is_thinned_out(tmp_path: Path) -> None:
    """At most 10,000 points a curve, so that a resumed run is not held up; tests are all there."""
    config = dataclasses.replace(CONFIG, num_steps=25_000)
    write(tmp_path, 0, 100, (50,), config)
    found = scalars(tmp_path)
    assert [step for split, step in found if split == "train"] == list(range(0, 100, 3))
    assert ("test", 50) in found
