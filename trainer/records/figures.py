"""Pictures: of a run, of the schedule that is planned.

matplotlib is imported when the first picture is drawn: nothing else pays for it.
"""

import io
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from trainer.workdir.files import RunHistory, read_history, replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

REPORT_FILE = "report.png"
SCHEDULE_FILE = "schedule.png"

_WIDTH, _DPI = 10.0, 100  # inches, pixels an inch
# What can still be told apart at this width: bins of a curve, cycles, vertical lines.
_MOST_BINS, _MOST_CYCLES, _MOST_MARKS = 800, 100, 16
# Fewer steps in a bin of a band make a comb of it.
_LEAST_IN_BIN = 8

# Okabe and Ito's colours, which the colour-blind can tell apart.
_BLUE, _ORANGE, _GREEN, _PURPLE, _GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#888888"


def draw_report(workdir: epath.PathLike) -> epath.Path:
    """Draw what a run has recorded so far into its workdir, and return where.

    Args:
      workdir: of a run that has ended, was stopped, or is going on.

    Raises:
      UsageError: there are no records.
      RunError: the picture could not be written.
    """
    return _save(report_figure(read_history(workdir)), epath.Path(workdir) / REPORT_FILE)


def draw_schedule(
    schedule: Callable[[np.ndarray], Any],
    num_steps: int,
    steps_per_epoch: int,
    workdir: epath.PathLike,
) -> epath.Path:
    """Draw the learning rate of a run that is planned into its workdir, and return where.

    Args:
      schedule: int array of steps -> learning rates.
      num_steps: of the run.
      steps_per_epoch: of the run.
      workdir: made if missing.

    Raises:
      RunError: the picture could not be written.
    """
    rates = np.asarray(schedule(np.arange(num_steps)), np.float64)
    figure = schedule_figure(rates, steps_per_epoch)
    return _save(figure, epath.Path(workdir) / SCHEDULE_FILE)


def report_figure(history: RunHistory) -> "Figure":
    """Return learning rate, loss and accuracy of a run, step by step.

    Args:
      history: what the run has recorded.
    """
    train, test, config = history.train, history.test, history.config
    steps, window = train["step"], smoothing_window(len(train["step"]))
    starts = np.flatnonzero(np.diff(train["epoch"]) > 0) + 1
    has_momentum = "momentum" in train
    figure = _figure(9.0 + 2.0 * has_momentum)
    panels = figure.subplots(3 + has_momentum, sharex=True)
    rate_axes, loss_axes, accuracy_axes = panels[0], panels[-2], panels[-1]
    figure.suptitle(
        f"{config['dataset']}, {config['model']}, {config['optimizer']}, batches of "
        f"{config['batch_size']}: {steps[-1] + 1:,.0f} of {config['num_steps']:,} steps"
    )
    _draw_rates(rate_axes, steps, train["learning_rate"])
    if has_momentum:
        _draw_cyclic(panels[1], steps, train["momentum"], _PURPLE)
        panels[1].set_ylabel("momentum")
    _draw_curve(loss_axes, steps, train["loss"], window)
    _draw_curve(accuracy_axes, steps, 100 * train["accuracy"], window)
    if len(test["step"]):
        for axes, values, last in (
            (loss_axes, test["loss"], "{:.4f}"),
            (accuracy_axes, 100 * test["accuracy"], "{:.2f} %"),
        ):
            label = f"test, last {last.format(values[-1])}"
            # The last test stands on the edge.
            size = 4 if len(values) <= _MOST_MARKS else 2
            style: dict[str, Any] = {
                "color": _ORANGE,
                "ms": size,
                "lw": 1.2,
                "clip_on": False,
                "zorder": 3,
            }
            axes.plot(test["step"], values, "o-", label=label, **style)
    loss_axes.set_ylabel("loss")
    loss_axes.set_yscale("log")
    _plain_log_ticks(loss_axes.yaxis)
    accuracy_axes.set_ylabel("accuracy, %")
    accuracy_axes.set_ylim(accuracy_limits(train["accuracy"], test["accuracy"], window))
    _draw_steps(accuracy_axes, int(steps[-1]) + 1)
    _mark_epochs(panels, steps[starts], train["epoch"][starts])
    _mark_resumes(panels, history.resumes)
    for axes in panels:
        _legend(axes)
    return figure


