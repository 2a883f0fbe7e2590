"""A prepared data set: described, not read yet; to be read whole or by rows."""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from trainer.datasets import damage
from trainer.datasets.arrays import Dataset
from trainer.datasets.decode import SplitReader
from trainer.datasets.identity import describe
from trainer.errors import RunError, UsageError

logger = logging.getLogger(__name__)

# Slices of shuffled examples miss a rare class now and then; those of sorted ones miss many.
_SORTED_FRACTION = 0.1
# How many pixels, all channels counted, are decoded at a time.
_BLOCK_PIXELS = 2**22


@dataclasses.dataclass(frozen=True)
class DatasetSource:
    """A prepared data set, described but not read yet.

    Attributes:
      name: of the data set, without a version.
      num_train: number of training examples.
      num_test: number of test examples.
      image_shape: (H, W, C).
      num_classes: number of classes.
      data_dir: the folder its files lie in.
      builder: the TFDS builder.
      train_split: the examples to train on, in the notation of TFDS.
      test_split: the examples to test on.
      image_size: (H, W) that images are resized to when they are read, or None.
      version: the one that TFDS knows, or None for files of the user's own.
      class_names: the names of the classes in the order of their labels; empty if unknown.
      made_here: whether the trainer has prepared it, and so could do it again.
      path: absolute, of the user's own folder or file that it was made of; None for other sets.
    """

    name: str
    num_train: int
    num_test: int
    image_shape: tuple[int, int, int]
    num_classes: int
    data_dir: str
    builder: tfds.core.DatasetBuilder = dataclasses.field(repr=False)
    train_split: str = "train"
    test_split: str = "test"
    image_size: tuple[int, int] | None = None
    version: str | None = None
    class_names: tuple[str, ...] = ()
    made_here: bool = False
    path: str | None = None

    @property
    def description(self) -> dict[str, Any]:
        """What is known of the examples before they are read, as JSON: see `identity.describe`."""
        return describe(
            self.name,
            self.version,
            self.num_train,
            self.num_test,
            self.image_shape,
            self.class_names or self.num_classes,
        )

    def read(self) -> Dataset:
        """Reads and checks all examples. It spends most of its time outside the GIL.

        Returns:
          The whole data set; its identity has been computed.

        Raises:
          RunError: the files are damaged; the message names the file and what to do.
          UsageError: images of differing shapes, or labels that are no class.
        """
        train_images, train_labels = self._read_split("train")
        test_images, test_labels = self._read_split("test")
        dataset = Dataset(
            name=self.name,
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
            num_classes=self.num_classes,
            version=self.version,
            class_names=self.class_names,
        )
        self._check_digests(dataset)
        self._check_classes(dataset)
        return dataset

    def rows(self, split: str, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Reads some examples by random access; each is compared with the hash stored with it.

        Args:
          split: "train" or "test".
          indices: each from 0 to num_train - 1 or num_test - 1, in any order, at least one.

        Returns:
          images uint8[len(indices), H, W, C], labels int32[len(indices)].

        Raises:
          RunError: the files are damaged; the message names the file and what to do.
          UsageError: images of differing shapes, or labels that are no class.
          IndexError: there is no such example.
        """
        places = np.asarray(indices)
        count = {"train": self.num_train, "test": self.num_test}[split]
        if places.min() < 0 or places.max() >= count:
            raise IndexError(f"examples {places.min()} to {places.max()} of {count} were asked for")
        try:
            images, labels = self._reader(split).read(places.tolist())
        except UsageError as error:
            raise UsageError(f"--dataset={self.name}: split {split!r}: {error}") from error
        # array_record, protobuf, json, zlib and PIL each have their own errors for damaged files.
        except Exception as error:
            raise self._damaged(split, error) from error
        if images.shape[1:] != self.image_shape:
            raise UsageError(
                f"--dataset={self.name}: the images of split {split!r} have shape "
                f"{images.shape[1:]}, expected {self.image_shape}; use --image_size=HxW to resize "
                "them all to one height and width"
            )
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise UsageError(
                f"--dataset={self.name}: split {split!r} has labels from {labels.min()} to "
                f"{labels.max()}, and its classes are 0 to {self.num_classes - 1}"
            )
        return images, labels.astype(np.int32)

    @functools.cached_property
    def _readers(self) -> dict[str, SplitReader]:
        """The open readers."""
        return {}

    def _reader(self, split: str) -> SplitReader:
        """Returns the reader of "train" or "test", opened when it is first used."""
        if split not in self._readers:
            self._readers[split] = SplitReader(
                self.builder, self._tfds_split(split), self.image_size
            )
        return self._readers[split]

    def _tfds_split(self, split: str) -> str:
        """Returns what TFDS calls the examples of "train" or "test"."""
        return {"train": self.train_split, "test": self.test_split}[split]

    def _read_split(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Reads one split as uint8[N, H, W, C] and int32[N], a block at a time."""
        count = {"train": self.num_train, "test": self.num_test}[split]
        images = np.empty((count, *self.image_shape), np.uint8)
        labels = np.empty(count, np.int32)
        block = max(1, _BLOCK_PIXELS // images[0].size)
        for start in range(0, count, block):
            rows = slice(start, min(start + block, count))
            images[rows], labels[rows] = self.rows(split, range(rows.start, rows.stop))
        return images, labels

    def _check_digests(self, dataset: Dataset) -> None:
        """Compares what was read with what the trainer wrote, where whole splits were read.

        A file whose own hashes are all right may still be another one.
        """
        try:
            metadata = (self.builder.info.metadata or {}) if self.made_here else {}
        # It is read only now, and the file may hold anything.
        except Exception as error:
            reason = f"metadata.json: {type(error).__name__}: {error}"
            raise damage.explain(self.name, self.data_dir, None, reason, True) from error
        for split in ("train", "test"):
            found = dataset.identity[f"{split}_sha256"]
            expected = metadata.get(f"{self._tfds_split(split)}_sha256", found)
            if found != expected and not self.image_size:
                reason = f"SHA-256 of the content is {found[:16]}..., expected {expected[:16]}..."
                raise self._damaged(split, reason)

    def _check_classes(self, dataset: Dataset) -> None:
        """Refuses slices that leave classes to the test alone: they cut sorted examples."""
        known = np.unique(dataset.train_labels)
        unknown = dataset.test_labels[~np.isin(dataset.test_labels, known)]
        if not len(unknown) or "[" not in self.train_split + self.test_split:
            return
        names = self.class_names or range(self.num_classes)
        said = (
            f"{len(unknown)} of the {self.num_test} examples of --test_split={self.test_split} are "
            f"of classes that --train_split={self.train_split} does not have, such as "
            f"{names[unknown[0]]}"
        )
        if len(unknown) >= _SORTED_FRACTION * self.num_test:
            raise UsageError(
                f"{said}: the examples of --dataset={self.name} seem to be sorted by class; "
                "shuffle them before you store them, or use other slices"
            )
        logger.warning(said)

    def _damaged(self, split: str, error: Exception | str) -> RunError:
        """Returns the error for a split that cannot be read."""
        info = self.builder.info.splits[self._tfds_split(split)]
        return damage.explain(self.name, self.data_dir, info, error, self.made_here)
