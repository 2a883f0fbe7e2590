"""A lock in a bucket: an object that says who writes here, and until when."""

import contextlib
import logging
import threading
import time
import uuid
from typing import Any

from etils import epath
from google.api_core.exceptions import Forbidden, GoogleAPIError, PreconditionFailed

from trainer.errors import RunError, UsageError
from trainer.workdir.storage import bucket_and_name, reason, request_options

# A trainer that was killed keeps others waiting for this long.
LEASE_SECONDS = 60.0
# Several renewals may fail before the lease ends.
_RENEW_SECONDS = 15.0
# How often one that waits looks whether the lease was renewed.
_LOOK_SECONDS = 2.0

logger = logging.getLogger(__name__)


class Lease:
    """While open, no other trainer can open a lease of the same path.

    Every write has the condition that the object is the one that this trainer wrote last, or
    found expired, or that there is none: of two writers at the same moment the bucket lets one
    pass. The clocks of two hosts must not differ by more than the time between the last renewal
    and the end, as those of machines in a cloud do not.
    """

    def __init__(self, path: epath.Path, holder: str, seconds: float = LEASE_SECONDS):
        """Name the lease.

        Args:
          path: of the object, in a bucket.
          holder: who takes it, in words.
          seconds: how long it lasts unless it is renewed, > 0.
        """
        self._path = path
        self._holder = holder
        self._seconds = seconds
        self._id = uuid.uuid4().hex
        self._generation = 0  # As the bucket says that there is no such object.
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        """Take the lease and keep it; waits for the end of one that is not renewed any more.

        Raises:
          UsageError: another trainer holds it, or the bucket may not be written.
        """
        try:
            self._bucket, self._name = bucket_and_name(self._path)
            self._await_end()
            self._write(time.time() + self._seconds)
        except PreconditionFailed as error:
            raise self._refusal(self._read()) from error
        except Forbidden as error:
            raise UsageError(
                f"--workdir={self._path.parent} may not be written: {reason(error)}; use the "
                "role roles/storage.objectUser on the bucket"
            ) from error
        except GoogleAPIError as error:
            raise UsageError(
                f"--workdir={self._path.parent} could not be locked: {reason(error)}; use a "
                "bucket that can be reached from here"
            ) from error
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Give the lease back; the object stays."""
        self._closing.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # Then it ends by itself.
            self._write(expires=0.0)

    def confirm(self) -> None:
        """Renew the lease now: what is written next is written by its holder.

        Raises:
          RunError: another trainer has it, or the bucket does not answer.
        """
        try:
            with self._writing:
                self._write(time.time() + self._seconds)
        except PreconditionFailed as error:
            raise RunError(
                f"{self._path.parent} is being written by {self._other()} now: this trainer was "
                f"paused or without a connection for {self._seconds:.0f} s, and lost its lease; "
                "nothing was saved since; the run continues there"
            ) from error
        except Exception as error:
            raise RunError(
                f"the lease {self._path} could not be renewed: {reason(error)}; restore the "
                "connection and run the same command: older checkpoints are intact"
            ) from error

    def _await_end(self) -> None:
        """Wait until nobody holds the lease.

        Whoever was killed renews it no more, and the same command shall resume that run; one that
        lives renews it soon.

        Raises:
          UsageError: it was renewed.
        """
        found = self._read()
        if (left := _seconds_left(found)) > 0:
            logger.warning(
                "%s is being written by %s, which said so %.0f s ago; if it was killed, its lease "
                "ends in %.0f s: waiting",
                self._path.parent,
                _fields(found)["holder"],
                _age(found),
                left,
            )
        while left > 0:
            time.sleep(min(left, _LOOK_SECONDS))
            before, found = found, self._read()
            left = _seconds_left(found)
            if left > 0 and found.generation != before.generation:
                raise self._refusal(found)
        self._generation = 0 if found is None else found.generation

    def _keep(self) -> None:
        """Renew the lease until it is given back or lost."""
        while not self._closing.wait(min(_RENEW_SECONDS, self._seconds / 4)):
            try:
                with self._writing:
                    self._write(time.time() + self._seconds)
            except PreconditionFailed:
                return  # `confirm` will say so.
            except Exception:
                continue  # The connection may come back before the lease ends.

    def _write(self, expires: float) -> None:
        """Write the object, if it is still the one that this trainer knows.

        Raises:
          PreconditionFailed: it is not.
        """
        blob = self._bucket.blob(self._name)
        blob.metadata = {"holder": self._holder, "id": self._id, "expires": f"{expires:.3f}"}
        try:
            blob.upload_from_string(
                f"{self._holder}\n", if_generation_match=self._generation, **request_options()
            )
        except PreconditionFailed:
            # The answer to an earlier try may have been lost on its way.
            found = self._read()
            if found is None or _fields(found).get("id") != self._id:
                raise
            blob = found
        self._generation = blob.generation

    def _read(self) -> Any:
        """Return the object without its content, or None where there is none."""
        return self._bucket.get_blob(self._name, **request_options())

    def _other(self) -> str:
        """Return who holds the lease now, in words."""
        return _fields(self._read()).get("holder", "another trainer")

    def _refusal(self, found: Any) -> UsageError:
        """Return the error that says who holds the lease."""
        return UsageError(
            f"--workdir={self._path.parent} is being written by {_fields(found)['holder']}, which "
            f"said so {_age(found):.0f} s ago; use another --workdir, or the same one when that "
            "run has ended"
        )


def _fields(found: Any) -> dict[str, str]:
    """Return what the object says; nothing, if it is only a copy of a local lock file."""
    return {} if found is None else found.metadata or {}


def _seconds_left(found: Any) -> float:
    """Return for how long the lease lasts unless it is renewed."""
    return float(_fields(found).get("expires", 0)) - time.time()


def _age(found: Any) -> float:
    """Return how many seconds ago the lease was taken or renewed."""
    return time.time() - found.updated.timestamp()
