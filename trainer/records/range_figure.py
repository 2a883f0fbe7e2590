"""The picture of a learning-rate range test: what it measured, what it suggests, how sure it is."""

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from trainer.records import panels
from trainer.records.panels import BLUE, GREEN, ORANGE
from trainer.schedules.range_analysis import RangeTest, Suggestion
from trainer.schedules.range_scores import EQUAL_ERRORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Columns of the title, and of the small print below it.
_TITLE_COLUMNS, _PRINT_COLUMNS = 100, 140


def draw_range_test(test: RangeTest, exponential: bool, run: str, path: epath.Path) -> epath.Path:
    """Draw the curves of a range test and what they suggest, and return where.

    Args:
      test: its curves and suggestion.
      exponential: whether the rates rise in equal factors: their axis is logarithmic then.
      run: what was trained, in a few words.
      path: of the picture.

    Raises:
      RunError: the picture could not be written.
    """
    return panels.save(range_test_figure(test, exponential, run), path)


def range_test_figure(test: RangeTest, exponential: bool, run: str) -> "Figure":
    """Return accuracy and loss of a range test over the learning rate.

    Args:
      test: its curves and suggestion.
      exponential: whether the axis of the rates is logarithmic.
      run: what was trained, in a few words.
    """
    figure = panels.new_figure(7.5)
    accuracy_axes, loss_axes = figure.subplots(2, sharex=True)
    title, text = _words(test)
    lines = (textwrap.fill(line, _PRINT_COLUMNS) for line in (run, *text))
    panels.title(figure, textwrap.fill(title, _TITLE_COLUMNS), "\n".join(lines))
    _draw_curve(accuracy_axes, test, 100 * test.accuracies, 100 * test.smoothed_accuracies)
    _draw_band(accuracy_axes, test, 100 * test.smoothed_accuracies, 100 * test.accuracy_errors)
    _draw_curve(loss_axes, test, test.losses, test.smoothed_losses)
    _draw_band(loss_axes, test, test.smoothed_losses, test.loss_errors)
    accuracy_axes.set_ylabel("accuracy, %")
    accuracy_axes.set_ylim(0, 102)
    loss_axes.set_ylabel("loss")
    # A loss that diverges would flatten all that went before.
    loss_axes.set_ylim(0, 1.3 * test.losses[0])
    loss_axes.set_xlabel("learning rate")
    if exponential:
        loss_axes.set_xscale("log")
        panels.plain_log_ticks(loss_axes.xaxis)
    if test.suggestion is not None:
        for axes in (accuracy_axes, loss_axes):
            _mark_bounds(axes, test.suggestion)
        panels.legend(loss_axes, _mark_good_rates(loss_axes, test, test.suggestion))
    panels.legend(accuracy_axes)
    return figure


def _words(test: RangeTest) -> tuple[str, tuple[str, ...]]:
    """Return the title, and lines of small print."""
    found = test.suggestion
    if found is None:
        return f"no clear answer: {test.refusal}", ()
    title = f"lr_min {found.lr_min:g} to lr_max {found.lr_max:g}: {found.how_sure}"
    return title, tuple("; ".join(lines) for lines in (found.reasons, found.doubts) if lines)


def _draw_curve(axes: "Axes", test: RangeTest, values: np.ndarray, smoothed: np.ndarray) -> None:
    """Draw the values of every step faintly, and their moving mean."""
    axes.plot(test.learning_rates, values, color=BLUE, alpha=0.3, lw=0.8, label="each step")
    label = f"mean of {test.window} steps"
    axes.plot(test.learning_rates, smoothed, color=BLUE, lw=2, label=label)
    axes.grid(axis="y", alpha=0.25)


def _draw_band(axes: "Axes", test: RangeTest, smoothed: np.ndarray, errors: np.ndarray) -> None:
    """Fill what lies within so many standard errors of the mean as do equally well."""
    low, high = smoothed - EQUAL_ERRORS * errors, smoothed + EQUAL_ERRORS * errors
    label = f"{EQUAL_ERRORS:g} standard errors of it"
    axes.fill_between(test.learning_rates, low, high, color=BLUE, alpha=0.25, lw=0, label=label)


def _mark_bounds(axes: "Axes", found: Suggestion) -> None:
    """Mark the two rates, what lies between them, and where it gets worse."""
    axes.axvspan(found.lr_min, found.lr_max, color=GREEN, alpha=0.08, lw=0)
    axes.axvline(found.lr_min, color=GREEN, ls="--", label=f"lr_min {found.lr_min:g}")
    axes.axvline(found.lr_max, color=GREEN, lw=2, label=f"lr_max {found.lr_max:g}")
    if found.falls_at is not None:
        label = f"gets worse at {found.falls_at:g}"
        axes.axvline(found.falls_at, color="black", ls=":", label=label)


def _mark_good_rates(axes: "Axes", test: RangeTest, found: Suggestion) -> list[Any]:
    """Mark the steepest fall of the loss and the rates that do equally well; return the marks."""
    low, high = found.equally_good
    label = f"{low:g} to {high:g} do equally well"
    marks: list[Any] = [axes.axvspan(low, high, ymax=0.035, color=ORANGE, lw=0, label=label)]
    if found.steepest is not None:
        loss = np.interp(found.steepest, test.learning_rates, test.smoothed_losses)
        label = f"steepest fall {found.steepest:g}"
        style: dict[str, Any] = {"color": ORANGE, "ms": 8, "zorder": 3}
        marks += axes.plot(found.steepest, loss, "o", label=label, **style)
    return marks
