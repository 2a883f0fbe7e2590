"""One curve of a range test, of which more is better: where it rises, is best, and falls."""

import dataclasses

import numpy as np

# Indices are as good as the best within this many standard errors.
EQUAL_ERRORS = 2.0
# A curve has started to rise when it has made this part of its whole rise for good, and has fallen
# when it has lost this part for good, unless so many standard errors are more.
_PART_OF_RISE, _MADE_ERRORS, _LOST_ERRORS = 0.1, 2.0, 3.0


@dataclasses.dataclass(frozen=True)
class Score:
    """An accuracy, or the negative of a loss, over the steps of a range test.

    Attributes:
      values: float64[n], moving means; those near the last step, of fewer steps, are left out.
      errors: float64[n], their standard errors.
      start: index of the lowest value before the top.
      top: index of the highest value.
    """

    values: np.ndarray
    errors: np.ndarray
    start: int
    top: int

    @classmethod
    def of(cls, values: np.ndarray, errors: np.ndarray, window: int) -> "Score":
        """Return the score of a whole curve.

        Args:
          values: float64[m], moving means; only the last may be no number.
          errors: float64[m], their standard errors.
          window: steps of a mean, odd, >= 3; less than m.
        """
        # Near the ends means are of few steps, and may be high or low by chance.
        first, end = window // 4, len(values) - window // 2
        top = first + int(np.argmax(values[first:end]))
        start = first + int(np.argmin(values[first : top + 1]))
        return cls(values[:end], errors[:end], start, top)

    @property
    def rise(self) -> float:
        """How far it rises."""
        return float(self.values[self.top] - self.values[self.start])

    @property
    def rise_in_errors(self) -> float:
        """How far it rises, in standard errors of that difference."""
        error = float(np.hypot(self.errors[self.top], self.errors[self.start]))
        return self.rise / max(error, 1e-12)

    def has_risen(self, least: float, least_in_errors: float) -> bool:
        """Return whether it rises by so much, and by so many standard errors."""
        return self.rise >= least and self.rise_in_errors >= least_in_errors

    def rises_from(self) -> int:
        """Return the index from which on, up to the top, it has kept a part of its rise."""
        made = max(_PART_OF_RISE * self.rise, _MADE_ERRORS * float(self.errors[self.start]))
        below = np.flatnonzero(self.values[: self.top] < self.values[self.start] + made)
        return int(below[-1]) + 1 if len(below) else self.top

    def equally_good(self) -> tuple[int, int]:
        """Return the first and the last index at which it is as high as at the top, but for noise.

        What dips between them does not count: it comes back.
        """
        level = self.values[self.top] - EQUAL_ERRORS * self.errors[self.top]
        within = np.flatnonzero(self.values >= level)
        return int(within[0]), int(within[-1])

    def falls_from(self) -> int | None:
        """Return the index from which on it has lost a part of its rise for good, or None."""
        lost = max(_PART_OF_RISE * self.rise, _LOST_ERRORS * float(self.errors[self.top]))
        last = int(np.flatnonzero(self.values >= self.values[self.top] - lost)[-1])
        return last + 1 if last + 1 < len(self.values) else None
