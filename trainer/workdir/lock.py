"""One writer a workdir."""

import fcntl
import os
import socket
from typing import TYPE_CHECKING, TextIO

from etils import epath

from trainer.errors import UsageError
from trainer.workdir.storage import is_remote

if TYPE_CHECKING:
    from trainer.workdir.lease import Lease

LOCK_FILE = "lock"


class WorkdirLock:
    """While open, no other trainer can open the same workdir."""

    _lock: "_FileLock | Lease"

    def __init__(self, workdir: epath.PathLike):
        """Name the workdir; if local, it must exist when the lock is entered."""
        path = epath.Path(workdir) / LOCK_FILE
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        if is_remote(path):
            from trainer.workdir.lease import Lease  # What it imports is there only with the extra.

            self._lock = Lease(path, holder)
        else:
            self._lock = _FileLock(path, holder)

    def __enter__(self) -> "WorkdirLock":
        """Take the lock.

        Raises:
          UsageError: another trainer holds it; the message says which.
        """
        self._lock.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        """Free the lock; the file stays."""
        self._lock.__exit__(*exception)

    def confirm(self) -> None:
        """Make sure, before something is written, that the lock is still held.

        Raises:
          RunError: another trainer has it now.
        """
        self._lock.confirm()


class _FileLock:
    """A lock on a local file.

    The kernel holds the lock for this process and frees it with the process, however that ends:
    a file that a killed run left behind locks nothing, whoever has its process id now.
    """

    def __init__(self, path: epath.Path, holder: str):
        """Name the file, and who locks it, in words."""
        self._path = path
        self._holder = holder
        self._file: TextIO | None = None

    def __enter__(self) -> "_FileLock":
        """Take the lock, or raise a UsageError."""
        self._file = open(self._path, "a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise UsageError(
                f"--workdir={self._path.parent} is being written by {holder}; valid: another "
                "--workdir, or the same one when that run has ended"
            ) from error
        self._file.truncate(0)
        self._file.write(f"{self._holder}\n")
        self._file.flush()
        return self

    def __exit__(self, *exception: object) -> None:
        """Free the lock; the file stays."""
        if self._file is not None:
            self._file.close()

    def confirm(self) -> None:
        """Do nothing: the kernel lets nobody else have the lock."""
