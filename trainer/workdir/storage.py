"""Where the files of a run lie: a local folder, or a folder in a bucket, gs://bucket/folder.

Files are read and written through etils.epath, which knows both. This module holds what differs:
a bucket has no folders, no append and no rename, and it may be out of reach.
"""

import contextlib
import errno
import logging
import os
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from trainer.errors import RunError, UsageError
from trainer.paths import expand

_SCHEME = "gs://"

# For how long one request is tried again before a run gives up.
RETRY_SECONDS = 20

# A folder that nothing else lies in yet exists in a bucket through this file.
_PLACEHOLDER = ".keep"

# What more space or another disk helps against.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)


def is_remote(path: epath.PathLike) -> bool:
    """Return whether a path lies in a bucket."""
    return str(path).startswith(_SCHEME)


def open_workdir(workdir: epath.PathLike) -> epath.Path:
    """Return the path of a workdir; of a bucket, it is checked that it can be opened.

    Args:
      workdir: as the user gave it; it need not exist, and nothing is written to it.

    Raises:
      UsageError: what gs:// needs is not installed, the bucket is not there or not for this user,
        or the path is empty, of another kind, or no path.
    """
    if not isinstance(workdir, str | os.PathLike):
        # Its text would be the name of a folder, such as None.
        raise UsageError(f"workdir={workdir!r} is not valid; use the path of a folder")
    if is_remote(workdir):
        _check_bucket(workdir)
    elif "://" in str(workdir):
        raise UsageError(f"--workdir={workdir}: use a local folder, or gs://bucket/folder")
    return epath.Path(expand("workdir", str(workdir)))


def check_writable(workdir: epath.Path) -> None:
    """Refuse a workdir that cannot be made or written, before any work is done.

    Raises:
      UsageError: it is no folder, or may not be written.
    """
    if is_remote(workdir):
        return  # Only writing there tells: the lock does, first of all.
    existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not existing.is_dir():
        reason = f"{existing} is not a folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = f"{existing} may not be written"
    else:
        return
    raise UsageError(f"--workdir={workdir}: {reason}; use a folder that can be made and written")


def absolute(path: epath.PathLike) -> epath.Path:
    """Return a path that does not depend on the current folder."""
    path = epath.Path(path)
    return path if is_remote(path) else path.absolute()


def bucket_and_name(path: epath.PathLike) -> tuple[Any, str]:
    """Return the bucket of a remote path, as a google.cloud.storage.Bucket, and the object's name.

    Raises:
      google.auth.exceptions.DefaultCredentialsError: there are no credentials.
    """
    from google.cloud import storage

    parts = urllib.parse.urlsplit(str(path))
    return storage.Client().bucket(parts.netloc), parts.path.strip("/")


