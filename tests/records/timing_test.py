"""timing.json: how long a run has trained, over all its starts."""

import json
from pathlib import Path

import pytest
from etils import epath

from trainer.records.throughput import Throughput
from trainer.records.timing import Duration, Timing, read_duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until the test moves it."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def train(workdir: Path, first_step: int, done: int, seconds: float, clock: list[float]) -> None:
    """A start that makes some steps of 8 examples."""
    throughput = Throughput(first_step, 100, batch_size=8)
    timing = Timing(epath.Path(workdir / "timing.json"), first_step, throughput)
    clock[0] += seconds
    throughput.tick(done)
    timing.write([{"split": "train"}])
    timing.flush()
    timing.flush()
    timing.close()


def test_starts_add_up(tmp_path: Path, clock: list[float]) -> None:
    """The second resumes at an earlier step: the steps in between were made, and are counted."""
    train(tmp_path, 0, 20, 2.0, clock)
    assert read_duration(epath.Path(tmp_path)) == Duration(2.0, 160)
    train(tmp_path, 10, 40, 4.5, clock)
    found = read_duration(epath.Path(tmp_path))
    assert found == Duration(6.5, 160 + 240)
    assert found.images_per_second == pytest.approx(400 / 6.5)
    stored = json.loads((tmp_path / "timing.json").read_text())
    assert [start["first_step"] for start in stored] == [0, 10]


def test_a_new_run_forgets_the_old_one(tmp_path: Path, clock: list[float]) -> None:
    train(tmp_path, 0, 20, 2.0, clock)
    train(tmp_path, 0, 10, 1.0, clock)
    assert read_duration(epath.Path(tmp_path)) == Duration(1.0, 80)


def test_no_time_makes_no_speed(tmp_path: Path, clock: list[float]) -> None:
    train(tmp_path, 0, 0, 0.0, clock)
    assert read_duration(epath.Path(tmp_path)).images_per_second is None


@pytest.mark.parametrize(
    "text", ["", "[", "{}", "[1]", '[{"seconds": 1}]', '{"a": 1}', "[" * 5000, "null", "\ufffe"]
)
def test_a_damaged_file_is_none(tmp_path: Path, text: str, clock: list[float]) -> None:
    (tmp_path / "timing.json").write_text(text)
    assert read_duration(epath.Path(tmp_path)) is None
    train(tmp_path, 10, 20, 1.0, clock)
    assert read_duration(epath.Path(tmp_path)) == Duration(1.0, 80)
