"""Data sets by name, as arrays in host memory."""

import dataclasses
import functools
import math

import numpy as np
import tensorflow_datasets as tfds

from trainer.datasets import decode, foreign, mnist_idx, prepare
from trainer.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A whole data set in host memory.

    Attributes:
      name: as it was asked for.
      train_images: uint8[N, H, W, C].
      train_labels: int32[N], 0 <= label < num_classes.
      test_images: uint8[M, H, W, C].
      test_labels: int32[M].
      num_classes: number of classes.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int

    @property
    def pixel_mean(self) -> float:
        """Mean of the training pixels, scaled to [0, 1]."""
        return self._pixel_moments[0]

    @property
    def pixel_std(self) -> float:
        """Standard deviation of the training pixels, scaled to [0, 1]."""
        return self._pixel_moments[1]

    @functools.cached_property
    def _pixel_moments(self) -> tuple[float, float]:
        """Mean and standard deviation from exact integer sums."""
        total = squares = 0
        # In blocks that stay in cache. No BLAS: its threads spin for seconds on a busy machine.
        for start in range(0, len(self.train_images), 1024):
            block = self.train_images[start : start + 1024]
            total += int(block.sum(dtype=np.uint64))
            # 255**2 fits into 16 bits.
            squares += int(np.multiply(block, block, dtype=np.uint16).sum(dtype=np.uint64))
        count = self.train_images.size
        # Integers up to the square root: count * squares - total**2 is exact.
        return total / count / 255, math.sqrt(count * squares - total**2) / count / 255


@dataclasses.dataclass(frozen=True)
class DatasetSource:
    """A prepared data set, described but not read yet.

    Attributes:
      name: as it was asked for.
      num_train: number of training examples.
      num_test: number of test examples.
      image_shape: (H, W, C).
      num_classes: number of classes.
      data_dir: the folder its files lie in.
      builder: the TFDS builder.
      test_split: "test", or "validation" where there is no "test".
    """

    name: str
    num_train: int
    num_test: int
    image_shape: tuple[int, int, int]
    num_classes: int
    data_dir: str
    builder: tfds.core.DatasetBuilder = dataclasses.field(repr=False)
    test_split: str = "test"

    def read(self) -> Dataset:
        """Reads and checks all examples. It spends most of its time outside the GIL.

        Returns:
          The whole data set.

        Raises:
          RunError: the files are damaged; the message says which folder to delete.
          UsageError: images of differing shapes, or labels that are no class.
        """
        train_images, train_labels = self._read_split("train")
        test_images, test_labels = self._read_split(self.test_split)
        return Dataset(
            name=self.name,
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
            num_classes=self.num_classes,
        )

    def _read_split(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Reads one split as uint8[N, H, W, C] and int32[N]."""
        ours = isinstance(self.builder, mnist_idx.MnistIdx)
        try:
            images, labels = decode.read_split(self.builder, split)
            expected = self.builder.info.metadata.get(f"{split}_crc32") if ours else None
        except UsageError as error:
            raise UsageError(f"--dataset={self.name}: {error}") from error
        # array_record, protobuf, json, zlib and PIL each have their own errors for damaged files.
        except Exception as error:
            raise prepare.damaged(self.builder, f"{split}: {error}") from error
        images = images.reshape(*images.shape[:3], -1)
        if ours and expected != (found := mnist_idx.content_checksum(images, labels)):
            reason = f"{split}: checksum of the content is {found}, expected {expected}"
            raise prepare.damaged(self.builder, reason)
        if images.shape[1:] != self.image_shape:
            raise UsageError(
                f"--dataset={self.name}: the images of split {split!r} have shape "
                f"{images.shape[1:]}, expected {self.image_shape}"
            )
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise UsageError(
                f"--dataset={self.name}: split {split!r} has labels from {labels.min()} to "
                f"{labels.max()}, valid are 0 to {self.num_classes - 1}"
            )
        return images, labels.astype(np.int32)


def open_dataset(name: str, data_dir: str = "") -> DatasetSource:
    """Finds a data set, and prepares one of ours where that was not done yet. Reads no examples.

    Args:
      name: "mnist", "fashion_mnist", "kmnist", or the TFDS name of a data set that lies in
        `data_dir` already, prepared in the format array_record, with the features "image"
        (uint8) and "label" (a ClassLabel) and the splits "train" and "test" or "validation".
      data_dir: root folder of TFDS data sets; "" is the default one of TFDS.

    Returns:
      The description of the data set; its `read()` gives the arrays.

    Raises:
      UsageError: unknown name, unusable `data_dir`, missing archives, or a data set without what
        is listed above.
      RunError: an archive or the prepared data set is damaged.
    """
    if name in mnist_idx.NAMES:
        builder = prepare.open_prepared(name, data_dir)
        if not {"train", "test"} <= set(builder.info.splits):
            raise prepare.damaged(builder, "its description is incomplete")
    else:
        builder = foreign.open_foreign(name, data_dir)
    splits = builder.info.splits
    test_split = "test" if "test" in splits else "validation"
    return DatasetSource(
        name=name,
        num_train=splits["train"].num_examples,
        num_test=splits[test_split].num_examples,
        image_shape=foreign.image_shape(builder),
        num_classes=builder.info.features["label"].num_classes,
        data_dir=str(builder.data_dir),
        builder=builder,
        test_split=test_split,
    )


def load(name: str, data_dir: str = "") -> Dataset:
    """Returns `open_dataset(name, data_dir).read()`.

    Args:
      name: see `open_dataset`.
      data_dir: see `open_dataset`.

    Returns:
      The whole data set.

    Raises:
      UsageError: see `open_dataset`.
      RunError: see `open_dataset`.
    """
    return open_dataset(name, data_dir).read()
