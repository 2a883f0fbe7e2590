"""Ending a process from one of its threads: the main thread may be stuck, and so may a pipe."""

import contextlib
import faulthandler
import os
import sys
import threading
from collections.abc import Callable

from trainer.errors import RunError

# How long it may take to write down where all threads are: the reader of a pipe may be stuck, too.
_STACKS_SECONDS = 5.0


def end_with_stacks(message: str) -> None:
    """End this process because it, or another, hangs: show where all threads are, and say why."""

    def show() -> None:
        with contextlib.suppress(OSError, ValueError):
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        say(f"error: {message}")

    within(_STACKS_SECONDS, show)
    os._exit(RunError.exit_status)


def say(text: str) -> None:
    """Print a line, if it can be printed."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def within(seconds: float, do: Callable[[], None]) -> None:
    """Do something in a thread of its own, and wait for its end, but not for longer."""
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(seconds)
