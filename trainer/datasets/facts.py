"""What is known of a data set without its examples: digests, counts of classes, sums of pixels."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from trainer.datasets.arrays import input_moments, pixel_sums


@dataclasses.dataclass(frozen=True)
class SplitFacts:
    """What is known of the examples of a split.

    Attributes:
      sha256: see `identity.examples_digest`.
      class_counts: examples of each class.
      pixel_sums: sum of all pixels, and sum of their squares; exact.
    """

    sha256: str
    class_counts: tuple[int, ...]
    pixel_sums: tuple[int, int]

    def to_metadata(self, split: str) -> dict[str, Any]:
        """Returns the facts as they are stored beside the examples, as JSON."""
        return {
            f"{split}_sha256": self.sha256,
            f"{split}_class_counts": list(self.class_counts),
            f"{split}_pixel_sums": list(self.pixel_sums),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], split: str) -> "SplitFacts | None":
        """Returns the facts that are stored of a split, or None if some of them are not."""
        try:
            total, squares = (int(number) for number in metadata[f"{split}_pixel_sums"])
            counts = tuple(int(number) for number in metadata[f"{split}_class_counts"])
            return cls(str(metadata[f"{split}_sha256"]), counts, (total, squares))
        except (KeyError, TypeError, ValueError):
            return None


class FactsInOnePass:
    """Gathers the facts of a split from its examples in their order, a block at a time.

    Memory does not grow with the number of examples, but for 4 bytes each.

    Args:
      num_classes: number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        self._digest = hashlib.sha256()
        # After the pixels of all examples come their labels, see `identity.examples_digest`.
        self._labels = bytearray()
        self._counts = np.zeros(num_classes, np.int64)
        self._sums = np.zeros(2, object)

    def add(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Counts some examples: uint8[B, H, W, C] and int[B]."""
        self._digest.update(np.ascontiguousarray(images).data)
        self._labels += labels.astype("<i4").tobytes()
        self._counts += np.bincount(labels, minlength=len(self._counts))
        self._sums += pixel_sums(images)

    def facts(self) -> SplitFacts:
        """Returns what is known once all examples have been added; to be called once."""
        self._digest.update(self._labels)
        total, squares = self._sums.tolist()
        return SplitFacts(self._digest.hexdigest(), tuple(self._counts.tolist()), (total, squares))


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """What is known of a data set.

    Attributes:
      description: see `identity.describe`.
      train: of the training split.
      test: of the test split.
    """

    description: Mapping[str, Any]
    train: SplitFacts
    test: SplitFacts

    @property
    def identity(self) -> dict[str, Any]:
        """What tells these examples from all others: see `Dataset.identity`."""
        digests = {"train_sha256": self.train.sha256, "test_sha256": self.test.sha256}
        return {**self.description, **digests}

    @property
    def test_class_counts(self) -> list[int]:
        """Examples of each class in the test split."""
        return list(self.test.class_counts)

    def input_moments(self, standardize: bool) -> tuple[float, float]:
        """Returns mean and standard deviation of the inputs: see `arrays.input_moments`."""
        height, width, channels = self.description["image_shape"]
        count = self.description["train_examples"] * height * width * channels
        return input_moments(self.description["name"], self.train.pixel_sums, count, standardize)
