"""The plan of a run in words: what it will do, and what a reader should know before it does."""

from trainer import devices
from trainer.config import CONSTANT, EXP_RANGE, EXP_RANGE_BOUNDARIES, TrainConfig
from trainer.config.own import short
from trainer.records.words import quantity
from trainer.run.job import Job
from trainer.run.preview import advice, count, draw, mid_cycle_warning
from trainer.schedules import Plan
from trainer.step import REPLICATED, SHARDED, STREAMED
from trainer.step.reductions import TREE

_PLACEMENTS = {
    REPLICATED: "replicated: all examples on every device",
    SHARDED: "sharded: a part of the examples on each device, rows exchanged in every step",
    STREAMED: "streamed: rows read from the files some steps ahead",
}


def describe(job: Job) -> str:
    """Return the plan of a run, one aspect a line."""
    config, plan, source = job.config, job.plan, job.source
    lines = {
        "devices": f"{devices.describe(job.mesh)}, each {config.batch_size // job.mesh.size} of "
        f"the {config.batch_size} examples of a batch",
        "data": f"{source.num_train} training and {source.num_test} test examples of "
        f"{source.name}, in {source.data_dir}",
        "placement": f"{_PLACEMENTS[job.placement]} ({job.placement_reason})",
        "length": f"{count(plan.num_steps, 'step')}, "
        f"{quantity(plan.num_steps / plan.steps_per_epoch, 'epoch')} of "
        f"{count(plan.steps_per_epoch, 'step')}",
        "schedule": _describe_schedule(config, plan),
        "reduction": f"tree of {config.gradient_shards} parts of a batch, the same bits on any "
        "number of devices"
        if config.reduction == TREE
        else "allreduce, whose last bits depend on the number of devices",
        "model": f"{config.model} in {config.compute_dtype}, {config.optimizer}",
        **({"augment": short(config.augment)} if config.augment else {}),
        "files": f"{job.workdir}, a checkpoint every "
        f"{count(config.checkpoint_every_steps, 'step')}",
        "start": _describe_start(job),
    }
    if job.config.average_cycles or job.config.ema_decay:
        lines["averages"] = _describe_averages(job)
    for name, (before, after) in _changes(job).items():
        lines[f"changed {name}"] = f"{before}, now {after}"
    warning = mid_cycle_warning(config, plan)
    if warning:
        lines["warning"] = warning
    return "\n".join(_line(name, text) for name, text in lines.items())


def describe_compilation(config: TrainConfig) -> str:
    """Return the line of a run that is about to compile: nothing else is said for a while.

    Args:
      config: of the run.
    """
    kept = "; the next start takes less" if config.compilation_cache else ""
    return _line("compiling", f"the programs of the run, in seconds or a minute{kept}")


def describe_schedule_in_full(job: Job, width: int) -> str:
    """Return a drawing of the learning rate over the whole run, and what the paper advises.

    Args:
      job: the run.
      width: columns of the terminal.
    """
    drawing = draw(job.schedule, job.config, job.plan, width)
    advised = advice(job.config, job.plan)
    return f"{drawing}\nnote      {advised}" if advised else drawing


def _describe_start(job: Job) -> str:
    """Return where the run starts or resumes, and at which rate."""
    rate = f"learning rate {float(job.schedule(job.first_step)):.4g}"
    if job.restored is None:
        return f"from the beginning, {rate}"
    return f"resuming at {job.plan.position(job.first_step)}, {rate}"


def _describe_averages(job: Job) -> str:
    """Return which averages of the parameters the run keeps, and which begin at a resume."""
    config, changed = job.config, _changes(job)
    kept = []
    if config.average_cycles:
        begins = f", begun at step {job.first_step}" if "average_cycles" in changed else ""
        kept.append(f"mean of the ends of cycles from cycle {config.average_cycles} on{begins}")
    if config.ema_decay:
        begun = changed.get("ema_decay", (1,))[0] == 0
        begins = f", begun at step {job.first_step}" if begun else ""
        kept.append(f"exponential with decay {config.ema_decay:g}{begins}")
    return "; ".join(kept)


def _changes(job: Job) -> dict[str, list]:
    """Return what is changed at this resume: field to [before, after]."""
    last = job.config_history[-1] if job.config_history else None
    return last["changes"] if last and last["step"] == job.first_step else {}


def _describe_schedule(config: TrainConfig, plan: Plan) -> str:
    """Return the schedule in words."""
    if config.lr_schedule == CONSTANT:
        return f"constant, learning rate {config.lr_max:g}"
    text = f"{config.lr_schedule}, learning rate {config.lr_min:g} to {config.lr_max:g}, "
    if config.lr_schedule in (EXP_RANGE, EXP_RANGE_BOUNDARIES):
        text += f"times {config.lr_gamma:g} every step, "
    if config.cycles_momentum:
        text += f"momentum {config.momentum_max:g} to {config.momentum_min:g}, "
    num_cycles = quantity(plan.num_steps / plan.steps_per_cycle, "cycle")
    return f"{text}{num_cycles} of {plan.steps_per_cycle} steps"


def _line(name: str, text: str) -> str:
    """Return an aspect of a run and its name, in two columns where the name is short."""
    return f"{name:10}{text}" if len(name) < 10 else f"{name}: {text}"
