"""A run, checked and decided in every detail before anything is computed or written."""

import dataclasses

import flax.linen as nn
import optax
from etils import epath
from jax.sharding import Mesh

from trainer import devices
from trainer.checkpoints import Checkpoints
from trainer.config import Plan, TrainConfig
from trainer.datasets import DatasetSource, open_dataset
from trainer.errors import UsageError
from trainer.models import create_model
from trainer.optimizers import create_optimizer
from trainer.schedules import create_schedule


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run will do.

    Attributes:
      config: resolved, as it is stored.
      plan: its durations in steps.
      workdir: where the run's files lie.
      mesh: its devices.
      source: its data set, not read yet.
      first_step: 0, or the newest checkpoint's step.
      model: the network.
      tx: the optimizer, without a learning rate.
      schedule: step -> learning rate.
    """

    config: TrainConfig
    plan: Plan
    workdir: epath.Path
    mesh: Mesh
    source: DatasetSource
    first_step: int
    model: nn.Module
    tx: optax.GradientTransformation
    schedule: optax.Schedule


def prepare(config: TrainConfig, workdir: epath.PathLike) -> Job:
    """Find devices, data and earlier checkpoints, and check that all fits together.

    Args:
      config: the hyperparameters.
      workdir: of the run; it need not exist, and nothing is written to it.

    Raises:
      UsageError: something does not fit; the message says what would.
    """
    mesh = devices.create_mesh(config.platform, config.num_devices)
    devices.check_divisible(config.batch_size, mesh)
    source = open_dataset(config.dataset, config.data_dir)
    plan = config.plan(source.num_train)
    config = config.resolve(plan)
    workdir = epath.Path(workdir)
    first_step = _find_checkpoint(workdir, config)
    return Job(
        config=config,
        plan=plan,
        workdir=workdir,
        mesh=mesh,
        source=source,
        first_step=first_step,
        model=create_model(config.model, source.num_classes, config.compute_dtype),
        tx=create_optimizer(
            config.optimizer, config.momentum, config.nesterov, config.weight_decay
        ),
        schedule=create_schedule(
            config.lr_schedule, config.lr_min, config.lr_max, plan.steps_per_cycle
        ),
    )


def describe(job: Job) -> str:
    """Return the plan of a run in words."""
    config, plan, source = job.config, job.plan, job.source
    num_epochs = plan.num_steps / plan.steps_per_epoch
    num_cycles = plan.num_steps / plan.steps_per_cycle
    lines = {
        "devices": f"{devices.describe(job.mesh)}, each {config.batch_size // job.mesh.size} of "
        f"the {config.batch_size} examples of a batch",
        "data": f"{source.num_train} training and {source.num_test} test examples of "
        f"{source.name}, in {source.data_dir}",
        "length": f"{plan.num_steps} steps, {num_epochs:g} epochs of {plan.steps_per_epoch}",
        "schedule": f"{config.lr_schedule}, learning rate {config.lr_min:g} to {config.lr_max:g}, "
        f"{num_cycles:g} cycles of {plan.steps_per_cycle} steps",
        "model": f"{config.model} in {config.compute_dtype}, {config.optimizer}",
        "files": f"{job.workdir}, a checkpoint every {config.checkpoint_every_steps} steps",
        "start": f"at step {job.first_step}" if job.first_step else "from the beginning",
    }
    return "\n".join(f"{name:10}{text}" for name, text in lines.items())


def _find_checkpoint(workdir: epath.Path, config: TrainConfig) -> int:
    """Return the newest checkpoint's step, or 0; refuse one of a run that went another way."""
    stored = Checkpoints(workdir)
    step = stored.latest_step()
    if step is None:
        return 0
    before = stored.read_meta(step)["config"]
    given = dataclasses.asdict(config)
    changed = [name for name in config.trajectory_fields() if before.get(name) != given[name]]
    if changed:
        table = "\n".join(
            f"  --{name}: {before.get(name)} there, {given[name]} now" for name in changed
        )
        raise UsageError(
            f"the run in {workdir} was made with other values:\n{table}\n"
            "valid: the same values, or another --workdir"
        )
    return step
