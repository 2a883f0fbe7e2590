"""A whole data set as arrays in host memory."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from trainer.datasets.identity import describe, examples_digest
from trainer.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A whole data set in host memory.

    Attributes:
      name: of the data set, without a version.
      train_images: uint8[N, H, W, C].
      train_labels: int32[N], 0 <= label < num_classes.
      test_images: uint8[M, H, W, C].
      test_labels: int32[M].
      num_classes: number of classes.
      version: the one that TFDS knows, or None.
      class_names: the names of the classes in the order of their labels; empty if unknown.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    version: str | None = None
    class_names: tuple[str, ...] = ()

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What tells these examples from all others, as JSON: see `identity.describe`.

        Beside the description it has "train_sha256" and "test_sha256", see
        `identity.examples_digest`. Computed once: about 40 ms for MNIST.
        """
        description = describe(
            self.name,
            self.version,
            len(self.train_images),
            len(self.test_images),
            self.train_images.shape[1:],
            self.class_names or self.num_classes,
        )
        return description | {
            "train_sha256": examples_digest(self.train_images, self.train_labels),
            "test_sha256": examples_digest(self.test_images, self.test_labels),
        }

    @property
    def test_class_counts(self) -> list[int]:
        """Examples of each class in the test split."""
        return np.bincount(self.test_labels, minlength=self.num_classes).tolist()

    @property
    def pixel_mean(self) -> float:
        """Mean of the training pixels, scaled to [0, 1]."""
        return self._pixel_moments[0]

    @property
    def pixel_std(self) -> float:
        """Standard deviation of the training pixels, scaled to [0, 1]."""
        return self._pixel_moments[1]

    def input_moments(self, standardize: bool) -> tuple[float, float]:
        """Returns (mean, std) of the inputs (x/255 - mean) / std of a network.

        Args:
          standardize: whether the inputs have mean 0 and standard deviation 1, or are x/255.

        Returns:
          The training pixels' mean and standard deviation, or (0.0, 1.0).

        Raises:
          UsageError: all training pixels are equal, so there is nothing to divide by.
        """
        sums = self._pixel_sums if standardize else (0, 0)
        return input_moments(self.name, sums, self.train_images.size, standardize)

    @property
    def _pixel_moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the training pixels."""
        return _moments(self._pixel_sums, self.train_images.size)

    @functools.cached_property
    def _pixel_sums(self) -> tuple[int, int]:
        """Sums over the training pixels, added up when they are first asked for."""
        return pixel_sums(self.train_images)


def input_moments(
    dataset: str, sums: tuple[int, int], count: int, standardize: bool
) -> tuple[float, float]:
    """Returns (mean, std) of the inputs (x/255 - mean) / std of a network.

    Args:
      dataset: its name, for messages.
      sums: of the training pixels, see `pixel_sums`.
      count: how many training pixels there are, all channels counted.
      standardize: whether the inputs have mean 0 and standard deviation 1, or are x/255.

    Returns:
      The training pixels' mean and standard deviation, or (0.0, 1.0).

    Raises:
      UsageError: all training pixels are equal, so there is nothing to divide by.
    """
    if not standardize:
        return 0.0, 1.0
    mean, std = _moments(sums, count)
    if std == 0:
        raise UsageError(
            f"--standardize divides by the standard deviation of the training pixels, and all "
            f"pixels of --dataset={dataset} have the value {round(mean * 255)}; leave "
            "--standardize out, and look at the images"
        )
    return mean, std


def _moments(sums: tuple[int, int], count: int) -> tuple[float, float]:
    """Returns mean and standard deviation of scaled pixels from exact integer sums."""
    total, squares = sums
    # Integers up to the square root: count * squares - total**2 is exact.
    return total / count / 255, math.sqrt(count * squares - total**2) / count / 255


def pixel_sums(images: np.ndarray) -> tuple[int, int]:
    """Returns the sum of all pixels and the sum of their squares, exactly.

    Args:
      images: uint8[N, H, W, C].
    """
    total = squares = 0
    # In blocks that stay in cache. No BLAS: its threads spin for seconds on a busy machine.
    for start in range(0, len(images), 1024):
        block = images[start : start + 1024]
        total += int(block.sum(dtype=np.uint64))
        # 255**2 fits into 16 bits.
        squares += int(np.multiply(block, block, dtype=np.uint16).sum(dtype=np.uint64))
    return total, squares
