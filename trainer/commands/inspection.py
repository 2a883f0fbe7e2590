"""What a stored checkpoint is worth: its place in the run, and its accuracy."""

from typing import Any

import flax.linen as nn
import jax
from etils import epath
from jax.sharding import Mesh

from trainer import devices
from trainer.checkpoints.recovery import read_newest_meta, restore_newest
from trainer.checkpoints.store import Restored, checkpoints_dir
from trainer.config import TrainConfig
from trainer.datasets import load
from trainer.errors import UsageError
from trainer.records.metrics import mean_metrics
from trainer.schedules.positions import position_at
from trainer.step.evaluation import create_evaluate
from trainer.step.networks import create_model
from trainer.step.optimizers import create_optimizer
from trainer.step.state import abstract_train_state, train_state_init
from trainer.step.train_step import place_examples
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
      num_processes, digests (leaf name to hex) and digest (of the whole state).

    Raises:
      UsageError: there is no checkpoint.
      RunError: no checkpoint is good.
    """
    restored, _ = restore_model(workdir, devices.create_mesh("auto", 1))
    meta = restored.meta
    config = TrainConfig.from_stored(meta["config"])
    assert config.steps_per_cycle is not None  # What is stored is resolved.
    position = position_at(
        restored.step, meta["steps_per_epoch"], config.steps_per_cycle, config.cycle_up_fraction
    )
    return {
        "step": restored.step,
        "epoch": position.epoch,
        "cycle": position.cycle,
        "cycle_step": position.cycle_step,
        **{name: meta[name] for name in _SHOWN},
    }


def evaluate(workdir: epath.PathLike, given: TrainConfig) -> dict[str, Any]:
    """Evaluate the newest good checkpoint on the test split.

    Args:
      workdir: of a run.
      given: its platform, num_devices and data_dir are used; everything else is the checkpoint's.

    Returns:
      step, loss, accuracy (a fraction), examples.

    Raises:
      UsageError: there is no checkpoint, or the devices are not there.
      RunError: the data are damaged, or no checkpoint is good.
    """
    mesh = devices.create_mesh(given.platform, given.num_devices)
    restored, model = restore_model(workdir, mesh)
    config, inputs = TrainConfig.from_stored(restored.meta["config"]), restored.meta["inputs"]
    dataset = load(
        config.dataset,
        given.data_dir,
        train_split=config.train_split,
        test_split=config.test_split,
        image_size=config.image_size,
    )
    examples = place_examples(
        dataset.test_images,
        dataset.test_labels,
        inputs["mean"],
        inputs["std"],
        devices.replicated(mesh),
    )
    params = restored.state.params
    sums = create_evaluate(model, mesh, params, examples)(params, examples)
    return {"step": restored.step, **mean_metrics(jax.device_get(sums))}


def restore_model(workdir: epath.PathLike, mesh: Mesh) -> tuple[Restored, nn.Module]:
    """Return the newest good checkpoint, on every device of the mesh, and its network.

    Args:
      workdir: of a run.
      mesh: the devices, any number.

    Raises:
      UsageError: there is no checkpoint.
      RunError: no checkpoint is good.
    """
    workdir = open_workdir(workdir)
    newest = read_newest_meta(workdir)
    if newest is None:
        raise UsageError(
            f"there is no checkpoint in {checkpoints_dir(workdir)}; valid: a --workdir that "
            "python -m trainer has trained in"
        )
    _, meta = newest
    config, inputs = TrainConfig.from_stored(meta["config"]), meta["inputs"]
    model = create_model(config.model, inputs["num_classes"], config.compute_dtype)
    tx = create_optimizer(config.optimizer, config.momentum, config.nesterov, config.weight_decay)
    init = train_state_init(model, tx, config.seed, tuple(inputs["image_shape"]))
    abstract = abstract_train_state(init, devices.replicated(mesh))
    restored = restore_newest(workdir, abstract, set_aside=False)
    assert restored is not None  # There is one whose meta is intact.
    return restored, model
