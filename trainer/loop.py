"""The training job: a configuration and a workdir in, checkpoints and records out."""

import contextlib
import dataclasses
import functools
import json
import logging
import secrets
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import jax
from etils import epath

from trainer import devices, figures, processes
from trainer.checkpoints import Checkpointer, NoCheckpointer, Restored
from trainer.config import TrainConfig
from trainer.datasets import Dataset
from trainer.digests import float_bits
from trainer.errors import RunError, Stopped, UsageError
from trainer.files import CONFIG_FILE, note_resume
from trainer.job import Job, describe, prepare
from trainer.lock import WorkdirLock
from trainer.positions import position_at
from trainer.profiling import Profiler
from trainer.programs import Programs, compile_programs
from trainer.records import NoRecords, Records
from trainer.recovery import restore_newest
from trainer.signals import StopRequest, StopVote
from trainer.state import TrainState, abstract_train_state, create_train_state, train_state_init
from trainer.steps import Examples, place_examples
from trainer.storage import write_whole

logger = logging.getLogger(__name__)

# How long a file that another host made may take to appear on this one: caches of NFS.
_SHARED_SECONDS = 10.0

_RECORDED_PACKAGES = ("cyclic-trainer", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")


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
    with _claim(job) as lock, StopRequest() as stop:
        stopping_now = StopVote(stop, job.mesh)
        restored = _restore(job)
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
        with (
            _open_checkpointer(job) as checkpointer,
            _open_records(job, first_step) as records,
            Profiler(records.folder, first_step, _profiles(job)) as profiler,
        ):
            logger.info("first step after %.1f s", time.monotonic() - started)
            for step in range(first_step, plan.num_steps):
                if step == first_step or step % plan.steps_per_epoch == 0:
                    batches = programs.epoch_batches(state.step)
                profiler(step, state)
                state, metrics = programs.train_step(state, data.train, batches)
                records.train(step, metrics)
                checkpointer.poll()
                done, stopping = step + 1, stopping_now(step)
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
                    checkpointer.save(state, done, checkpoint_meta(job, data, done, records))
                if stopping and not last:
                    checkpointer.wait()
                    raise Stopped(_say_stopped(job, stop, done))
            checkpointer.wait()
            logger.info("%s", records.summary())
        if job.config.report and processes.is_first():
            _draw_report(job)
    logger.info("in all %.1f s; files in %s", time.monotonic() - started, job.workdir)
    return records.last_test


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


def _restore(job: Job) -> Restored | None:
    """Return the newest good checkpoint, whose next learning rate is the one it would have had."""
    init = train_state_init(job.model, job.tx, job.config.seed, job.source.image_shape)
    abstract = abstract_train_state(init, devices.replicated(job.mesh))
    restored = restore_newest(job.workdir, abstract, set_aside=True)
    if restored is None:
        return None
    rate = job.schedule(restored.step)
    changed = job.config_history and job.config_history[-1]["step"] >= restored.step
    if not changed and float_bits(rate) != restored.meta["learning_rate_bits"]["next"]:
        raise RunError(
            f"checkpoint {restored.step} says that the next learning rate is "
            f"{restored.meta['learning_rate']}, the schedule says {float(rate)}: another version "
            "of the trainer made it; go on with that version, or start in another --workdir"
        )
    return restored


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


@contextlib.contextmanager
def _claim(job: Job) -> Iterator[WorkdirLock | None]:
    """Make the workdir and lock it, in the first process; see that all processes share it."""
    if processes.is_first():
        _make_workdir(job)
        with WorkdirLock(job.workdir) as lock:
            _check_shared(job)
            yield lock
    else:
        _check_shared(job)
        yield None


def _make_workdir(job: Job) -> None:
    """Make the workdir, or say why it cannot be made."""
    try:
        job.workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--workdir={job.workdir} cannot be made: {error.strerror}; valid: a folder that can "
            "be made and written"
        ) from error


def _check_shared(job: Job) -> None:
    """Refuse a workdir in which a process does not find what the first one writes."""
    if jax.process_count() == 1:
        return
    path = job.workdir / f"shared-{processes.share(secrets.token_hex(8))}"
    if processes.is_first():
        path.touch()
    processes.share(None)  # Now it is there.
    blind = [i for i, found in enumerate(processes.gather(_appears(path))) if not found]
    if processes.is_first():
        path.unlink()
    if blind:
        raise UsageError(
            f"--workdir={job.workdir} is not the same folder everywhere: what process 0 writes, "
            f"process {', '.join(map(str, blind))} cannot see; valid: a folder of a file system "
            "that all hosts share, or gs://bucket/path"
        )


def _appears(path: epath.Path) -> bool:
    """Return whether a file exists, or comes to exist soon."""
    deadline = time.monotonic() + _SHARED_SECONDS
    while not (found := path.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _write_config(job: Job) -> None:
    """Write the resolved configuration, whole or not at all."""
    text = json.dumps(dataclasses.asdict(job.config), indent=2) + "\n"
    write_whole(job.workdir / CONFIG_FILE, text.encode())


@dataclasses.dataclass(frozen=True)
class Data:
    """Both splits on the devices, and what a checkpoint must know of the inputs."""

    train: Examples
    test: Examples
    inputs: dict[str, Any]


def start(job: Job, restored: Restored | None) -> tuple[Programs, Data, TrainState]:
    """Return the compiled programs, the data and the first state; data are read meanwhile.

    Args:
      job: the run.
      restored: the checkpoint that it goes on from, or None.

    Raises:
      RunError: the data are damaged.
    """
    sharding = devices.replicated(job.mesh)
    init = train_state_init(job.model, job.tx, job.config.seed, job.source.image_shape)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(job.source.read)
        programs = compile_programs(job, abstract_train_state(init, sharding))
        state = restored.state if restored else create_train_state(init, sharding)
        return programs, _place(job, reading.result()), state


def _place(job: Job, dataset: Dataset) -> Data:
    """Put both splits whole on every device."""
    mean, std = 0.0, 1.0
    if job.config.standardize:
        mean, std = dataset.pixel_mean, dataset.pixel_std
    sharding = devices.replicated(job.mesh)
    train = place_examples(dataset.train_images, dataset.train_labels, mean, std, sharding)
    test = place_examples(dataset.test_images, dataset.test_labels, mean, std, sharding)
    inputs = {
        "image_shape": list(job.source.image_shape),
        "num_classes": dataset.num_classes,
        "mean": mean,
        "std": std,
    }
    return Data(train, test, inputs)


def checkpoint_meta(job: Job, data: Data, step: int, records: Records) -> dict[str, Any]:
    """Return what a checkpoint stores beside the state."""
    learning_rate = job.schedule(step)
    return {
        "step": step,
        "steps_per_epoch": job.plan.steps_per_epoch,
        "learning_rate": float(learning_rate),
        "learning_rate_bits": {
            "last": float_bits(records.last_learning_rate),
            "next": float_bits(learning_rate),
        },
        "config": dataclasses.asdict(job.config),
        "config_history": job.config_history,
        "inputs": data.inputs,
        "num_devices": job.mesh.size,
        "num_processes": jax.process_count(),
        "versions": _versions(),
    }


@functools.cache
def _versions() -> dict[str, str]:
    """Return the versions of what a checkpoint depends on; looked up once, it reads files."""
    return {package: version(package) for package in _RECORDED_PACKAGES}
