"""Examples on the devices, where they lie, and the inputs that a step takes from them."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trainer.devices import DATA_AXIS, place

# Where the examples of a run lie: all of them on every device; a part on each device; or on disk,
# and of a batch the rows of each device.
REPLICATED, SHARDED, STREAMED = "replicated", "sharded", "streamed"


@flax.struct.dataclass
class Examples:
    """Examples on the devices; batches are indices into them.

    Either all devices hold the same ones, such as a whole split; or each device holds its own rows
    of images and labels, and the indices of a device are places among those. `specs` says which.

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


def specs(placement: str) -> Examples:
    """Return how examples are laid out over the mesh, as a PartitionSpec for each field.

    Args:
      placement: "replicated": the same rows on all devices; "sharded" or "streamed": rows cut
        over the devices.
    """
    rows: Any = P() if placement == REPLICATED else P(DATA_AXIS)
    whole: Any = P()
    return Examples(images=rows, labels=rows, mean=whole, std=whole)


def abstract_examples(
    num_examples: int, image_shape: tuple[int, ...], mesh: Mesh, placement: str = REPLICATED
) -> Examples:
    """Return shapes, dtypes and shardings of examples as jax.ShapeDtypeStruct leaves.

    Args:
      num_examples: rows on all devices together; on each, if they are replicated.
      image_shape: (H, W, C).
      mesh: the devices.
      placement: see `specs`.
    """

    def abstract(shape: tuple[int, ...], dtype: Any, spec: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    layout = specs(placement)
    return Examples(
        images=abstract((num_examples, *image_shape), jnp.uint8, layout.images),
        labels=abstract((num_examples,), jnp.int32, layout.labels),
        mean=abstract((), jnp.float32, layout.mean),
        std=abstract((), jnp.float32, layout.std),
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
