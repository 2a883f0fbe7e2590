"""What a learning-rate range test says: measured curves in, a suggestion out. Pure functions."""

import dataclasses
from collections.abc import Sequence

import numpy as np

EXPONENTIAL, LINEAR = "exponential", "linear"

# Fewer steps than this show no curve.
FEWEST_STEPS = 40
# The test ends where the loss is this many times the lowest it was (so fastai and Lightning).
_DIVERGED = 4.0
# Accuracy has started to rise when it has made this part of its whole rise for good, and has
# fallen when it has lost this part again.
_PART_OF_RISE = 0.1
# A rise is seen if it is this large, and this many standard errors; a fall likewise.
_SMALLEST_RISE, _RISE_ERRORS, _FALL_ERRORS = 0.05, 10.0, 3.0
# A loss that falls by less than this part has no steepest fall.
_PART_OF_FALL = 0.1
# What flattens only in this last part of the steps may not have flattened.
_LAST_PART = 0.1


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """The curves of a range test and what they say.

    Attributes:
      learning_rates: float64[n], the rate that each step applied, rising.
      losses: float64[n], of each batch before its update; the last may be no number.
      accuracies: float64[n], fractions.
      smoothed_losses: float64[n], centered moving means over `window` steps.
      smoothed_accuracies: float64[n], likewise.
      window: odd number of steps.
      diverged: whether the last step is the one at which the loss diverged.
      lr_min: suggested lowest rate, or None if the curves give no clear answer.
      lr_max: suggested highest rate, or None.
      steepest: the rate at which the loss fell fastest, or None if it did not fall.
      verdict: why these bounds, or why none, and what to do.
    """

    learning_rates: np.ndarray
    losses: np.ndarray
    accuracies: np.ndarray
    smoothed_losses: np.ndarray
    smoothed_accuracies: np.ndarray
    window: int
    diverged: bool
    lr_min: float | None
    lr_max: float | None
    steepest: float | None
    verdict: str


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
    """Return the odd number of steps that curves of `num_steps` are smoothed over, a 25th."""
    return 2 * (num_steps // 50) + 1


def divergence_step(losses: Sequence[float], window: int) -> int | None:
    """Return the first step whose loss shows that training has diverged, or None.

    It has where the loss is not finite, or where its mean over the `window` steps before is more
    than 4 times the lowest such mean so far.

    Args:
      losses: of the steps so far.
      window: steps of a mean.
    """
    values = np.asarray(losses, np.float64)
    finite = np.isfinite(values)
    sums = np.cumsum(np.concatenate([[0.0], np.where(finite, values, 0.0)]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    means = (sums[ends] - sums[starts]) / (ends - starts)
    gone = ~finite | (means > _DIVERGED * np.minimum.accumulate(means))
    return int(np.argmax(gone)) if gone.any() else None


def analyze(
    learning_rates: Sequence[float],
    losses: Sequence[float],
    accuracies: Sequence[float],
    window: int,
) -> RangeTest:
    """Return the bounds of a triangle that the curves of a range test suggest.

    The rules, on accuracies smoothed by a centered moving mean, up to where training diverged:

    - the end: where the accuracy first loses a tenth of its rise again (it falls, or is ragged);
    - lr_max: the first rate before the end whose accuracy is within one standard error of the
      highest: from there on a higher rate gains nothing (it flattens);
    - lr_min: the first rate from which the accuracy keeps a tenth of its rise (it starts to rise).

    The steepest fall of the loss, which other range tests suggest as the one rate, is found too.

    Args:
      learning_rates: of each step, rising, in equal differences or equal factors.
      losses: of the batch of each step.
      accuracies: likewise, fractions.
      window: steps to smooth over, odd.

    Returns:
      Curves and suggestion; the curves end where training diverged.

    Reference:
      Smith, Cyclical Learning Rates for Training Neural Networks, 2017, section 3.3
      (https://arxiv.org/abs/1506.01186): base_lr where the accuracy starts to rise, max_lr where
      its rise slows, becomes ragged, or turns into a fall.
    """
    diverged_at = divergence_step(losses, window)
    num_steps = len(losses) if diverged_at is None else diverged_at + 1
    rates, loss, accuracy = (
        np.asarray(values, np.float64)[:num_steps]
        for values in (learning_rates, losses, accuracies)
    )
    smoothed_losses, smoothed_accuracies = (smooth(values, window) for values in (loss, accuracy))
    diverged = diverged_at is not None
    lr_min, lr_max, verdict = _suggest(rates, accuracy, smoothed_accuracies, window, diverged)
    return RangeTest(
        learning_rates=rates,
        losses=loss,
        accuracies=accuracy,
        smoothed_losses=smoothed_losses,
        smoothed_accuracies=smoothed_accuracies,
        window=window,
        diverged=diverged,
        lr_min=lr_min,
        lr_max=lr_max,
        steepest=_steepest(rates, smoothed_losses, window),
        verdict=verdict,
    )


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
    index = np.arange(len(values))
    half = np.minimum(np.minimum(index, index[::-1]), window // 2)
    low, high = index - half, index + half + 1
    within = counts[high] - counts[low]
    return np.where(within > 0, (sums[high] - sums[low]) / np.maximum(within, 1), np.nan)


def _suggest(
    rates: np.ndarray, accuracies: np.ndarray, smoothed: np.ndarray, window: int, diverged: bool
) -> tuple[float | None, float | None, str]:
    """Return lr_min, lr_max and why; or None, None and why there is no clear answer."""

    def unclear(why: str) -> tuple[None, None, str]:
        return None, None, f"no clear answer: {why}"

    last = f"{rates[-1]:.2g}"
    if len(rates) < FEWEST_STEPS:
        return unclear(
            f"the loss diverged at {last}, after {len(rates)} steps; lower --find_lr_min, "
            "or raise --find_lr_steps"
            if diverged
            else f"{len(rates)} steps are too few; valid: --find_lr_steps={FEWEST_STEPS} and more"
        )
    # From the scatter of the single steps around their mean.
    errors = np.sqrt(smooth((accuracies - smoothed) ** 2, window) / window)
    # Few steps: on a linear ramp the accuracy rises within a window.
    start = accuracies[: window // 5 + 1].mean()
    # Where the window shrinks at the end, a mean may be high by chance.
    smoothed = smoothed[: len(rates) - window // 2]
    top = int(np.argmax(smoothed))
    rise = smoothed[top] - start
    if rise < max(_SMALLEST_RISE, _RISE_ERRORS * errors[top]):
        return unclear(
            f"the loss diverged at {last} before the accuracy rose; lower --find_lr_min, or raise "
            "--find_lr_steps"
            if diverged
            else f"the accuracy never rose, up to {last}; raise --find_lr_max, or --find_lr_steps"
        )
    lost = np.maximum.accumulate(smoothed) - smoothed
    fallen = lost > np.maximum(_PART_OF_RISE * rise, _FALL_ERRORS * errors[: len(lost)])
    falls = bool(fallen.any())
    end = int(np.argmax(fallen)) if falls else len(smoothed)
    top = int(np.argmax(smoothed[:end]))
    high = int(np.argmax(smoothed >= smoothed[top] - errors[top]))
    if not falls and not diverged and high >= (1 - _LAST_PART) * end:
        return unclear(f"the accuracy still rises at the end, {last}; raise --find_lr_max")
    below = np.flatnonzero(smoothed[:high] < start + _PART_OF_RISE * rise)
    low = int(below[-1]) + 1 if len(below) else 0
    lr_min, lr_max = (float(f"{rates[i]:.2g}") for i in (low, high))
    if lr_min >= lr_max:
        return unclear(f"the accuracy rises and flattens at {lr_max}; raise --find_lr_steps")
    verdict = f"the accuracy starts to rise at {lr_min} and stops rising at {lr_max}"
    if falls:
        verdict += f"; it falls at {rates[end]:.2g}"
    if diverged:
        verdict += f"; the loss diverges at {last}"
    if low < window:
        verdict += "; it rises from the first steps on, and may do so at lower rates"
    return lr_min, lr_max, verdict


def _steepest(rates: np.ndarray, smoothed_losses: np.ndarray, window: int) -> float | None:
    """Return the rate at which the loss falls fastest, or None where it hardly falls."""
    # Steps are equally far apart on the axis that they are drawn on, so no division is needed.
    # What falls after the lowest loss falls from a peak of the divergence.
    lowest = int(np.nanargmin(smoothed_losses))
    slopes = np.diff(smoothed_losses[: lowest + 1])[window:]
    if not len(slopes) or smoothed_losses[lowest] > (1 - _PART_OF_FALL) * smoothed_losses[0]:
        return None
    return float(f"{rates[window + int(np.argmin(slopes))]:.2g}")
