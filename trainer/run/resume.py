"""What a checkpoint says of a run, and what must still be true when the run resumes from it."""

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax

from trainer import processes
from trainer.checkpoints import Restored, float_bits
from trainer.config import TrainConfig
from trainer.datasets import identity_difference
from trainer.devices import place
from trainer.errors import RunError, UsageError
from trainer.run.environment import environment, versions
from trainer.step import Averaging, TrainState, leaf_name, match_leaves

if TYPE_CHECKING:
    from trainer.run.job import Job
    from trainer.run.stored import Checkpoint

logger = logging.getLogger(__name__)


def checkpoint_meta(
    job: "Job", inputs: dict[str, Any], step: int, last_learning_rate: float
) -> dict[str, Any]:
    """Return what a checkpoint stores beside the state, as JSON can hold it.

    Args:
      job: the run.
      inputs: what is known of its examples: shape, classes, sizes, pixel statistics.
      step: updates made.
      last_learning_rate: the one applied by the last of them.
    """
    learning_rate = job.schedule(step)
    return {
        "step": step,
        "learning_rate": float(learning_rate),
        "learning_rate_bits": {
            "last": float_bits(last_learning_rate),
            "next": float_bits(learning_rate),
        },
        "config": dataclasses.asdict(job.config),
        "sources": job.sources,
        "config_history": job.config_history,
        "inputs": inputs,
        "num_devices": job.mesh.size,
        "num_processes": jax.process_count(),
        "versions": versions(),
        "environment": environment(),
    }


def check_next_rate(restored: Restored, schedule: optax.Schedule) -> None:
    """Compare the bits of the next learning rate with those that the checkpoint promises.

    Args:
      restored: the checkpoint.
      schedule: of the configuration that the checkpoint stores.

    Raises:
      RunError: they differ.
    """
    rate = schedule(restored.step)
    if float_bits(rate) != restored.meta["learning_rate_bits"]["next"]:
        raise RunError(
            f"checkpoint {restored.step} says that the next learning rate is "
            f"{restored.meta['learning_rate']}, the schedule says {float(rate)}: another version "
            "of the trainer made it; continue with that version, or start in another --workdir"
        )


def trained_on_own_files(restored: Restored) -> bool:
    """Return whether the data of a checkpoint were pictures of the user's own, and no TFDS set."""
    identity = restored.meta["inputs"].get("data") or {}
    return identity.get("version", "unknown") is None


def check_data(
    restored: "Restored | Checkpoint", dataset: str, found: dict[str, Any], purpose: str
) -> None:
    """Refuse data that are not those of the run.

    Args:
      restored: the checkpoint.
      dataset: which data, as a flag says it.
      found: what is known of the data that are here: description or identity.
      purpose: what they were to be used for, in words.

    Raises:
      UsageError: they are others; the message says how they differ.
    """
    difference = identity_difference(restored.meta["inputs"].get("data"), found)
    if difference:
        raise UsageError(
            f"the data of --dataset={dataset} are not those that "
            f"checkpoint {restored.step} was trained on, and cannot be used to {purpose}: "
            f"{difference}; use the data of the run (--data_dir), or another --workdir"
        )


def check_processes_have_the_same_data(dataset: str, found: dict[str, Any]) -> None:
    """Refuse processes that have not all the same data; waits for all of them.

    Args:
      dataset: which data, as a flag says it.
      found: what is known of the data that are here: description or identity.

    Raises:
      UsageError: another process has others; the message says how they differ.
    """
    first, *others = processes.gather(found)
    for number, other in enumerate(others, 1):
        difference = identity_difference(first, other, there=f"in process {number}")
        if difference:
            raise UsageError(
                f"the data of --dataset={dataset} are not the same in all processes: {difference}; "
                "give all of them the same data (--dataset and --data_dir)"
            )


def check_sources(restored: "Restored | Checkpoint", sources: dict[str, str]) -> None:
    """Say it if a source file of the user's own has changed since the checkpoint.

    Args:
      restored: the checkpoint.
      sources: SHA-256 of the files as they are now, in hex, by field of the configuration.
    """
    before = restored.meta.get("sources", {})
    for field, now in sources.items():
        if now != before.get(field, now) and processes.is_first():
            logger.warning(
                "--%s=%s is not the file that checkpoint %d was made with (SHA-256 %s..., now "
                "%s...): what follows is computed by the changed code",
                *(field, restored.meta["config"][field], restored.step),
                *(before[field][:8], now[:8]),
            )


def resumed_state(job: "Job", restored: Restored) -> TrainState:
    """Return the state of a checkpoint on the devices of the run.

    Averages that the run did not keep before begin with the parameters of the checkpoint; those
    that it no longer keeps are dropped.

    Raises:
      RunError: its leaves are not those of the run's state.
    """
    kept = tuple(f"averages/{kind}/" for kind in job.abstract_state.averages)
    leaves = {
        name: leaf
        for name, leaf in restored.leaves.items()
        if not name.startswith("averages/") or name.startswith(kept)
    }
    try:
        begun = _begin_averages(job, restored)
        state = match_leaves(job.abstract_state, leaves | begun)
    except ValueError as error:
        raise RunError(
            f"checkpoint {restored.step} does not fit the run: {error}; start in another --workdir"
        ) from error
    return jax.tree.map(lambda leaf, to: place(leaf, to.sharding), state, job.abstract_state)


def _begin_averages(job: "Job", restored: Restored) -> dict[str, np.ndarray]:
    """Return the leaves of averages that were switched on, or changed, since the checkpoint."""
    stored = TrainConfig.from_stored(restored.meta["config"])
    config, abstract = job.config, job.abstract_state
    new = Averaging(
        config.average_cycles if config.average_cycles != stored.average_cycles else 0,
        job.plan.steps_per_cycle,
        config.ema_decay if not stored.ema_decay else 0.0,
    )
    wanted = {"params": abstract.params, "statistics": abstract.statistics}
    found = match_leaves(wanted, restored.leaves)
    begun = {"averages": new.start(found["params"], found["statistics"])}
    leaves, _ = jax.tree_util.tree_flatten_with_path(begun)
    return {leaf_name(path): np.asarray(leaf) for path, leaf in leaves}
