"""A trace of some steps: what host and devices do in them."""

import logging
from typing import Any

import jax
from etils import epath

logger = logging.getLogger(__name__)

PROFILE_FOLDER = "profile"

# The first steps fill queues and caches; after them every step looks alike.
_WARM_UP_STEPS = 20
_TRACED_STEPS = 20


class Profiler:
    """Traces some steps of a run, once, into `workdir/profile`; open it before the first step."""

    def __init__(self, workdir: epath.Path, first_step: int, on: bool):
        """Choose the steps.

        Args:
          workdir: of the run.
          first_step: the first one that is taken.
          on: trace at all.
        """
        self._folder = workdir / PROFILE_FOLDER
        self._begin = first_step + _WARM_UP_STEPS if on else -1
        self._end = self._begin + _TRACED_STEPS
        self._tracing = False

    def __call__(self, step: int, state: Any) -> None:
        """Begin or end the trace if it is time to; to be called before steps are taken.

        Args:
          step: that is about to be taken.
          state: what the devices are computing; the trace waits for it at both ends.
        """
        if self._begin >= 0 and step >= self._begin:
            self._begin = -1
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._tracing = True
        elif self._tracing and step >= self._end:
            jax.block_until_ready(state)
            self._stop()

    def __enter__(self) -> "Profiler":
        """Return the profiler itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End a trace that the run was too short for."""
        if self._tracing:
            self._stop()

    def _stop(self) -> None:
        """Write the trace down and say where it is."""
        self._tracing = False
        jax.profiler.stop_trace()
        logger.info(
            "trace in %s: open its perfetto_trace.json.gz at ui.perfetto.dev, or "
            "tensorboard --logdir=%s with the package xprof",
            self._folder,
            self._folder,
        )
