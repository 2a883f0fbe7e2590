"""What a configuration leaves open, chosen for the devices and the data of a run."""

import dataclasses
import logging

from jax.sharding import Mesh

from trainer import devices
from trainer.config import TrainConfig
from trainer.errors import UsageError
from trainer.schedules import Plan
from trainer.step import (
    STREAMED,
    check_accumulation,
    choose_reduction,
    choose_steps_per_call,
)
from trainer.step.reductions import AUTO

logger = logging.getLogger(__name__)


def resolve(
    config: TrainConfig, plan: Plan, mesh: Mesh, stored: TrainConfig | None, placement: str
) -> TrainConfig:
    """Return the same run with nothing left to choose; resolving it again changes nothing.

    Only where the examples lie is chosen anew at each start: it depends on what is free, and
    changes no bits.

    Args:
      config: of the run.
      plan: its durations in steps.
      mesh: its devices.
      stored: the configuration of the checkpoint that it resumes from, or None.
      placement: where its examples will lie.

    Raises:
      UsageError: reduction, pieces, audits or steps per call do not fit the devices.
    """
    reduction, gradient_shards = config.reduction, config.gradient_shards
    if stored is not None:
        # Not what suits these devices: the bits of a tree are a promise to the whole run.
        reduction = stored.reduction if reduction == AUTO else reduction
        gradient_shards = gradient_shards or stored.gradient_shards
    reduction, gradient_shards = choose_reduction(
        reduction, gradient_shards, config.batch_size, mesh
    )
    _check_audit(config, mesh, stored)
    check_accumulation(
        config.accumulation_steps, reduction, gradient_shards, config.batch_size, mesh
    )
    steps_per_call = config.steps_per_call
    if stored and placement == STREAMED and steps_per_call == stored.steps_per_call:
        # Nobody asked for it at this start, and it was chosen for examples on the devices.
        steps_per_call = 0
    steps_per_call = choose_steps_per_call(
        steps_per_call,
        reduction,
        devices.platform_of(mesh),
        placement,
        min(intervals(config, plan)),
    )
    return dataclasses.replace(
        config,
        num_steps=plan.num_steps,
        num_cycles=None,
        steps_per_cycle=plan.steps_per_cycle,
        eval_every_steps=plan.eval_every_steps,
        reduction=reduction,
        gradient_shards=gradient_shards,
        steps_per_call=steps_per_call,
    )


def intervals(config: TrainConfig, plan: Plan) -> list[int]:
    """Return after how many steps, each time, the host has something to do.

    Args:
      config: of the run.
      plan: its durations in steps.
    """
    return [
        plan.steps_per_epoch,
        plan.eval_every_steps,
        config.checkpoint_every_steps,
        config.check_replicas_every_steps or plan.num_steps,
        config.audit_every_steps or plan.num_steps,
        plan.steps_per_cycle if config.keep_cycle_ends else plan.num_steps,
    ]


def _check_audit(config: TrainConfig, mesh: Mesh, stored: TrainConfig | None) -> None:
    """Refuse audits on one device; those of a run that is resumed there rest."""
    if not config.audit_every_steps or mesh.size > 1:
        return
    if stored and stored.audit_every_steps == config.audit_every_steps:
        logger.warning("no audits on one device, which has no neighbour; they resume on several")
        return
    raise UsageError(
        f"--audit_every_steps={config.audit_every_steps}: one device has no neighbour that "
        "could compute its gradient again; leave it out, or use at least 2 devices"
    )
