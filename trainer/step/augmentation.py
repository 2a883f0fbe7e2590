"""Random changes of the training images, made on the devices, example by example.

The key of an example is a function of the seed, the step and the example's place in the global
batch: how a batch lies over devices and processes changes nothing.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Of one example: (key, image float32[H, W, C] in [0, 1]) -> the same shape and dtype.
Augment = Callable[[jax.Array, jax.Array], jax.Array]

SHIFT = "shift"
# Pixels, in each direction.
MOST_SHIFT = 2


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A function of single images, applied to batches.

    Attributes:
      function: (key, image float32[H, W, C] in [0, 1]) -> float32[H, W, C].
      built_in: whether it is one of those that the trainer knows. These only move pixels, so their
        bits do not depend on the program that they are a part of.
    """

    function: Augment
    built_in: bool = False

    def __call__(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """Return the images as they are trained on.

        Args:
          keys: key[B], one for each image.
          images: float32[B, H, W, C] in [0, 1].

        Returns:
          float32[B, H, W, C].
        """
        return jax.vmap(self.function)(keys, images)


def shift(key: jax.Array, image: jax.Array) -> jax.Array:
    """Shift an image by up to 2 pixels, down or up and right or left, and fill with zeros.

    Pixel (y, x) becomes that at (y + dy, x + dx), with dy and dx drawn evenly from -2 to 2; what
    lies outside of the image is 0, the background of MNIST.

    Args:
      key: of the example.
      image: [H, W, C].

    Returns:
      [H, W, C], of the image's dtype.
    """
    dy, dx = jax.random.randint(key, (2,), -MOST_SHIFT, MOST_SHIFT + 1)
    height, width, _ = image.shape
    # Single pixels by their indices: on a CPU 4 times faster than a slice of a padded image.
    rows, columns = (jnp.arange(height) + dy)[:, None], (jnp.arange(width) + dx)[None, :]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    there = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    pixels = image.at[there].get(mode="promise_in_bounds")
    return jnp.where(inside[:, :, None], pixels, jnp.zeros((), image.dtype))
