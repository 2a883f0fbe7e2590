"""What a run leaves behind of every step: metrics.jsonl, and the same for TensorBoard."""

import collections
import contextlib
import json
import math
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.records.progress import Progress, test_values
from trainer.records.tensorboard import TensorBoard
from trainer.schedules import Plan
from trainer.step import Metrics, mean_metrics
from trainer.workdir.files import METRICS_FILE
from trainer.workdir.storage import LocalFiles, remedy, write_whole

TENSORBOARD_DIR = "tensorboard"

# The host reads the metrics of a call this many calls late, several calls in one transfer. The
# devices always have work queued meanwhile, and never more than twice this.
_LAG = 16


class Records:
    """Takes the metrics of every step as they are on the devices, and writes them down in order.

    Nothing here waits for a step that was just dispatched.

    Attributes:
      folder: where a run's files grow: the workdir, or a local folder that `flush` copies to it.
      last_test: the last evaluation that was written down, or None.
      last_learning_rate: that of the last step that was written down.
    """

    def __init__(self, workdir: epath.Path, config: TrainConfig, plan: Plan, first_step: int):
        """Open the records of a run that starts, or goes on, at `first_step`.

        Args:
          workdir: of the run.
          config: of the run.
          plan: its durations in steps.
          first_step: the step that the first update will read.
        """
        self._files = LocalFiles(workdir)
        self.folder = self._files.folder
        self._path = self.folder / METRICS_FILE
        with self._surfacing():
            self._files.fetch(METRICS_FILE)
            _rewind(self._path, first_step)
            self._file = self._path.open("a")
            self._board: TensorBoard | None = None
            if config.tensorboard:
                self._files.fetch(TENSORBOARD_DIR)
                board = self.folder / TENSORBOARD_DIR
                self._board = TensorBoard(board, self._path, plan.num_steps)
        self._pending: collections.deque[tuple[str, int, int, Metrics]] = collections.deque()
        self._config, self._plan = config, plan
        self._progress = Progress(config, plan, first_step)
        self.last_test: dict[str, Any] | None = None
        self.last_learning_rate = float("nan")

    def __enter__(self) -> "Records":
        """Return the records themselves."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close file and progress bar; what is pending is dropped."""
        with contextlib.suppress(OSError):  # It has surfaced already: every line is flushed.
            self._file.close()
        with contextlib.suppress(OSError):
            if self._board:
                self._board.close()
        self._files.close()
        self._progress.close()

    def train(self, step: int, count: int, metrics: Metrics) -> None:
        """Take the metrics of `count` updates, the first of which read state.step = `step`."""
        self._pending.append(("train", step, count, metrics))
        if len(self._pending) >= 2 * _LAG:
            self._write(_LAG)

    def test(self, step: int, sums: Metrics) -> None:
        """Take the sums of an evaluation after `step` updates."""
        self._pending.append(("test", step, 1, sums))

    def flush(self) -> None:
        """Write down everything taken so far, safe against a crash; waits for the devices."""
        self._write(len(self._pending))
        with self._surfacing():
            os.fsync(self._file.fileno())
            if self._board:
                self._board.flush()
        self._files.publish()

    def summary(self) -> str:
        """Return what this process did, and the last test, in words."""
        test = "" if self.last_test is None else "; " + test_values(self.last_test)
        return self._progress.summary() + test

    def _write(self, num_calls: int) -> None:
        """Write the records of the oldest calls, read from the devices in one transfer."""
        calls = [self._pending.popleft() for _ in range(num_calls)]
        values = jax.device_get([metrics for *_, metrics in calls])
        trained = [step + count for split, step, count, _ in calls if split == "train"]
        if trained:
            self._progress.tick(trained[-1])
        records: list[dict[str, Any]] = []
        for (split, step, count, _), metrics in zip(calls, values, strict=True):
            if split == "train":
                for i in range(count):
                    records.append(self._train_record(step + i, i, metrics))
            else:
                self.last_test = {"split": "test", "step": step, **mean_metrics(metrics)}
                self._progress.test(self.last_test)
                records.append(self.last_test)
        with self._surfacing():
            self._file.write("".join(json.dumps(record) + "\n" for record in records))
            self._file.flush()
            if self._board:
                rate = self._progress.images_per_second()
                for record in records:
                    self._board.write(record, rate)

    def _train_record(self, step: int, row: int, metrics: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the record of one step, whose metrics are scalars or in a row; show it."""
        record: dict[str, Any] = {"split": "train", "step": step}
        record["epoch"] = step // self._plan.steps_per_epoch
        for name in ("learning_rate", "momentum", "loss", "accuracy"):
            if name in metrics:
                record[name] = float(np.atleast_1d(metrics[name])[row])
        self._check_finite(record)
        self.last_learning_rate = record["learning_rate"]
        self._progress.train(record)
        return record

    @contextlib.contextmanager
    def _surfacing(self) -> Iterator[None]:
        """Turn what the disk says into a RunError."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self._path} could not be written: {error.strerror}; {remedy(self._path)} and "
                "run the same command: older checkpoints are intact"
            ) from error

    def _check_finite(self, record: dict[str, Any]) -> None:
        """Stop the run at the first loss that is no number; it is not written down."""
        if not math.isfinite(record["loss"]):
            at = self._plan.position(record["step"])
            raise RunError(
                f"the loss is {record['loss']} at {at}, learning rate "
                f"{record['learning_rate']:.4g}; nothing was saved since, older checkpoints are "
                "intact; try a lower --lr_max in another --workdir, or resume from the newest "
                "checkpoint with a lower --lr_max and --allow_config_change=lr_max"
            )


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
    if "".join(kept) != text:
        write_whole(path, "".join(kept).encode())
