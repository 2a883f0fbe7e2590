"""Signals that ask a run to stop: they set a flag, and the loop asks for it between steps."""

import os
import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """While open, SIGTERM, SIGINT and SIGUSR1 only set a flag; a second SIGINT leaves at once.

    Nothing is saved inside a handler: it may have interrupted a save. Outside the main thread,
    where Python allows no handlers, the flag is never set.

    Attributes:
      signal_name: such as "SIGTERM", or None while no signal has come.
    """

    def __init__(self) -> None:
        """Start without a request."""
        self.signal_name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        """Return whether a signal has come."""
        return self.signal_name is not None

    def __enter__(self) -> "StopRequest":
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        """Put the former handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Note the signal."""
        if self.signal_name is not None and number == signal.SIGINT:
            # The user is impatient: no clean-up that could wait for anything.
            os._exit(128 + number)
        self.signal_name = signal.Signals(number).name
