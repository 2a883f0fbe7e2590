"""What a learning-rate range test says: measured curves in, a suggestion out. Pure functions."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from trainer.schedules.range_curves import FEWEST_STEPS, divergence_step, smooth, standard_errors

CLEAR, ROUGH = "clear", "rough"

# The accuracy has risen if its top is this many standard errors, and this much, above its start,
# and the loss has fallen likewise, by this part of itself. (Of pure noise the highest mean is up to
# 5 errors above the lowest; a loss that learns nothing does not fall by a 20th.)
_RISE_ERRORS, _SMALLEST_RISE = 6.0, 0.02
_FALL_ERRORS, _SMALLEST_FALL = 4.0, 0.05
# A rise is clear if it is this many standard errors high. One of the accuracy alone must be clear:
# before anything is learned it wanders, as the network prefers one class or another.
_CLEAR_ERRORS = 20.0
# Rates do equally well within this many standard errors of the best.
_EQUAL_ERRORS = 2.0
# Accuracy has started to rise when it has made this part of its whole rise for good, and has
# fallen when it has lost this part for good.
_PART_OF_RISE, _LOST_ERRORS = 0.1, 3.0
# A test takes a few steps at each rate and a cycle takes many, so lr_max stays below the rate at
# which the test falls by this factor; and lr_min below lr_max (the paper: a third or a fourth).
_BELOW_FALL, _BELOW_MAX = 3.0, 4.0


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """The curves of a range test and what they say.

    Attributes:
      learning_rates: float64[n], the rate that each step applied, rising.
      losses: float64[n], of each batch before its update; the last may be no number.
      accuracies: float64[n], fractions.
      smoothed_losses: float64[n], centered moving means over `window` steps.
      smoothed_accuracies: float64[n], likewise.
      loss_errors: float64[n], the standard errors of these means.
      accuracy_errors: float64[n], likewise.
      window: odd number of steps.
      diverged: whether the last step is the one at which the loss diverged.
      lr_min: suggested lowest rate, or None if the curves show no rise.
      lr_max: suggested highest rate, or None.
      equally_good: lowest and highest of the rates that do as well as the best within two standard
        errors, or None.
      falls_at: the rate from which on the accuracy is lower for good, or None if it does not fall.
      steepest: the rate at which the loss falls fastest, or None if it hardly falls.
      confidence: "clear" or "rough", or None where nothing is suggested.
      reasons: why these bounds, or why none; a sentence each, without its full stop.
      doubts: why the suggestion is rough, and what would tell more; empty if it is clear.
    """

    learning_rates: np.ndarray
    losses: np.ndarray
    accuracies: np.ndarray
    smoothed_losses: np.ndarray
    smoothed_accuracies: np.ndarray
    loss_errors: np.ndarray
    accuracy_errors: np.ndarray
    window: int
    diverged: bool
    lr_min: float | None = None
    lr_max: float | None = None
    equally_good: tuple[float, float] | None = None
    falls_at: float | None = None
    steepest: float | None = None
    confidence: str | None = None
    reasons: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def analyze(
    learning_rates: Sequence[float],
    losses: Sequence[float],
    accuracies: Sequence[float],
    window: int,
) -> RangeTest:
    """Return the bounds of a triangle that the curves of a range test suggest.

    The rules, on centered moving means up to where training diverged:

    - lr_max: the middle of the rates that do as well as the best one within two standard errors;
      at most a third of the rate at which the accuracy falls for good (a dip that it comes back
      from is no fall); and never below the rate at which the loss falls fastest;
    - lr_min: the first rate from which the accuracy keeps a tenth of its rise, and at most a fourth
      of lr_max.

    "Best" is the lowest loss, which is less noisy; the highest accuracy where the loss hardly
    falls. Where the accuracy hardly rises, the loss takes its place likewise.

    Args:
      learning_rates: of each step, rising, in equal differences or equal factors.
      losses: of the batch of each step.
      accuracies: likewise, fractions.
      window: steps to smooth over, odd, >= 3.

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
    test = RangeTest(
        learning_rates=rates,
        losses=loss,
        accuracies=accuracy,
        smoothed_losses=smoothed_losses,
        smoothed_accuracies=smoothed_accuracies,
        loss_errors=standard_errors(loss, smoothed_losses, window),
        accuracy_errors=standard_errors(accuracy, smoothed_accuracies, window),
        window=window,
        diverged=diverged_at is not None,
    )
    if num_steps < FEWEST_STEPS:
        return _without_answer(test)
    return _suggest(test)


