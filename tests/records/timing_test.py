"""timing.json: how long a run has trained, over all its starts."""

import json
from pathlib import Path

import pytest
from etils import epath

from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.records.clock import COMPILATION, DATA, STEPS, Clock
from trainer.records.metrics import Records
from trainer.records.throughput import Throughput
from trainer.records.timing import Timing, describe_account, read_duration
from trainer.schedules import create_plan


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until the test moves it."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def train(workdir: Path, first_step: int, done: int, seconds: float, clock: list[float]) -> None:
    """A start that makes some steps of 8 examples."""
    throughput = Throughput(first_step, 100, batch_size=8)
    timing = Timing(epath.Path(workdir / "timing.json"), first_step, throughput, Clock())
    clock[0] += seconds
    throughput.tick(done)
    timing.write([{"split": "train"}])
    timing.flush()
    timing.flush()
    timing.close()


def test_another_run_in_the_same_place_keeps_its_account(tmp_path: Path) -> None:
    """The workdir was moved, and another one has taken its place."""
    (tmp_path / "run").mkdir()
    config = TrainConfig(tensorboard=False, num_steps=100)
    records = Records(epath.Path(tmp_path / "run"), config, create_plan(config, 60_000), 0)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    (tmp_path / "run").mkdir()
    for name in ("timing.json", "metrics.jsonl"):
        (tmp_path / "run" / name).write_text("of another run")
    timing = next(output for output in records._outputs if isinstance(output, Timing))
    with pytest.raises(RunError, match=r"metrics\.jsonl was deleted or replaced"):
        timing.flush()
    records.__exit__()
    assert (tmp_path / "run" / "timing.json").read_text() == "of another run"


def summed(workdir: Path) -> tuple[float, int]:
    """Seconds and images of all starts."""
    found = read_duration(epath.Path(workdir))
    return found.seconds, found.images


def test_every_second_is_in_one_part(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start of 20 steps that is killed; half a minute; a start from step 10 on."""
    monkeypatch.setattr("time.time", lambda: clock[0] + 1e9)
    path = epath.Path(tmp_path / "timing.json")
    for first_step, done in ((0, 20), (10, 40)):
        of_start = Clock(began=clock[0] + 1e9 - 0.5)  # What was imported before.
        throughput = Throughput(first_step, 100, batch_size=8)
        timing = Timing(path, first_step, throughput, of_start)
        for part, seconds in ((COMPILATION, 3.0), (DATA, 1.0), (STEPS, 4.0)):
            of_start.enter(part)
            clock[0] += seconds
        throughput.tick(done)
        timing.write([])  # No flush: it is killed within the next second.
        clock[0] += 30.5
    account = read_duration(epath.Path(tmp_path)).account
    assert account == {
        **{"start_up": 1.0, "compilation": 6.0, "data": 2.0, "steps": 6.0, "evaluation": 0.0},
        **{"checkpoints": 0.0, "picture": 0.0, "lost_work": 2.0, "down": 30.0},
    }
    assert sum(account.values()) == 2 * 8.5 + 30
    assert describe_account(account) == (
        "47.0 s: down 30.0, compilation 6.0, steps 6.0, data 2.0, lost work 2.0, start-up 1.0"
    )


def test_older_versions_counted_the_picture_as_start_up(tmp_path: Path, clock: list[float]) -> None:
    train(tmp_path, 0, 20, 2.0, clock)
    before = read_duration(epath.Path(tmp_path)).account
    (start,) = json.loads((tmp_path / "timing.json").read_text())
    del start["parts"]["picture"]
    (tmp_path / "timing.json").write_text(json.dumps([start]))
    assert read_duration(epath.Path(tmp_path)).account == before


def test_starts_of_older_versions_leave_no_account(tmp_path: Path, clock: list[float]) -> None:
    train(tmp_path, 0, 20, 2.0, clock)
    (start,) = json.loads((tmp_path / "timing.json").read_text())
    del start["parts"], start["began"]
    (tmp_path / "timing.json").write_text(json.dumps([start]))
    train(tmp_path, 20, 30, 2.0, clock)
    assert read_duration(epath.Path(tmp_path)).account is None
    assert summed(tmp_path) == (4.0, 240)


def test_starts_add_up(tmp_path: Path, clock: list[float]) -> None:
    """The second resumes at an earlier step: the steps in between were made, and are counted."""
    train(tmp_path, 0, 20, 2.0, clock)
    assert summed(tmp_path) == (2.0, 160)
    train(tmp_path, 10, 40, 4.5, clock)
    found = read_duration(epath.Path(tmp_path))
    assert (found.seconds, found.images) == (6.5, 160 + 240)
    assert found.images_per_second == pytest.approx(400 / 6.5)
    stored = json.loads((tmp_path / "timing.json").read_text())
    assert [start["first_step"] for start in stored] == [0, 10]


def test_a_new_run_forgets_the_old_one(tmp_path: Path, clock: list[float]) -> None:
    train(tmp_path, 0, 20, 2.0, clock)
    train(tmp_path, 0, 10, 1.0, clock)
    assert summed(tmp_path) == (1.0, 80)


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
    assert summed(tmp_path) == (1.0, 80)
