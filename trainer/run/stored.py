"""A stored checkpoint as something to use: network, parameters, configuration."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from trainer.checkpoints import Restored, read_newest, read_step
from trainer.config import AVERAGE, EMA, TrainConfig
from trainer.errors import RunError
from trainer.run.resume import check_sources
from trainer.step import (
    Averages,
    Averaging,
    Ensemble,
    Network,
    averaged,
    create_network,
    digests_of_sources,
    match_leaves,
)
from trainer.step.functional import Arrays
from trainer.step.randomness import root_key


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run, verified.

    Attributes:
      step: updates made.
      params: parameters of the network, nested dictionaries of numpy arrays by attribute name.
      statistics: what else the network keeps; empty for the built-in ones.
      config: of the run, resolved.
      network: `network.apply(params, statistics, inputs float32[B, H, W, C])` gives the logits.
      inputs: of the network: "image_shape", "num_classes", "class_names" (empty if unknown),
        "mean" and "std" of the scaled pixels.
      meta: all that is stored beside the state.
      averages: kind of average, "average" or "ema", to averaged parameters and statistics, of
        those that the checkpoint holds.
      ensemble: steps of the checkpoints that answer together, see `selection.Selection`.
    """

    step: int
    params: Arrays
    statistics: Arrays
    config: TrainConfig
    network: Network | Ensemble
    inputs: dict[str, Any]
    meta: dict[str, Any]
    averages: Mapping[str, tuple[Arrays, Arrays]]
    ensemble: tuple[int, ...] = ()

    @property
    def average(self) -> Arrays | None:
        """The mean of the parameters at the ends of cycles, or None if the run keeps none."""
        return self.averages[AVERAGE][0] if AVERAGE in self.averages else None

    @property
    def ema(self) -> Arrays | None:
        """The exponential moving average of the parameters, or None if the run keeps none."""
        return self.averages[EMA][0] if EMA in self.averages else None


def load_checkpoint(workdir: epath.PathLike, step: int | None = None) -> Checkpoint:
    """Return a checkpoint of a run; it is read and verified, no data are needed.

    Args:
      workdir: of the run.
      step: of the checkpoint; None: the newest that is good.

    Raises:
      UsageError: there is no such checkpoint.
      RunError: it, or every one, is damaged, or another version of the trainer made it.
    """
    restored = read_newest(workdir) if step is None else read_step(workdir, step)
    config, inputs = TrainConfig.from_stored(restored.meta["config"]), restored.meta["inputs"]
    network = create_stored_network(config, inputs)
    # The images that are seen from here on are not augmented: that file need not be here.
    check_sources(restored, digests_of_sources(config, ("model", "optimizer")))
    averaging = Averaging(config.average_cycles, ema_decay=config.ema_decay)
    params, statistics, averages = _arrays_of(network, averaging, restored)
    return Checkpoint(
        step=restored.step,
        params=params,
        statistics=statistics,
        config=config,
        network=network,
        inputs=inputs,
        meta=restored.meta,
        averages=_scaled(averages),
    )


def create_stored_network(config: TrainConfig, inputs: dict[str, Any]) -> Network:
    """Return the network of a checkpoint.

    Args:
      config: of the run, as the checkpoint stores it.
      inputs: of the network, as the checkpoint stores them.
    """
    shape = tuple(inputs["image_shape"])
    return create_network(config.model, shape, inputs["num_classes"], config.compute_dtype)


def _arrays_of(
    network: Network, averaging: Averaging, restored: Restored
) -> tuple[Arrays, Arrays, Averages]:
    """Return the parameters, statistics and averages of a checkpoint."""

    def init() -> dict[str, Any]:
        params, statistics = network.init(root_key(0))
        averages = averaging.start(params, statistics)
        return {"params": params, "statistics": statistics, "averages": averages}

    try:
        found = match_leaves(jax.eval_shape(init), restored.leaves)
    except ValueError as error:
        raise RunError(f"checkpoint {restored.step} does not fit its network: {error}") from error
    return found["params"], found["statistics"], found["averages"]


def _scaled(averages: Averages) -> dict[str, tuple[Arrays, Arrays]]:
    """Return the averages that have something in them, as parameters and statistics."""
    known = [kind for kind in averages if kind != AVERAGE or averages[kind].count > 0]
    return {kind: jax.device_get(averaged(averages, kind)) for kind in known}
