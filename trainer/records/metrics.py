"""What a run records of every step: metrics.jsonl, the same for TensorBoard, and on the screen."""

import collections
import contextlib
import math
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.records import words
from trainer.records.clock import Clock
from trainer.records.metrics_file import MetricsFile, rewind
from trainer.records.progress import Progress
from trainer.records.tensorboard import TENSORBOARD_DIR, TensorBoard
from trainer.records.throughput import Throughput
from trainer.records.timing import Timing
from trainer.schedules import Plan
from trainer.step import Metrics, mean_metrics
from trainer.workdir.files import METRICS_FILE, TIMING_FILE
from trainer.workdir.storage import LocalFiles, surfacing

# The host reads the metrics of a call this many calls late, several calls in one transfer. The
# devices always have work queued meanwhile, and never more than twice this.
_LAG = 16


class Output(Protocol):
    """Where records go; they come in order, each once.

    Attributes:
      path: what it writes to, for messages.
    """

    path: epath.Path

    def write(self, records: list[dict[str, Any]]) -> None:
        """Take some records."""

    def flush(self) -> None:
        """Put everything on disk."""

    def close(self) -> None:
        """Let go of files and terminal."""


class Records:
    """Takes the metrics of every step as they are on the devices, and records them in order.

    Nothing here waits for a step that was just dispatched.

    Attributes:
      folder: where a run's files grow: the workdir, or a local folder that `flush` copies to it.
      last_test: the last evaluation that was recorded, or None.
      last_learning_rate: that of the last step that was recorded.
    """

    def __init__(
        self,
        workdir: epath.Path,
        config: TrainConfig,
        plan: Plan,
        first_step: int,
        clock: Clock | None = None,
    ):
        """Open the records of a run that starts, or resumes, at `first_step`.

        Args:
          workdir: of the run.
          config: of the run.
          plan: its durations in steps.
          first_step: the step that the first update will read.
          clock: of this start of the run; None: one that begins now.

        Raises:
          RunError: a file could not be read or written.
        """
        self._config, self._plan, self._clock = config, plan, clock or Clock()
        self._pending: collections.deque[tuple[str, int, int, Metrics]] = collections.deque()
        self._throughput = Throughput(first_step, plan.num_steps, config.batch_size)
        self._outputs: list[Output] = []
        self._files = LocalFiles(workdir)
        self.folder = self._files.folder
        self.last_test: dict[str, Any] | None = None
        self.last_learning_rate = float("nan")
        with surfacing(self.folder / METRICS_FILE):
            self._files.fetch(METRICS_FILE)
            self._files.fetch(TIMING_FILE)
            self._open_outputs(workdir, first_step)

    def __enter__(self) -> "Records":
        """Return the records themselves."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the outputs; what is pending is dropped."""
        for output in self._outputs:
            # It has surfaced already: every line is flushed.
            with contextlib.suppress(OSError, RunError):
                output.close()
        self._files.close()

    def train(self, step: int, count: int, metrics: Metrics) -> None:
        """Take the metrics of `count` updates, the first of which read state.step = `step`."""
        self._pending.append(("train", step, count, metrics))
        if len(self._pending) >= 2 * _LAG:
            self._record(_LAG)

    def test(self, step: int, sums: Metrics) -> None:
        """Take the sums of an evaluation after `step` updates, see `mean_metrics`."""
        self._pending.append(("test", step, 1, sums))

    def flush(self) -> None:
        """Record everything taken so far, safe against a crash; waits for the devices."""
        self._record(len(self._pending))
        for output in self._outputs:
            with surfacing(output.path):
                output.flush()
        self._files.publish()

    def summary(self) -> str:
        """Return what this process did, and the last test, in words."""
        test = "" if self.last_test is None else "; " + words.test_result(self.last_test)
        return self._throughput.summary() + test

    def _open_outputs(self, workdir: epath.Path, first_step: int) -> None:
        """Open everything that records are written to and shown on."""
        path = self.folder / METRICS_FILE
        earlier = rewind(path, first_step)
        metrics_file = MetricsFile(path)
        timing = (self.folder / TIMING_FILE, first_step, self._throughput, self._clock)
        self._outputs += [metrics_file, Timing(*timing, confirm=metrics_file.confirm)]
        if self._config.tensorboard:
            board = workdir / TENSORBOARD_DIR
            names = [path.name for path in board.iterdir()] if board.exists() else []
            self._outputs.append(
                TensorBoard(
                    self.folder / TENSORBOARD_DIR,
                    first_step,
                    self._plan.num_steps,
                    names,
                    earlier.values(),
                    self._throughput,
                )
            )
        self._outputs.append(Progress(self._config, self._plan, first_step, self._throughput))

    def _record(self, num_calls: int) -> None:
        """Record the oldest calls, read from the devices in one transfer."""
        calls = [self._pending.popleft() for _ in range(num_calls)]
        values = jax.device_get([metrics for *_, metrics in calls])
        trained = [step + count for split, step, count, _ in calls if split == "train"]
        if trained:
            self._throughput.tick(trained[-1])
        records: list[dict[str, Any]] = []
        for (split, step, count, _), metrics in zip(calls, values, strict=True):
            if split == "train":
                records += [self._train_record(step + i, i, metrics) for i in range(count)]
            else:
                self.last_test = {"split": "test", "step": step, **mean_metrics(metrics)}
                self._check_finite(self.last_test)
                records.append(self.last_test)
        for output in self._outputs:
            with surfacing(output.path):
                output.write(records)

    def _train_record(self, step: int, row: int, metrics: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the record of one step, whose metrics are scalars or in a row."""
        record: dict[str, Any] = {"split": "train", "step": step}
        record["epoch"] = step // self._plan.steps_per_epoch
        for name in ("learning_rate", "momentum", "loss", "accuracy"):
            if name in metrics:
                record[name] = float(np.atleast_1d(metrics[name])[row])
        self._check_finite(record)
        self.last_learning_rate = record["learning_rate"]
        return record

    def _check_finite(self, record: dict[str, Any]) -> None:
        """Stop the run at the first loss that is no number; it is not recorded."""
        if math.isfinite(record["loss"]):
            return
        at = self._plan.position(record["step"])
        rate = record.get("learning_rate", self.last_learning_rate)
        raise RunError(
            f"the {'test ' if record['split'] == 'test' else ''}loss is {record['loss']} at {at}, "
            f"learning rate {rate:.4g}; nothing was saved since, older checkpoints are intact; try "
            "a lower --lr_max in another --workdir, or resume from the newest checkpoint with a "
            "lower --lr_max and --allow_config_change=lr_max"
        )
