"""A run, checked and decided in every detail before anything is computed or written."""

import dataclasses
import os
from collections.abc import Collection
from typing import Any

import flax.linen as nn
import optax
from etils import epath
from jax.sharding import Mesh

from trainer import devices, processes
from trainer.checkpoints.recovery import read_newest_meta
from trainer.config import Plan, TrainConfig
from trainer.datasets import DatasetSource, open_dataset
from trainer.errors import UsageError
from trainer.run.config_changes import check_config_change
from trainer.run.preview import advice, draw, mid_cycle_warning
from trainer.schedules.cyclical import CONSTANT, create_momentum_schedule, create_schedule
from trainer.step.networks import create_model
from trainer.step.optimizers import create_optimizer
from trainer.step.reductions import AUTO, TREE, choose_reduction
from trainer.step.train_step import choose_steps_per_call
from trainer.workdir.storage import is_remote, open_workdir


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run will do.

    Attributes:
      config: resolved, as it is stored.
      plan: its durations in steps.
      workdir: where the run's files lie.
      mesh: its devices.
      source: its data set, not read yet.
      stored_step: the newest checkpoint's, or 0; it has not been verified yet.
      config_history: what was changed at earlier resumes and at this one: a list of
        {"step": int, "changes": {field: [before, after]}}.
      model: the network.
      tx: the optimizer, without a learning rate.
      schedule: step -> learning rate.
      momentum_schedule: step -> momentum, or None if the momentum stays.
    """

    config: TrainConfig
    plan: Plan
    workdir: epath.Path
    mesh: Mesh
    source: DatasetSource
    stored_step: int
    config_history: list[dict[str, Any]]
    model: nn.Module
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    momentum_schedule: optax.Schedule | None


def prepare(
    config: TrainConfig, workdir: epath.PathLike, allow_config_change: Collection[str] = ()
) -> Job:
    """Find devices, data and earlier checkpoints, and check that all fits together.

    Args:
      config: the hyperparameters.
      workdir: of the run; it need not exist, and nothing is written to it.
      allow_config_change: fields that may differ from those of the run in the workdir.

    Raises:
      UsageError: something does not fit; the message says what would.
      RunError: the run in the workdir has checkpoints, but none can be used.
    """
    workdir = open_workdir(workdir)
    check_writable(workdir)
    mesh = devices.create_mesh(config.platform, config.num_devices)
    devices.check_divisible(config.batch_size, mesh)
    with processes.first_process_first():
        source = open_dataset(
            config.dataset,
            config.data_dir,
            train_split=config.train_split,
            test_split=config.test_split,
            image_size=config.image_size,
        )
    plan = config.plan(source.num_train)
    newest = processes.share(read_newest_meta(workdir) if processes.is_first() else None)
    reduction = config.reduction
    if reduction == AUTO and newest is not None:
        # Not what suits these devices: the bits of a tree are a promise to the whole run.
        reduction = newest[1]["config"]["reduction"]
    reduction = choose_reduction(reduction, config.gradient_shards, config.batch_size, mesh)
    platform = mesh.devices.flat[0].platform
    steps_per_call = choose_steps_per_call(config.steps_per_call, reduction, platform)
    config = config.resolve(plan, reduction, steps_per_call)
    stored_step, history = 0, []
    if newest is not None:
        stored_step, meta = newest
        history = meta["config_history"]
        changes = check_config_change(
            meta["config"], config, stored_step, allow_config_change, workdir
        )
        if changes:
            history = [*history, {"step": stored_step, "changes": changes}]
    return Job(
        config=config,
        plan=plan,
        workdir=workdir,
        mesh=mesh,
        source=source,
        stored_step=stored_step,
        config_history=history,
        model=create_model(config.model, source.num_classes, config.compute_dtype),
        tx=create_optimizer(
            config.optimizer,
            None if config.cycles_momentum else config.momentum,
            config.nesterov,
            config.weight_decay,
        ),
        schedule=create_schedule(
            config.lr_schedule,
            config.lr_min,
            config.lr_max,
            plan.steps_per_cycle,
            config.lr_gamma,
            config.cycle_up_fraction,
        ),
        momentum_schedule=_momentum_schedule(config, plan),
    )


def _momentum_schedule(config: TrainConfig, plan: Plan) -> optax.Schedule | None:
    """Return the schedule of the momentum, or None if it stays."""
    if config.momentum_min is None or config.momentum_max is None:
        return None
    return create_momentum_schedule(
        config.lr_schedule,
        config.momentum_min,
        config.momentum_max,
        plan.steps_per_cycle,
        config.lr_gamma,
        config.cycle_up_fraction,
    )


def describe(job: Job) -> str:
    """Return the plan of a run in words."""
    config, plan, source = job.config, job.plan, job.source
    num_epochs = plan.num_steps / plan.steps_per_epoch
    lines = {
        "devices": f"{devices.describe(job.mesh)}, each {config.batch_size // job.mesh.size} of "
        f"the {config.batch_size} examples of a batch",
        "data": f"{source.num_train} training and {source.num_test} test examples of "
        f"{source.name}, in {source.data_dir}",
        "length": f"{plan.num_steps} steps, {num_epochs:g} epochs of {plan.steps_per_epoch}",
        "schedule": _describe_schedule(config, plan),
        "sums": f"a tree of {config.gradient_shards} parts of a batch, the same bits on any number "
        "of devices"
        if config.reduction == TREE
        else "allreduce, whose last bits depend on the number of devices",
        "model": f"{config.model} in {config.compute_dtype}, {config.optimizer}",
        "files": f"{job.workdir}, a checkpoint every {config.checkpoint_every_steps} steps",
        "start": f"at step {job.stored_step}" if job.stored_step else "from the beginning",
    }
    warning = mid_cycle_warning(config, plan)
    if warning:
        lines["warning"] = warning
    return "\n".join(f"{name:10}{text}" for name, text in lines.items())


def describe_schedule_in_full(job: Job, width: int) -> str:
    """Return a drawing of the learning rate over the whole run, and what the paper advises.

    Args:
      job: the run.
      width: columns of the terminal.
    """
    drawing = draw(job.schedule, job.config, job.plan, width)
    advised = advice(job.config, job.plan)
    return f"{drawing}\nnote      {advised}" if advised else drawing


def _describe_schedule(config: TrainConfig, plan: Plan) -> str:
    """Return the schedule in words."""
    if config.lr_schedule == CONSTANT:
        return f"constant, learning rate {config.lr_max:g}"
    text = f"{config.lr_schedule}, learning rate {config.lr_min:g} to {config.lr_max:g}, "
    if config.lr_schedule in ("exp_range", "exp_range_boundaries"):
        text += f"times {config.lr_gamma:g} every step, "
    if config.cycles_momentum:
        text += f"momentum {config.momentum_max:g} to {config.momentum_min:g}, "
    num_cycles = plan.num_steps / plan.steps_per_cycle
    noun = "cycle" if num_cycles == 1 else "cycles"
    return f"{text}{num_cycles:g} {noun} of {plan.steps_per_cycle} steps"


def check_writable(workdir: epath.Path) -> None:
    """Refuse a workdir that cannot be made or written, before any work is done.

    Raises:
      UsageError: it is no folder, or may not be written.
    """
    if is_remote(workdir):
        return  # Only writing there tells: the lock does, first of all.
    existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not existing.is_dir():
        reason = f"{existing} is not a folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = f"{existing} may not be written"
    else:
        return
    raise UsageError(f"--workdir={workdir}: {reason}; valid: a folder that can be made and written")