@dataclasses.dataclass(frozen=True)
class _Score:
    """A curve of which more is better, where its means are whole, and what it reaches.

    Attributes:
      values: float64[n], means.
      errors: float64[n], their standard errors.
      start: its lowest value before the top.
      top: index of its highest value.
    """

    values: np.ndarray
    errors: np.ndarray
    start: int
    top: int

    @classmethod
    def of(cls, values: np.ndarray, errors: np.ndarray, window: int) -> "_Score":
        """Find start and top; no verdict from the few steps of a mean near the ends."""
        # A step that diverged and the means around it are no numbers, and lie at the end.
        whole = slice(window // 4, len(values) - window // 2)
        inner = np.where(np.isfinite(values), values, -np.inf)
        top = whole.start + int(np.argmax(inner[whole]))
        start = whole.start + int(np.argmin(values[whole.start : top + 1]))
        return cls(values[: whole.stop], errors[: whole.stop], start, top)

    @property
    def rise(self) -> float:
        """How far it rises."""
        return float(self.values[self.top] - self.values[self.start])

    @property
    def rise_in_errors(self) -> float:
        """How far it rises, in standard errors of the difference."""
        error = np.hypot(self.errors[self.top], self.errors[self.start])
        return self.rise / max(float(error), 1e-12)

    def has_risen(self, least: float, least_in_errors: float) -> bool:
        """Whether it rises by so much, and by so many standard errors."""
        return self.rise >= least and self.rise_in_errors >= least_in_errors

    def as_good_as_the_best(self) -> tuple[int, int]:
        """Return the first and the last index whose value is the highest within its noise."""
        level = self.values[self.top] - _EQUAL_ERRORS * self.errors[self.top]
        within = np.flatnonzero(self.values >= level)
        return int(within[0]), int(within[-1])

    def falls_from(self) -> int | None:
        """Return the index from which on a part of the rise is lost for good, or None."""
        lost = max(_PART_OF_RISE * self.rise, _LOST_ERRORS * float(self.errors[self.top]))
        last = int(np.flatnonzero(self.values >= self.values[self.top] - lost)[-1])
        return last + 1 if last + 1 < len(self.values) else None

    def rises_from(self) -> int:
        """Return the index from which on a part of the rise is kept, up to the top."""
        made = max(_PART_OF_RISE * self.rise, _EQUAL_ERRORS * float(self.errors[self.start]))
        below = np.flatnonzero(self.values[: self.top + 1] < self.values[self.start] + made)
        return int(below[-1]) + 1


def _suggest(test: RangeTest) -> RangeTest:
    """Return the test with what its curves say."""
    rates, window = test.learning_rates, test.window
    accuracy = _Score.of(test.smoothed_accuracies, test.accuracy_errors, window)
    loss = _Score.of(-test.smoothed_losses, test.loss_errors, window)
    risen = accuracy.has_risen(_SMALLEST_RISE, _RISE_ERRORS)
    least_fall = -_SMALLEST_FALL * float(loss.values[loss.start])
    fallen = loss.has_risen(least_fall, _FALL_ERRORS)
    if not fallen and not accuracy.has_risen(_SMALLEST_RISE, _CLEAR_ERRORS):
        return _without_answer(test)
    best, kept = loss if fallen else accuracy, accuracy if risen else loss
    first, last = best.as_good_as_the_best()
    end = kept.falls_from()
    if end is None and test.diverged:
        end = len(rates) - 1
    middle, steepest = float(rates[(first + last) // 2]), _steepest(test, loss) if fallen else None
    lr_max, why = middle, "in the middle of these"
    if end is not None and middle > rates[end] / _BELOW_FALL:
        lr_max, why = float(rates[end]) / _BELOW_FALL, "a third of the rate at which it falls"
    if steepest is not None and lr_max < steepest:
        lr_max, why = steepest, "where the loss falls fastest"
    low = kept.rises_from()
    lr_min = min(float(rates[low]), lr_max / _BELOW_MAX)
    test = dataclasses.replace(
        test,
        lr_min=_two_digits(lr_min),
        lr_max=_two_digits(lr_max),
        equally_good=(_two_digits(rates[first]), _two_digits(rates[last])),
        falls_at=None if end is None else _two_digits(rates[end]),
        steepest=None if steepest is None else _two_digits(steepest),
    )
    doubts = _doubts(test, kept, fallen, low < window)
    return dataclasses.replace(
        test,
        confidence=ROUGH if doubts else CLEAR,
        reasons=_reasons(test, kept is accuracy, why),
        doubts=doubts,
    )


def _steepest(test: RangeTest, loss: _Score) -> float:
    """Return the rate at which the loss falls fastest, before it is lowest."""
    # Smoothed twice more: a slope is noisier than a mean. Steps are equally far apart on the axis
    # that they are drawn on, so no division is needed. What falls after the lowest loss falls from
    # a peak of the divergence.
    curve = smooth(smooth(test.smoothed_losses[: len(loss.values)], test.window), test.window)
    slopes = np.diff(curve[: loss.top + 1])
    first = min(test.window // 4, len(slopes) - 1)
    return float(test.learning_rates[first + int(np.argmin(slopes[first:]))])


def _reasons(test: RangeTest, by_accuracy: bool, why: str) -> tuple[str, ...]:
    """Return why these bounds were chosen."""
    starts, ends = ("rise", "falls") if by_accuracy else ("fall", "rises")
    curve = "accuracy" if by_accuracy else "loss"
    low, high = test.equally_good or (test.lr_max, test.lr_max)
    reasons = [
        f"the {curve} starts to {starts} at {test.lr_min:g}",
        f"rates from {low:g} to {high:g} do equally well, within two standard errors",
    ]
    if test.falls_at is not None and not (test.diverged and test.falls_at == _last(test)):
        reasons.append(f"the {curve} {ends} for good at {test.falls_at:g}")
    if test.diverged:
        reasons.append(f"the loss diverges at {_last(test):g}")
    reasons.append(f"lr_max {test.lr_max:g} is {why}")
    return tuple(reasons)


def _doubts(test: RangeTest, kept: _Score, fallen: bool, at_once: bool) -> tuple[str, ...]:
    """Return why the suggestion is rough, and what to do about it."""
    doubts = []
    if kept.rise_in_errors < _CLEAR_ERRORS:
        doubts.append(
            f"the rise is only {kept.rise_in_errors:.0f} standard errors high: raise "
            "--find_lr_steps or --batch_size"
        )
    if not fallen:
        doubts.append("the loss hardly falls: raise --find_lr_steps, or try --standardize")
    if test.falls_at is None:
        doubts.append(
            f"nothing falls up to {_last(test):g}, the last rate: raise --find_lr_max"
        )
    if at_once:
        doubts.append("the rise begins with the first rates: lower --find_lr_min")
    return tuple(doubts)


def _without_answer(test: RangeTest) -> RangeTest:
    """Return the test with the reason why its curves suggest nothing, and what to do."""
    num_steps, last = len(test.losses), f"{_last(test):g}"
    if test.diverged:
        when = f"after {num_steps} steps" if num_steps < FEWEST_STEPS else "before the accuracy rose"
        reason = f"the loss diverged at {last}, {when}; lower --find_lr_min, or raise "
        reason += "--find_lr_steps"
    elif num_steps < FEWEST_STEPS:
        reason = f"{num_steps} steps are too few; use --find_lr_steps={FEWEST_STEPS} or more"
    else:
        reason = (
            f"the accuracy never rose, up to {last}; raise --find_lr_max or --find_lr_steps, or "
            "try --standardize"
        )
    return dataclasses.replace(test, reasons=(reason,))


def _last(test: RangeTest) -> float:
    """Return the rate of the last step."""
    return _two_digits(test.learning_rates[-1])


def _two_digits(rate: float) -> float:
    """Return a rate as it is suggested."""
    return float(f"{rate:.2g}")
