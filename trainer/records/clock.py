"""Where the time of a run goes: every second of a start in one part."""

import time

START_UP, COMPILATION, DATA = "start_up", "compilation", "data"
STEPS, EVALUATION, CHECKPOINTS, PICTURE = "steps", "evaluation", "checkpoints", "picture"
PARTS = (START_UP, COMPILATION, DATA, STEPS, EVALUATION, CHECKPOINTS, PICTURE)


class Clock:
    """Adds up the seconds of this start of a run, each in the part that it was in.

    Attributes:
      began: seconds since the epoch at which the start began.
    """

    def __init__(self, began: float | None = None):
        """Start in the start-up.

        Args:
          began: seconds since the epoch; None: now.
        """
        now = time.time()
        self.began = now if began is None else began
        # The system's time may be set while a run is in progress: it is read once.
        self._since = time.monotonic() - (now - self.began)
        self._part = START_UP
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def enter(self, part: str) -> None:
        """Count the seconds from here on in a part, one of PARTS."""
        now = time.monotonic()
        self._seconds[self._part] += now - self._since
        self._since, self._part = now, part

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part until now; their sum is the time since `began`."""
        self.enter(self._part)
        return dict(self._seconds)
