"""The training job: a configuration and a workdir in, checkpoints and records out."""

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Collection
from typing import Any

from etils import epath

from trainer import processes
from trainer.checkpoints.store import Checkpointer, NoCheckpointer
from trainer.config import TrainConfig
from trainer.errors import Stopped
from trainer.processes.signals import StopRequest
from trainer.processes.vote import StopVote
from trainer.records import figures
from trainer.records.metrics import NoRecords, Records
from trainer.records.profiling import Profiler
from trainer.run.job import Job, describe, prepare
from trainer.run.resume import checkpoint_meta, restore
from trainer.run.startup import start
from trainer.schedules.positions import position_at
from trainer.workdir.claim import claim
from trainer.workdir.files import CONFIG_FILE, note_resume
from trainer.workdir.storage import write_whole

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig, workdir: epath.PathLike, allow_config_change: Collection[str] = ()
) -> dict[str, Any] | None:
    """Train, or go on from the newest good checkpoint, or say that the run is complete.

    With several processes (`processes.joined`) all of them call it; the first one writes.

    Args:
      config: the hyperparameters.
      workdir: where checkpoints and records go; made if missing.
      allow_config_change: fields that may differ from those of the run in the workdir.

    Returns:
      The last test record (step, loss, accuracy as a fraction, examples), or None if the run was
      complete already.

    Raises:
      UsageError: the configuration fits neither devices, data nor the run in the workdir, or
        another trainer is writing there; nothing has been changed.
      RunError: the numbers are not finite, devices differ, data or every checkpoint are damaged,
        or a file could not be written.
      Stopped: a signal came; a checkpoint has been saved.
    """
    started = time.monotonic()
    job = prepare(config, workdir, allow_config_change)
    plan = job.plan
    with claim(job.workdir) as lock, contextlib.ExitStack() as stack:
        restored = restore(job)
        first_step = restored.step if restored else 0
        if first_step >= plan.num_steps:
            _say_complete(job, first_step)
            return None
        if processes.is_first():
            _write_config(job)
            note_resume(job.workdir, first_step)
        logger.info("%s", describe(job))
        if restored:
            _say_resuming(job, first_step)
        programs, data, state = start(job, restored)
        # Until here a signal ends the command at once: there was nothing to save.
        stop = stack.enter_context(StopRequest())
        stopping_now = StopVote(stop, job.mesh)
        with (
            _open_checkpointer(job) as checkpointer,
            _open_records(job, first_step) as records,
            Profiler(records.folder, first_step, _profiles(job)) as profiler,
        ):
            logger.info("first step after %.1f s", time.monotonic() - started)
            done = first_step
            while done < plan.num_steps:
                if done == first_step or done % plan.steps_per_epoch == 0:
                    batches = programs.epoch_batches(state.step)
                profiler(done, state)
                count = _steps_of_call(job, done)
                state, metrics = programs.train_steps(state, data.train, batches, count)
                records.train(done, count, metrics)
                checkpointer.poll()
                done, stopping = done + count, stopping_now()
                last = done == plan.num_steps
                if last or done % plan.eval_every_steps == 0:
                    records.test(done, programs.evaluate(state.params, data.test))
                if _due(done, job.config.check_replicas_every_steps):
                    programs.check_replicas(state)
                if last or stopping or done % job.config.checkpoint_every_steps == 0:
                    if lock:
                        lock.confirm()
                    # First the records, then the checkpoint: what it includes, they include.
                    records.flush()
                    programs.check_replicas(state)
                    learning_rate = records.last_learning_rate
                    meta = checkpoint_meta(job, data.inputs, done, learning_rate)
                    checkpointer.save(state, done, meta)
                if stopping and not last:
                    checkpointer.wait()
                    raise Stopped(_say_stopped(job, stop, done))
            checkpointer.wait()
            logger.info("%s", records.summary())
        if job.config.report and processes.is_first():
            _draw_report(job)
    logger.info("in all %.1f s; files in %s", time.monotonic() - started, job.workdir)
    return records.last_test


def _steps_of_call(job: Job, done: int) -> int:
    """Return how many steps may be taken before something else is to be done."""
    config, plan = job.config, job.plan
    intervals = [
        plan.steps_per_epoch,
        plan.eval_every_steps,
        config.checkpoint_every_steps,
        config.check_replicas_every_steps or plan.num_steps,
    ]
    until_due = [every - done % every for every in intervals]
    return min(config.steps_per_call, plan.num_steps - done, *until_due)


def _open_checkpointer(job: Job) -> Checkpointer:
    """Return the checkpointer, which writes in the first process only."""
    if processes.is_first():
        return Checkpointer(job.workdir, job.config.keep_checkpoints)
    return NoCheckpointer()


def _open_records(job: Job, first_step: int) -> Records:
    """Return the records, which are written in the first process only."""
    if processes.is_first():
        return Records(job.workdir, job.config, job.plan, first_step)
    return NoRecords()


def _profiles(job: Job) -> bool:
    """Return whether this process traces: one trace is enough."""
    return job.config.profile and processes.is_first()


def _draw_report(job: Job) -> None:
    """Draw the run; it is whole and stored, whatever becomes of its picture."""
    try:
        figures.draw_report(job.workdir)
    except Exception as error:  # Whatever fails in a library for pictures.
        logger.warning("no picture of the run: %s: %s", type(error).__name__, error)


def _due(done: int, every_steps: int | None) -> bool:
    """Return whether something that happens every so many steps happens now."""
    return every_steps is not None and done % every_steps == 0


def _say_resuming(job: Job, step: int) -> None:
    """Say where the run goes on."""
    plan, up = job.plan, job.config.cycle_up_fraction
    position = position_at(step, plan.steps_per_epoch, plan.steps_per_cycle, up)
    logger.info("resuming at %s, learning rate %.4g", position, float(job.schedule(step)))


def _say_complete(job: Job, step: int) -> None:
    """Say that there is nothing to do, and how there would be."""
    logger.info(
        "the run in %s is complete: %d of %d steps; for an epoch more: --num_steps=%d",
        job.workdir,
        step,
        job.plan.num_steps,
        step + job.plan.steps_per_epoch,
    )


def _say_stopped(job: Job, stop: StopRequest, step: int) -> str:
    """Return the line of a run that stops early."""
    reason = stop.signal_name or "a signal to another process"
    return (
        f"stopped by {reason} at step {step} of {job.plan.num_steps}, checkpoint saved; "
        "the same command goes on from there"
    )


def _write_config(job: Job) -> None:
    """Write the resolved configuration, whole or not at all."""
    text = json.dumps(dataclasses.asdict(job.config), indent=2) + "\n"
    write_whole(job.workdir / CONFIG_FILE, text.encode())
