"""A stored checkpoint as something to use: network, parameters, configuration."""

import dataclasses
from typing import Any

import jax
from etils import epath

from trainer.checkpoints import Restored, read_newest, read_step
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.run.resume import check_sources
from trainer.step import Network, create_network, digests_of_sources, match_leaves
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
      inputs: of the network: "image_shape", "num_classes", "mean" and "std" of the scaled pixels.
      meta: all that is stored beside the state.
    """

    step: int
    params: Arrays
    statistics: Arrays
    config: TrainConfig
    network: Network
    inputs: dict[str, Any]
    meta: dict[str, Any]


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
    network = create_network(
        config.model, tuple(inputs["image_shape"]), inputs["num_classes"], config.compute_dtype
    )
    check_sources(restored, digests_of_sources(config))
    params, statistics = _arrays_of(network, config, restored)
    return Checkpoint(
        step=restored.step,
        params=params,
        statistics=statistics,
        config=config,
        network=network,
        inputs=inputs,
        meta=restored.meta,
    )


def _arrays_of(network: Network, config: TrainConfig, restored: Restored) -> tuple[Arrays, Arrays]:
    """Return the parameters and statistics of a checkpoint."""
    params, statistics = jax.eval_shape(lambda: network.init(root_key(config.seed)))
    abstract = {"params": params, "statistics": statistics}
    try:
        found = match_leaves(abstract, restored.leaves)
    except ValueError as error:
        raise RunError(f"checkpoint {restored.step} does not fit its network: {error}") from error
    return found["params"], found["statistics"]
