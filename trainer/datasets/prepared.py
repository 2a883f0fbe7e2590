"""A prepared data set: described, not read yet; to be read whole or by rows."""

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from trainer.datasets import damage, prepare
from trainer.datasets.arrays import Dataset
from trainer.datasets.classes import check_classes
from trainer.datasets.decode import SplitReader
from trainer.datasets.facts import DatasetFacts, FactsInOnePass, SplitFacts
from trainer.datasets.identity import describe
from trainer.errors import RunError, UsageError

logger = logging.getLogger(__name__)

# How many pixels, all channels counted, are decoded at a time.
_BLOCK_PIXELS = 2**22
# Seconds to wait before a file system that is away is asked again.
_PAUSES = (1.0, 2.0, 4.0, 8.0)


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
        train_images, train_labels = self.part("train", 0, self.num_train)
        test_images, test_labels = self.part("test", 0, self.num_test)
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
        for split in ("train", "test"):
            self._check_digest(split, dataset.identity[f"{split}_sha256"])
        check_classes(self, self._count(train_labels), self._count(test_labels))
        return dataset

    def facts(self) -> DatasetFacts:
        """Returns what is known of the examples without holding them in memory.

        Of whole splits that the trainer prepared it is stored beside them. Others are read whole,
        a block at a time; a bar shows the progress on a terminal.

        Raises:
          RunError: see `read`.
          UsageError: see `read`.
        """
        train, test = (self._stored_facts(split) for split in ("train", "test"))
        facts = DatasetFacts(
            self.description, train or self._read_facts("train"), test or self._read_facts("test")
        )
        check_classes(self, facts.train.class_counts, facts.test.class_counts)
        return facts

    def size(self, split: str) -> int:
        """Returns the number of examples of "train" or "test"."""
        return {"train": self.num_train, "test": self.num_test}[split]

    def part(self, split: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads some examples that follow each other, a block at a time.

        Args:
          split: "train" or "test".
          start: of the first example, from 0.
          stop: of the one after the last; at most the size of the split.

        Returns:
          images uint8[stop - start, H, W, C], labels int32[stop - start].

        Raises:
          RunError: see `rows`.
          UsageError: see `rows`.
        """
        images = np.empty((stop - start, *self.image_shape), np.uint8)
        labels = np.empty(stop - start, np.int32)
        for block in self._blocks(start, stop):
            rows = slice(block.start - start, block.stop - start)
            images[rows], labels[rows] = self.rows(split, block)
        return images, labels

    def rows(
        self, split: str, indices: Sequence[int] | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
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
        count = self.size(split)
        if places.min() < 0 or places.max() >= count:
            raise IndexError(f"examples {places.min()} to {places.max()} of {count} were asked for")
        images, labels = self._read_patiently(split, places)
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

    def _read_patiently(self, split: str, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads some examples, again and again while a file system says that it is away."""
        for seconds in (*_PAUSES, None):
            try:
                return self._reader(split).read(places.tolist())
            except UsageError as error:
                raise UsageError(f"--dataset={self.name}: split {split!r}: {error}") from error
            # array_record, protobuf, json, zlib and PIL each have their own errors for damaged
            # files.
            except Exception as error:
                if seconds is None or not damage.is_passing(error):
                    raise self._damaged(split, error, places) from error
                reason = prepare.plain(error)
            logger.warning("--dataset=%s: %s; trying again in %g s", self.name, reason, seconds)
            time.sleep(seconds)
            # One that has failed may stay so.
            self._readers.pop(split, None)
        raise AssertionError("the last attempt returns or raises")

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

    def _blocks(self, start: int, stop: int) -> Iterator[range]:
        """Yields the places of examples from `start` to `stop`, a block at a time."""
        block = max(1, _BLOCK_PIXELS // math.prod(self.image_shape))
        for first in range(start, stop, block):
            yield range(first, min(first + block, stop))

    def _stored_facts(self, split: str) -> SplitFacts | None:
        """Returns what was stored of a whole split when it was prepared, or None."""
        if self.image_size:
            return None
        return SplitFacts.from_metadata(self._metadata(), self._tfds_split(split))

    def _read_facts(self, split: str) -> SplitFacts:
        """Reads a split to know it, and compares its digest with the stored one if there is any."""
        found = FactsInOnePass(self.num_classes)
        # With `disable=None` there is a bar on a terminal only.
        name = f"reading {self._tfds_split(split)}"
        with tqdm(None, name, self.size(split), unit=" images", disable=None, leave=False) as bar:
            for block in self._blocks(0, self.size(split)):
                found.add(*self.rows(split, block))
                bar.update(len(block))
        facts = found.facts()
        self._check_digest(split, facts.sha256)
        return facts

    def _count(self, labels: np.ndarray) -> list[int]:
        """Returns the examples of each class."""
        counts: list[int] = np.bincount(labels, minlength=self.num_classes).tolist()
        return counts

    def _metadata(self) -> Mapping[str, Any]:
        """Returns what is stored of the examples beside them, by the trainer or by others."""
        try:
            return self.builder.info.metadata or {}
        # It is read only now, and the file may hold anything.
        except Exception as error:
            reason = f"metadata.json: {type(error).__name__}: {error}"
            raise damage.explain(self.name, self.data_dir, None, reason, self.made_here) from error

    def _check_digest(self, split: str, found: str) -> None:
        """Compares what was read with what was written, where that is known of a whole split.

        A file whose own hashes are all right may still be another one.
        """
        expected = self._metadata().get(f"{self._tfds_split(split)}_sha256", found)
        if found != expected and not self.image_size:
            reason = f"SHA-256 of the content is {found[:16]}..., expected {expected[:16]}..."
            raise self._damaged(split, reason)

    def _damaged(
        self, split: str, error: Exception | str, places: Sequence[int] | np.ndarray | None = None
    ) -> RunError:
        """Returns the error for a split of which some examples, or all, cannot be read."""
        info = self.builder.info.splits[self._tfds_split(split)]
        return damage.explain(self.name, self.data_dir, info, error, self.made_here, places)
