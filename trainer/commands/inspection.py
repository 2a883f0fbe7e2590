"""What a stored checkpoint is worth: its place in the run, and its accuracy."""

from typing import Any

import jax
from etils import epath

from trainer import devices
from trainer.checkpoints import read_newest
from trainer.config import TrainConfig
from trainer.datasets import Dataset, DatasetFacts, open_dataset
from trainer.records.timing import describe_account, read_duration
from trainer.records.words import dataset_name
from trainer.run.memory import measure_memory
from trainer.run.placement import choose_placement
from trainer.run.resume import check_data
from trainer.run.selection import AS_TRAINED, LAST, Selection
from trainer.run.store import Moments, abstract_test, open_store
from trainer.schedules import create_plan
from trainer.step import create_evaluate, evaluation_batch_size, mean_metrics
from trainer.workdir.storage import open_workdir

_SHOWN = (
    "learning_rate",
    "learning_rate_bits",
    "config",
    "config_history",
    "versions",
    "num_devices",
    "num_processes",
    "digests",
    "digest",
)


def inspect(workdir: epath.PathLike) -> dict[str, Any]:
    """Describe the newest good checkpoint; it is read and verified, no data are needed.

    Args:
      workdir: of a run.

    Returns:
      step, epoch, cycle and cycle_step (all from 0), learning_rate (the next one to be applied),
      its bits and those of the last one applied, config, config_history, versions, num_devices,
      num_processes, digests (leaf name to hex), digest (of the whole state), environment: what
      else may change bits, by name, or None, and time: seconds by where they went, see
      `timing.Duration`, or None.

    Raises:
      UsageError: there is no checkpoint.
      RunError: no checkpoint is good.
    """
    restored = read_newest(workdir)
    meta = restored.meta
    config = TrainConfig.from_stored(meta["config"])
    position = create_plan(config, meta["inputs"]["num_train"]).position(restored.step)
    duration = read_duration(open_workdir(workdir))
    return {
        "step": restored.step,
        "epoch": position.epoch,
        "cycle": position.cycle,
        "cycle_step": position.cycle_step,
        **{name: meta[name] for name in _SHOWN},
        # Checkpoints of older versions have no such field.
        "environment": meta.get("environment"),
        "time": duration.account if duration else None,
    }


def summary(found: dict[str, Any]) -> str:
    """Return what `inspect` found in some lines for a terminal."""
    config = found["config"]
    history = "; ".join(
        f"at step {change['step']}: "
        + ", ".join(f"{name} {old} -> {new}" for name, (old, new) in change["changes"].items())
        for change in found["config_history"]
    )
    # Checkpoints of older versions have no such field.
    augmented = f" augmented by {config['augment']}" if config.get("augment") else ""
    made_with = ", ".join(f"{name} {found['versions'][name]}" for name in ("jax", "flax", "optax"))
    rows = {
        "step": f"{found['step']:,} of {config['num_steps']:,}",
        "place": f"epoch {found['epoch'] + 1}, cycle {found['cycle'] + 1}, step "
        f"{found['cycle_step']} of {config['steps_per_cycle']} of the cycle",
        "next rate": f"{found['learning_rate']:.6g} (bits {found['learning_rate_bits']['next']})",
        "schedule": f"{config['lr_schedule']}, {config['lr_min']:g} to {config['lr_max']:g}",
        "model": f"{config['model']} on {dataset_name(config['dataset'])}{augmented}, "
        f"{config['optimizer']}, batches of {config['batch_size']}, seed {config['seed']}",
        "reduction": f"{config['reduction']}, on {found['num_devices']} devices of "
        f"{found['num_processes']} processes",
        "changed": history or "nothing",
        "made with": made_with,
        "state": f"{len(found['digests'])} leaves, digest {found['digest'][:16]}...",
        "time": describe_account(found["time"]) if found["time"] else "not known",
        "all of it": "python -m trainer inspect --json",
    }
    return "\n".join(f"{name:10} {text}" for name, text in rows.items())


def evaluate(
    workdir: epath.PathLike, given: TrainConfig, selection: Selection = AS_TRAINED
) -> dict[str, Any]:
    """Evaluate a checkpoint on the test split.

    Args:
      workdir: of a run.
      given: its platform, num_devices, data_dir and data_placement are used; everything else is
        the checkpoint's.
      selection: which parameters.

    Returns:
      step, loss, accuracy (a fraction), examples; "params" if they are averaged ones, and of an
      ensemble "ensemble": the steps of its checkpoints.

    Raises:
      UsageError: there is no such checkpoint, or the devices are not there.
      RunError: the data are damaged, or no checkpoint is good.
    """
    mesh = devices.create_mesh(given.platform, given.num_devices)
    everywhere = devices.replicated(mesh)
    checkpoint = selection.load(workdir)
    config, inputs = checkpoint.config, checkpoint.inputs
    data_dir = given.data_dir or config.data_dir
    source = open_dataset(config.dataset, data_dir, **config.data_selection)
    size = evaluation_batch_size(mesh)
    placement, _ = choose_placement(given.data_placement, source, mesh, size, measure_memory(mesh))

    def accept(found: Dataset | DatasetFacts) -> Moments:
        check_data(checkpoint, config.dataset, found.identity, "evaluate it")
        return inputs["mean"], inputs["std"]

    store = open_store(source, placement, mesh, ("test",), accept)
    params, statistics = jax.tree.map(
        lambda leaf: devices.place(leaf, everywhere), (checkpoint.params, checkpoint.statistics)
    )
    examples = abstract_test(source, placement, mesh)
    run = create_evaluate(checkpoint.network, mesh, params, statistics, examples, placement)
    (sums,) = jax.device_get(run([(params, statistics)], store.test()))
    found = {"step": checkpoint.step, **mean_metrics(sums)}
    if selection.params != LAST:
        found["params"] = selection.params
    if checkpoint.ensemble:
        found["ensemble"] = list(checkpoint.ensemble)
    return found
