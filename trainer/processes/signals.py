"""Signals that ask a run to stop: they set a flag, and the loop asks for it between steps."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from trainer.devices import replicated, sharded

# Processes compare their flags every so many calls, and use the answer as many calls later, when
# the devices have long had time to add them up: nothing waits.
_CALLS_PER_VOTE = 8

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


class StopVote:
    """Stops all processes at the same step when a signal came to any of them.

    The flags are added by the devices, in the order of the steps, so all processes read the same
    sum at the same step. A single process needs no vote and obeys at once.
    """

    def __init__(self, stop: StopRequest, mesh: Mesh):
        """Take the flag of this process and the devices of all."""
        self._stop = stop
        self._sharding = sharded(mesh)
        self._add = jax.jit(jnp.sum, out_shardings=replicated(mesh))
        self._votes: jax.Array | None = None
        self._calls = 0

    def __call__(self) -> bool:
        """Return whether to stop now; all processes ask after the same steps."""
        if jax.process_count() == 1:
            return bool(self._stop)
        self._calls += 1
        if self._calls % _CALLS_PER_VOTE:
            return False
        stopping = self._votes is not None and int(self._votes) > 0
        flags = np.full(jax.local_device_count(), bool(self._stop), np.int32)
        self._votes = self._add(jax.make_array_from_process_local_data(self._sharding, flags))
        return stopping
