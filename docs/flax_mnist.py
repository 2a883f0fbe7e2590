"""The network of the Flax MNIST example, as a network of one's own: batch norm and dropout."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx


class Network(nnx.Module):
    """Two convolutions, each with batch norm, and two dense layers."""

    def __init__(self, *, image_shape, num_classes, dtype, rngs):
        height, width, channels = image_shape
        features = height // 4 * (width // 4) * 64
        self.conv1 = nnx.Conv(channels, 32, (3, 3), dtype=dtype, rngs=rngs)
        self.dropout1 = nnx.Dropout(0.025, rngs=rngs)
        self.norm1 = nnx.BatchNorm(32, dtype=dtype, rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), dtype=dtype, rngs=rngs)
        self.norm2 = nnx.BatchNorm(64, dtype=dtype, rngs=rngs)
        self.dense1 = nnx.Linear(features, 256, dtype=dtype, rngs=rngs)
        self.dropout2 = nnx.Dropout(0.025, rngs=rngs)
        self.dense2 = nnx.Linear(256, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map inputs float32[B, H, W, C] to logits float32[B, num_classes]."""
        x = self.norm1(self.dropout1(self.conv1(inputs)))
        x = nnx.avg_pool(nnx.relu(x), (2, 2), strides=(2, 2))
        x = self.norm2(self.conv2(x))
        x = nnx.avg_pool(nnx.relu(x), (2, 2), strides=(2, 2))
        x = self.dense1(x.reshape(x.shape[0], -1))
        x = nnx.relu(self.dropout2(x))
        return self.dense2(x).astype(jnp.float32)


def create() -> optax.GradientTransformation:
    """Return the optimizer of the example, AdamW, without its learning rate."""
    return optax.chain(optax.scale_by_adam(b1=0.9), optax.add_decayed_weights(1e-4))
