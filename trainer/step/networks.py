"""The networks, images in and logits out, and how the step uses one as pure functions."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from trainer.errors import UsageError

Arrays = dict[str, Any]


class CNN(nnx.Module):
    """The convolutional network of the Flax MNIST example: 32-64-256-num_classes."""

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Make the layers.

        Args:
          image_shape: (H, W, C) of an example; H and W at least 4, which two poolings halve.
          num_classes: number of logits.
          dtype: of the computation; parameters and logits are float32.
          rngs: for the first parameters.

        Raises:
          UsageError: the images are too small.
        """
        height, width, channels = image_shape
        if min(height, width) < 4:
            raise UsageError(
                f"--model=cnn halves images twice, and these are {height}x{width} pixels; use "
                "images of 4x4 and more, or --model=mlp"
            )
        self.conv1 = nnx.Conv(channels, 32, (3, 3), dtype=dtype, rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), dtype=dtype, rngs=rngs)
        self.dense1 = nnx.Linear(height // 4 * (width // 4) * 64, 256, dtype=dtype, rngs=rngs)
        self.dense2 = nnx.Linear(256, num_classes, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map inputs float32[B, H, W, C] to logits float32[B, num_classes]."""
        x = inputs.astype(self.dtype)
        for conv in (self.conv1, self.conv2):
            x = nnx.relu(conv(x))
            x = nnx.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nnx.relu(self.dense1(x.reshape(x.shape[0], -1)))
        return self.dense2(x).astype(jnp.float32)


class MLP(nnx.Module):
    """One hidden layer of 128: small and quick, for tests and first tries."""

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Make the layers; see `CNN` for the arguments."""
        height, width, channels = image_shape
        self.dense1 = nnx.Linear(height * width * channels, 128, dtype=dtype, rngs=rngs)
        self.dense2 = nnx.Linear(128, num_classes, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map inputs float32[B, H, W, C] to logits float32[B, num_classes]."""
        x = inputs.reshape(inputs.shape[0], -1).astype(self.dtype)
        return self.dense2(nnx.relu(self.dense1(x))).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Network:
    """A module as pure functions of plain arrays: what `shard_map` and checkpoints can hold.

    The parts of the module: `params`, its nnx.Param; `statistics`, whatever else it keeps between
    steps, such as nnx.BatchStat (empty for `CNN` and `MLP`); and the keys of its random layers,
    which are kept by nobody: every use is given a fresh one.

    Attributes:
      create: key -> the module with its first parameters.
    """

    create: Callable[[jax.Array], nnx.Module]

    def init(self, key: jax.Array) -> tuple[Arrays, Arrays]:
        """Return the first params and statistics, as nested dictionaries by attribute name."""
        _, params, _, statistics = _split(self.create(key))
        return nnx.to_pure_dict(params), nnx.to_pure_dict(statistics)

    def apply(self, params: Arrays, statistics: Arrays, inputs: jax.Array) -> jax.Array:
        """Return the logits as in evaluation: no dropout, the statistics as they are.

        Args:
          params: see `init`.
          statistics: see `init`.
          inputs: float32[B, H, W, C].

        Returns:
          float32[B, num_classes].
        """
        module = self._merge(params, statistics, None)
        module.eval()
        return cast(Callable, module)(inputs)

    def apply_in_training(
        self, params: Arrays, statistics: Arrays, inputs: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Arrays]:
        """Return the logits as in training, and the statistics after it.

        Args:
          params: see `init`.
          statistics: see `init`.
          inputs: float32[B, H, W, C].
          key: for random layers; each gets another one made from it.
        """
        module = self._merge(params, statistics, key)
        module.train()
        logits = cast(Callable, module)(inputs)
        return logits, nnx.to_pure_dict(_split(module)[3])

    def _merge(self, params: Arrays, statistics: Arrays, key: jax.Array | None) -> nnx.Module:
        """Return the module with these arrays in it."""
        shapes = nnx.eval_shape(lambda: self.create(jax.random.key(0, impl="threefry2x32")))
        graphdef, empty_params, random, empty_statistics = _split(shapes)
        random_layers = iter(range(len(jax.tree.leaves(random))))

        def fresh(leaf: Any) -> jax.Array:
            number = next(random_layers)
            if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jnp.zeros(leaf.shape, leaf.dtype)
            base = jax.random.key(0, impl="threefry2x32") if key is None else key
            return jax.random.fold_in(base, number)

        nnx.replace_by_pure_dict(empty_params, params)
        nnx.replace_by_pure_dict(empty_statistics, statistics)
        return nnx.merge(graphdef, empty_params, jax.tree.map(fresh, random), empty_statistics)


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Networks that answer together: the mean of their probabilities (Huang et al. 2017).

    Attributes:
      network: of each of them.
    """

    network: Network

    def apply(self, params: Arrays, statistics: Arrays, inputs: jax.Array) -> jax.Array:
        """Return the logarithm of the mean of the softmax of the logits of all.

        Args:
          params: step, as text, to the parameters of that step; see `Network.init`.
          statistics: likewise.
          inputs: float32[B, H, W, C].

        Returns:
          float32[B, num_classes]; their softmax is the mean itself.
        """
        each = [
            jax.nn.log_softmax(self.network.apply(params[step], statistics[step], inputs))
            for step in sorted(params, key=int)
        ]
        return jax.nn.logsumexp(jnp.stack(each), axis=0) - math.log(len(each))


def _split(module: nnx.Module) -> tuple[Any, Any, Any, Any]:
    """Return graph definition, parameters, random state and all other state of a module."""
    parts: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)
    return parts


def create_network(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    compute_dtype: str = "float32",
) -> Network:
    """Return the network called `name`.

    Args:
      name: "cnn" or "mlp".
      image_shape: (H, W, C) of an example.
      num_classes: number of logits, >= 1.
      compute_dtype: "float32" or "bfloat16".

    Raises:
      KeyError: no network has that name.
      UsageError: it cannot take images of this shape.
    """
    module = {"cnn": CNN, "mlp": MLP}[name]
    dtype = jnp.dtype(compute_dtype)

    def create(key: jax.Array) -> nnx.Module:
        return module(
            image_shape=image_shape, num_classes=num_classes, dtype=dtype, rngs=nnx.Rngs(key)
        )

    nnx.eval_shape(lambda: create(jax.random.key(0, impl="threefry2x32")))
    return Network(create)
