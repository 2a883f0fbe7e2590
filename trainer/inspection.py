"""What a stored checkpoint is worth: its place in the run, and its accuracy."""

from typing import Any

import jax
from etils import epath

from trainer import devices
from trainer.checkpoints import Checkpoints
from trainer.config import TrainConfig
from trainer.datasets import load
from trainer.errors import UsageError
from trainer.evaluation import create_evaluate
from trainer.models import create_model
from trainer.optimizers import create_optimizer
from trainer.records import mean_metrics
from trainer.schedules import position_at
from trainer.state import abstract_train_state, train_state_init
from trainer.steps import place_examples


def inspect(workdir: epath.PathLike) -> dict[str, Any]:
    """Describe the newest checkpoint without training or data.

    Args:
      workdir: of a run.

    Returns:
      step, epoch, cycle and cycle_step (all from 0), learning_rate (the next one to be applied),
      and config.

    Raises:
      UsageError: there is no checkpoint.
    """
    step, meta = _newest(Checkpoints(workdir))
    config = meta["config"]
    position = position_at(step, meta["steps_per_epoch"], config["steps_per_cycle"])
    return {
        "step": step,
        "epoch": position.epoch,
        "cycle": position.cycle,
        "cycle_step": position.cycle_step,
        "learning_rate": meta["learning_rate"],
        "config": config,
    }


def evaluate(workdir: epath.PathLike, given: TrainConfig) -> dict[str, Any]:
    """Evaluate the newest checkpoint on the test split.

    Args:
      workdir: of a run.
      given: its platform, num_devices and data_dir are used; everything else is the checkpoint's.

    Returns:
      step, loss, accuracy (a fraction), examples.

    Raises:
      UsageError: there is no checkpoint, or the devices are not there.
      RunError: the data are damaged.
    """
    mesh = devices.create_mesh(given.platform, given.num_devices)
    checkpoints = Checkpoints(workdir)
    step, meta = _newest(checkpoints)
    config, inputs = TrainConfig(**meta["config"]), meta["inputs"]
    model = create_model(config.model, inputs["num_classes"], config.compute_dtype)
    tx = create_optimizer(config.optimizer, config.momentum, config.nesterov, config.weight_decay)
    init = train_state_init(model, tx, config.seed, tuple(inputs["image_shape"]))
    sharding = devices.replicated(mesh)
    state = checkpoints.restore(step, abstract_train_state(init, sharding))
    dataset = load(config.dataset, given.data_dir)
    examples = place_examples(
        dataset.test_images, dataset.test_labels, inputs["mean"], inputs["std"], sharding
    )
    run = create_evaluate(model, mesh, state.params, examples)
    sums = run(state.params, examples)
    return {"step": step, **mean_metrics(jax.device_get(sums))}


def _newest(checkpoints: Checkpoints) -> tuple[int, dict[str, Any]]:
    """Return step and meta of the newest checkpoint, or raise a UsageError."""
    step = checkpoints.latest_step()
    if step is None:
        raise UsageError(
            f"there is no checkpoint in {checkpoints.directory}; valid: a --workdir that "
            "python -m trainer has trained in"
        )
    return step, checkpoints.read_meta(step)
