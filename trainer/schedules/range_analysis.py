"""What a learning-rate range test says: measured curves in, a suggestion out. Pure functions."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from trainer.schedules.range_curves import FEWEST_STEPS, divergence_step, smooth, standard_errors
from trainer.schedules.range_scores import Score

CLEAR, ROUGH = "clear", "rough"

# The accuracy has risen if its top is so many standard errors, and so much, above its start; the
# loss has fallen likewise, by a part of itself. (Of pure noise the highest of all means is about 4
# errors above the lowest.)
_RISE_ERRORS, _SMALLEST_RISE = 5.0, 0.02
_FALL_ERRORS, _SMALLEST_FALL = 4.0, 0.05
# A rise of so many standard errors is clear. Where only one of the two curves rises, it must be:
# before anything is learned the accuracy wanders, as the network prefers one class or another.
_CLEAR_ERRORS = 20.0
# A test takes a few steps at each rate and a cycle takes many, so lr_max stays below the rate at
# which the test falls by this factor; and lr_min below lr_max (the paper: a third or a fourth).
_BELOW_FALL, _BELOW_MAX = 3.0, 4.0


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """The bounds of a triangle that the curves of a range test suggest, and how sure they are.

    Attributes:
      lr_min: lowest rate.
      lr_max: highest rate.
      equally_good: lowest and highest of the rates that do as well as the best within two standard
        errors.
      falls_at: the rate from which on the accuracy is lower for good, or the loss diverges; or None
        if it does neither.
      steepest: the rate at which the loss falls fastest, or None if it hardly falls.
      rise_in_errors: how far the accuracy rises, in standard errors.
      reasons: why these bounds, a line each.
      doubts: why they are rough, and what would tell more, a line each; none if they are clear.
    """

    lr_min: float
    lr_max: float
    equally_good: tuple[float, float]
    falls_at: float | None
    steepest: float | None
    rise_in_errors: float
    reasons: tuple[str, ...]
    doubts: tuple[str, ...]

    @property
    def confidence(self) -> str:
        """How sure the bounds are: "clear" or "rough"."""
        return ROUGH if self.doubts else CLEAR

    @property
    def how_sure(self) -> str:
        """How sure the bounds are, with the number behind it."""
        return f"{self.confidence}, the rise is {self.rise_in_errors:.0f} standard errors high"


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
      suggestion: what the curves suggest, or None if they show no rise.
      refusal: why there is no suggestion, and what to do; empty if there is one.
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
    suggestion: Suggestion | None = None
    refusal: str = ""


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
    suggestion = _suggest(test) if num_steps >= FEWEST_STEPS else None
    refusal = "" if suggestion else _refusal(test)
    return dataclasses.replace(test, suggestion=suggestion, refusal=refusal)


def _suggest(test: RangeTest) -> Suggestion | None:
    """Return what the curves suggest, or None if they show no rise."""
    rates, last = test.learning_rates, len(test.learning_rates) - 1
    accuracy = Score.of(test.smoothed_accuracies, test.accuracy_errors, test.window)
    loss = Score.of(-test.smoothed_losses, test.loss_errors, test.window)
    least_fall = -_SMALLEST_FALL * float(loss.values[loss.start])
    risen = accuracy.has_risen(_SMALLEST_RISE, _RISE_ERRORS)
    fallen = loss.has_risen(least_fall, _FALL_ERRORS)
    is_clear = accuracy.has_risen(_SMALLEST_RISE, _CLEAR_ERRORS) or loss.has_risen(
        least_fall, _CLEAR_ERRORS
    )
    if not (risen and fallen) and not is_clear:
        return None
    best, kept = loss if fallen else accuracy, accuracy if risen else loss
    low, (first, final), end = kept.rises_from(), best.equally_good(), kept.falls_from()
    curve = "accuracy" if risen else "loss"
    what, falls_at = f"the {curve} gets worse for good", None if end is None else rates[end]
    if end is None and test.diverged:
        what, falls_at = "the loss diverges", rates[last]
    steepest = _steepest(test, loss) if fallen else None
    lr_max, why = _highest(rates[(first + final) // 2], falls_at, what, steepest)
    reasons = [
        f"the {curve} starts to {'rise' if risen else 'fall'} at {_short(rates[low])}",
        f"rates of {_short(rates[first])} to {_short(rates[final])} do equally well, within two "
        "standard errors",
        *([] if falls_at is None else [f"{what} at {_short(falls_at)}"]),
        f"lr_max {_short(lr_max)} is {why}",
    ]
    return Suggestion(
        lr_min=_rounded(min(rates[low], lr_max / _BELOW_MAX)),
        lr_max=_rounded(lr_max),
        equally_good=(_rounded(rates[first]), _rounded(rates[final])),
        falls_at=None if falls_at is None else _rounded(falls_at),
        steepest=None if steepest is None else _rounded(steepest),
        rise_in_errors=kept.rise_in_errors,
        reasons=tuple(reasons),
        doubts=_doubts(test, kept, fallen, falls_at is not None, low < test.window // 2),
    )


def _highest(
    middle: float, falls_at: float | None, what: str, steepest: float | None
) -> tuple[float, str]:
    """Return lr_max, and why it is that."""
    lr_max, why = middle, "in the middle of these"
    if falls_at is not None and lr_max > falls_at / _BELOW_FALL:
        lr_max, why = falls_at / _BELOW_FALL, f"a third of the rate at which {what}"
    if steepest is not None and lr_max < steepest:
        lr_max, why = steepest, "where the loss falls fastest"
    return float(lr_max), why


def _steepest(test: RangeTest, loss: Score) -> float:
    """Return the rate at which the loss falls fastest, before it is lowest."""
    # Smoothed twice more: a slope is noisier than a mean. Steps are equally far apart on the axis
    # that they are drawn on, so no division is needed. What falls after the lowest loss falls from
    # a peak of the divergence.
    curve = smooth(smooth(test.smoothed_losses[: len(loss.values)], test.window), test.window)
    slopes = np.diff(curve[: loss.top + 1])
    first = min(test.window // 4, len(slopes) - 1)
    return float(test.learning_rates[first + int(np.argmin(slopes[first:]))])


def _doubts(
    test: RangeTest, kept: Score, fallen: bool, falls: bool, rises_at_once: bool
) -> tuple[str, ...]:
    """Return why a suggestion is rough, and what would tell more."""
    doubts = {
        f"a rise of {_CLEAR_ERRORS:g} and more is clear: raise --find_lr_steps, or --batch_size": (
            kept.rise_in_errors < _CLEAR_ERRORS
        ),
        "the loss hardly falls: raise --find_lr_steps, or use --standardize": not fallen,
        f"nothing gets worse up to the last rate, {_short(test.learning_rates[-1])}: raise "
        "--find_lr_max": not falls,
        "it rises from the first rates on: lower --find_lr_min": rises_at_once,
    }
    return tuple(doubt for doubt, holds in doubts.items() if holds)


def _refusal(test: RangeTest) -> str:
    """Return why the curves suggest nothing, and what to do."""
    num_steps, last = len(test.losses), _short(test.learning_rates[-1])
    if test.diverged:
        when = (
            f"after {num_steps} steps" if num_steps < FEWEST_STEPS else "before the accuracy rose"
        )
        return f"the loss diverged at {last}, {when}; lower --find_lr_min, or raise --find_lr_steps"
    if num_steps < FEWEST_STEPS:
        return f"{num_steps} steps are too few; use --find_lr_steps={FEWEST_STEPS} or more"
    return (
        f"the accuracy never rose, up to {last}; raise --find_lr_max or --find_lr_steps, or use "
        "--standardize"
    )


def _rounded(rate: float) -> float:
    """Return a rate as it is suggested: the curves say no more than two digits."""
    return float(f"{rate:.2g}")


def _short(rate: float) -> str:
    """Return a rate as it is written."""
    return f"{_rounded(rate):g}"
