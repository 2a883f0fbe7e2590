"""How fast a run is: steps and seconds of this process, whatever was done before a resume."""

import time


class Throughput:
    """Counts the steps that the devices have finished, and the time that they took."""

    def __init__(self, first_step: int, num_steps: int, batch_size: int):
        """Start the clock.

        Args:
          first_step: at which this process starts or resumes.
          num_steps: at which the run ends.
          batch_size: examples in a step.
        """
        self._first_step, self._num_steps, self._batch_size = first_step, num_steps, batch_size
        self._start = time.monotonic()
        # The first steps take longer: they load programs and fill queues.
        self._warm: tuple[int, float] | None = None
        self._done, self._seconds = first_step, 0.0

    def tick(self, done: int) -> None:
        """Note that the devices have finished `done` steps of the run by now."""
        if self._warm is None and self._done > self._first_step:
            self._warm = self._done, self._seconds
        self._done, self._seconds = done, time.monotonic() - self._start

    @property
    def seconds(self) -> float:
        """Seconds until the devices had finished the last step that was noted."""
        return self._seconds

    @property
    def steps(self) -> int:
        """Steps of this process by then."""
        return self._done - self._first_step

    @property
    def images(self) -> int:
        """Examples in these steps."""
        return self.steps * self._batch_size

    def images_per_second(self) -> float:
        """Return the rate over the steps of this process, tests and checkpoints included."""
        return self._steps_per_second() * self._batch_size

    def seconds_left(self) -> float | None:
        """Return how long the rest of the run takes, or None while nobody can know."""
        if self._warm is None or self._done == self._warm[0]:
            return None
        rate = (self._done - self._warm[0]) / max(self._seconds - self._warm[1], 1e-9)
        return max(self._num_steps - self._done, 0) / rate

    def summary(self) -> str:
        """Return what this process did, in words."""
        steps = self.steps
        return (
            f"{steps} step{'' if steps == 1 else 's'} in {self._seconds:.1f} s "
            f"({self.images_per_second():.0f} images/s, tests and checkpoints included)"
        )

    def _steps_per_second(self) -> float:
        """Return the rate since the start."""
        return self.steps / self._seconds if self._seconds else 0.0
