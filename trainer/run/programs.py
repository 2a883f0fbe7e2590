"""From a job to programs, data and state on the devices; data are read while XLA compiles."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
    averaged,
    check_first_state,
    create_evaluate,
    create_replica_check,
    create_train_state,
    create_train_step,
    create_train_steps,
    epoch_batches,
    lower_eval_step,
    lower_replica_hashes,
    place_examples,
)
from trainer.step.train_step import TwoPrograms

TrainSteps = Callable[[TrainState, Examples, jax.Array, int], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Programs:
    """What the devices execute.

    Attributes:
      train_steps: (state, examples, batches, count) -> (state, metrics); see
        `several_steps.create_train_steps`. The metrics are scalars if config.steps_per_call is 1.
      epoch_batches: see `create_epoch_batches`.
      evaluate: (state, test) -> sums as in `eval_step.create_evaluate`, and under the name of each
        average that the run keeps those of the averaged parameters; it does not wait for the
        devices.
      check_replicas: see `replicas.create_replica_check`.
    """

    train_steps: TrainSteps
    epoch_batches: Callable[[jax.Array], jax.Array]
    evaluate: Callable[[TrainState, Examples], dict[str, Any]]
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
    state = job.abstract_state
    return Programs(
        train_steps=_compile_steps(job),
        epoch_batches=create_epoch_batches(job).lower(state.step).compile(),
        evaluate=_compile_evaluation(job, state, _abstract_splits(job)[1]),
        check_replicas=create_replica_check(job.mesh, state),
    )


def lower_programs(job: Job) -> dict[str, Any]:
    """Return every program of a run, lowered: to be compiled, here or for other devices.

    Args:
      job: the run; its devices need not be there.

    Returns:
      Name to jax.stages.Lowered. The train step is "gradient" and "update" with the tree (of a
      network of the user's own "select", "shard_gradient", "add_up" and "update"), else
      "train_step", or "train_steps" where a call takes several.
    """
    state, test = job.abstract_state, _abstract_splits(job)[1]
    step = lower_steps(job)
    steps = step.parts() if isinstance(step, TwoPrograms) else {_name_of_steps(job): step}
    evaluate = lower_eval_step(job.network, job.mesh, state.params, state.statistics, test)
    programs = {
        **steps,
        "epoch_batches": create_epoch_batches(job).lower(state.step),
        "evaluate": evaluate,
        "create_state": jax.jit(job.init, out_shardings=devices.replicated(job.mesh)).lower(),
    }
    if job.mesh.size > 1:
        programs["check_replicas"] = lower_replica_hashes(job.mesh, state)
    return programs


def _name_of_steps(job: Job) -> str:
    """Return what to call the program of a call."""
    return "train_step" if job.config.steps_per_call == 1 else "train_steps"


def _abstract_splits(job: Job) -> list[Examples]:
    """Return shapes and shardings of the training and the test split."""
    source, everywhere = job.source, devices.replicated(job.mesh)
    return [
        abstract_examples(num_examples, source.image_shape, everywhere)
        for num_examples in (source.num_train, source.num_test)
    ]


def lower_steps(job: Job) -> Any:
    """Return the programs of a call of the devices, lowered; a step on its own needs no loop.

    Args:
      job: the run; its devices need not be there.

    Returns:
      `lower` of the train step, or of several in a loop where a call takes several.
    """
    config, state, train = job.config, job.abstract_state, _abstract_splits(job)[0]
    batches = jax.ShapeDtypeStruct(
        (job.plan.steps_per_epoch, config.batch_size),
        jnp.int32,
        sharding=devices.sharded(job.mesh, axis=1),
    )
    train_step: Any = create_train_step(
        job.network,
        job.tx,
        job.schedule,
        job.mesh,
        seed=config.seed,
        reduction=config.reduction,
        gradient_shards=config.gradient_shards,
        accumulation_steps=config.accumulation_steps,
        momentum_schedule=job.momentum_schedule,
        averaging=job.averaging,
        augmentation=job.augmentation,
    )
    if config.steps_per_call == 1:
        return train_step.lower(state, train, batches)
    sharding = devices.replicated(job.mesh)
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding)
    several = create_train_steps(
        train_step,
        config.steps_per_call,
        sharding,
        fixed_length=devices.platform_of(job.mesh) == "gpu",
    )
    return several.lower(state, train, batches, count)


def _compile_steps(job: Job) -> TrainSteps:
    """Return the compiled function that takes some steps."""
    program, most = lower_steps(job).compile(), job.config.steps_per_call
    if most == 1:
        return lambda state, train, batches, count: program(state, train, batches)
    sharding = devices.replicated(job.mesh)
    # On the devices already: nothing is transferred in the loop.
    counts = [devices.place(np.array(count, np.int32), sharding) for count in range(most + 1)]
    return lambda state, train, batches, count: program(state, train, batches, counts[count])


def _compile_evaluation(
    job: Job, state: TrainState, test: Examples
) -> Callable[[TrainState, Examples], dict[str, Any]]:
    """Return the compiled function that tests the parameters, and their averages if any."""
    evaluate = create_evaluate(job.network, job.mesh, state.params, state.statistics, test)
    everywhere = devices.replicated(job.mesh)
    readers = {
        kind: jax.jit(partial(averaged, kind=kind), out_shardings=everywhere)
        .lower(state.averages)
        .compile()
        for kind in state.averages
    }

    def run(state: TrainState, test: Examples) -> dict[str, Any]:
        sums: dict[str, Any] = dict(evaluate(state.params, state.statistics, test))
        for kind, read in readers.items():
            params, statistics = read(state.averages)
            sums[kind] = evaluate(params, statistics, test)
        return sums

    return run


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
        check_data(job.restored, job.config.dataset, dataset.identity, "resume from it")
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
