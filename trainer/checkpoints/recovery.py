"""Which checkpoint a run goes on from: the newest that is good, past those that are damaged."""

import logging
from typing import Any

from etils import epath

from trainer import processes
from trainer.checkpoints.store import DamagedError, Restored, checkpoints_dir, read_meta, restore
from trainer.errors import RunError
from trainer.step.state import TrainState
from trainer.workdir.storage import is_remote, make_folder

logger = logging.getLogger(__name__)

# Orbax writes a checkpoint under this name and renames it when it is whole. Nothing can be renamed
# in a bucket: there it writes this file last.
_UNFINISHED = ".orbax-checkpoint-tmp"
_FINISHED_FILE = "commit_success.txt"


def damaged_dir(workdir: epath.PathLike) -> epath.Path:
    """Return where damaged checkpoints are set aside."""
    return checkpoints_dir(workdir) / "damaged"


def stored_steps(workdir: epath.PathLike) -> list[int]:
    """Return the finished steps, newest first; whether they are good is not looked at."""
    folder = checkpoints_dir(workdir)
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise RunError(f"{folder} is a file where a folder of checkpoints should be; move it away")
    names = [path.name for path in folder.iterdir() if _is_step(path.name) and _is_finished(path)]
    return sorted((int(name) for name in names), reverse=True)


def read_newest_meta(workdir: epath.PathLike) -> tuple[int, dict[str, Any]] | None:
    """Return step and meta of the newest checkpoint whose meta is intact, or None.

    Raises:
      RunError: there are checkpoints, but the meta of none is intact.
    """
    reasons = []
    for step in stored_steps(workdir):
        try:
            return step, read_meta(checkpoints_dir(workdir) / str(step))
        except DamagedError as error:
            reasons.append(f"  step {step}: {error}")
    if reasons:
        raise _none_is_good(workdir, reasons)
    return None


def restore_newest(
    workdir: epath.PathLike, abstract_state: TrainState, *, set_aside: bool
) -> Restored | None:
    """Return the newest checkpoint that agrees with its digests, or None where there is none.

    All processes of a run call it, and take the same checkpoint: one that all of them can read.

    Args:
      workdir: of a run.
      abstract_state: shapes, dtypes and shardings of the state; any number of devices.
      set_aside: let the first process move what is damaged, unfinished or foreign into
        `checkpoints/damaged`, so that the run can save these steps again. Nothing is moved while
        no good checkpoint is found.

    Raises:
      RunError: there are checkpoints, but none is good; or they have other leaves than the state.
    """
    folder = checkpoints_dir(workdir)
    steps = processes.share(stored_steps(workdir))
    bad: dict[str, str] = {}
    good: Restored | None = None
    for step in steps:
        restored, problem = _try(folder / str(step), step, abstract_state)
        problem = next(filter(None, processes.gather(problem)), None)
        if problem is None:
            good = restored
            break
        bad[str(step)] = f"checkpoint {step} is damaged ({problem})"
    if steps and good is None:
        raise _none_is_good(workdir, [f"  {reason}" for reason in bad.values()])
    if not processes.is_first():
        return good
    for reason in bad.values():
        logger.warning("%s", reason)
    if good is not None and bad:
        lost = max(int(name) for name in bad) - good.step
        logger.warning("taking checkpoint %d; %d steps are lost", good.step, lost)
    if set_aside and folder.exists():
        for name in [*bad, *_unfinished_or_foreign(folder)]:
            _set_aside(folder / name, damaged_dir(workdir))
    return good


def _try(
    path: epath.Path, step: int, abstract_state: TrainState
) -> tuple[Restored | None, str | None]:
    """Return the checkpoint, or what is wrong with it."""
    try:
        return restore(path, step, abstract_state), None
    except DamagedError as error:
        return None, str(error)


def _is_step(name: str) -> bool:
    """Return whether Orbax would take a folder of this name for a checkpoint."""
    return name.isdecimal() and name == str(int(name))


def _is_finished(path: epath.Path) -> bool:
    """Return whether something with the name of a step is a checkpoint that was written whole."""
    return (path / _FINISHED_FILE).exists() if is_remote(path) else path.is_dir()


def _unfinished_or_foreign(folder: epath.Path) -> list[str]:
    """Return what a killed save left behind, and files that have the name of a checkpoint."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.name.endswith(_UNFINISHED) or (_is_step(path.name) and not _is_finished(path))
    )


def _set_aside(path: epath.Path, damaged: epath.Path) -> None:
    """Move something into the folder of damaged things, under a name that is free there."""
    make_folder(damaged)
    target, count = damaged / path.name, 0
    while target.exists():
        count += 1
        target = damaged / f"{path.name}.{count}"
    path.rename(target)
    logger.warning("%s is set aside in %s", path.name, target)


def _none_is_good(workdir: epath.PathLike, reasons: list[str]) -> RunError:
    """Return the error that says that a run has checkpoints but cannot go on."""
    text = "\n".join(reasons)
    return RunError(
        f"no checkpoint in {checkpoints_dir(workdir)} can be used:\n{text}\n"
        "nothing was changed; put back a good copy, or start again in another --workdir"
    )
