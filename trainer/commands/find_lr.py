"""The learning-rate range test on the devices: curves, a picture, and a flagfile to train with."""

import csv
import dataclasses
import io
import logging
import math
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from trainer import devices
from trainer.config import TrainConfig
from trainer.errors import RunError, UsageError
from trainer.records import figures
from trainer.run.job import Job, prepare
from trainer.run.programs import start
from trainer.schedules import Plan
from trainer.schedules.range_curves import (
    EXPONENTIAL,
    FEWEST_STEPS,
    RangeTest,
    analyze,
    divergence_step,
    ramp,
    window_of,
)
from trainer.workdir.files import CONFIG_FILE, replace_file
from trainer.workdir.storage import check_writable, open_workdir

logger = logging.getLogger(__name__)

CSV_FILE, FIGURE_FILE, FLAGFILE = "find_lr.csv", "find_lr.png", "find_lr.cfg"

# The host looks at the losses this often; the devices wait for it meanwhile.
_STEPS_PER_LOOK = 20


def find_lr(
    config: TrainConfig,
    workdir: epath.PathLike,
    lr_start: float,
    lr_end: float,
    num_steps: int,
    kind: str,
) -> dict[str, Any]:
    """Train a fresh state while the learning rate rises, and suggest bounds for a triangle.

    The state is made anew from the configuration and thrown away afterwards. A run in the workdir
    is neither read nor changed, and may be going on: only find_lr.csv, find_lr.png and find_lr.cfg
    are written.

    Args:
      config: the hyperparameters; its learning rates and cycles are not used.
      workdir: where the three files go; made if missing.
      lr_start: first rate.
      lr_end: last rate, unless the loss diverges before.
      num_steps: of the whole rise, 40 and more.
      kind: "exponential" or "linear".

    Returns:
      lr_min, lr_max, steps_per_cycle, and steepest_loss (the rate, or None).

    Raises:
      UsageError: an argument is out of its range, or fits neither devices nor data.
      RunError: the curves give no clear answer (the first two files are written, and no find_lr.cfg
        is there), or the data are damaged.
    """
    _check_ramp(lr_start, lr_end, num_steps, kind)
    if config.lr_schedule == "constant":
        raise UsageError(
            "--lr_schedule=constant has one rate, and find_lr finds the two of a cycle; valid: "
            "--lr_schedule=triangular"
        )
    workdir = open_workdir(workdir)
    check_writable(workdir)
    with tempfile.TemporaryDirectory() as empty:
        job = prepare(_without_cycles(config), epath.Path(empty))
    window = window_of(num_steps)
    rates = ramp(lr_start, lr_end, num_steps, kind)
    logger.info(
        "range test on %s: %d steps from fresh parameters, rate %g to %g (%s)",
        devices.describe(job.mesh),
        *(num_steps, lr_start, lr_end, kind),
    )
    test = analyze(*_measure(job, rates, window, config.log_every_steps), window)
    replace_file(workdir / CSV_FILE, _csv(test))
    picture = figures.draw_range_test(test, kind == EXPONENTIAL, workdir / FIGURE_FILE)
    logger.info("curves in %s and %s", picture, workdir / CSV_FILE)
    path = workdir / FLAGFILE
    if test.lr_min is None or test.lr_max is None:
        path.unlink(missing_ok=True)  # One of an earlier test would be taken for this one's.
        raise RunError(test.verdict)
    steps_per_cycle = cycle_length(job.plan)
    suggested = dataclasses.replace(
        config, lr_min=test.lr_min, lr_max=test.lr_max, steps_per_cycle=steps_per_cycle
    )
    comments = [
        f"Found by a range test of {num_steps} steps, rate {lr_start:g} to {lr_end:g} ({kind}):",
        *(f"{part}." for part in test.verdict.split("; ")),
    ]
    replace_file(path, flagfile(suggested, _free_workdir(workdir), comments).encode())
    logger.info("%s", test.verdict)
    if test.steepest is not None:
        logger.info("for one fixed rate, others take the steepest loss: %g", test.steepest)
    logger.info(
        "to train: python -m trainer --flagfile=%s\nlr_min %g, lr_max %g, %d steps a cycle",
        *(path, test.lr_min, test.lr_max, steps_per_cycle),
    )
    return {
        "lr_min": test.lr_min,
        "lr_max": test.lr_max,
        "steps_per_cycle": steps_per_cycle,
        "steepest_loss": test.steepest,
    }


def _without_cycles(config: TrainConfig) -> TrainConfig:
    """Return the same run without the cycles that are given: the test is to find them."""
    momentum = config.momentum if config.momentum_max is None else config.momentum_max
    return dataclasses.replace(
        config,
        steps_per_cycle=2,
        steps_per_call=1,
        num_cycles=None,
        momentum=momentum,
        momentum_min=None,
        momentum_max=None,
    )


