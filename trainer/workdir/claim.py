"""A workdir belongs to one run at a time, and all processes of the run see the same one."""

import contextlib
import secrets
import time
from collections.abc import Iterator

from etils import epath

from trainer import processes
from trainer.errors import UsageError
from trainer.workdir.lock import LOCK_FILE, WorkdirLock
from trainer.workdir.storage import is_remote

# How long a file that another host made may take to appear on this one: caches of NFS.
_SHARED_SECONDS = 10.0


@contextlib.contextmanager
def claim(workdir: epath.Path) -> Iterator[WorkdirLock | None]:
    """Make the workdir and lock it, in the first process; see that all processes share it.

    Args:
      workdir: of the run.

    Yields:
      The lock, in the first process; None in others.

    Raises:
      UsageError: the workdir cannot be made, belongs to another trainer, or is not shared.
    """
    if processes.is_first():
        made = _make_workdir(workdir)
        try:
            with WorkdirLock(workdir) as lock:
                _check_shared(workdir)
                yield lock
        except UsageError:
            # What is refused leaves nothing behind.
            if made:
                (workdir / LOCK_FILE).unlink(missing_ok=True)
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise
    else:
        _check_shared(workdir)
        yield None


def _make_workdir(workdir: epath.Path) -> list[epath.Path]:
    """Make the workdir, or say why it cannot be made; return the folders made, inner first."""
    if is_remote(workdir):
        return []
    made = [path for path in (workdir, *workdir.parents) if not path.exists()]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir} cannot be made: {error.strerror}; use a folder that can "
            "be made and written"
        ) from error
    return made


def _check_shared(workdir: epath.Path) -> None:
    """Refuse a workdir in which a process does not find what the first one writes."""
    if len(processes.gather(None)) == 1:
        return
    path = workdir / f"shared-{processes.share(secrets.token_hex(8))}"
    if processes.is_first():
        path.touch()
    processes.share(None)  # Now it is there.
    blind = [i for i, found in enumerate(processes.gather(_appears(path))) if not found]
    if processes.is_first():
        path.unlink()
    if blind:
        raise UsageError(
            f"--workdir={workdir} is not the same folder everywhere: what process 0 writes, "
            f"process {', '.join(map(str, blind))} cannot see; valid: a folder of a file system "
            "that all hosts share, or gs://bucket/path"
        )


def _appears(path: epath.Path) -> bool:
    """Return whether a file exists, or comes to exist soon."""
    deadline = time.monotonic() + _SHARED_SECONDS
    while not (found := path.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found
