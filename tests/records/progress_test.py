"""What a run shows while it runs, on a terminal and elsewhere."""

import errno
import io
import itertools
import logging

import pytest

from trainer.config import TrainConfig
from trainer.records import progress
from trainer.records.progress import Progress, bar_format
from trainer.records.throughput import Throughput
from trainer.schedules import create_plan

CONFIG = TrainConfig(num_steps=100, batch_size=50, log_every_steps=10)
PLAN = create_plan(CONFIG, 1000)


def train(step: int, learning_rate: float = 0.02345, loss: float = 0.12345) -> dict:
    record = {"split": "train", "step": step, "epoch": step // 20, "accuracy": 0.5}
    return record | {"learning_rate": learning_rate, "loss": loss}


TEST = {"split": "test", "step": 100, "loss": 2.0, "accuracy": 0.7, "examples": 10}


class Clock:
    """Time as a test wants it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("trainer.records.throughput.time.monotonic", lambda: self.now)


class Terminal(io.StringIO):
    """A terminal that keeps what was written to it, or that is gone."""

    gone = 0

    def isatty(self) -> bool:  # noqa: D102
        return True

    def write(self, text: str) -> int:  # noqa: D102
        if self.gone:
            raise OSError(self.gone, "gone")
        return super().write(text)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_lines_where_there_is_no_terminal(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    throughput = Throughput(80, 100, 50)
    shown = Progress(CONFIG, PLAN, 80, throughput)
    with caplog.at_level(logging.INFO, "trainer"):
        for done in range(81, 101):
            clock.now += 0.5
            throughput.tick(done)
            shown.write([train(done - 1)])
        shown.write([TEST | {"ema": {"loss": 1.0, "accuracy": 0.75}}])
    assert [record.getMessage() for record in caplog.records] == [
        "step 90/100  epoch 5  learning rate 0.02345  loss 0.1235  accuracy 0.500  100 images/s  "
        "00:05 left",
        "step 100/100  epoch 5  learning rate 0.02345  loss 0.1235  accuracy 0.500  100 images/s  "
        "00:00 left",
        "step 100  test loss 2.0000  test accuracy 70.00 % of 10 examples  ema 75.00 %",
    ]


def test_the_time_left_of_a_resumed_run_is_true_from_the_first_one_on(clock: Clock) -> None:
    """5 s until the first steps are done, then 100 steps a second; 9,000 steps were made before."""
    throughput = Throughput(9000, 10_000, 50)
    clock.now += 5
    assert throughput.seconds_left() is None
    throughput.tick(9010)
    assert throughput.seconds_left() is None
    clock.now += 0.1
    throughput.tick(9020)
    assert throughput.seconds_left() == pytest.approx(9.8)
    clock.now += 8
    throughput.tick(9820)
    assert throughput.seconds_left() == pytest.approx(1.8)
    throughput.tick(10_000)
    assert throughput.seconds_left() == 0


def test_the_summary_counts_this_process_only(clock: Clock) -> None:
    throughput = Throughput(80, 100, 50)
    assert throughput.summary().startswith("0 steps in 0.0 s (0 images/s")
    clock.now += 10
    throughput.tick(90)
    assert throughput.summary().startswith("10 steps in 10.0 s (50 images/s")


@pytest.mark.parametrize("num_steps", [1, 4680, 2**31])
@pytest.mark.parametrize(("learning_rate", "loss"), [(0.02345, 0.1), (1e-7, 1e30), (50.0, 123.456)])
@pytest.mark.parametrize("left", [None, 36.0, 1e6])
def test_the_bar_fits_and_the_learning_rate_is_whole(
    num_steps: int, learning_rate: float, loss: float, left: float | None
) -> None:
    record = train(num_steps - 1, learning_rate, loss)
    for columns in range(20, 200):
        text = bar_format(record, num_steps, left, columns).format(percentage=100.0, bar="")
        assert text.startswith(f"lr {learning_rate:#.3g}")
        # At least six columns are the bar's, but on the narrowest of terminals.
        assert len(text) + 6 <= columns or ("loss" not in text and "/" not in text)


def test_the_bar_at_80_columns() -> None:
    text = bar_format(train(1233), 4680, 36, 80).format(percentage=26.4, bar="#" * 8)
    expected = "lr 0.0234   loss 0.1235  accuracy 0.500   26%|########| 1234/4680  00:36 left"
    assert text == expected
    assert len(expected) <= 80


def test_the_bar_on_a_terminal(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("tqdm.std.time", itertools.count().__next__)
    shown = Progress(CONFIG, PLAN, 80, Throughput(80, 100, 50))
    shown.write([train(step) for step in range(80, 84)])
    shown.close()
    assert "80%|" in terminal.getvalue()
    assert "lr 0.0234   loss 0.1235  accuracy 0.500   84%|" in terminal.getvalue()
    assert terminal.getvalue().rstrip().endswith(" 84/100")
    assert caplog.records == []


@pytest.mark.parametrize("error", [errno.EIO, errno.EPIPE, errno.ENOSPC])
def test_a_terminal_that_is_gone_does_not_end_a_run(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("tqdm.std.time", itertools.count().__next__)
    shown = Progress(CONFIG, PLAN, 0, Throughput(0, 100, 50))
    terminal.gone = error
    for step in range(100):
        shown.write([train(step)])
    shown.close()


@pytest.mark.parametrize("closed", [True, False])
def test_without_standard_error(monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr("sys.stderr", stream if closed else None)
    assert not progress._is_terminal()
    assert progress._terminal_columns() == 80
