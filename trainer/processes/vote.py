"""All processes stop at the same step, whichever of them a signal came to."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from trainer.devices import replicated, sharded
from trainer.processes.signals import StopRequest

# Processes compare their flags every so many calls, and use the answer as many calls later, when
# the devices have long had time to add them up: nothing waits.
_CALLS_PER_VOTE = 8


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
