"""What a run shows while it runs: a progress bar on a terminal, log lines elsewhere."""

import contextlib
import logging
import os
import sys
from typing import Any

import tqdm
from etils import epath

from trainer.config import TrainConfig
from trainer.records import words
from trainer.records.throughput import Throughput
from trainer.schedules import Plan

logger = logging.getLogger(__name__)

# With fewer columns for the bar itself, words give way to it.
_LEAST_BAR = 6
_USUAL_COLUMNS = 80


class Progress:
    """Shows records on a bar on a terminal, in lines elsewhere.

    Attributes:
      path: of standard error.
    """

    path = epath.Path("/dev/stderr")

    def __init__(self, config: TrainConfig, plan: Plan, first_step: int, throughput: Throughput):
        """Show that nothing has been done yet.

        Args:
          config: of the run.
          plan: its durations in steps.
          first_step: the step that the first update will read.
          throughput: of this process.
        """
        self._num_steps, self._log_every_steps = plan.num_steps, config.log_every_steps
        self._throughput = throughput
        self._bar = tqdm.tqdm(
            total=plan.num_steps,
            initial=first_step,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}",
            miniters=1,
            dynamic_ncols=True,
            disable=not _is_terminal(),
        )

    def write(self, records: list[dict[str, Any]]) -> None:
        """Show records: all tests, and steps as far as there is room.

        A terminal, or a reader, that is gone does not end a run.
        """
        with contextlib.suppress(OSError):
            self._show(records)

    def flush(self) -> None:
        """Have nothing to put on disk."""

    def close(self) -> None:
        """Leave the terminal as it is."""
        with contextlib.suppress(OSError):
            self._bar.close()

    def _show(self, records: list[dict[str, Any]]) -> None:
        """Show records."""
        train = [record for record in records if record["split"] == "train"]
        if not self._bar.disable and train:
            self._update_bar(train[-1], len(train))
        for record in records:
            if record["split"] == "test":
                logger.info("step %d  %s", record["step"], words.test_result(record))
            elif self._bar.disable and self._is_due(record["step"] + 1):
                logger.info("%s", self._line(record))

    def _is_due(self, done: int) -> bool:
        """Return whether there is a line about the last of `done` steps."""
        return done % self._log_every_steps == 0 or done == self._num_steps

    def _update_bar(self, record: dict[str, Any], count: int) -> None:
        """Show the last of `count` steps."""
        columns = _terminal_columns()
        left = self._throughput.seconds_left()
        self._bar.bar_format = bar_format(record, self._num_steps, left, columns)
        self._bar.update(count)

    def _line(self, record: dict[str, Any]) -> str:
        """Return the log line of one step."""
        line = (
            f"step {record['step'] + 1}/{self._num_steps}  epoch {record['epoch'] + 1}  "
            f"learning rate {words.learning_rate(record['learning_rate'])}  "
            f"loss {words.loss(record['loss'])}  accuracy {record['accuracy']:.3f}  "
            f"{self._throughput.images_per_second():.0f} images/s"
        )
        left = self._throughput.seconds_left()
        return line if left is None else f"{line}  {words.duration(left)} left"


def bar_format(record: dict[str, Any], num_steps: int, left: float | None, columns: int) -> str:
    """Return the format of a bar, for tqdm, that fits the terminal; the learning rate is first.

    Args:
      record: of the last step.
      num_steps: of the run.
      left: seconds to the end of the run, or None while nobody can know.
      columns: of the terminal.
    """
    rate = f"lr {words.learning_rate(record['learning_rate'], 3):<7}"
    loss = f"loss {words.loss(record['loss'])}"
    accuracy = f"accuracy {record['accuracy']:.3f}"
    count = f"{record['step'] + 1}/{num_steps}"
    time = "" if left is None else f"  {words.duration(left)} left"
    for before, after in (
        (f"{rate}  {loss}  {accuracy}  ", f" {count}{time}"),
        (f"{rate}  {loss}  ", f" {count}{time}"),
        (f"{rate}  {loss}  ", f" {count}"),
        (f"{rate}  ", f" {count}"),
        (f"{rate}  ", ""),
    ):
        if len(before) + len("100%||") + _LEAST_BAR + len(after) < columns:
            break
    return f"{before}{{percentage:3.0f}}%|{{bar}}|{after}"


def _is_terminal() -> bool:
    """Return whether what is written to standard error is seen as it is written."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # There is none, or it is closed.
        return False


def _terminal_columns() -> int:
    """Return how wide the terminal is now."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _USUAL_COLUMNS
    except (AttributeError, OSError, ValueError):
        return _USUAL_COLUMNS
