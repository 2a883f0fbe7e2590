"""What a case found: a table for people, JSON for programs, and the machine."""

import dataclasses
import datetime
import os
import pathlib
import platform
import statistics
import subprocess
from importlib import metadata
from typing import Any

from tests.benchmarks.workers import ROOT

_PACKAGES = (
    *("cyclic-trainer", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("torch", "jax-cuda13-plugin", "jax-cuda12-plugin"),
)


@dataclasses.dataclass
class Result:
    """The values of one side.

    Attributes:
      side: who.
      values: one a turn, in the order of the turns.
      note: what the reader must know.
    """

    side: str
    values: list[float]
    note: str = ""


@dataclasses.dataclass
class Table:
    """Sides that can be compared.

    Attributes:
      title: what is the same for all of them.
      unit: of the values.
      more_is_better: else less is.
      results: the first is the one that the others are compared with.
      skipped: side to the reason why it is missing.
    """

    title: str
    unit: str
    more_is_better: bool
    results: list[Result] = dataclasses.field(default_factory=list)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    def lead(self, result: Result) -> float | None:
        """Return how many times better the first side is, the median over the rounds.

        Turns of one round stand next to each other in time, so most of the machine's mood cancels.
        """
        first = self.results[0]
        if result is first or len(first.values) != len(result.values):
            return None
        ratios = [ours / other for ours, other in zip(first.values, result.values, strict=True)]
        ratio = statistics.median(ratios)
        return ratio if self.more_is_better else 1 / ratio

    def __str__(self) -> str:
        """Return the table for people."""
        better = "more" if self.more_is_better else "less"
        lines = [f"{self.title} [{self.unit}, {better} is better]"]
        if self.results:
            head = f"{self.results[0].side} is better by" if len(self.results) > 1 else ""
            lines += [f"  {'':30}{'median':>10}   {'min .. max':^21}  {head}"]
        for result in self.results:
            values, lead = result.values, self.lead(result)
            line = f"  {result.side:30}{_short(statistics.median(values)):>10}   "
            line += f"{_short(min(values)):>9} .. {_short(max(values)):<9} "
            line += "" if lead is None else f"{lead:6.2f} times"
            lines.append(line + (f"  {result.note}" if result.note else ""))
        lines += [f"  {side:30}skipped: {reason}" for side, reason in self.skipped.items()]
        return "\n".join(line.rstrip() for line in lines)

    def to_json(self) -> dict[str, Any]:
        """Return everything in the table, and the medians and ratios that it shows."""
        return dataclasses.asdict(self) | {
            "results": [
                dataclasses.asdict(result)
                | {
                    "median": statistics.median(result.values),
                    "first_is_better_by": self.lead(result),
                }
                for result in self.results
            ]
        }


def _short(value: float) -> str:
    """Return a number with three to four digits that count."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}" if value >= 100 else f"{value:.3g}"


def describe_run() -> dict[str, Any]:
    """Return when, where and with what the numbers are made."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": gpus(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "load_average": os.getloadavg(),
    }


def gpus() -> list[str]:
    """Return the NVIDIA GPUs of this machine by name."""
    return _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()


def _cpu() -> str:
    """Return the model of the CPU."""
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    """Return the version of a package, or None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str:
    """Return what a command prints, nothing if it cannot run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
