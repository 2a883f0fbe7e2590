"""The programs of a run, compiled before it starts, from shapes alone."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer import devices
from trainer.run.job import Job
from trainer.step.batches import epoch_batches
from trainer.step.evaluation import create_evaluate
from trainer.step.replicas import create_replica_check
from trainer.step.state import TrainState
from trainer.step.train_step import (
    Examples,
    Metrics,
    abstract_examples,
    create_train_step,
    create_train_steps,
)


@dataclasses.dataclass(frozen=True)
class Programs:
    """What the devices execute.

    Attributes:
      train_steps: (state, examples, batches, count) -> (state, metrics); see
        `steps.create_train_steps`. The metrics are scalars if config.steps_per_call is 1.
      epoch_batches: see `create_epoch_batches`.
      evaluate: see `evaluation.create_evaluate`.
      check_replicas: see `replicas.create_replica_check`.
    """

    train_steps: Callable[[TrainState, Examples, jax.Array, int], tuple[TrainState, Metrics]]
    epoch_batches: Callable[[jax.Array], jax.Array]
    evaluate: Callable[[optax.Params, Examples], Metrics]
    check_replicas: Callable[[TrainState], None]


def compile_programs(job: Job, state: TrainState) -> Programs:
    """Compile the programs of a run; no data are needed.

    Args:
      job: the run.
      state: shapes, dtypes and shardings of its state.
    """
    source, plan = job.source, job.plan
    train, test = (
        abstract_examples(num_examples, source.image_shape, devices.replicated(job.mesh))
        for num_examples in (source.num_train, source.num_test)
    )
    batches = jax.ShapeDtypeStruct(
        (plan.steps_per_epoch, job.config.batch_size),
        jnp.int32,
        sharding=devices.sharded(job.mesh, axis=1),
    )
    train_step = create_train_step(
        job.model,
        job.tx,
        job.schedule,
        job.mesh,
        job.config.reduction,
        job.config.gradient_shards,
        job.momentum_schedule,
    )
    return Programs(
        train_steps=_compile_steps(job, train_step, state, train, batches),
        epoch_batches=create_epoch_batches(job).lower(state.step).compile(),
        evaluate=create_evaluate(job.model, job.mesh, state.params, test),
        check_replicas=create_replica_check(job.mesh, state),
    )


def _compile_steps(
    job: Job, train_step: Any, state: TrainState, train: Examples, batches: Any
) -> Callable[[TrainState, Examples, jax.Array, int], tuple[TrainState, Metrics]]:
    """Return the compiled function that takes some steps; a step on its own needs no loop."""
    most = job.config.steps_per_call
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
