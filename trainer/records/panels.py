"""The parts of a picture: curves, marks, legends, and the picture as a file.

matplotlib is imported when the first picture is drawn: nothing else pays for it.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from trainer.records import curves, words
from trainer.records.curves import Marks
from trainer.records.history import Resume
from trainer.workdir.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_WIDTH, _DPI = 10.0, 150  # inches, pixels an inch
# Cycles that can be told apart, entries in a row of a legend.
_MOST_CYCLES, _MOST_IN_ROW = 100, 4
# Fewer steps in a bin of a band make a comb of it; fewer points in a line need dots.
_LEAST_IN_BIN, _LEAST_IN_LINE = 8, 10

# Okabe and Ito's colours, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
YELLOW = "#E69F00"
GREY = "#888888"


def new_figure(height: float) -> "Figure":
    """Return an empty figure; no state of pyplot's is made, and no display is needed.

    Args:
      height: in inches.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")


def save(figure: "Figure", path: epath.Path) -> epath.Path:
    """Write a picture, whole or not at all, and return where.

    Raises:
      RunError: it could not be written.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    replace_file(path, picture.getvalue())
    return path


def title(figure: "Figure", headline: str, footer: str) -> None:
    """Put a headline above all panels, and small print below them."""
    figure.suptitle(headline, fontsize=12)
    figure.supxlabel(footer, fontsize=8.5, color="#555555", x=0.01, ha="left")


def draw_rates(axes: "Axes", steps: np.ndarray, rates: np.ndarray, cycles: Marks) -> None:
    """Draw the learning rate and, thinned out, where its cycles end."""
    draw_cyclic(axes, steps, rates, cycles.count, GREEN)
    axes.set_ylabel("learning rate")
    axes.set_ylim(0, 1.08 * (rates.max() or 1.0))
    style: dict[str, Any] = {"color": GREY, "ls": ":", "lw": 1.2}
    for step in cycles.steps:
        axes.axvline(step, **style)
    if cycles.count:
        every = "every cycle" if cycles.every == 1 else f"every {cycles.every:,} cycles"
        axes.plot([], [], label=f"end of {every}", **style)


def draw_cyclic(
    axes: "Axes", steps: np.ndarray, values: np.ndarray, num_ends: int, color: str
) -> None:
    """Draw what goes up and down in cycles; the area that it covers where they are too many."""
    if num_ends > _MOST_CYCLES:
        label = f"lowest to highest, {words.counted(num_ends + 1, 'cycle')}"
        _draw_band(axes, steps, values, _MOST_CYCLES, color=color, alpha=0.5, label=label)
    else:
        axes.plot(*curves.envelope(steps, values), color=color, lw=1.5, **dots(steps))


def draw_curve(axes: "Axes", steps: np.ndarray, values: np.ndarray, window: int) -> None:
    """Draw the values of every step faintly, and their moving mean."""
    axes.grid(axis="y", alpha=0.25)
    if window == 1:
        axes.plot(steps, values, color=BLUE, lw=1.6, label="each training step", **dots(steps))
        return
    if len(steps) <= curves.MOST_BINS:
        axes.plot(steps, values, color=BLUE, alpha=0.35, lw=0.8, label="each training step")
    else:
        label = "lowest to highest training step"
        most_bins = min(curves.MOST_BINS, len(steps) // _LEAST_IN_BIN)
        _draw_band(axes, steps, values, most_bins, color=BLUE, alpha=0.25, label=label)
    half, label = window // 2, f"mean of {window} steps"
    middles = steps[half : len(steps) - half]
    means = curves.moving_mean(values, window)
    axes.plot(*curves.envelope(middles, means), color=BLUE, lw=1.6, label=label)


def draw_tests(axes: "Axes", steps: np.ndarray, values: np.ndarray, color: str, label: str) -> None:
    """Draw the results of tests as dots on a line."""
    size = 4 if len(values) <= curves.MOST_MARKS else 2
    # The last test stands on the edge.
    style: dict[str, Any] = {"ms": size, "lw": 1.2, "clip_on": False, "zorder": 3}
    axes.plot(steps, values, "o-", color=color, label=label, **style)


def draw_steps(axes: "Axes", num_steps: int) -> None:
    """Label the axis of steps."""
    axes.set_xlabel("step")
    axes.set_xlim(0, num_steps)
    axes.locator_params(axis="x", integer=True)
    axes.xaxis.set_major_formatter(lambda step, _: words.short(step))


def mark_epochs(panels: Sequence["Axes"], steps: np.ndarray, epochs: np.ndarray) -> None:
    """Mark where epochs end, and number them on an axis below the last panel.

    Args:
      panels: from top to bottom.
      steps: few, see `curves.Marks`.
      epochs: how many are done at these steps.
    """
    for axes in panels:
        for step in steps:
            axes.axvline(step, color=GREY, alpha=0.35, lw=0.8, zorder=0)
    if len(steps):
        below = panels[-1].secondary_xaxis("bottom")
        below.spines["bottom"].set_position(("outward", 36))
        below.spines["bottom"].set_visible(False)
        below.set_xticks(steps, [words.short(epoch) for epoch in epochs])
        below.set_xlabel("epochs done")


def mark_resumes(panels: Sequence["Axes"], resumes: list[Resume]) -> None:
    """Mark, thinned out, where the run was resumed; thicker where something was changed then."""
    style: dict[str, Any] = {"color": "black", "ls": "--"}
    every = curves.mark_every(len(resumes))
    for axes in panels:
        for resume in resumes[every - 1 :: every]:
            axes.axvline(resume.step, lw=1.8 if resume.changes else 0.9, **style)
    if resumes:
        many = len(resumes) > 1
        where = f"{len(resumes)} times" if many else f"at step {resumes[0].step:,}"
        panels[0].plot([], [], label=f"resumed {where}", lw=1.2, **style)


def plain_log_ticks(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    subs = (1.0,) if high > 1e3 * max(low, 1e-300) else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def legend(axes: "Axes", handles: "list[Line2D] | None" = None) -> None:
    """Put a legend of these lines, or of all, above the panel, where it covers nothing."""
    count = len(handles or axes.get_legend_handles_labels()[1])
    if count:
        axes.legend(
            handles=handles,
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=count if count <= _MOST_IN_ROW else -(-count // 2),
            frameon=False,
            borderaxespad=0.1,
            fontsize=9.5,
        )


def _draw_band(
    axes: "Axes", steps: np.ndarray, values: np.ndarray, most_bins: int, **style: Any
) -> None:
    """Fill from the lowest to the highest value of every bin of steps."""
    bins = curves.bins(len(steps), most_bins)
    lows, highs = ([pick(values[a:b]) for a, b in bins] for pick in (np.min, np.max))
    edges = [*(steps[a] for a, _ in bins), steps[-1]]
    axes.fill_between(edges, [*lows, lows[-1]], [*highs, highs[-1]], step="post", lw=0, **style)


def dots(steps: np.ndarray) -> dict[str, Any]:
    """Return the style of dots where they are few: a line of one point shows nothing."""
    return {"marker": "o", "ms": 4, "clip_on": False} if len(steps) <= _LEAST_IN_LINE else {}
