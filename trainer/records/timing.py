"""timing.json: how long a run has trained, and how many examples it took, start by start."""

import dataclasses
import json
from typing import Any

from etils import epath

from trainer.records.throughput import Throughput
from trainer.workdir.files import TIMING_FILE
from trainer.workdir.storage import write_whole


@dataclasses.dataclass(frozen=True)
class Duration:
    """How long a run has trained, over all its starts.

    Steps that were made twice, as a run was killed after them and before a checkpoint, count twice
    if they were recorded: in both numbers.

    Attributes:
      seconds: of training, tests and checkpoints included, start-up and compilation not.
      images: examples in the steps of that time.
    """

    seconds: float
    images: int

    @property
    def images_per_second(self) -> float | None:
        """Examples a second, or None where there was no time."""
        return self.images / self.seconds if self.seconds else None


class Timing:
    """An output of the records that notes how long this start of a run has trained so far.

    Attributes:
      path: of the file.
    """

    def __init__(self, path: epath.Path, first_step: int, throughput: Throughput):
        """Take over what earlier starts have noted.

        Args:
          path: of timing.json, which need not exist.
          first_step: at which this start begins; 0 begins a new run, and forgets the others.
          throughput: counts the steps of this start.
        """
        self.path = path
        self._first_step, self._throughput = first_step, throughput
        self._earlier = _read(path) if first_step else []

    def write(self, records: list[dict[str, Any]]) -> None:
        """Leave the records to others: the time is that of the steps behind them."""

    def flush(self) -> None:
        """Write the file, whole."""
        now = {
            "first_step": self._first_step,
            "steps": self._throughput.steps,
            "seconds": round(self._throughput.seconds, 3),
            "images": self._throughput.images,
        }
        write_whole(self.path, json.dumps([*self._earlier, now]).encode())

    def close(self) -> None:
        """Have nothing open."""


def read_duration(workdir: epath.Path) -> Duration | None:
    """Return how long a run has trained, or None if the file is missing or damaged.

    Args:
      workdir: of the run.
    """
    starts = _read(workdir / TIMING_FILE)
    if not starts:
        return None
    return Duration(
        seconds=sum(start["seconds"] for start in starts),
        images=sum(start["images"] for start in starts),
    )


def _read(path: epath.Path) -> list[dict[str, Any]]:
    """Return what was noted of each start; nothing where that cannot be read."""
    try:
        starts = json.loads(path.read_bytes()) if path.exists() else []
        return [
            {
                "first_step": int(start["first_step"]),
                "steps": int(start["steps"]),
                "seconds": float(start["seconds"]),
                "images": int(start["images"]),
            }
            for start in starts
        ]
    except (ValueError, TypeError, KeyError, OSError, RecursionError, OverflowError):
        # A number in a table is not worth a run.
        return []
