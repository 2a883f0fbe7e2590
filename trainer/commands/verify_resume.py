"""Proof on the user's machine that a run that stops and resumes is the run that never stopped."""

import dataclasses
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from trainer import devices
from trainer.commands.inspection import inspect
from trainer.config import TrainConfig
from trainer.errors import Interrupted, Stopped
from trainer.run.job import Job, prepare
from trainer.run.loop import train
from trainer.run.order import create_epoch_batches
from trainer.schedules import Plan
from trainer.step.batches import epoch_batches
from trainer.step.reductions import TREE
from trainer.workdir.files import METRICS_FILE

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One thing that two runs have, compared bit for bit.

    Attributes:
      what: in words.
      count: how many values were compared.
      difference: the first one in words, or None if all agree.
      promised: whether a difference breaks a promise.
    """

    what: str
    count: int
    difference: str | None
    promised: bool = True


def verify_resume(config: TrainConfig, device_counts: Sequence[int]) -> list[Comparison]:
    """Train unbroken, train again with stops at telling points, and compare everything.

    The first run is on the first number of devices; the second changes to the next number at
    every stop. Both are real runs with real checkpoints, in a temporary folder. They are
    num_steps or num_cycles long, or else a little more than an epoch.

    Args:
      config: the user's hyperparameters.
      device_counts: numbers of devices, or [0] for all.

    Returns:
      What was compared. Different numbers of devices promise the same parameters only with
      reduction=tree; learning rates and batches always.

    Raises:
      UsageError, RunError: see `loop.train`.
      Interrupted: a signal came.
    """
    with tempfile.TemporaryDirectory() as folder:
        unbroken, broken = Path(folder, "unbroken"), Path(folder, "broken")
        jobs = [_prepare(config, count, unbroken) for count in device_counts]
        plan = jobs[0].plan
        asked_steps = config.asked_steps(plan.steps_per_cycle)
        points = stops(plan, asked_steps)
        num_steps = asked_steps or max(points) + 2
        logger.info("unbroken: %d steps on %s", num_steps, devices.describe(jobs[0].mesh))
        _train(config, num_steps, device_counts[0], unbroken)
        for i, (stop, why) in enumerate([*points.items(), (num_steps, "the end")]):
            job = jobs[i % len(jobs)]
            logger.info("broken: to step %d, %s, on %s", stop, why, devices.describe(job.mesh))
            _train(config, stop, device_counts[i % len(device_counts)], broken)
        promised = len({job.mesh.size for job in jobs}) == 1 or jobs[0].config.reduction == TREE
        return list(_compare(unbroken, broken, jobs, num_steps, promised))


def stops(plan: Plan, num_steps: int | None) -> dict[int, str]:
    """Return the steps to stop at, in order, and what is telling about each.

    Args:
      plan: of the run.
      num_steps: the length that the user asked for, or None.
    """
    top = plan.top
    found = {
        plan.steps_per_epoch: "at the end of an epoch",
        top // 2: "in mid-cycle, rising",
        top: "at the peak",
        (top + plan.steps_per_cycle) // 2: "in mid-cycle, falling",
        plan.steps_per_cycle: "at the lowest rate",
    }
    limit = num_steps or max(found) + 1
    return {step: found[step] for step in sorted(found) if 0 < step < limit}


def report(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as a table, and a verdict in words."""
    lines = [f"{'compared bit for bit':36} {'values':>8}  result"]
    for each in comparisons:
        result = "the same" if each.difference is None else f"DIFFERENT: {each.difference}"
        if each.difference is not None and not each.promised:
            result += " (not promised: all-reduce adds in another order on other devices)"
        lines.append(f"{each.what:36} {each.count:>8}  {result}")
    broken = [each for each in comparisons if each.promised and each.difference is not None]
    if broken:
        lines.append(f"NOT the same run: {broken[0].what}: {broken[0].difference}")
    else:
        lines.append("Stopping and resuming changed nothing that is promised.")
    return "\n".join(lines)


