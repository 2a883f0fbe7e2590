"""The runs of a comparison: found, read, named, and what differs between them."""

import dataclasses
import difflib
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from trainer.config import TrainConfig
from trainer.errors import RunError, UsageError
from trainer.records.history import RunHistory, read_history
from trainer.workdir.files import CONFIG_FILE, METRICS_FILE
from trainer.workdir.storage import is_outage, is_remote, open_workdir, reason

_USE = "use workdirs of python -m trainer, such as runs/a runs/b"
# Beside what changes the parameters: how long a run is, and what makes it fast.
_ALSO_COMPARED = ("num_steps", "platform", "num_devices", "num_cpu_devices", "steps_per_call")
# Runs in a folder that a message names.
_MOST_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Run:
    """One of the runs.

    Attributes:
      name: short, and different from those of the others.
      history: what it has recorded so far.
    """

    name: str
    history: RunHistory


def read_runs(workdirs: Sequence[str]) -> list[Run]:
    """Return the runs in some workdirs, in their order; they may be in progress.

    Args:
      workdirs: as the user gave them, local or gs://bucket/folder.

    Raises:
      UsageError: there are none, one is given twice, or one is no workdir with records in it.
      RunError: the files of one are damaged, or cannot be read.
    """
    if not workdirs:
        raise UsageError("compare: no runs given; use python -m trainer compare RUN...")
    seen: dict[str, str] = {}
    for given in workdirs:
        place = _place(given)
        if place in seen:
            both = given if given == seen[place] else f"{seen[place]} and {given}"
            raise UsageError(f"compare: the same run is given twice: {both}; give each run once")
        seen[place] = given
    histories = [_read(given) for given in workdirs]
    return [Run(*pair) for pair in zip(_names(workdirs), histories, strict=True)]


def differences(configs: Sequence[TrainConfig]) -> dict[str, list[Any]]:
    """Return the fields in which configurations differ: name to the value of each.

    Fields that neither change the parameters that a run arrives at, nor how long or how fast it
    trains, are passed over.

    Args:
      configs: resolved.
    """
    found = {}
    for field in dataclasses.fields(TrainConfig):
        values = [getattr(config, field.name) for config in configs]
        compared = field.metadata["trajectory"] or field.name in _ALSO_COMPARED
        if compared and any(value != values[0] for value in values):
            found[field.name] = values
    return found


def _place(given: str) -> str:
    """Return where a workdir is, the same for all ways to write it."""
    if is_remote(given):
        return given.rstrip("/")
    return os.path.realpath(os.path.expanduser(given))


def _read(given: str) -> RunHistory:
    """Return what the run in a workdir has recorded."""
    try:
        workdir = open_workdir(given)
        _check_is_run(given, workdir)
        return read_history(workdir)
    except UsageError as error:
        # Here workdirs are arguments, and there is no such flag.
        raise UsageError(str(error).replace("--workdir=", "compare: ", 1)) from error
    except RunError:
        raise
    except Exception as error:
        if not is_outage(error):
            raise
        raise RunError(f"compare: {given} does not answer: {reason(error)}") from error


def _check_is_run(given: str, workdir: epath.Path) -> None:
    """Refuse a workdir that a run has not trained in."""
    if (workdir / CONFIG_FILE).exists() and (workdir / METRICS_FILE).exists():
        if _has_bytes(workdir / METRICS_FILE):
            return
        # Metrics come from the devices some steps late.
        raise UsageError(
            f"compare: the run in {given} has not recorded a step yet; leave it out, or try again "
            "in a moment"
        )
    if (workdir / CONFIG_FILE).exists():
        raise UsageError(
            f"compare: {given} has the {CONFIG_FILE} of a run, and no {METRICS_FILE}: it has not "
            "begun to train, or the file was deleted; leave it out"
        )
    if not workdir.exists():
        raise UsageError(f"compare: there is no folder {given}{_nearest(workdir)}; {_USE}")
    if not workdir.is_dir():
        raise UsageError(f"compare: {given} is a file, and no workdir; {_USE}")
    inside = sorted(str(path.parent) for path in workdir.glob(f"*/{CONFIG_FILE}"))
    if inside:
        more = " ..." if len(inside) > _MOST_NAMED else ""
        raise UsageError(
            f"compare: {given} is no run, but runs are in it; use python -m trainer compare "
            f"{' '.join(inside[:_MOST_NAMED])}{more}"
        )
    raise UsageError(f"compare: {given} holds no run (there is no {CONFIG_FILE} in it); {_USE}")


def _has_bytes(path: epath.Path) -> bool:
    """Return whether there is something in a file."""
    try:
        return bool(path.read_bytes())
    except OSError as error:
        if is_outage(error):
            raise
        raise RunError(f"{path} could not be read: {error.strerror or error}") from error


def _nearest(workdir: epath.Path) -> str:
    """Return a question with a folder of a similar name, if there is one."""
    if is_remote(workdir) or not workdir.parent.is_dir():
        return ""
    there = [path.name for path in workdir.parent.iterdir() if path.is_dir()]
    near = difflib.get_close_matches(workdir.name, there, n=1)
    return f" (did you mean {workdir.parent / near[0]}?)" if near else ""


def _names(workdirs: Sequence[str]) -> list[str]:
    """Return the shortest ends of the paths, from whole folders, that tell the runs apart."""
    parts = [_place(given).split("/") for given in workdirs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    return list(workdirs)
