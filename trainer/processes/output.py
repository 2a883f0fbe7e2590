"""Standard output and standard error that may be lost: a run continues without its lines."""

import contextlib
import errno
import io
import os
import select
import sys
from typing import TextIO

# Whoever read them has left: `| head`, a terminal that was closed.
_NOBODY_READS = (errno.EPIPE, errno.EIO)
# Seconds that a reader who is slow, and does not block the writer, gets for each piece.
_PATIENCE_SECONDS = 5.0


class _Lossy(io.FileIO):
    """A file descriptor to which writing never fails; what cannot be written is lost."""

    problem: OSError | None = None

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Write, or note why not."""
        try:
            written = super().write(data)
            if written is None:  # Not blocking, and full.
                select.select([], [self.fileno()], [], _PATIENCE_SECONDS)
                written = super().write(data)
            return len(data) if written is None else written
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                self.problem = error
            return len(data)


_standard_output: _Lossy | None = None


def protect() -> None:
    """Replace standard output and standard error by ones that may be lost.

    A descriptor that was closed is taken by the null device, before a file of the run gets its
    number and, with it, what libraries print.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # The lowest that is free.
            assert opened == descriptor
            os.set_inheritable(descriptor, True)
    global _standard_output
    _standard_output = _Lossy(1, "w", closefd=False)
    sys.stdout = _stream(sys.stdout, _standard_output, by_line=_standard_output.isatty())
    sys.stderr = _stream(sys.stderr, _Lossy(2, "w", closefd=False), by_line=True)


def problem() -> OSError | None:
    """Return why standard output is not complete, unless it is that nobody read on."""
    sys.stdout.flush()
    return _standard_output.problem if _standard_output else None


def _stream(stream: TextIO | None, raw: io.FileIO, by_line: bool) -> TextIO:
    """Return a stream to a descriptor, which behaves otherwise like the one that was there."""
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors=getattr(stream, "errors", None) or "backslashreplace",
        line_buffering=by_line,
    )
