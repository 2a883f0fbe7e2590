"""What a checkpoint says of a run, and how the run goes on from it."""

import dataclasses
import functools
from importlib.metadata import version
from typing import Any

import jax

from trainer import devices
from trainer.checkpoints.digests import float_bits
from trainer.checkpoints.recovery import restore_newest
from trainer.checkpoints.store import Restored
from trainer.errors import RunError
from trainer.run.job import Job
from trainer.step.state import abstract_train_state, train_state_init

_RECORDED_PACKAGES = ("cyclic-trainer", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")


def restore(job: Job) -> Restored | None:
    """Return the newest good checkpoint, or None where there is none.

    Its next learning rate is the very one that the run would have had, unless the user changed it.

    Args:
      job: the run.

    Raises:
      RunError: no checkpoint is good, or the next learning rate is another.
    """
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


def checkpoint_meta(
    job: Job, inputs: dict[str, Any], step: int, last_learning_rate: float
) -> dict[str, Any]:
    """Return what a checkpoint stores beside the state, as JSON can hold it.

    Args:
      job: the run.
      inputs: shape, classes and pixel statistics of its examples.
      step: updates made.
      last_learning_rate: the one applied by the last of them.
    """
    learning_rate = job.schedule(step)
    return {
        "step": step,
        "steps_per_epoch": job.plan.steps_per_epoch,
        "learning_rate": float(learning_rate),
        "learning_rate_bits": {
            "last": float_bits(last_learning_rate),
            "next": float_bits(learning_rate),
        },
        "config": dataclasses.asdict(job.config),
        "config_history": job.config_history,
        "inputs": inputs,
        "num_devices": job.mesh.size,
        "num_processes": jax.process_count(),
        "versions": _versions(),
    }


@functools.cache
def _versions() -> dict[str, str]:
    """Return the versions of what a checkpoint depends on; looked up once, it reads files."""
    return {package: version(package) for package in _RECORDED_PACKAGES}
