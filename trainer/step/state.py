"""The state of a training run: arrays, nothing else."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding


@flax.struct.dataclass
class TrainState:
    """Everything that changes during training, replicated on every device.

    Attributes:
      step: int32[], updates made so far: the only counter that the learning rate and the data
        order read. The update that reads step = s applies schedule(s) to batch s.
      params: float32 parameters of the network.
      opt_state: state of the optimizer.
    """

    step: jax.Array
    params: optax.Params
    opt_state: optax.OptState


def train_state_init(
    model: nn.Module,
    tx: optax.GradientTransformation,
    seed: int,
    image_shape: tuple[int, int, int],
) -> Callable[[], TrainState]:
    """Return the pure function that makes the state before the first update.

    Args:
      model: the network.
      tx: the optimizer.
      seed: of the parameters, >= 0.
      image_shape: (H, W, C) of an example.
    """

    def init() -> TrainState:
        key = jax.random.key(seed, impl="threefry2x32")
        params = model.init(key, jnp.zeros((1, *image_shape), jnp.float32))["params"]
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))

    return init


def create_train_state(init: Callable[[], TrainState], sharding: NamedSharding) -> TrainState:
    """Return the state before the first update, laid out as `sharding` says."""
    return jax.jit(init, out_shardings=sharding)()


def abstract_train_state(init: Callable[[], TrainState], sharding: NamedSharding) -> TrainState:
    """Return the shapes, dtypes and sharding of the state as jax.ShapeDtypeStruct leaves."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(init),
    )


def leaf_name(path: Any) -> str:
    """Return the name of a leaf from its path in a pytree."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
