"""One writer a workdir."""

import fcntl
import os
import socket
from typing import TextIO

from etils import epath

from trainer.errors import UsageError

LOCK_FILE = "lock"


class WorkdirLock:
    """While open, no other trainer can open the same workdir.

    The kernel holds the lock for this process and frees it with the process, however that ends:
    a file that a killed run left behind locks nothing, whoever has its process id now.
    """

    def __init__(self, workdir: epath.PathLike):
        """Name the workdir; it must exist when the lock is entered."""
        self._workdir = workdir
        self._file: TextIO | None = None

    def __enter__(self) -> "WorkdirLock":
        """Take the lock.

        Raises:
          UsageError: another trainer holds it; the message says which.
        """
        path = os.path.join(self._workdir, LOCK_FILE)
        self._file = open(path, "a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise UsageError(
                f"--workdir={self._workdir} is being written by {holder}; valid: another "
                "--workdir, or the same one when that run has ended"
            ) from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()
        return self

    def __exit__(self, *exception: object) -> None:
        """Free the lock; the file stays."""
        if self._file is not None:
            self._file.close()
