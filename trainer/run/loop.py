"""The training job: a configuration and a workdir in, checkpoints and records out."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Collection
from typing import Any

import jax
from etils import epath

from trainer import devices, processes
from trainer.checkpoints import clear_the_way, find_newest
from trainer.config import TrainConfig
from trainer.errors import Stopped
from trainer.processes.signals import StopRequest
from trainer.processes.vote import StopVote
from trainer.records.clock import COMPILATION, DATA, START_UP, STEPS, Clock
from trainer.records.timing import describe_account
from trainer.run.config_changes import check_names
from trainer.run.data import Data
from trainer.run.describe import describe, describe_compilation
from trainer.run.job import Job, prepare
from trainer.run.outputs import Outputs, note_start, open_outputs
from trainer.run.programs import Programs, start
from trainer.run.resolving import intervals
from trainer.step import TrainState
from trainer.workdir.lock import claim
from trainer.workdir.storage import check_writable, open_workdir

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run has come to.

    Attributes:
      step: updates made, in all.
      complete: whether these are all that it was to make.
      test_loss: of the last test on the test split, or None if there was none yet.
      test_accuracy: of that test, a fraction, or None.
      workdir: where its files lie.
    """

    step: int
    complete: bool
    test_loss: float | None
    test_accuracy: float | None
    workdir: str


def train(
    config: TrainConfig,
    workdir: epath.PathLike,
    allow_config_change: Collection[str] = (),
    given: Collection[str] | None = None,
    began: float | None = None,
) -> TrainResult:
    """Train, or resume from the newest good checkpoint, or say that the run is complete.

    With several processes (`processes.joined`) all of them call it; the first one writes.

    Args:
      config: the hyperparameters.
      workdir: where checkpoints and records go; made if missing.
      allow_config_change: fields that may differ from those of the run in the workdir.
      given: the fields that the user gave; the others are as the run in the workdir has them, if
        there is one. None: all were given.
      began: seconds since the epoch at which the command began, for the account of its time;
        None: now.

    Raises:
      UsageError: the configuration fits neither devices, data nor the run in the workdir, or
        another trainer is writing there; nothing has been changed.
      RunError: the numbers are not finite, devices differ, data or every checkpoint are damaged,
        or a file could not be written.
      Stopped: a signal came; a checkpoint has been saved.
    """
    started, clock = time.monotonic(), Clock(began)
    check_names(allow_config_change)
    workdir = open_workdir(workdir)
    check_writable(workdir)
    with claim(workdir) as lock, devices.fixed_settings():
        # Everything is decided on the checkpoint that will be taken, and on no other.
        search = find_newest(workdir)
        job = prepare(
            config,
            workdir,
            search.newest,
            allow_config_change=allow_config_change,
            given=given,
        )
        if job.restored and job.first_step >= job.plan.num_steps:
            _say_complete(job)
            return _result(job, job.first_step, job.restored.meta["test"])
        logger.info("%s", describe(job))
        logger.info("%s", describe_compilation(job.config))
        programs, data, state = start(job, clock)
        # All that can be refused has been by now: from here on the workdir changes.
        if lock:
            clear_the_way(workdir, search)
        note_start(job)
        # What tests need is compiled while the devices train,
        programs.evaluation.begin()
        if jax.process_count() > 1:
            # but among several before they meet: Gloo gives the others 30 s to come to a step, and
            # one may compile for longer.
            clock.enter(COMPILATION)
            programs.evaluation.result()
            clock.enter(START_UP)
        processes.gather(None)
        # Until here a signal ends the command at once: there was nothing to save.
        with (
            StopRequest() as stop,
            processes.Watchdog(job.config.hang_seconds) as watchdog,
            contextlib.closing(data),
            open_outputs(job, data, lock, clock) as outputs,
        ):
            logger.info("first step after %.1f s", time.monotonic() - started)
            _take_steps(job, programs, data, state, outputs, stop, watchdog, clock)
            watchdog.progress(job.plan.num_steps, "at the end", may_take_long=True)
            outputs.finish()
        last_test = processes.share(outputs.last_test)
    logger.info("in all %s; files in %s", describe_account(clock.seconds()), workdir)
    return _result(job, job.plan.num_steps, last_test)