def cycle_length(plan: Plan) -> int:
    """Return the suggested steps_per_cycle: an epoch, or the whole of a shorter run.

    The rate is then at its lowest wherever an epoch ends: every test, and a run of any number of
    epochs, sees parameters that have settled. (The paper, section 3.2: stop at the end of a cycle.)

    Args:
      plan: of the run.
    """
    return max(min(plan.steps_per_epoch, plan.num_steps), 2)


def flagfile(config: TrainConfig, workdir: epath.PathLike, comments: list[str]) -> str:
    """Return the text of a flagfile: all that the result depends on, and what else was given.

    Args:
      config: of the run that the flagfile starts.
      workdir: of that run.
      comments: lines to begin with.
    """
    first = ("lr_min", "lr_max", "steps_per_cycle")
    values = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.metadata["trajectory"] or getattr(config, field.name) != field.default
    }
    order = [*first, *(name for name in values if name not in first)]
    flags = [f"--{name}={values[name]}" for name in order if values[name] is not None]
    lines = [*(f"# {line}" for line in comments), *flags, f"--workdir={workdir}"]
    return "\n".join(lines) + "\n"


def _check_ramp(lr_start: float, lr_end: float, num_steps: int, kind: str) -> None:
    """Raise a UsageError if the rates cannot rise as asked."""
    for name, rate in (("find_lr_min", lr_start), ("find_lr_max", lr_end)):
        if not (math.isfinite(rate) and rate >= 0):
            raise UsageError(f"--{name}={rate} is not valid; valid: a finite number, 0 and more")
    if lr_start == 0 and kind == EXPONENTIAL:
        raise UsageError(
            "--find_lr_min=0 cannot rise by equal factors; valid: more than 0, or "
            "--find_lr_ramp=linear"
        )
    if lr_start >= lr_end:
        raise UsageError(
            f"--find_lr_min={lr_start} is not below --find_lr_max={lr_end}; valid: find_lr_min < "
            "find_lr_max"
        )
    if num_steps < FEWEST_STEPS:
        raise UsageError(
            f"--find_lr_steps={num_steps} is not valid; valid: {FEWEST_STEPS} and more"
        )


def _measure(
    job: Job, rates: np.ndarray, window: int, log_every_steps: int
) -> tuple[list[float], list[float], list[float]]:
    """Train while the rate rises; return rates, losses and accuracies until the loss diverges."""
    job = dataclasses.replace(job, schedule=lambda step: jnp.asarray(rates)[step])
    programs, data, state = start(job)
    pending, measured = [], []
    for step in range(len(rates)):
        if step % job.plan.steps_per_epoch == 0:
            batches = programs.epoch_batches(state.step)
        state, metrics = programs.train_steps(state, data.train, batches, 1)
        pending.append(metrics)
        if len(pending) < _STEPS_PER_LOOK and step + 1 < len(rates):
            continue
        measured += jax.device_get(pending)
        pending.clear()
        diverged_at = divergence_step([float(each["loss"]) for each in measured], window)
        if diverged_at is not None:
            logger.info(
                "stopped early: the loss diverged at step %d of %d, rate %.2g",
                *(diverged_at, len(rates), rates[diverged_at]),
            )
            break
        if (step + 1) % log_every_steps < _STEPS_PER_LOOK:
            logger.info(
                "step %d of %d  rate %.2g  loss %.4f  accuracy %.3f",
                *(step + 1, len(rates), rates[step], *map(measured[-1].get, ("loss", "accuracy"))),
            )
    columns = ("learning_rate", "loss", "accuracy")
    return tuple([float(each[name]) for each in measured] for name in columns)  # type: ignore


def _csv(test: RangeTest) -> bytes:
    """Return the curves as a table with a header."""
    columns = {
        "learning_rate": test.learning_rates,
        "loss": test.losses,
        "accuracy": test.accuracies,
        "smoothed_loss": test.smoothed_losses,
        "smoothed_accuracy": test.smoothed_accuracies,
    }
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["step", *columns])
    rows.writerows(
        [step, *(f"{value:.8g}" for value in row)]
        for step, row in enumerate(zip(*columns.values(), strict=True))
    )
    return text.getvalue().encode()


def _free_workdir(workdir: epath.Path) -> epath.Path:
    """Return the workdir, or one beside it where a run is in it: that one has other rates."""
    if not (workdir / CONFIG_FILE).exists():
        return workdir
    return workdir.with_name(f"{workdir.name}-find_lr")
