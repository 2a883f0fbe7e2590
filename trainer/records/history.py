"""What the files of a run say of it, whether it has ended, was stopped or is in progress."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from trainer.config import AVERAGE, EMA, TrainConfig
from trainer.errors import RunError, UsageError
from trainer.records import lines
from trainer.records.timing import Duration, read_duration
from trainer.workdir.files import (
    CONFIG_FILE,
    METRICS_FILE,
    NOT_AS_WRITTEN,
    RESUMES_FILE,
    replace_file,
)
from trainer.workdir.storage import open_workdir

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Resume:
    """A resume from a checkpoint.

    Attributes:
      step: at which the run was resumed.
      changes: what was changed in its configuration: field -> (before, after).
    """

    step: int
    changes: Mapping[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RunHistory:
    """What a run has recorded.

    Attributes:
      workdir: of the run.
      config: resolved.
      train: column name -> float64[n]: step, epoch, learning_rate, loss, accuracy, and momentum
        where it is recorded (NaN at steps without one).
      test: column name -> float64[m]: step (updates made so far), loss, accuracy.
      averages: "average" and "ema", where such parameters were tested -> columns as in `test`.
      resumes: in order of their steps.
      duration: how long it has trained, or None where an older version did not note it.
    """

    workdir: epath.Path
    config: TrainConfig
    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    averages: dict[str, dict[str, np.ndarray]]
    resumes: list[Resume]
    duration: Duration | None = None


def read_history(workdir: epath.PathLike) -> RunHistory:
    """Return what a run has recorded so far.

    Args:
      workdir: of the run.

    Raises:
      UsageError: there are no records of training steps.
      RunError: config.json is damaged, or a file could not be read.
    """
    workdir = open_workdir(workdir)
    config, metrics = workdir / CONFIG_FILE, workdir / METRICS_FILE
    found = _read_lines(metrics) if config.exists() and metrics.exists() else None
    records = [lines.parse_record(line) or {} for line in found.kept.values()] if found else []
    train, test = (
        [record for record in records if record["split"] == split] for split in ("train", "test")
    )
    if not found or not train:
        raise UsageError(
            f"--workdir={workdir}: there are no records of training steps ({METRICS_FILE} and "
            f"{CONFIG_FILE}) in it; use a folder that python -m trainer has trained in"
        )
    if found.foreign:
        noun = "line" if len(found.foreign) == 1 else "lines"
        numbers = lines.describe_numbers(found.foreign)
        logger.warning("%s: %s %s skipped: no record of a step", metrics, noun, numbers)
    has_momentum = any("momentum" in record for record in train)
    names = ["step", "epoch", "learning_rate", "loss", "accuracy"] + ["momentum"] * has_momentum
    return RunHistory(
        workdir=workdir,
        config=_read_config(config),
        train=_columns(train, names),
        test=_columns(test, ["step", "loss", "accuracy"]),
        averages=_read_averages(test),
        resumes=_read_resumes(workdir),
        duration=read_duration(workdir),
    )


def note_resume(
    workdir: epath.Path, first_step: int, config_history: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Note that a run starts, or resumes, at `first_step`.

    Resumes at later steps are forgotten: what came after them is dropped and trained again.

    Args:
      workdir: of the run.
      first_step: 0 for a start.
      config_history: what was changed at this resume and at earlier ones: of
        {"step": int, "changes": {field: [before, after]}}.
    """
    known = _read_resumes(workdir)
    resumes = [resume for resume in known if resume.step < first_step]
    if first_step:
        changes = [entry["changes"] for entry in config_history if entry["step"] == first_step]
        pairs = changes[-1] if changes else {}
        resumes.append(Resume(first_step, {name: tuple(pair) for name, pair in pairs.items()}))
    if resumes != known:
        stored = [dataclasses.asdict(resume) for resume in resumes]
        replace_file(workdir / RESUMES_FILE, json.dumps(stored).encode())


def _read_lines(path: epath.Path) -> lines.Lines:
    """Return the lines of metrics.jsonl."""
    try:
        return lines.read_lines(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path} could not be read: {error.strerror or error}") from error


def _read_config(path: epath.Path) -> TrainConfig:
    """Return the stored configuration."""
    try:
        return TrainConfig.from_stored(json.loads(path.read_bytes()))
    except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise RunError(
            f"{path} does not hold the configuration of a run: it was cut short or edited; the "
            "configuration also stands in the checkpoints of the run: python -m trainer inspect "
            f"--workdir={path.parent}"
        ) from error


def _read_resumes(workdir: epath.Path) -> list[Resume]:
    """Return the resumes of a run; none where the file is missing or damaged."""
    path = workdir / RESUMES_FILE
    try:
        stored = json.loads(path.read_bytes()) if path.exists() else []
        # Older versions stored steps alone.
        return [Resume(item) if type(item) is int else _parse_resume(item) for item in stored]
    except NOT_AS_WRITTEN:
        # Marks in a picture are not worth a run.
        return []


def _parse_resume(item: Any) -> Resume:
    """Return a resume as `note_resume` has stored it."""
    changes = {name: (before, after) for name, (before, after) in item["changes"].items()}
    return Resume(int(item["step"]), changes)


def _read_averages(test: list[dict[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Return the columns of each kind of averaged parameters that some test was made with."""
    found = {}
    for kind in (AVERAGE, EMA):
        rows = [{**r[kind], "step": r["step"]} for r in test if isinstance(r.get(kind), dict)]
        if rows:
            found[kind] = _columns(rows, ["step", "loss", "accuracy"])
    return found


def _columns(records: list[dict[str, Any]], names: list[str]) -> dict[str, np.ndarray]:
    """Return the values of the records, name by name; NaN where one has no number."""
    return {
        name: np.array(
            [
                value if type(value := record.get(name)) in (int, float) else float("nan")
                for record in records
            ],
            np.float64,
        )
        for name in names
    }
