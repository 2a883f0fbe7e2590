"""Which checkpoint a run resumes from: the newest that is good, past those that are damaged."""

import dataclasses
import logging

from etils import epath

from trainer import processes
from trainer.checkpoints.store import DamagedError, Restored, checkpoints_dir, restore
from trainer.errors import RunError, UsageError
from trainer.workdir.storage import is_remote, make_folder, open_workdir

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


@dataclasses.dataclass(frozen=True)
class Search:
    """What was found in a workdir; nothing has been moved.

    Attributes:
      newest: the newest checkpoint that agrees with its digests, or None where there is none.
      bad: newer ones that do not: the name of the folder to what is wrong, in words.
    """

    newest: Restored | None
    bad: dict[str, str]


def find_newest(workdir: epath.PathLike) -> Search:
    """Return the newest checkpoint of a workdir that is good, read and verified.

    All processes of a run call it, and take the same checkpoint: one that all of them can read.

    Args:
      workdir: of a run.

    Raises:
      RunError: there are checkpoints, but none is good; or one was made by another version of the
        trainer.
    """
    folder = checkpoints_dir(workdir)
    steps = processes.share(stored_steps(workdir))
    bad: dict[str, str] = {}
    newest: Restored | None = None
    for step in steps:
        restored, problem = _try(folder / str(step), step)
        problem = next(filter(None, processes.gather(problem)), None)
        if problem is None:
            newest = restored
            break
        bad[str(step)] = f"checkpoint {step} is damaged ({problem})"
    if steps and newest is None:
        raise _none_is_good(workdir, [f"  {reason}" for reason in bad.values()])
    if processes.is_first():
        for reason in bad.values():
            logger.warning("%s", reason)
        if newest is not None and bad:
            lost = max(int(name) for name in bad) - newest.step
            logger.warning("taking checkpoint %d; %d steps are lost", newest.step, lost)
    return Search(newest, bad)


def read_newest(workdir: epath.PathLike) -> Restored:
    """Return the newest good checkpoint of a workdir, for a command that changes nothing.

    Args:
      workdir: of a run.

    Raises:
      UsageError: there is no checkpoint.
      RunError: see `find_newest`.
    """
    workdir = open_workdir(workdir)
    newest = find_newest(workdir).newest
    if newest is None:
        raise UsageError(
            f"there is no checkpoint in {checkpoints_dir(workdir)}; use a --workdir that "
            "python -m trainer has trained in"
        )
    return newest


def read_step(workdir: epath.PathLike, step: int) -> Restored:
    """Return the checkpoint of a step.

    Args:
      workdir: of a run.
      step: updates made.

    Raises:
      UsageError: there is none of this step.
      RunError: it is damaged, or another version of the trainer made it.
    """
    workdir = open_workdir(workdir)
    found = stored_steps(workdir)
    if step not in found:
        steps = ", ".join(map(str, reversed(found))) or "none"
        raise UsageError(f"there is no checkpoint {step} in {workdir}; there are: {steps}")
    restored, problem = _try(checkpoints_dir(workdir) / str(step), step)
    if restored is None:
        raise RunError(f"checkpoint {step} is damaged ({problem}); use another one")
    return restored


def clear_the_way(workdir: epath.PathLike, search: Search) -> None:
    """Move what is damaged, unfinished or foreign into `checkpoints/damaged`; nothing is deleted.

    The run can then save these steps again. For the first process, under the lock of the workdir.

    Args:
      workdir: of a run.
      search: what `find_newest` returned.
    """
    folder = checkpoints_dir(workdir)
    if folder.exists():
        for name in [*search.bad, *_unfinished_or_foreign(folder)]:
            _set_aside(folder / name, damaged_dir(workdir))


def set_aside_if_damaged(workdir: epath.PathLike, step: int) -> bool:
    """Verify a checkpoint that is not the newest, and move it to the damaged ones if it is.

    For the first process, under the lock of the workdir.

    Args:
      workdir: of a run.
      step: of a checkpoint that is there.

    Returns:
      Whether it was damaged.
    """
    path = checkpoints_dir(workdir) / str(step)
    _, problem = _try(path, step)
    if problem is None:
        return False
    logger.warning("checkpoint %d is damaged (%s)", step, problem)
    _set_aside(path, damaged_dir(workdir))
    return True


def _try(path: epath.Path, step: int) -> tuple[Restored | None, str | None]:
    """Return the checkpoint, or what is wrong with it."""
    try:
        return restore(path, step), None
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
    """Return the error that says that a run has checkpoints but cannot resume."""
    text = "\n".join(reasons)
    return RunError(
        f"no checkpoint in {checkpoints_dir(workdir)} can be used:\n{text}\n"
        "nothing was changed; put back a good copy, or start again in another --workdir"
    )