def request_options() -> dict[str, Any]:
    """Return how every request to google.cloud.storage is made: its time-out and its retries."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return {"timeout": RETRY_SECONDS / 2, "retry": DEFAULT_RETRY.with_timeout(RETRY_SECONDS)}


def reason(error: Exception) -> str:
    """Return the first line of what a client said, cut to a line."""
    error = getattr(error, "cause", None) or error  # Of the error that says that time ran out.
    text = str(getattr(error, "message", "") or error).strip() or type(error).__name__
    line = text.splitlines()[0]
    return line if len(line) <= 160 else line[:157] + "..."


def remedy(path: epath.PathLike) -> str:
    """Return what to do when a path could not be written."""
    return "restore the connection" if is_remote(path) else "free space or repair the disk"


@contextlib.contextmanager
def surfacing(path: epath.Path) -> Iterator[None]:
    """Turn what the disk says about a file that is written in the body into a RunError."""
    try:
        yield
    except FileNotFoundError as error:
        raise RunError(
            f"{error.filename or path} could not be written: its folder was deleted or moved while "
            "the run was writing to it; the same command starts again from what is in the folder"
        ) from error
    except OSError as error:
        hint = remedy(path) if error.errno in _NO_SPACE else "make it writable"
        raise RunError(
            f"{error.filename or path} could not be written: {error.strerror or error}; {hint} and "
            "run the same command: older checkpoints are intact"
        ) from error


def is_outage(error: Exception) -> bool:
    """Return whether a bucket did not answer, or refused: that says nothing about what lies there.

    Args:
      error: of one of the clients: gcsfs (behind epath), google.cloud.storage (behind Orbax and
        the lease), or tensorstore, whose errors are told apart by words.
    """
    module, text = type(error).__module__.partition(".")[0], str(error)
    kinds = ("ABORTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED")
    return (
        module in ("aiohttp", "gcsfs", "google", "requests")
        or (isinstance(error, OSError) and text.startswith("Forbidden"))
        or (isinstance(error, ValueError) and any(kind in text for kind in kinds))
    )


def write_whole(path: epath.Path, data: bytes) -> None:
    """Write a file such that a crash, or a reader, finds the old one or the new one, whole."""
    if is_remote(path):
        path.write_bytes(data)  # An object appears when all of it has arrived.
        return
    new = path.with_name(path.name + ".new")
    new.write_bytes(data)
    new.replace(path)


def make_folder(path: epath.Path) -> None:
    """Make a folder into which something can be renamed."""
    path.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
        (path / _PLACEHOLDER).touch()


class LocalFiles:
    """The files of a workdir that grow line by line, on the disk of this host.

    For a local workdir they lie in it, and there is nothing to copy. Nothing can be appended to a
    file in a bucket: there they lie in a temporary folder, and `publish` copies them.

    Attributes:
      folder: where to write them, under the paths that they have in the workdir.
    """

    def __init__(self, workdir: epath.Path):
        """Find or make the folder."""
        self._workdir = workdir
        self._temporary = None
        self._published: dict[str, tuple[int, int]] = {}
        self.folder = workdir
        if is_remote(workdir):
            # Made anew for every run: what an earlier run left on this host never wins.
            self._temporary = tempfile.TemporaryDirectory(prefix="trainer-")
            self.folder = epath.Path(self._temporary.name)

    def fetch(self, name: str) -> None:
        """Get the file, or the files of a folder, that the run so far left in the workdir."""
        source = self._workdir / name
        if self._temporary is None or not source.exists():
            return
        if source.is_dir():
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            for path in source.iterdir():
                self.fetch(f"{name}/{path.name}")
        else:
            (self.folder / name).write_bytes(source.read_bytes())

    def publish(self) -> None:
        """Copy every file that changed to the workdir, whole.

        Raises:
          RunError: a file could not be copied.
        """
        if self._temporary is None:
            return
        for path in sorted(path for path in Path(self.folder).rglob("*") if path.is_file()):
            name, stat = str(path.relative_to(self.folder)), path.stat()
            version = (stat.st_size, stat.st_mtime_ns)
            if self._published.get(name) == version:
                continue
            try:
                (self._workdir / name).write_bytes(path.read_bytes())
            except Exception as error:  # Its clients raise what they like.
                raise RunError(
                    f"{self._workdir / name} could not be written: {reason(error)}; "
                    f"{remedy(self._workdir)} and run the same command: older checkpoints are "
                    "intact"
                ) from error
            self._published[name] = version

    def close(self) -> None:
        """Remove the temporary folder, if there is one."""
        if self._temporary is not None:
            self._temporary.cleanup()


def _check_bucket(workdir: epath.PathLike) -> None:
    """Refuse a bucket that cannot be opened or listed, as Orbax will do, but soon."""
    try:
        import fsspec
        import gcsfs  # noqa: F401 - epath uses it
        from google.api_core import exceptions
        from google.auth.exceptions import DefaultCredentialsError
    except ImportError as error:
        raise UsageError(
            f"--workdir={workdir}: {error.name} is not installed; use a local folder, or "
            "first pip install 'cyclic-trainer[gcs]' (in a clone: pip install -e '.[gcs]')"
        ) from error
    # What other hosts, or tensorstore, have written since must be seen.
    fsspec.config.conf["gcs"] = {"use_listings_cache": False}
    # They print pages about failures that the trainer reports in one line.
    for library in ("gcsfs", "google.auth"):
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    name = urllib.parse.urlsplit(str(workdir)).netloc
    if not name:
        raise UsageError(f"--workdir={workdir} names no bucket; use gs://bucket/folder")
    try:
        bucket, _ = bucket_and_name(workdir)
        bucket.reload(**request_options())
        list(bucket.list_blobs(max_results=1, **request_options()))
    except DefaultCredentialsError as error:
        text = (
            "there are no Google credentials here; use, on a TPU VM, one with a service "
            "account; elsewhere, after gcloud auth application-default login"
        )
        raise UsageError(f"--workdir={workdir}: {text}") from error
    except exceptions.NotFound as error:
        text = f"there is no bucket {name}; use one that exists"
        raise UsageError(
            f"--workdir={workdir}: {text}, or first gcloud storage buckets create {_SCHEME}{name}"
        ) from error
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise UsageError(
            f"--workdir={workdir} is not for these credentials: {reason(error)}; it takes the "
            "roles roles/storage.objectUser and roles/storage.legacyBucketReader on the bucket"
        ) from error
    except Exception as error:
        raise UsageError(
            f"--workdir={workdir} cannot be opened: {reason(error)}; use a bucket that can be "
            "reached from here"
        ) from error