def schedule_figure(rates: np.ndarray, steps_per_epoch: int) -> "Figure":
    """Return the planned learning rate of a run.

    Args:
      rates: float64[num_steps].
      steps_per_epoch: of the run.
    """
    figure = _figure(4.2)
    axes = figure.subplots()
    figure.suptitle(
        f"planned: {len(rates):,} steps, learning rate {rates.min():.3g} to {rates.max():.3g}"
    )
    _draw_rates(axes, np.arange(len(rates)), rates)
    _draw_steps(axes, len(rates))
    starts = np.arange(steps_per_epoch, len(rates), steps_per_epoch)
    _mark_epochs([axes], starts, starts // steps_per_epoch)
    _legend(axes)
    return figure


def envelope(
    steps: np.ndarray, values: np.ndarray, most_bins: int = _MOST_BINS
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
    for low, high in _bins(len(steps), most_bins):
        kept |= {low + int(values[low:high].argmin()), low + int(values[low:high].argmax())}
    indices = sorted(kept)
    return steps[indices], values[indices]


def smoothing_window(num_steps: int) -> int:
    """Return the odd number of steps that the curves of a run are smoothed over, a 60th."""
    return 2 * (num_steps // 120) + 1


def accuracy_limits(train: np.ndarray, test: np.ndarray, window: int) -> tuple[float, float]:
    """Return the ends of the axis of accuracy, in %: what follows the first tenth of the run.

    Args:
      train: float64[n], fractions, step by step.
      test: float64[m], fractions.
      window: odd number of steps to smooth over.
    """
    smoothed = _moving_mean(train, window)[len(train) // 10 :]
    lowest = 100 * min(smoothed.min(), test.min(initial=1.0))
    span = max(100 - lowest, 1.0)
    return max(lowest - 0.15 * span, 0.0), 100 + 0.04 * span


def cycle_starts(rates: np.ndarray) -> np.ndarray:
    """Return the indices at which the rate turns from falling to rising.

    The rates that were applied say it, also where the schedule was changed at a resume.
    """
    return np.flatnonzero((rates[1:-1] < rates[:-2]) & (rates[1:-1] < rates[2:])) + 1


def mark_every(count: int, most: int = _MOST_MARKS) -> int:
    """Return the k of 1, 2, 5, 10, 20, ... such that every k-th of `count` marks are few."""
    every = 1
    while count > most * every:
        every = int(every * (2.5 if str(every)[0] == "2" else 2))
    return every


def _moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the means of all whole windows: window - 1 values fewer."""
    return np.convolve(values, np.full(window, 1 / window), mode="valid")


def _bins(count: int, most_bins: int) -> list[tuple[int, int]]:
    """Return the ends of almost equal bins of indices."""
    edges = np.linspace(0, count, most_bins + 1).astype(int).tolist()
    return list(itertools.pairwise(edges))


def _figure(height: float) -> "Figure":
    """Return an empty figure; no state of pyplot's is made, and no display is needed."""
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")


def _save(figure: "Figure", path: epath.Path) -> epath.Path:
    """Write a picture, whole or not at all."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    replace_file(path, picture.getvalue())
    return path


def _draw_rates(axes: "Axes", steps: np.ndarray, rates: np.ndarray) -> None:
    """Draw the learning rate and, thinned out, where its cycles start."""
    _draw_cyclic(axes, steps, rates, _GREEN)
    axes.set_ylabel("learning rate")
    axes.set_ylim(0, 1.08 * max(rates.max(), 1e-12))
    starts = steps[cycle_starts(rates)]
    every = mark_every(len(starts))
    style: dict[str, Any] = {"color": _GREY, "ls": ":", "lw": 1.2}
    for step in starts[every - 1 :: every]:
        axes.axvline(step, **style)
    if len(starts):
        axes.plot([], [], label=f"end of every {_counted(every, 'cycle')}", **style)


def _draw_cyclic(axes: "Axes", steps: np.ndarray, values: np.ndarray, color: str) -> None:
    """Draw what goes up and down in cycles; the area that it covers where they are too many."""
    count = len(cycle_starts(values))
    if count > _MOST_CYCLES:
        label = f"lowest to highest, {count + 1:,} cycles"
        _draw_band(axes, steps, values, _MOST_CYCLES, color=color, alpha=0.5, label=label)
    else:
        axes.plot(*envelope(steps, values), color=color, lw=1.5)


def _draw_curve(axes: "Axes", steps: np.ndarray, values: np.ndarray, window: int) -> None:
    """Draw the values of every step faintly, and their moving mean."""
    axes.grid(axis="y", alpha=0.25)
    if window == 1:
        axes.plot(steps, values, color=_BLUE, lw=1.6, label="each training step")
        return
    if len(steps) <= _MOST_BINS:
        axes.plot(steps, values, color=_BLUE, alpha=0.35, lw=0.8, label="each training step")
    else:
        label = "lowest to highest training step"
        most_bins = min(_MOST_BINS, len(steps) // _LEAST_IN_BIN)
        _draw_band(axes, steps, values, most_bins, color=_BLUE, alpha=0.25, label=label)
    half, label = window // 2, f"mean of {window} steps"
    middles = steps[half : len(steps) - half]
    axes.plot(*envelope(middles, _moving_mean(values, window)), color=_BLUE, lw=1.6, label=label)


def _draw_band(
    axes: "Axes", steps: np.ndarray, values: np.ndarray, most_bins: int, **style: Any
) -> None:
    """Fill from the lowest to the highest value of every bin of steps."""
    bins = _bins(len(steps), most_bins)
    lows, highs = ([pick(values[a:b]) for a, b in bins] for pick in (np.min, np.max))
    edges = [*(steps[a] for a, _ in bins), steps[-1]]
    axes.fill_between(edges, [*lows, lows[-1]], [*highs, highs[-1]], step="post", lw=0, **style)


def _draw_steps(axes: "Axes", num_steps: int) -> None:
    """Label the axis of steps."""
    axes.set_xlabel("step")
    axes.set_xlim(0, num_steps)
    axes.locator_params(axis="x", integer=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _mark_epochs(panels: Sequence["Axes"], starts: np.ndarray, epochs: np.ndarray) -> None:
    """Mark, thinned out, where epochs end, and number them on an axis below the last panel."""
    kept = epochs % mark_every(len(starts)) == 0
    for axes in panels:
        for step in starts[kept]:
            axes.axvline(step, color=_GREY, alpha=0.35, lw=0.8, zorder=0)
    if kept.any():
        below = panels[-1].secondary_xaxis("bottom")
        below.spines["bottom"].set_position(("outward", 36))
        below.spines["bottom"].set_visible(False)
        below.set_xticks(starts[kept], [f"{epoch:.0f}" for epoch in epochs[kept]])
        below.set_xlabel("epochs done")


def _mark_resumes(panels: Sequence["Axes"], resumes: list[int]) -> None:
    """Mark where the run went on from a checkpoint."""
    style: dict[str, Any] = {"color": "black", "ls": "--", "lw": 1.2}
    for axes in panels:
        for step in resumes:
            axes.axvline(step, **style)
    if resumes:
        where = f"at step {resumes[0]:,}" if len(resumes) == 1 else f"{len(resumes)} times"
        panels[0].plot([], [], label=f"resumed {where}", **style)


def _counted(count: int, noun: str) -> str:
    """Return such as "cycle" or "5 cycles"."""
    return noun if count == 1 else f"{count} {noun}s"


def _plain_log_ticks(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    subs = (1.0,) if high > 1e3 * max(low, 1e-300) else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _legend(axes: "Axes", handles: "list[Line2D] | None" = None) -> None:
    """Put a legend of these lines, or of all, above the panel, where it covers nothing."""
    if handles or axes.get_legend_handles_labels()[1]:
        axes.legend(
            handles=handles,
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=6,
            frameon=False,
            borderaxespad=0.1,
            fontsize=9.5,
        )