def kept(comparisons: Sequence[Comparison]) -> bool:
    """Return whether every promise was kept."""
    return all(each.difference is None for each in comparisons if each.promised)


def _prepare(config: TrainConfig, num_devices: int, workdir: Path) -> Job:
    """Return the job on some devices."""
    return prepare(dataclasses.replace(config, num_devices=num_devices), epath.Path(workdir))


def _train(config: TrainConfig, num_steps: int, num_devices: int, workdir: Path) -> None:
    """Train up to a step, without telling about it."""
    loud = logging.getLogger("trainer.run"), logging.getLogger("trainer.records")
    levels = [each.level for each in loud]
    try:
        for each in loud:
            each.setLevel(logging.WARNING)
        config = dataclasses.replace(config, num_steps=num_steps, num_cycles=None)
        config = dataclasses.replace(config, tensorboard=False, report=False)
        train(dataclasses.replace(config, num_devices=num_devices), workdir)
    except Stopped as stopped:
        raise Interrupted(
            "interrupted: nothing was proven and nothing is kept; run the same command again"
        ) from stopped
    finally:
        for each, level in zip(loud, levels, strict=True):
            each.setLevel(level)


def _compare(
    unbroken: Path, broken: Path, jobs: Sequence[Job], num_steps: int, promised: bool
) -> Iterator[Comparison]:
    """Compare two finished runs."""
    digests = [inspect(workdir)["digests"] for workdir in (unbroken, broken)]
    leaf = _first_difference(*digests)
    # The digests themselves tell a reader nothing.
    difference = leaf and leaf.split(":")[0]
    yield Comparison("leaves of the final state", len(digests[0]), difference, promised)
    lines = [_train_lines(workdir) for workdir in (unbroken, broken)]
    steps = list(range(num_steps))
    wrong = next((i for i, x in enumerate(lines[1]) if x["step"] != i), None)
    count_wrong = len(lines[1]) != num_steps or wrong is not None
    yield Comparison(
        "steps in metrics.jsonl, each once", num_steps, f"line {wrong}" if count_wrong else None
    )
    rates = [{x["step"]: x["learning_rate"] for x in run} for run in lines]
    yield Comparison("learning rates, unbroken run", num_steps, _first_difference(*rates))
    formulas = {"learning_rate": jobs[0].schedule, "momentum": jobs[0].momentum_schedule}
    for name, schedule in formulas.items():
        if schedule is not None:
            formula = {step: float(schedule(step)) for step in steps}
            found = {x["step"]: x[name] for x in lines[1]}
            what = f"{name.replace('_', ' ')}s, formula"
            yield Comparison(what, num_steps, _first_difference(formula, found))
    losses = [{x["step"]: x["loss"] for x in run} for run in lines]
    yield Comparison("losses", num_steps, _first_difference(*losses), promised)
    yield _compare_batches(jobs, num_steps)


def _compare_batches(jobs: Sequence[Job], num_steps: int) -> Comparison:
    """Compare the global batches that each set of devices would load with the definition."""
    plan, config = jobs[0].plan, jobs[0].config
    difference = None
    for job in jobs:
        load = create_epoch_batches(job)
        for first in range(0, num_steps, plan.steps_per_epoch):
            epoch = first // plan.steps_per_epoch
            expected = epoch_batches(config.seed, epoch, job.source.num_train, config.batch_size)
            if difference is None and not np.array_equal(load(np.int32(first)), expected):
                difference = f"epoch {epoch} on {devices.describe(job.mesh)}"
    return Comparison("batches, on every set of devices", num_steps * len(jobs), difference)


def _train_lines(workdir: Path) -> list[dict[str, Any]]:
    """Return the records of the steps of a run."""
    lines = [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]
    return [line for line in lines if line["split"] == "train"]


def _first_difference(one: dict[Any, Any], other: dict[Any, Any]) -> str | None:
    """Return the first key whose values differ, and the values, in words."""
    for key in one:
        if one[key] != other.get(key):
            where = f"step {key}" if isinstance(key, int) else str(key)
            return f"{where}: {one[key]} and {other.get(key)}"
    return None
