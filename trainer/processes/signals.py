"""Signals that ask a command to leave, or a run to stop, at every moment of its life.

Python calls a handler in the main thread only, and only when that is not in C++, where it may
compile, or wait for another process, for minutes. So a thread of its own hears every signal at
once, from a pipe that Python writes to. What it does then is up to whoever is responsible: at first
the command, which leaves (status 130: there is nothing to save), then a run, which stops after a
step (status 75), and at last the command again, whose status is known.
"""

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn, Protocol

from trainer.errors import Interrupted, RunError

# A terminal that is gone asks to stop as a scheduler does.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

# Seconds that an interrupted command gets to remove its temporary files.
_GRACE_SECONDS = 3.0
# Seconds of these that the main thread waits for the last word before it is interrupted.
_LAST_WORD_SECONDS = 1.0

# Of an error without a status of its own, as the command has it.
_UNFORESEEN = RunError.exit_status

logger = logging.getLogger(__name__)


class _Responsible(Protocol):
    """Who decides what a signal does."""

    def hear(self, number: signal.Signals) -> None:
        """Take note of a signal, in a thread of its own."""

    def interrupts(self) -> bool:
        """Return whether the main thread is to raise a KeyboardInterrupt."""


class _Interruption:
    """A command that has nothing to save leaves: "interrupted", status 130."""

    def __init__(self) -> None:
        """Wait for a signal."""
        self._begun = threading.Lock()
        self._raised = False
        self._done = threading.Event()

    def hear(self, number: signal.Signals) -> None:
        """Leave: with the main thread's clean-up at the first signal, without at the second."""
        if not self._begun.acquire(blocking=False):
            os._exit(Interrupted.exit_status)
        _leave_soon(number)
        # What libraries say about an interruption is pages. The stream has a lock, which the main
        # thread may hold.
        with contextlib.suppress(OSError):
            os.write(2, b"interrupted\n")
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        self._done.set()

    def interrupts(self) -> bool:
        """Interrupt the main thread once, after the last word has been said."""
        if self._raised:
            return False
        self._raised = True
        # A library that is interrupted in an import, or in a callback, prints a traceback.
        self._done.wait(_LAST_WORD_SECONDS)
        return True

    def leave_if_begun(self) -> None:
        """Leave now if there was a signal, after the others have been told."""
        if self._raised or self._begun.locked():
            self._done.wait(_GRACE_SECONDS)
            os._exit(Interrupted.exit_status)


class _Leaving:
    """A command that has done its work leaves with its status, only sooner."""

    def __init__(self, status: int) -> None:
        """Take the exit status."""
        self._status = status

    def hear(self, number: signal.Signals) -> None:
        """Leave without clean-up."""
        os._exit(self._status)

    def interrupts(self) -> bool:
        """Leave the main thread alone."""
        return False


class _Decided:
    """A run that has come to its end: the command leaves with that status, only sooner."""

    def __init__(self, status: int) -> None:
        """Take the exit status."""
        self._status = status

    def hear(self, number: signal.Signals) -> None:
        """Leave within seconds: lock and lease are given back meanwhile."""
        timer = threading.Timer(_GRACE_SECONDS, os._exit, (self._status,))
        timer.daemon = True
        timer.start()

    def interrupts(self) -> bool:
        """Leave the main thread alone."""
        return False


# The last one decides. Empty in a Python program that only calls the trainer.
_responsible: list[_Responsible] = []
# Whether a command comes to what its run comes to, see `run_decides`.
_run_decides = False
_callbacks: list[Callable[[str], None]] = []


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal end the command in the body; for a process that is the trainer's alone.

    A signal that is ignored already (by nohup, or in the background of a script) stays ignored.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    interruption = _Interruption()
    _responsible.append(interruption)
    threading.Thread(target=_listen, args=(reader,), name="signals", daemon=True).start()
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        for number in _not_ignored():
            signal.signal(number, _in_main_thread)
        yield
    except BaseException:
        # A library may have made another error of the KeyboardInterrupt.
        interruption.leave_if_begun()
        raise
    interruption.leave_if_begun()


