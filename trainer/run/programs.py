"""From a job to programs, data and state on the devices; data are read while XLA compiles."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer import devices
from trainer.records.clock import CHECKPOINTS, COMPILATION, DATA, START_UP, Clock
from trainer.run.ahead import Later
from trainer.run.data import Data, data_of, open_store_of
from trainer.run.job import Job
from trainer.run.order import compile_epoch_on_host, create_epoch_batches
from trainer.run.resume import resumed_state
from trainer.run.store import abstract_test, abstract_training
from trainer.step import (
    SHARDED,
    STREAMED,
    Batches,
    Examples,
    Metrics,
    TrainState,
    averaged,
    check_first_state,
    compile_first_state,
    create_evaluate,
    create_replica_check,
    create_train_step,
    create_train_steps,
    lower_eval_step,
    lower_replica_hashes,
    with_exchange,
)
from trainer.step.audit import Audit, create_audit, lower_audit
from trainer.step.exchange import WithExchange
from trainer.step.train_step import TwoPrograms, shard_gradients

TrainSteps = Callable[[TrainState, Examples, jax.Array, int], tuple[TrainState, Metrics]]
Evaluate = Callable[[TrainState, Batches], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Programs:
    """What the devices execute.

    Attributes:
      first_state: () -> the state before the first update; compiled when it is asked for, as a
        run that resumes has no use for it.
      train_steps: (state, examples, batches, count) -> (state, metrics); see
        `several_steps.create_train_steps`. The metrics are scalars if config.steps_per_call is 1.
      epoch_batches: the order of the data: see `order.create_epoch_batches`, or for streamed
        examples `order.compile_epoch_on_host`.
      evaluation: makes `evaluate`, in the background once it is begun.
      evaluate: (state, test) -> sums as in `eval_step.create_evaluate`, and under the name of each
        average that the run keeps those of the averaged parameters; it does not wait for the
        devices, but for `evaluation`.
      check_replicas: see `replicas.create_replica_check`.
      audit: see `audit.create_audit`; does nothing unless the run asks for it.
    """

    first_state: Callable[[], TrainState]
    train_steps: TrainSteps
    epoch_batches: Callable[[Any], Any]
    evaluation: Later[Evaluate]
    evaluate: Evaluate
    check_replicas: Callable[[TrainState], None]
    audit: Audit


def start(job: Job, clock: Clock) -> tuple[Programs, Data, TrainState]:
    """Return the programs, of which the evaluation has yet to be begun, data and first state.

    Args:
      job: the run.
      clock: of this start of it.

    Raises:
      UsageError: the data are not those that the checkpoint was trained on.
      RunError: the data are damaged, or the checkpoint has other leaves than the state.
    """
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(open_store_of, job)
        clock.enter(COMPILATION)
        programs = compile_programs(job)
        clock.enter(CHECKPOINTS if job.restored else START_UP)
        if job.restored:
            state = resumed_state(job, job.restored)
        else:
            state = programs.first_state()
            check_first_state(state)
        clock.enter(DATA)
        data = data_of(job, opening.result(), programs.epoch_batches)
        clock.enter(START_UP)
        return programs, data, state


def compile_programs(job: Job) -> Programs:
    """Compile the programs of a run from shapes alone; no data are needed.

    The evaluation is compiled when it is begun.
    """
    state = job.abstract_state
    evaluation = Later(partial(_compile_evaluation, job))
    compile_first = cache(partial(compile_first_state, job.init, devices.replicated(job.mesh)))
    return Programs(
        first_state=lambda: compile_first()(),
        train_steps=_compile_steps(job),
        epoch_batches=compile_epoch_on_host(job)
        if job.placement == STREAMED
        else devices.compile_quickly(create_epoch_batches(job).lower(state.step), job.mesh),
        evaluation=evaluation,
        evaluate=lambda state, test: evaluation.result()(state, test),
        check_replicas=create_replica_check(job.mesh, state),
        audit=create_audit(_lower_audit(job), state, job.mesh)
        if _is_audited(job)
        else lambda state, examples, batches: None,
    )


def lower_programs(job: Job) -> dict[str, Any]:
    """Return every program of a run, lowered: to be compiled, here or for other devices.

    Args:
      job: the run; its devices need not be there.

    Returns:
      Name to jax.stages.Lowered. The train step is "gradient" and "update" with the tree (of a
      network of the user's own "select", "shard_gradient", "add_up" and "update", and of examples
      that the devices share "exchange"), else "train_step", or "train_steps" where a call takes
      several.
    """
    state, test = job.abstract_state, abstract_test(job.source, job.placement, job.mesh)
    step = lower_steps(job)
    apart = isinstance(step, TwoPrograms | WithExchange)
    steps = step.parts() if apart else {_name_of_steps(job): step}
    evaluate = lower_eval_step(
        job.network, job.mesh, state.params, state.statistics, test, job.placement
    )
    programs = {
        **steps,
        "epoch_batches": create_epoch_batches(job).lower(state.step),
        "evaluate": evaluate,
        "create_state": jax.jit(job.init, out_shardings=devices.replicated(job.mesh)).lower(),
    }
    if job.mesh.size > 1:
        programs["check_replicas"] = lower_replica_hashes(job.mesh, state)
    if _is_audited(job):
        programs["audit"] = _lower_audit(job)
    return programs


def _name_of_steps(job: Job) -> str:
    """Return what to call the program of a call."""
    return "train_step" if job.config.steps_per_call == 1 else "train_steps"


def lower_steps(job: Job) -> Any:
    """Return the programs of a call of the devices, lowered; a step on its own needs no loop.

    Args:
      job: the run; its devices need not be there.

    Returns:
      `lower` of the train step, or of several in a loop where a call takes several.
    """
    config, state = job.config, job.abstract_state
    train, batches = _abstract_inputs(job)
    train_step: Any = create_train_step(
        job.network,
        job.tx,
        job.schedule,
        job.mesh,
        **_gradient_options(job),
        momentum_schedule=job.momentum_schedule,
        averaging=job.averaging,
        placement=job.placement,
    )
    if job.placement == SHARDED:
        train_step = with_exchange(train_step, job.mesh)
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


def _gradient_options(job: Job) -> dict[str, Any]:
    """Return how a gradient is computed: what the train step and its audit share."""
    config = job.config
    return {
        "seed": config.seed,
        "reduction": config.reduction,
        "gradient_shards": config.gradient_shards,
        "augmentation": job.augmentation,
        "label_smoothing": config.label_smoothing,
        "accumulation_steps": config.accumulation_steps,
    }


def _is_audited(job: Job) -> bool:
    """Return whether the run audits its gradient; on one device it cannot."""
    return bool(job.config.audit_every_steps) and job.mesh.size > 1


def _lower_audit(job: Job) -> jax.stages.Lowered:
    """Return the program that audits the gradient, lowered."""
    return lower_audit(
        shard_gradients(job.network, job.mesh, **_gradient_options(job)),
        job.mesh,
        job.abstract_state,
        *_abstract_inputs(job),
        placement=job.placement,
        accumulation_steps=job.config.accumulation_steps,
    )


def _abstract_inputs(job: Job) -> tuple[Examples, jax.ShapeDtypeStruct]:
    """Return shapes, dtypes and shardings of the examples and batches that a step takes."""
    train = abstract_training(job.source, job.placement, job.mesh, job.config.batch_size)
    batches = jax.ShapeDtypeStruct(
        (1 if job.placement == STREAMED else job.plan.steps_per_epoch, job.config.batch_size),
        jnp.int32,
        sharding=devices.sharded(job.mesh, axis=1),
    )
    return train, batches


def _compile_steps(job: Job) -> TrainSteps:
    """Return the compiled function that takes some steps."""
    program, most = lower_steps(job).compile(), job.config.steps_per_call
    if most == 1:
        return lambda state, train, batches, count: program(state, train, batches)
    sharding = devices.replicated(job.mesh)
    # On the devices already: nothing is transferred in the loop.
    counts = [devices.place(np.array(count, np.int32), sharding) for count in range(most + 1)]
    return lambda state, train, batches, count: program(state, train, batches, counts[count])


def _compile_evaluation(job: Job) -> Evaluate:
    """Return the compiled function that tests the parameters, and their averages if any."""
    state, test = job.abstract_state, abstract_test(job.source, job.placement, job.mesh)
    evaluate = create_evaluate(
        job.network, job.mesh, state.params, state.statistics, test, job.placement
    )
    everywhere = devices.replicated(job.mesh)
    readers = {
        kind: jax.jit(partial(averaged, kind=kind), out_shardings=everywhere)
        .lower(state.averages)
        .compile()
        for kind in state.averages
    }

    def run(state: TrainState, test: Batches) -> dict[str, Any]:
        models = [(state.params, state.statistics)]
        models += [read(state.averages) for read in readers.values()]
        sums, *averaged_sums = evaluate(models, test)
        return {**sums, **dict(zip(readers, averaged_sums, strict=True))}

    return run
