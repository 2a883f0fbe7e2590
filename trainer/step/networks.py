"""The networks: images in, logits out."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class CNN(nn.Module):
    """The convolutional network of the Flax MNIST example: 32-64-256-num_classes.

    Attributes:
      num_classes: number of logits.
      dtype: dtype of the computation; parameters and logits are float32.
    """

    num_classes: int = 10
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map inputs float32[B, H, W, C] to logits float32[B, num_classes]."""
        x = inputs.astype(self.dtype)
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, kernel_size=(3, 3), dtype=self.dtype)(x))
            x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(256, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class MLP(nn.Module):
    """One hidden layer of 128: small and quick, for tests and first tries.

    Attributes:
      num_classes: number of logits.
      dtype: dtype of the computation; parameters and logits are float32.
    """

    num_classes: int = 10
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map inputs float32[B, H, W, C] to logits float32[B, num_classes]."""
        x = inputs.reshape(inputs.shape[0], -1).astype(self.dtype)
        x = nn.relu(nn.Dense(128, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


def create_model(name: str, num_classes: int, compute_dtype: str = "float32") -> nn.Module:
    """Return the network called `name`.

    Args:
      name: "cnn" or "mlp".
      num_classes: number of logits, >= 2.
      compute_dtype: "float32" or "bfloat16".

    Returns:
      A flax module; `apply` maps inputs float32[B, H, W, C] to logits float32[B, num_classes].

    Raises:
      KeyError: no network has that name.
    """
    return {"cnn": CNN, "mlp": MLP}[name](num_classes=num_classes, dtype=jnp.dtype(compute_dtype))


def scale_pixels(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Turn raw pixels into the inputs of a network: (images / 255 - mean) / std.

    Args:
      images: uint8[B, H, W, C].
      mean: float32 scalar, in units of the scaled pixel, 0 for plain [0, 1] inputs.
      std: float32 scalar > 0, 1 for plain [0, 1] inputs.

    Returns:
      float32[B, H, W, C].
    """
    # XLA replaces some divisions by products with the reciprocal, in one program and not in
    # another. Written as products, the inputs have the same bits on every number of devices.
    return (images.astype(jnp.float32) * (1 / 255) - mean) * (1 / std)
