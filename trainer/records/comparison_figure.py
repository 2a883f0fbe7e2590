"""The picture of a comparison: rates, losses and accuracies of several runs over each other."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from trainer.records import curves, panels, words
from trainer.records.figures import LOWEST_LOSS
from trainer.records.history import RunHistory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = (
    panels.BLUE,
    panels.ORANGE,
    panels.GREEN,
    panels.PURPLE,
    panels.SKY,
    panels.YELLOW,
    "black",
)
# With the colours used up, lines of another kind begin.
_STYLES = ("-", "--", ":", "-.")
# Characters in a row of the legend, of the small print, and of a name.
_ROW, _COLUMNS, _NAME = 120, 165, 40

# Of a run in the legend and on the panels: its name, what it has recorded, its colour, its line.
_Drawn = tuple[str, RunHistory, dict[str, Any]]


def draw_comparison(
    runs: Sequence[tuple[str, RunHistory]], differing: Sequence[str], path: epath.Path
) -> epath.Path:
    """Draw runs over each other, and return where.

    Args:
      runs: name and history of each.
      differing: names of the fields in which their configurations differ.
      path: of the picture, a PNG.

    Raises:
      RunError: it could not be written.
    """
    return panels.save(comparison_figure(runs, differing), path)


def comparison_figure(runs: Sequence[tuple[str, RunHistory]], differing: Sequence[str]) -> "Figure":
    """Return learning rate, loss and accuracy of runs over each other, step by step.

    Args:
      runs: name and history of each, at least one.
      differing: names of the fields in which their configurations differ.
    """
    drawn = [(_cut(name), history, _style(i)) for i, (name, history) in enumerate(runs)]
    steps = [int(history.train["step"][-1]) + 1 for _, history in runs]
    # Of the longest run: a curve that is smoothed over fewer steps would look less certain.
    window = curves.smoothing_window(max(steps))
    figure = panels.new_figure(9.0 + 0.2 * _legend_rows(drawn))
    rows = list(figure.subplots(3, sharex=True))
    panels.title(figure, _headline(runs), _small_print(differing, window))
    _draw_rates(rows[0], drawn)
    _draw_losses(rows[1], drawn, window)
    _draw_accuracies(rows[2], drawn, window)
    panels.draw_steps(rows[2], max(steps))
    _draw_legends(rows, drawn)
    return figure


def _style(number: int) -> dict[str, Any]:
    """Return colour and kind of line of the n-th run."""
    style = _STYLES[number // len(_COLORS) % len(_STYLES)]
    return {"color": _COLORS[number % len(_COLORS)], "ls": style}


def _draw_rates(axes: "Axes", drawn: Sequence[_Drawn]) -> None:
    """Draw the learning rates."""
    highest = 0.0
    for _, history, style in drawn:
        rates = history.train["learning_rate"]
        axes.plot(*curves.envelope(history.train["step"], rates), lw=1.3, alpha=0.85, **style)
        highest = max(highest, rates.max())
    axes.set_ylabel("learning rate")
    axes.set_ylim(0, 1.08 * (highest or 1.0))
    axes.grid(axis="y", alpha=0.25)


def _draw_losses(axes: "Axes", drawn: Sequence[_Drawn], window: int) -> None:
    """Draw the losses: of training smoothed, of tests as dots."""
    axes.set_yscale("log")
    for _, history, style in drawn:
        train, test = history.train, history.test
        _draw_training(axes, train["step"], np.maximum(train["loss"], LOWEST_LOSS), window, style)
        _draw_tests(axes, test["step"], np.maximum(test["loss"], LOWEST_LOSS), style)
    axes.set_ylabel("loss")
    axes.grid(axis="y", alpha=0.25)
    low, high = axes.dataLim.intervaly
    if high < 1.001 * low:
        axes.autoscale(False, axis="y")
        axes.set_ylim(low / 2, 2 * high)
    panels.plain_log_ticks(axes.yaxis)


def _draw_accuracies(axes: "Axes", drawn: Sequence[_Drawn], window: int) -> None:
    """Draw the accuracies: of training smoothed, of tests as dots."""
    lowest, highest = [], []
    for _, history, style in drawn:
        train, test = history.train, history.test
        _draw_training(axes, train["step"], 100 * train["accuracy"], window, style)
        _draw_tests(axes, test["step"], 100 * test["accuracy"], style)
        within = _window_of(len(train["step"]), window)
        low, high = curves.accuracy_limits(train["accuracy"], test["accuracy"], within)
        lowest.append(low)
        highest.append(high)
    axes.set_ylabel("accuracy, %")
    axes.grid(axis="y", alpha=0.25)
    axes.set_ylim(min(lowest), max(highest))


def _draw_training(
    axes: "Axes", steps: np.ndarray, values: np.ndarray, window: int, style: dict[str, Any]
) -> None:
    """Draw the moving mean of the values of every step."""
    window = _window_of(len(steps), window)
    half = window // 2
    middles = steps[half : len(steps) - half]
    points = curves.envelope(middles, curves.moving_mean(values, window))
    axes.plot(*points, lw=1.2, alpha=0.6, **style, **panels.dots(middles))


def _draw_tests(axes: "Axes", steps: np.ndarray, values: np.ndarray, style: dict[str, Any]) -> None:
    """Draw the results of tests as dots on a line."""
    if len(steps):
        size = 4 if len(steps) <= curves.MOST_MARKS else 2
        axes.plot(steps, values, marker="o", ms=size, lw=1.6, clip_on=False, zorder=3, **style)


def _window_of(num_steps: int, window: int) -> int:
    """Return the odd number of steps to smooth a run over: of a short one, half of it at most."""
    return min(window, 2 * (num_steps // 4) + 1)


def _draw_legends(rows: "Sequence[Axes]", drawn: Sequence[_Drawn]) -> None:
    """Say above the first panel which colour is which run, above the others what a dot is."""
    for name, history, style in drawn:
        tests = history.test["accuracy"]
        last = f", last test {100 * tests[-1]:.2f} %" if len(tests) else ""
        rows[0].plot([], [], lw=2, label=f"{name}{last}", **style)
    labels = len(drawn)
    rows[0].legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=-(-labels // _legend_rows(drawn)),
        frameon=False,
        borderaxespad=0.1,
        fontsize=9.5,
    )
    for axes in rows[1:]:
        axes.plot([], [], color=panels.GREY, lw=1.2, alpha=0.6, label="training, moving mean")
        if any(len(history.test["step"]) for _, history, _ in drawn):
            axes.plot([], [], "o-", color=panels.GREY, ms=4, lw=1.6, label="test")
        panels.legend(axes)


def _legend_rows(drawn: Sequence[_Drawn]) -> int:
    """Return how many rows the names of the runs take."""
    # The sample of the line, and "last test 99.00 %".
    widest = max(len(name) for name, *_ in drawn) + 26
    return -(-len(drawn) // max(_ROW // widest, 1))


def _headline(runs: Sequence[tuple[str, RunHistory]]) -> str:
    """Return how many runs there are, and which ended best."""
    text = words.counted(len(runs), "run")
    tested = [(name, run.test["accuracy"][-1]) for name, run in runs if len(run.test["step"])]
    if len(tested) < 2:
        return text
    best = max(accuracy for _, accuracy in tested)
    names = [_cut(name) for name, accuracy in tested if accuracy == best]
    of = names[0] if len(names) == 1 else words.counted(len(names), "run")
    return f"{text}; highest accuracy in the last test {100 * best:.2f} %, of {of}"


def _small_print(differing: Sequence[str], window: int) -> str:
    """Return what differs, and what the curves are."""
    lines = [f"curves of training are means of {window} steps, of fewer in a short run"]
    if differing:
        lines.insert(0, f"what differs: {', '.join(differing)}")
    return "\n".join(textwrap.fill(line, _COLUMNS) for line in lines)


def _cut(name: str) -> str:
    """Return the end of a long name, as matplotlib will show it: it leaves out _names."""
    text = name if len(name) <= _NAME else "…" + name[1 - _NAME :]
    return text.replace("$", r"\$") if not text.startswith("_") else f" {text}"
