"""Training from Python: all that the command does, and a result."""

import dataclasses
import logging
from collections.abc import Collection

from etils import epath

from trainer import devices
from trainer.config import TrainConfig
from trainer.errors import Stopped
from trainer.run import loop
from trainer.run.loop import TrainResult

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig, workdir: epath.PathLike, allow_config_change: Collection[str] = ()
) -> TrainResult:
    """Train, or resume from the newest good checkpoint in the workdir.

    As the command does it: virtual CPU devices are made, and compiled programs are kept, unless
    jax has started already; then it takes the devices that are there, and says so. Every field of
    `config` counts as given.

    Args:
      config: the hyperparameters.
      workdir: where checkpoints and records go; made if missing. A run in it is resumed.
      allow_config_change: fields that may differ from those of the run in the workdir.

    Returns:
      What the run has come to. A signal (Ctrl-C) stops it after a step, with a checkpoint:
      `complete` is then False, and the same call resumes.

    Raises:
      UsageError: the configuration fits neither devices, data nor the run in the workdir, or
        another trainer is writing there; nothing has been changed.
      RunError: the numbers are not finite, devices differ, data or every checkpoint are damaged,
        or a file could not be written.

    Example:
      >>> import trainer
      >>> config = trainer.TrainConfig(num_epochs=1)
      >>> result = trainer.train(config, "runs/a")  # doctest: +SKIP
      >>> result.complete, result.test_accuracy  # doctest: +SKIP
      (True, 0.9663)
    """
    try:
        if config.compilation_cache:
            devices.enable_compilation_cache()
        devices.configure(
            config.platform,
            config.num_cpu_devices,
            config.batch_size,
            deterministic=config.deterministic,
        )
    except RuntimeError:
        logger.warning(
            "jax has started already: training takes the devices that are there (%s)",
            devices.describe(devices.create_mesh("auto", 0)),
        )
        config = dataclasses.replace(config, num_cpu_devices=0)
    try:
        return loop.train(config, workdir, allow_config_change)
    except Stopped as stopped:
        logger.warning("%s", stopped)
        return stopped.result
