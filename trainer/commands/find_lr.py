"""The learning-rate range test on the devices: curves, a picture, and a flagfile to train with."""

import contextlib
import csv
import dataclasses
import io
import itertools
import logging
import math
import os
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from trainer import devices
from trainer.config import TrainConfig, flagfile
from trainer.config.own import short
from trainer.errors import RunError, UsageError
from trainer.records.clock import Clock
from trainer.records.range_figure import draw_range_test
from trainer.records.words import dataset_name
from trainer.run.job import Job, prepare
from trainer.run.programs import start
from trainer.schedules import Plan
from trainer.schedules.range_analysis import RangeTest, Suggestion, analyze
from trainer.schedules.range_curves import (
    EXPONENTIAL,
    FEWEST_STEPS,
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
    is neither read nor changed, and may be in progress: only find_lr.csv, find_lr.png and
    find_lr.cfg are written.

    Args:
      config: the hyperparameters; its learning rates and cycles are not used.
      workdir: where the three files go; made if missing.
      lr_start: first rate.
      lr_end: last rate, unless the loss diverges before.
      num_steps: of the whole rise, 40 and more.
      kind: "exponential" or "linear".

    Returns:
      lr_min, lr_max, steps_per_cycle, steepest_loss (the rate, or None), confidence ("clear" or
      "rough") and equally_good (the lowest and the highest of the rates that do equally well).

    Raises:
      UsageError: an argument is out of its range, or fits neither devices nor data.
      RunError: the curves show no rise (the first two files are written, and no find_lr.cfg is
        there), or the data are damaged.
    """
    _check_ramp(lr_start, lr_end, num_steps, kind)
    if config.lr_schedule == "constant":
        raise UsageError(
            "--lr_schedule=constant has one rate, and find_lr finds the two of a cycle; use "
            "--lr_schedule=triangular instead"
        )
    workdir = open_workdir(workdir)
    check_writable(workdir)
    with tempfile.TemporaryDirectory() as empty:
        job = prepare(_without_cycles(config), epath.Path(empty))
    # The flagfile is to work in any folder, as a run's configuration does.
    config = dataclasses.replace(config, dataset=job.config.dataset, data_dir=job.config.data_dir)
    window = window_of(num_steps)
    rates = ramp(lr_start, lr_end, num_steps, kind)
    how = f"{num_steps} steps, learning rate {lr_start:g} to {lr_end:g} ({kind})"
    logger.info("range test on %s: %s", devices.describe(job.mesh), how)
    test = analyze(*_measure(job, rates, window, config.log_every_steps), window)
    replace_file(workdir / CSV_FILE, _csv(test))
    run = f"{dataset_name(config.dataset)}, {short(config.model)}, {short(config.optimizer)}, "
    run += f"batches of {config.batch_size}, seed {config.seed}: {how}"
    picture = draw_range_test(test, kind == EXPONENTIAL, run, workdir / FIGURE_FILE)
    logger.info("curves in %s and %s", picture, workdir / CSV_FILE)
    if test.suggestion is None:
        # One of an earlier test would be taken for this one's.
        (workdir / FLAGFILE).unlink(missing_ok=True)
        raise RunError(f"no clear answer: {test.refusal}")
    return _report(config, job.plan, workdir, f"range test of {how}", test.suggestion)


def _report(
    config: TrainConfig, plan: Plan, workdir: epath.Path, origin: str, found: Suggestion
) -> dict[str, Any]:
    """Write the flagfile, say what was found and how sure it is, and return it."""
    steps_per_cycle = cycle_length(plan)
    lines = [*found.reasons, f"how sure: {found.how_sure}", *found.doubts]
    suggested = dataclasses.replace(
        config,
        lr_min=found.lr_min,
        lr_max=found.lr_max,
        steps_per_cycle=steps_per_cycle,
    )
    run = free_workdir(workdir)
    text = flagfile(
        suggested,
        [f"From a {origin}:", *lines],
        first=("lr_min", "lr_max", "steps_per_cycle"),
        workdir=run,
    )
    replace_file(workdir / FLAGFILE, text.encode())
    logger.info("%s", "\n".join(lines))
    if found.steepest is not None:
        logger.info("the loss falls fastest at %g, for one fixed rate", found.steepest)
    logger.info(
        "lr_min %g, lr_max %g, %d steps a cycle; to train in %s:\n"
        "  python -m trainer --flagfile=%s",
        *(found.lr_min, found.lr_max, steps_per_cycle, run, workdir / FLAGFILE),
    )
    return {
        "lr_min": found.lr_min,
        "lr_max": found.lr_max,
        "steps_per_cycle": steps_per_cycle,
        "steepest_loss": found.steepest,
        "confidence": found.confidence,
        "equally_good": list(found.equally_good),
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


def free_workdir(workdir: epath.Path) -> epath.Path:
    """Return the workdir, or one beside it where a run is in it: that one has other rates.

    Args:
      workdir: such as "run", of which "run-find_lr" is beside, then "run-find_lr2".
    """
    if not (workdir / CONFIG_FILE).exists():
        return workdir
    if workdir.name in ("", ".."):
        workdir = epath.Path(os.path.abspath(workdir))  # Such as "." and "..", by their own names.
    # A whole bucket, or a whole disk, has nothing beside it.
    is_top = str(workdir.parent) in ("gs://", str(workdir))
    first = workdir / "find_lr" if is_top else workdir.with_name(f"{workdir.name}-find_lr")
    others = (first.with_name(f"{first.name}{number}") for number in itertools.count(2))
    paths = itertools.chain([first], others)
    return next(path for path in paths if not (path / CONFIG_FILE).exists())


def _check_ramp(lr_start: float, lr_end: float, num_steps: int, kind: str) -> None:
    """Raise a UsageError if the rates cannot rise as asked."""
    for name, rate in (("find_lr_min", lr_start), ("find_lr_max", lr_end)):
        if not (math.isfinite(rate) and rate >= 0):
            raise UsageError(f"--{name}={rate} is not valid; use a finite number, 0 or more")
    if lr_start == 0 and kind == EXPONENTIAL:
        raise UsageError(
            "--find_lr_min=0 cannot rise by equal factors; use a rate above 0, or "
            "--find_lr_ramp=linear"
        )
    if lr_start >= lr_end:
        raise UsageError(
            f"--find_lr_min={lr_start} is not below --find_lr_max={lr_end}; use "
            "find_lr_min < find_lr_max"
        )
    if num_steps < FEWEST_STEPS:
        raise UsageError(f"--find_lr_steps={num_steps} is too few; use {FEWEST_STEPS} or more")


def _measure(
    job: Job, rates: np.ndarray, window: int, log_every_steps: int
) -> tuple[list[float], list[float], list[float]]:
    """Train while the rate rises; return rates, losses and accuracies until the loss diverges."""
    job = dataclasses.replace(job, schedule=lambda step: jnp.asarray(rates)[step])
    programs, data, state = start(job, Clock())
    pending, measured = [], []
    with contextlib.closing(data):
        for step in range(len(rates)):
            examples, batches = data.train.at(step, state.step)
            state, metrics = programs.train_steps(state, examples, batches, 1)
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
                    *(
                        step + 1,
                        len(rates),
                        rates[step],
                        *map(measured[-1].get, ("loss", "accuracy")),
                    ),
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