def plan(
    config: TrainConfig,
    workdir: epath.PathLike,
    allow_config_change: Collection[str] = (),
    given: Collection[str] | None = None,
) -> Job:
    """Return what `train` would do, without doing it; nothing is written.

    Args:
      config: see `train`.
      workdir: see `train`.
      allow_config_change: see `train`.
      given: see `train`.

    Raises:
      UsageError, RunError: as `train` does before it trains.
    """
    check_names(allow_config_change)
    workdir = open_workdir(workdir)
    check_writable(workdir)
    return prepare(
        config,
        workdir,
        find_newest(workdir).newest,
        allow_config_change=allow_config_change,
        given=given,
    )


def _take_steps(
    job: Job,
    programs: Programs,
    data: Data,
    state: TrainState,
    outputs: Outputs,
    stop: StopRequest,
    watchdog: processes.Watchdog,
    clock: Clock,
) -> None:
    """Take all steps that are left, with tests, checks and checkpoints when they are due."""
    config, plan, done = job.config, job.plan, job.first_step
    stopping_now = StopVote(stop, job.mesh)
    while done < plan.num_steps:
        watchdog.progress(done, "in a step")
        outputs.begin(done, state)
        # Nothing is moved between host and devices here: both are always busy.
        with jax.transfer_guard("disallow"):
            clock.enter(DATA)
            examples, batches = data.train.at(done, state.step)
            clock.enter(STEPS)
            count = _steps_of_call(job, done)
            state, metrics = programs.train_steps(state, examples, batches, count)
        outputs.trained(done, count, metrics)
        done, stopping = done + count, stopping_now()
        last = done == plan.num_steps
        testing = last or _due(done, plan.eval_every_steps)
        if testing:
            if programs.evaluation.is_pending:
                clock.enter(COMPILATION)
                watchdog.progress(done, "compiling the evaluation", may_take_long=True)
                programs.evaluation.result()
                clock.enter(STEPS)
            watchdog.progress(done, "in an evaluation")
            outputs.testing(state)
            outputs.tested(done, programs.evaluate(state, data.test))
        if _due(done, config.audit_every_steps):
            programs.audit(state, examples, batches)
        saving = last or stopping or _save_is_due(job, done)
        if_best = testing and config.keep_best
        if saving or if_best or _due(done, config.check_replicas_every_steps):
            programs.check_replicas(state)
        if saving or if_best:
            watchdog.progress(done, "in a save", may_take_long=True)
            outputs.save(state, done, only_if_best=not saving)
        if stopping and not last:
            outputs.wait()
            result = _result(job, done, processes.share(outputs.last_test))
            raise Stopped(_say_stopped(job, stop, done), result)


def _steps_of_call(job: Job, done: int) -> int:
    """Return how many steps may be taken before something else is to be done."""
    config, plan = job.config, job.plan
    until_due = [every - done % every for every in intervals(config, plan)]
    return min(config.steps_per_call, plan.num_steps - done, *until_due)


def _save_is_due(job: Job, done: int) -> bool:
    """Return whether the state is to be saved, whatever its test says."""
    at_end_of_cycle = job.config.keep_cycle_ends and _due(done, job.plan.steps_per_cycle)
    return bool(at_end_of_cycle) or _due(done, job.config.checkpoint_every_steps)


def _due(done: int, every_steps: int | None) -> bool:
    """Return whether something that happens every so many steps happens now."""
    return every_steps is not None and done % every_steps == 0


def _result(job: Job, step: int, test: dict[str, Any] | None) -> TrainResult:
    """Return what the run has come to."""
    return TrainResult(
        step=step,
        complete=step >= job.plan.num_steps,
        test_loss=test["loss"] if test else None,
        test_accuracy=test["accuracy"] if test else None,
        workdir=str(job.workdir),
    )


def _say_complete(job: Job) -> None:
    """Say that there is nothing to do, and how there would be."""
    step, asked = job.first_step, job.plan.num_steps
    steps = f"{step} steps" if step == asked else f"{step} steps, {asked} asked for"
    logger.info(
        "the run in %s is complete: %s; to train an epoch more: --num_steps=%d",
        *(job.workdir, steps, step + job.plan.steps_per_epoch),
    )


def _say_stopped(job: Job, stop: StopRequest, step: int) -> str:
    """Return the line of a run that stops early."""
    reason = stop.signal_name or "a signal to another process"
    return (
        f"stopped by {reason} at step {step} of {job.plan.num_steps}, checkpoint saved; "
        "the same command resumes from there"
    )
