"""From a job to programs, data and state on the devices; data are read while XLA compiles."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer import devices
from trainer.datasets import Dataset
from trainer.run.job import Job
from trainer.run.resume import check_data, resumed_state
from trainer.step import (
    Examples,
    Metrics,
    TrainState,
    abstract_examples,
    check_first_state,
    create_evaluate,
    create_replica_check,
    create_train_state,
    create_train_step,
    create_train_steps,
    epoch_batches,
    place_examples,
)

TrainSteps = Callable[[TrainState, Examples, jax.Array, int], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Programs:
    """What the devices execute.

    Attributes:
      train_steps: (state, examples, batches, count) -> (state, metrics); see
        `several_steps.create_train_steps`. The metrics are scalars if config.steps_per_call is 1.
      epoch_batches: see `create_epoch_batches`.
      evaluate: see `eval_step.create_evaluate`.
      check_replicas: see `replicas.create_replica_check`.
    """

    train_steps: TrainSteps
    epoch_batches: Callable[[jax.Array], jax.Array]
    evaluate: Callable[..., Metrics]
    check_replicas: Callable[[TrainState], None]


@dataclasses.dataclass(frozen=True)
class Data:
    """Both splits on the devices, and what a checkpoint must know of the inputs."""

    train: Examples
    test: Examples
    inputs: dict[str, Any]


def start(job: Job) -> tuple[Programs, Data, TrainState]:
    """Return the compiled programs, the data and the first state.

    Args:
      job: the run.

    Raises:
      UsageError: the data are not those that the checkpoint was trained on.
      RunError: the data are damaged, or the checkpoint has other leaves than the state.
    """
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_read, job)
        programs = compile_programs(job)
        if job.restored:
            state = resumed_state(job, job.restored)
        else:
            state = create_train_state(job.init, devices.replicated(job.mesh))
            check_first_state(state)
        return programs, _place(job, reading.result()), state


def compile_programs(job: Job) -> Programs:
    """Compile the programs of a run from shapes alone; no data are needed."""
    source, plan, state = job.source, job.plan, job.abstract_state
    train, test = (
        abstract_examples(num_examples, source.image_shape, devices.replicated(job.mesh))
        for num_examples in (source.num_train, source.num_test)
    )
    batches = jax.ShapeDtypeStruct(
        (plan.steps_per_epoch, job.config.batch_size),
        jnp.int32,
        sharding=devices.sharded(job.mesh, axis=1),
    )
    return Programs(
        train_steps=_compile_steps(job, state, train, batches),
        epoch_batches=create_epoch_batches(job).lower(state.step).compile(),
        evaluate=create_evaluate(job.network, job.mesh, state.params, state.statistics, test),
        check_replicas=create_replica_check(job.mesh, state),
    )


def _compile_steps(job: Job, state: TrainState, train: Examples, batches: Any) -> TrainSteps:
    """Return the compiled function that takes some steps; a step on its own needs no loop."""
    config = job.config
    train_step: Any = create_train_step(
        job.network,
        job.tx,
        job.schedule,
        job.mesh,
        seed=config.seed,
        reduction=config.reduction,
        gradient_shards=config.gradient_shards,
        momentum_schedule=job.momentum_schedule,
    )
    most = config.steps_per_call
    if most == 1:
        one = train_step.lower(state, train, batches).compile()
        return lambda state, train, batches, count: one(state, train, batches)
    sharding = devices.replicated(job.mesh)
    # On the devices already: nothing is transferred in the loop.
    counts = [devices.place(np.array(count, np.int32), sharding) for count in range(most + 1)]
    several = create_train_steps(train_step, most, sharding)
    program = several.lower(state, train, batches, counts[0]).compile()
    return lambda state, train, batches, count: program(state, train, batches, counts[count])


def create_epoch_batches(job: Job) -> jax.stages.Wrapped:
    """Return the jitted function from a step to the batches of the epoch that it lies in.

    Returns:
      epoch_batches(step int32[]) -> int32[steps_per_epoch, B], axis 1 cut over the devices; row
      step % steps_per_epoch is the batch of that step.
    """

    def at(step: jax.Array) -> jax.Array:
        epoch = step // job.plan.steps_per_epoch
        return epoch_batches(job.config.seed, epoch, job.source.num_train, job.config.batch_size)

    return jax.jit(at, out_shardings=devices.sharded(job.mesh, axis=1))


def _read(job: Job) -> Dataset:
    """Return the data, which are those of the checkpoint if the run resumes from one."""
    dataset = job.source.read()
    if job.restored:
        check_data(job.restored, dataset.identity, "resume from it")
    return dataset


def _place(job: Job, dataset: Dataset) -> Data:
    """Put both splits whole on every device."""
    mean, std = dataset.input_moments(job.config.standardize)
    sharding = devices.replicated(job.mesh)
    train = place_examples(dataset.train_images, dataset.train_labels, mean, std, sharding)
    test = place_examples(dataset.test_images, dataset.test_labels, mean, std, sharding)
    inputs = {
        "image_shape": list(job.source.image_shape),
        "num_classes": dataset.num_classes,
        "num_train": job.source.num_train,
        "num_test": job.source.num_test,
        "data": dataset.identity,
        "mean": mean,
        "std": std,
    }
    return Data(train, test, inputs)
