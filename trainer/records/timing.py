"""timing.json: how long a run has trained, and where its time went, start by start."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from trainer.records.clock import PARTS, PICTURE, STEPS, Clock
from trainer.records.throughput import Throughput
from trainer.workdir.files import NOT_AS_WRITTEN, TIMING_FILE
from trainer.workdir.storage import write_whole

# Of a run over all its starts, beside the parts of each.
LOST, DOWN = "lost_work", "down"

# Seconds between two writings: what a kill leaves unknown.
_EVERY_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Duration:
    """How long a run has trained, over all its starts.

    Steps that were made twice, as a run was killed after them and before a checkpoint, count twice
    if they were recorded: in both numbers.

    Attributes:
      seconds: of training, tests and checkpoints included, start-up and compilation not.
      images: examples in the steps of that time.
      account: every second from the beginning of the first start to the last that is known, by
        where it went: the parts of `clock.PARTS`; in steps that were lost to a kill and made
        again; and down, between two starts. None if an older version made one of them.
    """

    seconds: float
    images: int
    account: Mapping[str, float] | None = None

    @property
    def images_per_second(self) -> float | None:
        """Examples a second, or None where there was no time."""
        return self.images / self.seconds if self.seconds else None


class Timing:
    """An output of the records that notes how long this start of a run has trained so far.

    Attributes:
      path: of the file.
    """

    def __init__(
        self,
        path: epath.Path,
        first_step: int,
        throughput: Throughput,
        clock: Clock,
        confirm: Callable[[], None] = lambda: None,
    ):
        """Take over what earlier starts have noted.

        Args:
          path: of timing.json, which need not exist.
          first_step: at which this start begins; 0 begins a new run, and forgets the others.
          throughput: counts the steps of this start.
          clock: of this start.
          confirm: raises if the run is not the one that lies in the folder any more.
        """
        self._confirm = confirm
        self.path = path
        self._first_step, self._throughput, self._clock = first_step, throughput, clock
        self._written = time.monotonic()
        self._earlier = _read(path) if first_step else []

    def write(self, records: list[dict[str, Any]]) -> None:
        """Write the file if it is time to; the records themselves are left to others."""
        if time.monotonic() - self._written >= _EVERY_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the file, whole; not into another run, whose folder has taken the place of ours."""
        self._confirm()
        self._written = time.monotonic()
        parts = self._clock.seconds()
        now = {
            "first_step": self._first_step,
            "steps": self._throughput.steps,
            "seconds": round(self._throughput.seconds, 3),
            "images": self._throughput.images,
            "began": round(self._clock.began, 3),
            "parts": {name: round(seconds, 3) for name, seconds in parts.items()},
        }
        write_whole(self.path, json.dumps([*self._earlier, now]).encode())

    def close(self) -> None:
        """Note the time until here."""
        self.flush()


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
        account=_account(starts),
    )


def _account(starts: list[dict[str, Any]]) -> dict[str, float] | None:
    """Return where every second of all starts went, and of the time between them."""
    if any(start["parts"] is None for start in starts):
        return None
    total = dict.fromkeys((*PARTS, LOST, DOWN), 0.0)
    last_steps = [start["first_step"] + start["steps"] for start in starts]
    for i, start in enumerate(starts):
        for name, seconds in start["parts"].items():
            total[name] += seconds
        if i:
            ended = starts[i - 1]["began"] + sum(starts[i - 1]["parts"].values())
            total[DOWN] += max(start["began"] - ended, 0.0)
        for j in range(i):
            # Steps of earlier starts, after the checkpoint from which this one resumed.
            lost = max(last_steps[j] - max(start["first_step"], starts[j]["first_step"]), 0)
            last_steps[j] -= lost
            seconds = lost / max(starts[j]["steps"], 1) * starts[j]["parts"][STEPS]
            total[STEPS] -= seconds
            total[LOST] += seconds
    return {name: round(seconds, 3) for name, seconds in total.items()}


def describe_account(account: Mapping[str, float]) -> str:
    """Return where the time went in words, such as "12.1 s: steps 8.0, start-up 3.1, ...".

    Args:
      account: see `Duration`.
    """
    shown = [
        f"{name.replace('start_up', 'start-up').replace('_', ' ')} {seconds:.1f}"
        for name, seconds in sorted(account.items(), key=lambda item: -item[1])
        if seconds >= 0.05
    ]
    return f"{sum(account.values()):.1f} s: {', '.join(shown)}"


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
                **_read_parts(start),
            }
            for start in starts
        ]
    except NOT_AS_WRITTEN:
        # A number in a table is not worth a run.
        return []


def _read_parts(start: Mapping[str, Any]) -> dict[str, Any]:
    """Return when a start began and its parts, None where an older version made it."""
    if start.get("parts") is None:
        return {"began": None, "parts": None}
    parts = {name: float(start["parts"][name]) for name in PARTS if name != PICTURE}
    # Older versions counted it as start-up.
    parts[PICTURE] = float(start["parts"].get(PICTURE, 0.0))
    return {"began": float(start["began"]), "parts": parts}
