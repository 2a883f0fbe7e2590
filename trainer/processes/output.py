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
# Seconds that a reader who is slow, or pauses (a pager, Ctrl-S), gets for each piece.
_PATIENCE_SECONDS = 2.0


class _Lossy(io.FileIO):
    """A file descriptor to which writing never fails; what cannot be written is lost.

    Attributes:
      problem: why something is lost, unless it is that nobody read on.
      waits: whether it waits for a reader who pauses, as for results; lines about a run are lost.
    """

    problem: OSError | None = None
    waits = True
    _patience = _PATIENCE_SECONDS

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Write, or note why not."""
        try:
            if not self.waits:
                if not self._has_room():
                    return len(data)
                data = data[: select.PIPE_BUF]  # So much fits where there is room.
            written = super().write(data)
            if written is None:  # Not blocking, and full.
                select.select([], [self.fileno()], [], _PATIENCE_SECONDS)
                written = super().write(data)
            return len(data) if written is None else written
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                self.problem = error
            return len(data)

    def _has_room(self) -> bool:
        """Return whether a piece can be written now, or soon; who pauses is waited for once."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        room = bool(poll.poll(1000 * self._patience))
        self._patience = _PATIENCE_SECONDS if room else 0.0
        return room


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
    standard_error = _Lossy(2, "w", closefd=False)
    standard_error.waits = False
    sys.stderr = _stream(sys.stderr, standard_error, by_line=True)


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