@contextlib.contextmanager
def run_decides() -> Iterator[None]:
    """In the body, the end of a run is that of the command: what is stored is not "interrupted"."""
    global _run_decides
    _run_decides = True
    try:
        yield
    finally:
        _run_decides = False


def on_interruption(callback: Callable[[str], None]) -> None:
    """Call a function with the signal's name when a signal ends the command; it must not wait."""
    _callbacks.append(callback)


def leave(status: int, at_once: bool) -> NoReturn:
    """Leave with a status, only sooner if a signal comes.

    Args:
      status: of the command.
      at_once: without waiting for threads and without clean-up.
    """
    _responsible.append(_Leaving(status))
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    if at_once:
        os._exit(status)
    # On its way out Python would look for garbage among all that was imported and traced: for up
    # to a second.
    gc.freeze()
    sys.exit(status)


def _leave_soon(number: signal.Signals) -> None:
    """Make sure that this process leaves within seconds; tell those who want to know."""
    timer = threading.Timer(_GRACE_SECONDS, os._exit, (Interrupted.exit_status,))
    timer.daemon = True
    timer.start()
    for callback in _callbacks:
        callback(number.name)


def _listen(reader: int) -> None:
    """Hear every signal as it comes."""
    while True:
        for number in os.read(reader, 16):
            if number in _SIGNALS:
                _responsible[-1].hear(signal.Signals(number))


def _in_main_thread(number: int, frame: FrameType | None) -> None:
    """Interrupt what the main thread does, if whoever is responsible wants that."""
    if not _responsible[-1].interrupts():
        return
    if _is_importing(frame):
        # An extension that is interrupted as it starts aborts the process, with another status.
        os._exit(Interrupted.exit_status)
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether some module is being imported where a signal was handled."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False


def _not_ignored() -> list[signal.Signals]:
    """Return the signals that this process was not told to ignore."""
    return [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


class StopRequest:
    """While open, a signal only sets a flag, for the run to stop; a second SIGINT leaves at once.

    Nothing is saved inside a handler: it may have interrupted a save. Outside the main thread,
    where Python allows no handlers, the flag is never set unless the command hears signals anyway.

    Attributes:
      signal_name: such as "SIGTERM", or None while no signal has come.
    """

    def __init__(self, says: str = "stopping after this step") -> None:
        """Start without a request.

        Args:
          says: what to tell the user when a signal comes.
        """
        self.signal_name: str | None = None
        self._says = says
        self._before: dict[signal.Signals, Any] = {}
        self._commanding = False

    def __bool__(self) -> bool:
        """Return whether a signal has come."""
        return self.signal_name is not None

    def __enter__(self) -> "StopRequest":
        """Take responsibility."""
        self._commanding = bool(_responsible)
        if self._commanding:
            _responsible.append(self)
        elif threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._handle) for number in _not_ignored()
            }
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Give it back; after a run that its command only waits for, nothing is left to decide."""
        if self._commanding:
            _responsible.remove(self)
            if _run_decides and not isinstance(error, KeyboardInterrupt | Interrupted):
                status = 0 if error is None else getattr(error, "exit_status", _UNFORESEEN)
                _responsible.append(_Decided(status))
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hear(self, number: signal.Signals) -> None:
        """Note the first signal; leave at a second SIGINT, for the user is impatient."""
        if self.signal_name is not None and number == signal.SIGINT:
            _leave_soon(number)
            os._exit(Interrupted.exit_status)
        if self.signal_name is None:
            self.signal_name = number.name
            logger.warning("%s: %s", number.name, self._says)

    def interrupts(self) -> bool:
        """Let the main thread ask for the flag."""
        return False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal to a Python program, which the trainer does not end."""
        if self.signal_name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        if self.signal_name is None:
            self.signal_name = name
            # Not here: the handler may have interrupted a line that is being written.
            say = threading.Thread(target=logger.warning, args=("%s: %s", name, self._says))
            say.start()
