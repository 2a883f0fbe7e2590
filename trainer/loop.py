"""The training job: a configuration and a workdir in, checkpoints and records out."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath

from trainer import devices
from trainer.batches import epoch_batches
from trainer.checkpoints import Checkpoints
from trainer.config import TrainConfig
from trainer.datasets import Dataset
from trainer.errors import UsageError
from trainer.evaluation import create_evaluate
from trainer.job import Job, describe, prepare
from trainer.records import Records
from trainer.schedules import position_at
from trainer.state import TrainState, abstract_train_state, create_train_state, train_state_init
from trainer.steps import Examples, Metrics, abstract_examples, create_train_step, place_examples

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"

_RECORDED_PACKAGES = ("cyclic-trainer", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")


def train(config: TrainConfig, workdir: epath.PathLike) -> dict[str, Any] | None:
    """Train, or go on from the newest checkpoint, or say that the run is complete.

    Args:
      config: the hyperparameters.
      workdir: where checkpoints and records go; made if missing.

    Returns:
      The last test record (step, loss, accuracy as a fraction, examples), or None if the run was
      complete already.

    Raises:
      UsageError: the configuration fits neither devices, data nor the run in the workdir; nothing
        has been written.
      RunError: a checkpoint could not be written, or data are damaged.
    """
    started = time.monotonic()
    job = prepare(config, workdir)
    plan = job.plan
    if job.first_step >= plan.num_steps:
        _say_complete(job)
        return None
    _open_workdir(job)
    logger.info("%s", describe(job))
    with Checkpoints(workdir, job.config.keep_checkpoints) as checkpoints:
        programs, data, state = _start(job, checkpoints)
        with Records(job.workdir, job.config, plan, job.first_step) as records:
            logger.info("first step after %.1f s", time.monotonic() - started)
            for step in range(job.first_step, plan.num_steps):
                if step == job.first_step or step % plan.steps_per_epoch == 0:
                    batches = programs.epoch_batches(state.step)
                state, metrics = programs.train_step(state, data.train, batches)
                records.train(step, metrics)
                done = step + 1
                last = done == plan.num_steps
                if last or done % plan.eval_every_steps == 0:
                    records.test(done, programs.evaluate(state.params, data.test))
                if last or done % job.config.checkpoint_every_steps == 0:
                    # First the records, then the checkpoint: what it includes, they include.
                    records.flush()
                    checkpoints.save(state, done, _meta(job, data, done))
            checkpoints.wait()
            logger.info("%s", records.summary())
    logger.info("in all %.1f s; files in %s", time.monotonic() - started, job.workdir)
    return records.last_test


def _say_complete(job: Job) -> None:
    """Say that there is nothing to do, and how there would be."""
    epochs = job.first_step // job.plan.steps_per_epoch + job.config.num_epochs
    logger.info(
        "the run in %s is complete: %d of %d steps; to go on: --num_epochs=%d or --num_steps=%d",
        job.workdir,
        job.first_step,
        job.plan.num_steps,
        epochs,
        epochs * job.plan.steps_per_epoch,
    )


def _open_workdir(job: Job) -> None:
    """Make the workdir and write the resolved configuration into it."""
    try:
        job.workdir.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(job.config), indent=2) + "\n"
        (job.workdir / CONFIG_FILE).write_text(text)
    except OSError as error:
        raise UsageError(
            f"--workdir={job.workdir} cannot be written: {error.strerror}; valid: a folder that "
            "can be made and written"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Programs:
    """The compiled programs of a run."""

    train_step: Callable[[TrainState, Examples, jax.Array], tuple[TrainState, Metrics]]
    epoch_batches: Callable[[jax.Array], jax.Array]
    evaluate: Callable[[optax.Params, Examples], Metrics]


@dataclasses.dataclass(frozen=True)
class _Data:
    """Both splits on the devices, and what a checkpoint must know of the inputs."""

    train: Examples
    test: Examples
    inputs: dict[str, Any]


def _start(job: Job, checkpoints: Checkpoints) -> tuple[_Programs, _Data, TrainState]:
    """Read the data while XLA compiles and Orbax restores."""
    init = train_state_init(job.model, job.tx, job.config.seed, job.source.image_shape)
    abstract_state = abstract_train_state(init, devices.replicated(job.mesh))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(job.source.read)
        programs = _compile(job, abstract_state)
        if job.first_step:
            state = checkpoints.restore(job.first_step, abstract_state)
            _say_resuming(job)
        else:
            state = create_train_state(init, devices.replicated(job.mesh))
        return programs, _place(job, reading.result()), state


def _say_resuming(job: Job) -> None:
    """Say where the run goes on."""
    plan = job.plan
    position = position_at(job.first_step, plan.steps_per_epoch, plan.steps_per_cycle)
    rate = float(job.schedule(job.first_step))
    logger.info("resuming at %s, learning rate %.4g", position, rate)


def _compile(job: Job, state: TrainState) -> _Programs:
    """Compile what needs no data, only their shapes."""
    source, batch_size = job.source, job.config.batch_size
    replicated, sharded = devices.replicated(job.mesh), devices.sharded(job.mesh, axis=1)
    train = abstract_examples(source.num_train, source.image_shape, replicated)
    test = abstract_examples(source.num_test, source.image_shape, replicated)
    batches = jax.ShapeDtypeStruct(
        (job.plan.steps_per_epoch, batch_size), jnp.int32, sharding=sharded
    )

    def batches_at(step: jax.Array) -> jax.Array:
        epoch = step // job.plan.steps_per_epoch
        return epoch_batches(job.config.seed, epoch, source.num_train, batch_size)

    train_step = create_train_step(job.model, job.tx, job.schedule, job.mesh)
    return _Programs(
        train_step=train_step.lower(state, train, batches).compile(),
        epoch_batches=jax.jit(batches_at, out_shardings=sharded).lower(state.step).compile(),
        evaluate=create_evaluate(job.model, job.mesh, state.params, test),
    )


def _place(job: Job, dataset: Dataset) -> _Data:
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
    return _Data(train, test, inputs)


def _meta(job: Job, data: _Data, step: int) -> dict[str, Any]:
    """Return what a checkpoint stores beside the state."""
    return {
        "step": step,
        "steps_per_epoch": job.plan.steps_per_epoch,
        "learning_rate": float(job.schedule(step)),
        "config": dataclasses.asdict(job.config),
        "inputs": data.inputs,
        "num_devices": job.mesh.size,
        "versions": {package: version(package) for package in _RECORDED_PACKAGES},
    }
