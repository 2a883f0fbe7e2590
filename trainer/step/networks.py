"""The networks by name: images in, logits out."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from trainer.config.own import is_own
from trainer.errors import UsageError
from trainer.step.dense import dense_product
from trainer.step.functional import Network
from trainer.step.own_network import create_own_network

Dense = partial(nnx.Linear, dot_general=dense_product)


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
        self.dense1 = Dense(height // 4 * (width // 4) * 64, 256, dtype=dtype, rngs=rngs)
        self.dense2 = Dense(256, num_classes, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map inputs float32[B, H, W, C] to logits float32[B, num_classes]."""
        x = inputs.astype(self.dtype)
        for conv in (self.conv1, self.conv2):
            x = nnx.relu(conv(x))
            x = nnx.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nnx.relu(self.dense1(x.reshape(x.shape[0], -1)))
        return self.dense2(x).astype(jnp.float32)


class SmallCNN(nnx.Module):
    """A quarter of the arithmetic of `CNN`: 99 % on MNIST in the fewest seconds found.

    The first convolution strides, in the place of a pooling (Springenberg et al. 2015), and the
    second is pooled before its ReLU, which does not change the largest of a window.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Make the layers; see `CNN` for the arguments. H and W are at least 11.

        Raises:
          UsageError: the images are too small.
        """
        height, width, channels = image_shape
        if min(height, width) < 11:
            raise UsageError(
                f"--model=small_cnn needs images of 11x11 pixels and more, and these are "
                f"{height}x{width}; use --model=cnn (4x4 and more) or --model=mlp"
            )
        # A stride in the second as well, and XLA:CPU would make the last bits of the first one's
        # gradient depend on the number of threads.
        convolution = partial(nnx.Conv, padding="VALID", dtype=dtype, rngs=rngs)
        self.conv1 = convolution(channels, 32, (5, 5), strides=2)
        self.conv2 = convolution(32, 32, (3, 3))
        rows, columns = ((size - 7) // 4 for size in (height, width))
        self.dense1 = Dense(rows * columns * 32, 256, dtype=dtype, rngs=rngs)
        self.dense2 = Dense(256, num_classes, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map inputs float32[B, H, W, C] to logits float32[B, num_classes]."""
        x = nnx.relu(self.conv1(inputs.astype(self.dtype)))
        x = nnx.relu(nnx.max_pool(self.conv2(x), window_shape=(2, 2), strides=(2, 2)))
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
        self.dense1 = Dense(height * width * channels, 128, dtype=dtype, rngs=rngs)
        self.dense2 = Dense(128, num_classes, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map inputs float32[B, H, W, C] to logits float32[B, num_classes]."""
        x = inputs.reshape(inputs.shape[0], -1).astype(self.dtype)
        return self.dense2(nnx.relu(self.dense1(x))).astype(jnp.float32)


def create_network(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    compute_dtype: str = "float32",
) -> Network:
    """Return the network called `name`.

    Args:
      name: "cnn", "small_cnn" or "mlp", or that of one of the user's own; see `config.own`.
      image_shape: (H, W, C) of an example.
      num_classes: number of logits, >= 1.
      compute_dtype: "float32" or "bfloat16".

    Raises:
      KeyError: no network has that name.
      UsageError: it cannot take images of this shape, or is the user's own and not usable.
    """
    dtype = jnp.dtype(compute_dtype)
    if is_own(name):
        return create_own_network(name, image_shape, num_classes, dtype)
    module = {"cnn": CNN, "small_cnn": SmallCNN, "mlp": MLP}[name]

    def create(key: jax.Array) -> nnx.Module:
        return module(
            image_shape=image_shape, num_classes=num_classes, dtype=dtype, rngs=nnx.Rngs(key)
        )

    network = Network(create, built_in=True)
    _ = network.shapes  # Its constructor refuses images that are too small.
    return network
