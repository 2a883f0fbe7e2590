"""What a run leaves behind and shows: metrics.jsonl, a progress bar, log lines."""

import collections
import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import tqdm
from etils import epath

from trainer.config import Plan, TrainConfig
from trainer.errors import RunError
from trainer.schedules import position_at
from trainer.steps import Metrics

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"

# The host reads the metrics of a step this many steps late, several steps in one transfer. The
# devices always have work queued meanwhile, and never more than twice this.
_LAG = 16


class Records:
    """Takes the metrics of every step as they are on the devices, and writes them down in order.

    Nothing here waits for a step that was just dispatched.
    """

    def __init__(self, workdir: epath.Path, config: TrainConfig, plan: Plan, first_step: int):
        """Open the records of a run that starts, or goes on, at `first_step`.

        Args:
          workdir: of the run.
          config: of the run.
          plan: its durations in steps.
          first_step: the step that the first update will read.
        """
        self._path = workdir / METRICS_FILE
        with self._surfacing():
            _rewind(self._path, first_step)
            self._file = self._path.open("a")
        self._pending: collections.deque[tuple[dict[str, Any], Metrics]] = collections.deque()
        self._plan = plan
        self._progress = _Progress(config, plan, first_step)
        self.last_test: dict[str, Any] | None = None
        self.last_learning_rate = float("nan")

    def __enter__(self) -> "Records":
        """Return the records themselves."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close file and progress bar; what is pending is dropped."""
        with contextlib.suppress(OSError):  # It has surfaced already: every line is flushed.
            self._file.close()
        self._progress.close()

    def train(self, step: int, metrics: Metrics) -> None:
        """Take the metrics of the update that read state.step = `step`."""
        epoch = step // self._plan.steps_per_epoch
        self._pending.append(({"split": "train", "step": step, "epoch": epoch}, metrics))
        if len(self._pending) >= 2 * _LAG:
            self._write(_LAG)

    def test(self, step: int, sums: Metrics) -> None:
        """Take the sums of an evaluation after `step` updates."""
        self._pending.append(({"split": "test", "step": step}, sums))

    def flush(self) -> None:
        """Write down everything taken so far, safe against a crash; waits for the devices."""
        self._write(len(self._pending))
        with self._surfacing():
            os.fsync(self._file.fileno())

    def summary(self) -> str:
        """Return what this process did, and the last test, in words."""
        test = "" if self.last_test is None else "; " + _test_values(self.last_test)
        return self._progress.summary() + test

    def _write(self, count: int) -> None:
        """Write the oldest `count` records, read from the devices in one transfer."""
        records = [self._pending.popleft() for _ in range(count)]
        values = jax.device_get([metrics for _, metrics in records])
        lines: list[str] = []
        trained = [record["step"] for record, _ in records if record["split"] == "train"]
        if trained:
            self._progress.tick(trained[-1] + 1)
        for (record, _), metrics in zip(records, values, strict=True):
            if record["split"] == "train":
                order = ("learning_rate", "loss", "accuracy")
                record |= {name: float(metrics[name]) for name in order}
                self._check_finite(record)
                self.last_learning_rate = record["learning_rate"]
                self._progress.train(record)
            else:
                record |= mean_metrics(metrics)
                self.last_test = record
                self._progress.test(record)
            lines.append(json.dumps(record) + "\n")
        with self._surfacing():
            self._file.write("".join(lines))
            self._file.flush()

    @contextlib.contextmanager
    def _surfacing(self) -> Iterator[None]:
        """Turn what the disk says into a RunError."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self._path} could not be written: {error.strerror}; free space or mend the "
                "disk and run the same command: older checkpoints are intact"
            ) from error

    def _check_finite(self, record: dict[str, Any]) -> None:
        """Stop the run at the first loss that is no number; it is not written down."""
        if not math.isfinite(record["loss"]):
            plan = self._plan
            at = position_at(record["step"], plan.steps_per_epoch, plan.steps_per_cycle)
            raise RunError(
                f"the loss is {record['loss']} at {at}, learning rate "
                f"{record['learning_rate']:.4g}; nothing was saved since, older checkpoints are "
                "intact; try a lower --lr_max in another --workdir, or go on from the newest "
                "checkpoint with a lower --lr_max and --allow_config_change=lr_max"
            )


class NoRecords(Records):
    """The records of a process that writes nothing, because the first one does."""

    def __init__(self) -> None:
        """Open nothing."""
        self.last_test = None
        self.last_learning_rate = float("nan")

    def train(self, step: int, metrics: Metrics) -> None:
        """Leave it to the first process."""

    def test(self, step: int, sums: Metrics) -> None:
        """Leave it to the first process."""

    def flush(self) -> None:
        """Have nothing to write."""

    def summary(self) -> str:
        """Have nothing to say."""
        return ""

    def __exit__(self, *exception: object) -> None:
        """Have nothing to close."""


def mean_metrics(sums: Metrics) -> dict[str, Any]:
    """Return loss and accuracy (a fraction) over the examples that an evaluation counted."""
    examples = int(sums["examples"])
    return {
        "loss": float(sums["loss"]) / examples,
        "accuracy": int(sums["correct"]) / examples,
        "examples": examples,
    }


def _rewind(path: epath.Path, first_step: int) -> None:
    """Drop the lines of updates that will be made again, and a line that a crash cut off."""
    if not path.exists():
        return
    text = path.read_text()
    kept = []
    for line in text.splitlines(keepends=True):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        # A test record of step n was made after n updates: the checkpoint at n includes it.
        last = first_step if record["split"] == "test" else first_step - 1
        if line.endswith("\n") and record["step"] <= last:
            kept.append(line)
    if "".join(kept) == text:
        return
    # Written beside and renamed: a crash here leaves the one file or the other, whole.
    new = path.with_name(path.name + ".new")
    new.write_text("".join(kept))
    new.replace(path)


class _Progress:
    """A bar on a terminal, plain lines elsewhere; rates count the steps of this process only."""

    def __init__(self, config: TrainConfig, plan: Plan, first_step: int):
        """Start the clock at `first_step`."""
        self._first_step = first_step
        self._num_steps = plan.num_steps
        self._batch_size = config.batch_size
        self._log_every_steps = config.log_every_steps
        self._start = time.monotonic()
        self._done, self._seconds = first_step, 0.0
        self._bar = tqdm.tqdm(
            total=plan.num_steps,
            initial=first_step,
            unit="step",
            smoothing=0,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def tick(self, done: int) -> None:
        """Note that the devices have finished `done` steps by now."""
        self._done, self._seconds = done, time.monotonic() - self._start

    def train(self, record: dict[str, Any]) -> None:
        """Show one step."""
        done = record["step"] + 1
        if self._bar.disable:
            if done % self._log_every_steps == 0 or done == self._num_steps:
                logger.info("%s", self._line(record))
        else:
            self._bar.set_postfix_str(_values(record), refresh=False)
            self._bar.update()

    def test(self, record: dict[str, Any]) -> None:
        """Show one evaluation."""
        logger.info("step %d  %s", record["step"], _test_values(record))

    def images_per_second(self) -> float:
        """Return the rate over the steps of this process, tests and checkpoints included."""
        steps = self._done - self._first_step
        return steps * self._batch_size / self._seconds if self._seconds else 0.0

    def summary(self) -> str:
        """Return what this process did, in words."""
        return (
            f"{self._done - self._first_step} steps in {self._seconds:.1f} s "
            f"({self.images_per_second():.0f} images/s, tests and checkpoints included)"
        )

    def close(self) -> None:
        """Leave the terminal as it is."""
        self._bar.close()

    def _line(self, record: dict[str, Any]) -> str:
        """Return the log line of one step."""
        line = f"step {record['step'] + 1}/{self._num_steps}  epoch {record['epoch'] + 1}  "
        line += _values(record)
        rate = self.images_per_second()
        left = (self._num_steps - self._done) * self._batch_size / rate
        return f"{line}  {rate:.0f} images/s  {tqdm.tqdm.format_interval(left)} left"


def _values(record: dict[str, Any]) -> str:
    """Return the metrics of a step in words."""
    return (
        f"loss {record['loss']:.4f}  accuracy {record['accuracy']:.3f}  "
        f"learning rate {record['learning_rate']:.5f}"
    )


def _test_values(record: dict[str, Any]) -> str:
    """Return the metrics of an evaluation in words."""
    return (
        f"test loss {record['loss']:.4f}  test accuracy {100 * record['accuracy']:.2f} % "
        f"of {record['examples']} examples"
    )
