"""The scalars of metrics.jsonl for TensorBoard; this module alone knows event files."""

import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from etils import epath

from trainer.records.throughput import Throughput

TENSORBOARD_DIR = "tensorboard"

# TensorBoard itself shows 1000 points of a curve. Longer runs write every second step, every
# third and so on.
_MOST_POINTS = 10_000

# What a record has beside its scalars.
_NO_SCALARS = ("split", "step", "epoch", "examples")


class TensorBoard:
    """Writes records as scalars, one event each: train/loss, test/accuracy, test/ema/loss, ...

    Every start of a run writes an event file of its own and changes no earlier one. It begins with
    the mark of a restart at `first_step`, from which TensorBoard knows that the later steps of
    earlier files do not count.

    The mark is what `tensorboardX.SummaryWriter(purge_step=first_step)` writes, too. That class
    hands events to a thread, whose queue its `flush` leaves as it is: after a kill, steps that a
    checkpoint includes would be missing. What is below it writes at once.

    Attributes:
      path: the folder of the event files.
    """

    def __init__(
        self,
        folder: epath.Path,
        first_step: int,
        num_steps: int,
        names: Collection[str],
        earlier: Iterable[bytes],
        throughput: Throughput,
    ):
        """Open the event file of this start.

        Args:
          folder: for event files; made if missing.
          first_step: the step that the first update will read.
          num_steps: length of the run.
          names: of the event files of earlier starts.
          earlier: lines of metrics.jsonl, of the steps before `first_step`.
          throughput: of this process.
        """
        # Imported where it is used: --notensorboard needs none of it.
        with _without("torch", "boto3", "google.cloud.storage"):
            from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.path = folder
        self._every_steps = -(-num_steps // _MOST_POINTS)
        self._throughput = throughput
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(os.fspath(folder / _prefix_after(names)))
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(step=first_step, session_log=start, wall_time=time.time()))
        # TensorBoard drops the test at `first_step`, which is not made again. Where there is no
        # event file yet, because it is new that they are written, metrics.jsonl has it all.
        for record in map(json.loads, earlier):
            if not names or (record["split"], record["step"]) == ("test", first_step):
                self._write(record, None)
        self.flush()

    def write(self, records: list[dict[str, Any]]) -> None:
        """Write records, and how fast the run is by now."""
        rate = self._throughput.images_per_second()
        for record in records:
            self._write(record, rate)

    def flush(self) -> None:
        """Put everything on disk."""
        self._writer.flush()

    def close(self) -> None:
        """Put everything on disk and close the file."""
        self._writer.close()

    def _write(self, record: dict[str, Any], rate: float | None) -> None:
        """Write one record, and images per second if they are known."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        split, step = record["split"], record["step"]
        if split == "train" and step % self._every_steps:
            return
        scalars = dict(_scalars(split, record))
        if rate is not None and split == "train":
            scalars["train/images_per_second"] = rate
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._writer.write_event(event)


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """Let nothing import these modules meanwhile, unless they have been imported already.

    tensorboardX imports them where they are installed, though a writer of local files uses none:
    PyTorch takes three seconds, and the client of a cloud half a second.
    """
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def _prefix_after(names: Collection[str]) -> str:
    """Return how a name begins that sorts after all others, whatever the clock of this host says.

    TensorBoard reads the files of a folder in the order of their names, which rise with time.
    """
    numbers = [int(match[1]) for name in names if (match := re.match(r"events(\d+)\.", name))]
    return f"events{max(numbers, default=0) + 1:06}"


def _scalars(prefix: str, record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield tag and value of each number of a record, those of averaged parameters included."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _scalars(f"{prefix}/{name}", value)
        elif name not in _NO_SCALARS and value is not None and math.isfinite(value):
            yield f"{prefix}/{name}", value
