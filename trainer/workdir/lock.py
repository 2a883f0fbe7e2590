"""A workdir belongs to one run at a time, and all processes of the run see the same one."""

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from etils import epath

from trainer import processes
from trainer.errors import RunError, UsageError
from trainer.workdir.storage import is_remote, surfacing

LOCK_FILE = "lock"

# How long a file that another host made may take to appear on this one: caches of NFS.
_SHARED_SECONDS = 10.0


class Lock(Protocol):
    """What keeps other trainers out of a workdir."""

    def confirm(self) -> None:
        """Make sure, before something is written, that the lock is still held.

        Raises:
          RunError: another trainer has it now, or it is gone.
        """


@contextlib.contextmanager
def claim(workdir: epath.Path) -> Iterator[Lock | None]:
    """Make the workdir and lock it, in the first process; see that all processes share it.

    Args:
      workdir: of the run.

    Yields:
      The lock, in the first process; None in others.

    Raises:
      UsageError: the workdir cannot be made, belongs to another trainer, or is not shared.
    """
    if not processes.is_first():
        _check_shared(workdir)
        yield None
        return
    made = _make_workdir(workdir)
    locked, giving_back, status = contextlib.ExitStack(), threading.Lock(), 0

    def give_back(status: int) -> None:
        with giving_back:  # If both threads end this process, the second waits for the first.
            locked.close()
            if status == UsageError.exit_status:
                _remove_workdir(workdir, made)

    with processes.if_ended(give_back):
        try:
            held = locked.enter_context(lock(workdir))
            _check_shared(workdir)
            yield held
        except UsageError as refusal:
            status = refusal.exit_status
            raise
        finally:
            give_back(status)


def lock(workdir: epath.Path) -> contextlib.AbstractContextManager[Lock]:
    """Return the lock of a workdir, which no other trainer can take while it is open.

    One that a killed trainer left behind is taken over: at once, or in a bucket when it ends.

    Args:
      workdir: in a bucket, or a local folder that exists.
    """
    path, holder = workdir / LOCK_FILE, f"process {os.getpid()} on {socket.gethostname()}"
    if is_remote(path):
        from trainer.workdir.lease import Lease  # What it imports is there only with the extra.

        return Lease(path, holder)
    return _FileLock(path, holder)


class _FileLock:
    """A lock on a local file.

    The kernel holds the lock for this process and frees it with the process, however that ends:
    a file that a killed run left behind locks nothing, whoever has its process id now.
    """

    def __init__(self, path: epath.Path, holder: str):
        """Name the file, and who locks it, in words."""
        self._path = path
        self._holder = holder
        self._descriptor = -1

    def __enter__(self) -> "_FileLock":
        """Take the lock.

        Raises:
          UsageError: another trainer holds it, or the file cannot be locked.
        """
        self._descriptor = self._open()
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            try:
                raise self._refusal(error) from error
            finally:
                os.close(self._descriptor)
        with contextlib.suppress(OSError):  # It only says who holds it.
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{self._holder}\n".encode(), 0)
        return self

    def __exit__(self, *exception: object) -> None:
        """Free the lock; the file stays."""
        os.close(self._descriptor)

    def confirm(self) -> None:
        """Make sure that the workdir is still there; the kernel lets nobody else have the lock.

        Raises:
          RunError: it was deleted, moved or replaced by another one.
        """
        try:
            found = os.stat(self._path)
        except OSError:
            found = None
        if found is None or not os.path.samestat(found, os.fstat(self._descriptor)):
            raise RunError(
                f"{self._path.parent} was deleted, moved or replaced while the run was writing to "
                "it; nothing more is written there: the same command starts again from what is in "
                "the folder"
            )

    def _open(self) -> int:
        """Return the open file: made if missing, and not written yet."""
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except PermissionError:
            # The file of another user, in a folder that is shared. To lock it, it can be read.
            with contextlib.suppress(OSError):
                return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            reason = "it belongs to another user, and may not be read"
        except IsADirectoryError:
            reason = "it is a folder"
        except OSError as error:
            reason = str(error.strerror)
        raise UsageError(
            f"--workdir={self._path.parent}: the lock of the run, {self._path}, cannot be opened: "
            f"{reason}; use another --workdir, or move that file away if no run is writing there"
        )

    def _refusal(self, error: OSError) -> UsageError:
        """Return the error that says why the file could not be locked."""
        workdir = self._path.parent
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return UsageError(
                f"--workdir={workdir}: its file system cannot lock files ({error.strerror}), so "
                "two runs could write there at once; use a --workdir on a local disk, a network "
                "file system mounted with locks, or gs://bucket/folder"
            )
        with contextlib.suppress(OSError):
            holder = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip()
        return UsageError(
            f"--workdir={workdir} is being written by {holder or 'another process'}; use another "
            "--workdir, or the same one when that run has ended"
        )


def _make_workdir(workdir: epath.Path) -> list[epath.Path]:
    """Make the workdir, or say why it cannot be made; return the folders made, inner first."""
    if is_remote(workdir):
        return []
    made = [path for path in (workdir, *workdir.parents) if not path.exists()]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir} cannot be made: {error.strerror}; use a folder that can be made "
            "and written"
        ) from error
    return made


def _remove_workdir(workdir: epath.Path, made: list[epath.Path]) -> None:
    """Leave nothing behind of a run that was refused, if it made the workdir."""
    if made:
        (workdir / LOCK_FILE).unlink(missing_ok=True)
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _check_shared(workdir: epath.Path) -> None:
    """Refuse a workdir in which a process does not find what the first one writes."""
    if not processes.several():
        return
    path = workdir / f"shared-{processes.share(secrets.token_hex(8))}"
    if processes.is_first():
        with surfacing(path):
            path.touch()
    processes.share(None)  # Now it is there.
    blind = [i for i, found in enumerate(processes.gather(_appears(path))) if not found]
    if processes.is_first():
        path.unlink()
    processes.share(None)  # A process that fails ends process 0, which may not have removed it yet.
    if blind:
        raise UsageError(
            f"--workdir={workdir} is not the same folder everywhere: what process 0 writes, "
            f"process {', '.join(map(str, blind))} cannot see; use a folder of a file system that "
            "all hosts share, or gs://bucket/folder"
        )


def _appears(path: epath.Path) -> bool:
    """Return whether a file exists, or comes to exist soon."""
    deadline = time.monotonic() + _SHARED_SECONDS
    while not (found := path.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found
