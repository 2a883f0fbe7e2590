"""A split of the data on the devices, and the inputs that a step takes from it."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from trainer.devices import place


@flax.struct.dataclass
class Examples:
    """A split of a data set as it lies on every device; batches are indices into it.

    Attributes:
      images: uint8[N, H, W, C].
      labels: int32[N], 0 <= label < num_classes.
      mean: float32[], subtracted from the scaled pixels (0: inputs in [0, 1]).
      std: float32[] > 0, divides them (1: inputs in [0, 1]).
    """

    images: jax.Array
    labels: jax.Array
    mean: jax.Array
    std: jax.Array


def place_examples(
    images: np.ndarray, labels: np.ndarray, mean: float, std: float, sharding: NamedSharding
) -> Examples:
    """Put a split on the devices; see `Examples` for the arguments."""
    arrays = (images, labels, np.array(mean, np.float32), np.array(std, np.float32))
    return Examples(*(place(array, sharding) for array in arrays))


def abstract_examples(
    num_examples: int, image_shape: tuple[int, int, int], sharding: NamedSharding
) -> Examples:
    """Return shapes, dtypes and sharding of a split as jax.ShapeDtypeStruct leaves."""

    def abstract(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return Examples(
        images=abstract((num_examples, *image_shape), jnp.uint8),
        labels=abstract((num_examples,), jnp.int32),
        mean=abstract((), jnp.float32),
        std=abstract((), jnp.float32),
    )


def take(
    examples: Examples,
    indices: jax.Array,
    augment: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return inputs and labels of some examples.

    Args:
      examples: the split.
      indices: int32[B], into it.
      augment: float32[B, H, W, C] in [0, 1] -> the same; what is trained on in place of the images.

    Returns:
      float32[B, H, W, C] and int32[B].
    """
    # Every index was made from the size of the split: no clamping in the hot loop.
    images = examples.images.at[indices].get(mode="promise_in_bounds")
    labels = examples.labels.at[indices].get(mode="promise_in_bounds")
    if augment is None:
        return scale_pixels(images, examples.mean, examples.std), labels
    return _standardize(augment(_unit(images)), examples.mean, examples.std), labels


def scale_pixels(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Turn raw pixels into the inputs of a network: (images / 255 - mean) / std.

    Args:
      images: uint8[B, H, W, C].
      mean: float32 scalar, in units of the scaled pixel, 0 for plain [0, 1] inputs.
      std: float32 scalar > 0, 1 for plain [0, 1] inputs.

    Returns:
      float32[B, H, W, C].
    """
    return _standardize(_unit(images), mean, std)


# XLA replaces some divisions by products with the reciprocal, in one program and not in another.
# Written as products, the inputs have the same bits on every number of devices.


def _unit(images: jax.Array) -> jax.Array:
    """Return raw pixels as float32 in [0, 1]."""
    return images.astype(jnp.float32) * (1 / 255)


def _standardize(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Return pixels in [0, 1] as the inputs of a network."""
    return (images - mean) * (1 / std)
