"""`compare`: several runs side by side, as numbers and as a picture."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from trainer.commands.compare.runs import Run, differences, read_runs
from trainer.config import AVERAGE, EMA
from trainer.errors import RunError, UsageError
from trainer.records.comparison_figure import draw_comparison
from trainer.workdir.storage import is_outage, is_remote, open_workdir, reason

DEFAULT_PICTURE = "compare.png"

_PNG = b"\x89PNG\r\n\x1a\n"


def compare(workdirs: Sequence[str], output: str | None) -> dict[str, Any]:
    """Compare what runs have recorded so far, and draw them into one picture.

    Nothing in the workdirs is changed. A run may have ended, have been stopped or killed, or be in
    progress; runs may be of any lengths.

    Args:
      workdirs: of the runs, local or in buckets.
      output: path of the picture, which ends in .png; None: compare.png in the current folder.

    Returns:
      "runs": for each, in their order, see `_describe`; "differences": field of the configuration
      to its value in each run, of those that differ; "picture": its path.

    Raises:
      UsageError: these are not different runs, or the picture cannot be there.
      RunError: the files of a run cannot be read, or the picture not be written.
    """
    picture = _open_picture(output or DEFAULT_PICTURE)
    runs = read_runs(workdirs)
    described = [_describe(run, given) for run, given in zip(runs, workdirs, strict=True)]
    different = differences([run.history.config for run in runs])
    try:
        draw_comparison([(run.name, run.history) for run in runs], list(different), picture)
    except RunError:
        raise
    except Exception as error:
        if not is_outage(error):
            raise
        raise RunError(f"{picture} could not be written: {reason(error)}") from error
    return {"runs": described, "differences": different, "picture": str(picture)}


def _describe(run: Run, given: str) -> dict[str, Any]:
    """Return what is known of a run, as JSON can hold it.

    Returns:
      run (its short name), workdir, steps (updates made), num_steps (of the whole run),
      test_accuracy and test_loss (of the last test), best_test_accuracy and best_step (the first
      of equals), average and ema (the same four of averaged parameters), seconds and
      images_per_second (of training, tests and checkpoints included, over all starts), time
      (seconds by where they went, see `timing.Duration`), changes (of the configuration at
      resumes) and config. None for what there is not.
    """
    history = run.history
    duration = history.duration
    steps = int(history.train["step"][-1]) + 1
    return {
        "run": run.name,
        "workdir": given,
        "steps": steps,
        "num_steps": history.config.num_steps or steps,
        **_tests(history.test),
        **{
            kind: _tests(history.averages[kind]) if kind in history.averages else None
            for kind in (AVERAGE, EMA)
        },
        "seconds": duration and duration.seconds,
        "images_per_second": duration and duration.images_per_second,
        "time": duration and duration.account,
        "changes": [
            {"step": resume.step, "changes": {k: list(v) for k, v in resume.changes.items()}}
            for resume in history.resumes
            if resume.changes
        ],
        "config": dataclasses.asdict(history.config),
    }


def _tests(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the last and the best of some tests."""
    if not len(columns["step"]):
        names = ("test_accuracy", "test_loss", "best_test_accuracy", "best_step")
        return dict.fromkeys(names)
    # Of averages that were not finite, NaN was recorded.
    best = int(np.nan_to_num(columns["accuracy"], nan=-1.0).argmax())
    return {
        "test_accuracy": float(columns["accuracy"][-1]),
        "test_loss": float(columns["loss"][-1]),
        "best_test_accuracy": float(columns["accuracy"][best]),
        "best_step": int(columns["step"][best]),
    }


def _open_picture(output: str) -> epath.Path:
    """Return the path of the picture; what is there and is none, is not replaced."""
    if not output.endswith(".png"):
        raise UsageError(
            f"--output={output} is not valid; use a name that ends in .png, such as compare.png"
        )
    try:
        path = open_workdir(output)
    except UsageError as error:
        raise UsageError(str(error).replace("--workdir=", "--output=", 1)) from error
    if path.is_dir():
        problem = "it is a folder"
    elif path.exists() and not path.read_bytes().startswith(_PNG):
        problem = "there is a file that is no PNG picture"
    elif not is_remote(path) and not _may_be_written(path):
        problem = "it cannot be written there"
    else:
        return path
    raise UsageError(f"--output={output}: {problem}; use another name, such as compare.png")


def _may_be_written(path: epath.Path) -> bool:
    """Return whether a file, and the folders that lead to it, can be made."""
    there = next(parent for parent in path.absolute().parents if parent.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
