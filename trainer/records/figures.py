"""Pictures of a run: what it has recorded, and the schedule that is planned."""

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from trainer.config import CONSTANT, TrainConfig
from trainer.config.own import short
from trainer.records import curves, panels, words
from trainer.records.history import Resume, RunHistory, read_history
from trainer.records.timing import describe_account

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from trainer.schedules import Plan

REPORT_FILE = "report.png"
SCHEDULE_FILE = "schedule.png"

# Columns of the small print, and of a path in it.
_COLUMNS, _PATH_COLUMNS = 165, 80
# A loss of 0 has no place on a logarithmic axis.
LOWEST_LOSS = 1e-8


def draw_report(workdir: epath.PathLike) -> epath.Path:
    """Draw what a run has recorded so far into its workdir, and return where.

    Args:
      workdir: of a run that has ended, was stopped, or is in progress.

    Raises:
      UsageError: there are no records.
      RunError: the records could not be read, or the picture not be written.
    """
    return panels.save(report_figure(read_history(workdir)), epath.Path(workdir) / REPORT_FILE)


def draw_schedule(
    schedule: Callable[[np.ndarray], Any],
    config: TrainConfig,
    plan: "Plan",
    workdir: epath.PathLike,
) -> epath.Path:
    """Draw the learning rate of a run that is planned into its workdir, and return where.

    Args:
      schedule: int array of steps -> learning rates.
      config: of the run.
      plan: its durations in steps.
      workdir: made if missing.

    Raises:
      RunError: the picture could not be written.
    """
    figure = schedule_figure(schedule, config, plan, workdir)
    return panels.save(figure, epath.Path(workdir) / SCHEDULE_FILE)


def report_figure(history: RunHistory) -> "Figure":
    """Return learning rate, loss and accuracy of a run, step by step.

    Args:
      history: what the run has recorded.
    """
    train, test = history.train, history.test
    steps, window = train["step"], curves.smoothing_window(len(train["step"]))
    has_momentum = "momentum" in train
    figure = panels.new_figure(9.0 + 2.0 * has_momentum)
    rows = list(figure.subplots(3 + has_momentum, sharex=True))
    rate_axes, loss_axes, accuracy_axes = rows[0], rows[-2], rows[-1]
    panels.title(figure, *_describe_run(history))
    ends = curves.marks_at(steps[curves.cycle_starts(train["learning_rate"])])
    panels.draw_rates(rate_axes, steps, train["learning_rate"], ends)
    if has_momentum:
        _draw_momentum(rows[1], steps, train["momentum"], ends.count)
    loss_axes.set_yscale("log")
    panels.draw_curve(loss_axes, steps, np.maximum(train["loss"], LOWEST_LOSS), window)
    panels.draw_curve(accuracy_axes, steps, 100 * train["accuracy"], window)
    _draw_tests(history, loss_axes, accuracy_axes)
    loss_axes.set_ylabel("loss")
    low, high = loss_axes.dataLim.intervaly
    if high < 1.001 * low:
        loss_axes.autoscale(False, axis="y")
        loss_axes.set_ylim(low / 2, 2 * high)
    panels.plain_log_ticks(loss_axes.yaxis)
    accuracy_axes.set_ylabel("accuracy, %")
    limits = curves.accuracy_limits(train["accuracy"], test["accuracy"], window)
    accuracy_axes.set_ylim(limits)
    panels.draw_steps(accuracy_axes, int(steps[-1]) + 1)
    starts = np.flatnonzero(np.diff(train["epoch"]) > 0) + 1
    kept = starts[train["epoch"][starts] % curves.mark_every(len(starts)) == 0]
    panels.mark_epochs(rows, steps[kept], train["epoch"][kept])
    panels.mark_resumes(rows, history.resumes)
    for axes in rows:
        panels.legend(axes)
    return figure


