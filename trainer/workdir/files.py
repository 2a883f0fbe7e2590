"""The files of a workdir by name, written whole or not at all, and what they say of a run."""

import dataclasses
import json
from typing import Any

import numpy as np
from etils import epath

from trainer.errors import RunError, UsageError
from trainer.workdir.storage import open_workdir, write_whole

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
# The steps at which the run went on from a checkpoint: a list of numbers, rising.
RESUMES_FILE = "resumes.json"


def replace_file(path: epath.Path, data: bytes) -> None:
    """Write a file in a folder that need not exist; see `storage.write_whole`.

    Args:
      path: its folder is made if missing.
      data: what it will hold.

    Raises:
      RunError: it could not be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise RunError(f"{path} could not be written: {error.strerror}") from error


def read_config(workdir: epath.Path) -> dict[str, Any] | None:
    """Return the configuration that a run has written into its workdir, None where there is none.

    It is read before a checkpoint is, and only says what the user need not say again.
    """
    path = workdir / CONFIG_FILE
    try:
        found = json.loads(path.read_text()) if path.exists() else None
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def note_resume(workdir: epath.Path, first_step: int) -> None:
    """Note that a run starts, or goes on, at `first_step`.

    Resumes at later steps are forgotten: what came after them is dropped and trained again.
    """
    earlier = [step for step in _read_resumes(workdir) if step < first_step]
    resumes = [*earlier, first_step] if first_step else []
    if resumes != _read_resumes(workdir):
        replace_file(workdir / RESUMES_FILE, json.dumps(resumes).encode())


def _read_resumes(workdir: epath.Path) -> list[int]:
    """Return the steps at which the run was resumed; none where the file is damaged."""
    path = workdir / RESUMES_FILE
    try:
        return json.loads(path.read_text()) if path.exists() else []
    except ValueError:
        # Marks in a picture are not worth a run.
        return []


@dataclasses.dataclass(frozen=True)
class RunHistory:
    """What the files of a run say of it, whether it has ended or not.

    Attributes:
      config: as it is stored.
      train: column name -> float64[n]: step, epoch, learning_rate, loss, accuracy, and momentum
        where it is recorded.
      test: column name -> float64[m]: step (updates made so far), loss, accuracy.
      resumes: the steps at which the run was resumed, rising.
    """

    config: dict[str, Any]
    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    resumes: list[int]


def read_history(workdir: epath.PathLike) -> RunHistory:
    """Return what a run has recorded so far; the run may be going on, or have been killed.

    Args:
      workdir: of the run.

    Raises:
      UsageError: there are no records of training steps.
    """
    workdir = open_workdir(workdir)
    config, metrics = workdir / CONFIG_FILE, workdir / METRICS_FILE
    records = _read_records(metrics) if config.exists() and metrics.exists() else []
    train, test = (
        [record for record in records if record["split"] == split] for split in ("train", "test")
    )
    if not train:
        raise UsageError(
            f"--workdir={workdir}: there are no records of training steps ({METRICS_FILE} and "
            f"{CONFIG_FILE}) in it; valid: a folder that python -m trainer has trained in"
        )
    momentum = ["momentum"] if "momentum" in train[0] else []
    return RunHistory(
        config=json.loads(config.read_text()),
        train=_columns(train, ["step", "epoch", "learning_rate", "loss", "accuracy", *momentum]),
        test=_columns(test, ["step", "loss", "accuracy"]),
        resumes=_read_resumes(workdir),
    )


def _read_records(path: epath.Path) -> list[dict[str, Any]]:
    """Return the records; the last line is left out where a crash, or a run's buffer, cut it."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def _columns(records: list[dict[str, Any]], names: list[str]) -> dict[str, np.ndarray]:
    """Return the values of the records, name by name."""
    return {name: np.array([record[name] for record in records], np.float64) for name in names}
