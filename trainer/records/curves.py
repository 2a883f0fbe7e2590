"""What of a run's numbers a picture of some hundred pixels can show."""

import dataclasses
import itertools

import numpy as np

# What can still be told apart in a picture: bins of a curve, vertical lines.
MOST_BINS, MOST_MARKS = 800, 16
# Steps at which a planned schedule is evaluated: all of a short run, and of a long one some evenly
# and the corners of some cycles.
_MOST_STEPS, _MOST_EVEN_STEPS, _MOST_SAMPLED_CYCLES = 20_000, 4_000, 1_000


@dataclasses.dataclass(frozen=True)
class Marks:
    """Where vertical lines stand, thinned out.

    Attributes:
      steps: of the lines.
      every: 1 if all are there, k if every k-th is.
      count: how many there are before any are left out.
    """

    steps: np.ndarray
    every: int
    count: int


def marks_at(steps: np.ndarray) -> Marks:
    """Return few of the marks at these steps."""
    every = mark_every(len(steps))
    return Marks(steps[every - 1 :: every], every, len(steps))


def marks_each(period: int, num_steps: int) -> Marks:
    """Return few of the marks at the multiples of a period, after 0 and before `num_steps`."""
    count = (num_steps - 1) // period
    every = mark_every(count)
    return Marks(np.arange(every, count + 1, every, dtype=np.int64) * period, every, count)


def mark_every(count: int, most: int = MOST_MARKS) -> int:
    """Return the k of 1, 2, 5, 10, 20, ... such that every k-th of `count` marks are few."""
    every = 1
    while count > most * every:
        every = int(every * (2.5 if str(every)[0] == "2" else 2))
    return every


def steps_to_draw(num_steps: int, steps_per_cycle: int, top: int) -> np.ndarray:
    """Return the steps at which a schedule is worth evaluating, however long the run is.

    They include the lowest and the highest step of each cycle that they touch, of the first and
    of the last.

    Args:
      num_steps: of the run, up to 2**31.
      steps_per_cycle: of the schedule.
      top: the step of a cycle at which the rate is highest.

    Returns:
      int64[n], rising, with n of some thousands.
    """
    if num_steps <= _MOST_STEPS:
        return np.arange(num_steps)
    num_cycles = -(-num_steps // steps_per_cycle)
    sampled = np.arange(0, num_cycles, -(-num_cycles // _MOST_SAMPLED_CYCLES), dtype=np.int64)
    starts = np.append(sampled, num_cycles - 1)[:, None] * steps_per_cycle
    steps = (starts + np.array([0, top, steps_per_cycle - 1])).ravel()
    if num_cycles <= _MOST_SAMPLED_CYCLES:
        even = np.linspace(0, num_steps - 1, _MOST_EVEN_STEPS).astype(np.int64)
        steps = np.concatenate([steps, even])
    return np.unique(np.append(steps[steps < num_steps], num_steps - 1))


def envelope(
    steps: np.ndarray, values: np.ndarray, most_bins: int = MOST_BINS
) -> tuple[np.ndarray, np.ndarray]:
    """Return few points whose line covers what the line through all points covers.

    Of every bin of steps the lowest and the highest value stay, in their order: a triangle of many
    cycles fills an area, where every n-th point would show cycles that are not there.

    Args:
      steps: float64[n], rising.
      values: float64[n].
      most_bins: bins; with fewer than two points a bin all points stay.

    Returns:
      Steps and values, of at most 2 * most_bins + 2 points.
    """
    if len(steps) <= 2 * most_bins:
        return steps, values
    kept = {0, len(steps) - 1}
    for low, high in bins(len(steps), most_bins):
        kept |= {low + int(values[low:high].argmin()), low + int(values[low:high].argmax())}
    indices = sorted(kept)
    return steps[indices], values[indices]


def bins(count: int, most_bins: int) -> list[tuple[int, int]]:
    """Return the ends of almost equal bins of indices."""
    edges = np.linspace(0, count, min(most_bins, count) + 1).astype(int).tolist()
    return list(itertools.pairwise(edges))


def smoothing_window(num_steps: int) -> int:
    """Return the odd number of steps that the curves of a run are smoothed over, a 60th."""
    return 2 * (num_steps // 120) + 1


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the means of all whole windows: window - 1 values fewer.

    A window is the end of one block of that length and the beginning of the next: running sums
    within blocks cost little, and a loss of 1e30 is forgotten as soon as it is out of the window.
    """
    blocks = np.pad(values, (0, -len(values) % window)).reshape(-1, window)
    ends = blocks[:, ::-1].cumsum(1)[:, ::-1].ravel()
    beginnings = blocks.cumsum(1).ravel()
    starts = np.arange(len(values) - window + 1)
    return (ends[starts] + np.where(starts % window, beginnings[starts + window - 1], 0)) / window


def accuracy_limits(train: np.ndarray, test: np.ndarray, window: int) -> tuple[float, float]:
    """Return the ends of the axis of accuracy, in %: what follows the first tenth of the run.

    Args:
      train: float64[n], fractions, step by step.
      test: float64[m], fractions.
      window: odd number of steps to smooth over.
    """
    smoothed = moving_mean(train, window)[len(train) // 10 :]
    lowest = 100 * min(smoothed.min(), test.min(initial=1.0))
    span = max(100 - lowest, 1.0)
    return max(lowest - 0.15 * span, 0.0), 100 + 0.04 * span


def cycle_starts(rates: np.ndarray) -> np.ndarray:
    """Return the indices at which the rate turns from falling to rising.

    The rates that were applied say it, also where the schedule was changed at a resume.
    """
    return np.flatnonzero((rates[1:-1] < rates[:-2]) & (rates[1:-1] < rates[2:])) + 1
