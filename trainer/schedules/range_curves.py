"""The curves of a learning-rate range test: the rates it applies, and how its curves are smoothed.

What the curves say is `range_analysis`. Pure functions.
"""

from collections.abc import Sequence

import numpy as np

EXPONENTIAL, LINEAR = "exponential", "linear"

# Fewer steps than this show no curve.
FEWEST_STEPS = 40
# The test ends where the loss is this many times the lowest it was (so fastai and Lightning).
_DIVERGED = 4.0
# Steps are smoothed over a window of this part of all. On an exponential ramp from 1e-5 to 10 a
# window is half a decade: narrower ones follow the noise of small batches.
_WINDOWS = 12
# Their scatter is seen in no fewer steps.
_FEWEST_FOR_SCATTER = 25


def ramp(lr_start: float, lr_end: float, num_steps: int, kind: str) -> np.ndarray:
    """Return the learning rates of a range test.

    Args:
      lr_start: first rate, > 0, or >= 0 for a linear ramp.
      lr_end: last rate, > lr_start.
      num_steps: >= 2.
      kind: "exponential" (equal factors) or "linear" (equal differences, the paper's).

    Returns:
      float32[num_steps].
    """
    spaced = np.geomspace if kind == EXPONENTIAL else np.linspace
    return spaced(lr_start, lr_end, num_steps).astype(np.float32)


def window_of(num_steps: int) -> int:
    """Return the odd number of steps that curves of `num_steps` are smoothed over, about a 12th."""
    return 2 * (num_steps // (2 * _WINDOWS)) + 1


def divergence_step(losses: Sequence[float], window: int) -> int | None:
    """Return the first step whose loss shows that training has diverged, or None.

    It has where the loss is not finite, or where its mean over the last steps, half a window, is
    more than 4 times the lowest such mean so far.

    Args:
      losses: of the steps so far.
      window: odd number of steps that the curves are smoothed over.
    """
    values = np.asarray(losses, np.float64)
    finite = np.isfinite(values)
    sums = np.cumsum(np.concatenate([[0.0], np.where(finite, values, 0.0)]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - (window + 1) // 2, 0)
    means = (sums[ends] - sums[starts]) / (ends - starts)
    gone = ~finite | (means > _DIVERGED * np.minimum.accumulate(means))
    return int(np.argmax(gone)) if gone.any() else None


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Return the centered moving mean, over as many values after as before each one.

    Towards the ends the window shrinks, so that a mean never leans to what lies on one side.

    Args:
      values: float64[n]; what is not finite is left out, and nothing else gives NaN.
      window: odd number of values.
    """
    finite = np.isfinite(values)
    sums, counts = (
        np.concatenate([[0.0], np.cumsum(each)]) for each in (np.where(finite, values, 0), finite)
    )
    half = _half_windows(len(values), window)
    index = np.arange(len(values))
    low, high = index - half, index + half + 1
    within = counts[high] - counts[low]
    return np.where(within > 0, (sums[high] - sums[low]) / np.maximum(within, 1), np.nan)


def standard_errors(values: np.ndarray, smoothed: np.ndarray, window: int) -> np.ndarray:
    """Return the standard error of each value of a smoothed curve, from the scatter around it.

    Args:
      values: float64[n].
      smoothed: float64[n], `smooth(values, window)`.
      window: odd number of values, >= 3.
    """
    # The scatter of few steps is itself uncertain. Around their own mean steps scatter less than
    # around the true one.
    wide = max(window, _FEWEST_FOR_SCATTER)
    variances = smooth((values - smoothed) ** 2, wide) * window / (window - 1)
    # At the ends a value is its own mean, and does not scatter around it.
    margin = min(window // 2, (len(values) - 1) // 2)
    inside = np.clip(np.arange(len(values)), margin, len(values) - 1 - margin)
    return np.sqrt(variances[inside] / (2 * _half_windows(len(values), window) + 1))


def _half_windows(count: int, window: int) -> np.ndarray:
    """Return how many values a centered window takes on either side of each of `count`."""
    index = np.arange(count)
    return np.minimum(np.minimum(index, index[::-1]), window // 2)