def schedule_figure(
    schedule: Callable[[np.ndarray], Any],
    config: TrainConfig,
    plan: "Plan",
    workdir: epath.PathLike,
) -> "Figure":
    """Return the planned learning rate of a run.

    Args:
      schedule: int array of steps -> learning rates; some thousand steps are evaluated.
      config: of the run.
      plan: its durations in steps.
      workdir: of the run.
    """
    num_steps = plan.num_steps
    steps = curves.steps_to_draw(num_steps, plan.steps_per_cycle, plan.top)
    rates = np.asarray(schedule(steps), np.float64)
    figure = panels.new_figure(4.4)
    axes = figure.subplots()
    headline = (
        f"planned: {words.counted(num_steps, 'step')}, "
        f"{words.quantity(num_steps / plan.steps_per_epoch, 'epoch')} of "
        f"{words.counted(plan.steps_per_epoch, 'step')}"
    )
    footer = f"{_describe_config(config, plan.steps_per_cycle)}\n{_shortened(workdir)}"
    panels.title(figure, headline, footer)
    constant = rates.min() == rates.max()
    cycles = curves.marks_each(num_steps if constant else plan.steps_per_cycle, num_steps)
    panels.draw_rates(axes, steps, rates, cycles)
    panels.draw_steps(axes, num_steps)
    epochs = curves.marks_each(plan.steps_per_epoch, num_steps).steps
    panels.mark_epochs([axes], epochs, epochs // plan.steps_per_epoch)
    panels.legend(axes)
    return figure


def _draw_momentum(axes: "Axes", steps: np.ndarray, momentum: np.ndarray, num_ends: int) -> None:
    """Draw the momentum of the steps that have one."""
    known = np.isfinite(momentum)
    panels.draw_cyclic(axes, steps[known], momentum[known], num_ends, panels.PURPLE)
    axes.set_ylabel("momentum")


def _draw_tests(history: RunHistory, loss_axes: "Axes", accuracy_axes: "Axes") -> None:
    """Draw all tests: of the parameters, and of their averages where there are any."""
    kinds = [("test", history.test, panels.ORANGE)]
    colors = (panels.PURPLE, panels.SKY)
    for (kind, columns), color in zip(history.averages.items(), colors, strict=False):
        kinds.append((kind, columns, color))
    for label, columns, color in kinds:
        if len(columns["step"]):
            loss = np.maximum(columns["loss"], LOWEST_LOSS)
            accuracy = 100 * columns["accuracy"]
            last = f"{label}, last {words.loss(loss[-1])}"
            panels.draw_tests(loss_axes, columns["step"], loss, color, last)
            last = f"{label}, last {accuracy[-1]:.2f} %"
            panels.draw_tests(accuracy_axes, columns["step"], accuracy, color, last)


def _describe_run(history: RunHistory) -> tuple[str, str]:
    """Return the headline of a run, its result, and the small print."""
    config, done = history.config, int(history.train["step"][-1]) + 1
    planned = config.num_steps or 0
    of = f"{done:,} of " if done < planned else ""
    headline = f"{of}{words.counted(max(done, planned), 'step')}"
    if len(history.test["step"]):
        headline = f"test accuracy {100 * history.test['accuracy'][-1]:.2f} % after {headline}"
    lines = [_describe_config(config, config.steps_per_cycle), _shortened(history.workdir)]
    if history.resumes:
        lines[-1] += "; " + _describe_resumes(history.resumes)
    if history.duration and history.duration.account:
        lines.append(describe_account(history.duration.account))
    return headline, "\n".join(textwrap.fill(line, _COLUMNS) for line in lines)


def _describe_config(config: TrainConfig, steps_per_cycle: int | None) -> str:
    """Return what a run is, in a line."""
    rates = f"learning rate {config.lr_min:g} to {config.lr_max:g}"
    cycles = f" in cycles of {steps_per_cycle:,} steps" if steps_per_cycle else ""
    if config.lr_schedule == CONSTANT:
        rates, cycles = f"learning rate {config.lr_max:g}", ""
    augmented = f", augmented by {short(config.augment)}" if config.augment else ""
    # Else the loss of the training would look too high beside that of the tests.
    smoothed = f", labels smoothed by {config.label_smoothing:g}" if config.label_smoothing else ""
    return (
        f"{words.dataset_name(config.dataset)}{augmented}{smoothed}, {short(config.model)}, "
        f"{short(config.optimizer)}, batches of {config.batch_size:,}; {config.lr_schedule}, "
        f"{rates}{cycles}; seed {config.seed}"
    )


def _describe_resumes(resumes: list[Resume]) -> str:
    """Return where a run was resumed and what was changed then."""
    texts = []
    for resume in resumes:
        changes = ", ".join(f"{name} {old} → {new}" for name, (old, new) in resume.changes.items())
        texts.append(f"{resume.step:,} ({changes})" if changes else f"{resume.step:,}")
    if len(texts) > 8:
        texts = [*texts[:4], f"… {len(texts) - 8} more …", *texts[-4:]]
    return f"resumed at step {', '.join(texts)}"


def _shortened(workdir: epath.PathLike) -> str:
    """Return the end of a path, as much as there is room for."""
    text = str(workdir)
    return text if len(text) <= _PATH_COLUMNS else "…" + text[-_PATH_COLUMNS:]
