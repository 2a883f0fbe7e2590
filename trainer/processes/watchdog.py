"""A run that hangs is ended, and says where: what counts is progress, not being alive.

Every process counts the seconds since its last progress and sends them to process 0 with its signs
of life (link.py). Processes that train together wait for each other, so a run hangs if none of them
makes progress; the one behind is then the one that the others wait for. Steps are dispatched ahead
of the devices, though: a process whose devices are in a callback is behind whatever its step.
"""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from trainer.processes import ending, link

# How often to look, and how much of a processor's time, or how many bytes written, mean that
# something is being done that may take long: a thread that sleeps, or waits, needs less.
_LOOK_SECONDS = 1.0
_BUSY_SHARE = 0.05
_BUSY_BYTES = 1 << 16

_IN_CALLBACK = "in a callback of its devices"


class Watchdog:
    """While open, ends all processes if the run makes no progress for too long.

    Every process opens one around the steps, after compilation. A process that is alone is watched,
    too. The clock stands still while this process is stopped (Ctrl-Z, a laptop that sleeps).
    """

    def __init__(self, hang_seconds: float):
        """Take the patience.

        Args:
          hang_seconds: without progress after which the run ends, or 0 for no watch.
        """
        self._hang_seconds = hang_seconds
        # It imports and opens what it writes to, before the first step.
        self._step, self._what, self._may_take_long = 0, "starting", True
        self._idle = 0.0
        self._last_work = _work()
        # Libraries that embed Python, or go around `threading`, have threads of their own.
        self._strangers = _threads_of_others()
        self._closing = threading.Event()
        self._end: Callable[[str], None] = ending.end_with_stacks

    def __enter__(self) -> "Watchdog":
        """Start to watch."""
        if self._hang_seconds:
            others = link.current()
            if others is not None:
                others.report_progress = self._report
                self._end = others.hang
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop watching."""
        self._closing.set()
        others = link.current()
        if others is not None:
            others.report_progress = lambda: None

    def progress(self, step: int, what: str, may_take_long: bool = False) -> None:
        """Note that the run has come to something new.

        Args:
          step: updates made or dispatched.
          what: this process does now, such as "in a step" or "in an evaluation".
          may_take_long: whether it counts as progress that this process computes or writes
            meanwhile, as in a save. Not so in a step: devices that wait may do so busily.
        """
        self._step, self._what, self._may_take_long = step, what, may_take_long
        self._idle = 0.0

    def _report(self) -> list[Any]:
        """Return what process 0 is sent."""
        in_callback = _threads_of_others() - self._strangers
        return [self._step, _IN_CALLBACK if in_callback else self._what, self._idle]

    def _watch(self) -> None:
        """Count the seconds without progress; in process 0, decide on those of all."""
        last = time.monotonic()
        while not self._closing.wait(_LOOK_SECONDS):
            now = time.monotonic()
            seconds, last = min(now - last, 2 * _LOOK_SECONDS), now
            work, before = _work(), self._last_work
            self._last_work = work
            busy = work[0] - before[0] > _BUSY_SHARE * seconds or work[1] - before[1] > _BUSY_BYTES
            # Progress may come between the two: then it is a look late.
            self._idle = 0.0 if self._may_take_long and busy else self._idle + seconds
            if link.is_first():
                self._judge()

    def _judge(self) -> None:
        """End the run if nobody makes progress."""
        states = {link.own_name(): self._report(), **link.progress_of_others()}
        known = {name: state for name, state in states.items() if state is not None}
        # Who has not begun compiles, or prepares, and who has ended waits for the others.
        if (
            len(known) < len(states)
            or min(idle for *_, idle in known.values()) < self._hang_seconds
        ):
            return

        def place(name: str) -> tuple[bool, int, float]:
            step, what, idle = known[name]
            return what != _IN_CALLBACK, step, -idle

        behind = min(known, key=place)
        step, what, _ = known.pop(behind)
        others = "".join(
            f"; {name} at step {state[0]}, {state[1]}" for name, state in known.items()
        )
        self._end(
            f"no progress for {self._hang_seconds:g} s: {behind} is behind, at step {step}, {what}"
            f"{others}; where all threads were stands above. The same command resumes from the "
            "newest checkpoint; if this was no hang, give a larger --hang_seconds"
        )


def _threads_of_others() -> set[int]:
    """Return the threads that run Python and were not started by it, such as those of devices."""
    own = {
        thread.ident
        for thread in threading.enumerate()
        # What Python calls a thread of others that has asked which one it is.
        if not isinstance(thread, threading._DummyThread)
    }
    return sys._current_frames().keys() - own


def _work() -> tuple[float, int]:
    """Return the processor seconds, and the bytes written, of this process so far."""
    written = 0
    try:
        with open("/proc/self/io") as file:
            written = next(int(line.split()[1]) for line in file if line.startswith("wchar"))
    except (OSError, StopIteration):  # Not on this system.
        pass
    return time.process_time(), written
