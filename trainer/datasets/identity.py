"""Which examples a run was made of: described before they are read, proved by digests after."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def describe(
    name: str,
    version: str | None,
    num_train: int,
    num_test: int,
    image_shape: Sequence[int],
    classes: Sequence[str] | int,
) -> dict[str, Any]:
    """Returns the part of an identity that is known before any example is read.

    Args:
      name: of the data set, without a version.
      version: the one that TFDS knows, or None for files of the user's own.
      num_train: number of training examples.
      num_test: number of test examples.
      image_shape: (H, W, C).
      classes: their names, or how many there are; names that only count are stored as a number.

    Returns:
      A dictionary that JSON stores as it is.
    """
    if not isinstance(classes, int):
        # Numbers for names say no more than how many there are.
        numbered = list(classes) == [str(label) for label in range(len(classes))]
        classes = len(classes) if numbered else list(classes)
    return {
        "name": name,
        "version": version,
        "train_examples": num_train,
        "test_examples": num_test,
        "image_shape": list(image_shape),
        "classes": classes,
    }


def examples_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Returns the SHA-256 of the examples of one split, in their order.

    Args:
      images: uint8[N, H, W, C].
      labels: integers[N].

    Returns:
      Hex digest of all pixels, then all labels as little-endian int32.
    """
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(labels.astype("<i4").data)
    return digest.hexdigest()


def identity_difference(
    stored: Mapping[str, Any] | None, found: Mapping[str, Any], there: str = "now"
) -> str | None:
    """Says in words how one data set differs from another.

    Only what both know is compared: a description (before reading) with an identity is fine.

    Args:
      stored: description or identity of a run's data; None if an older version stored none.
      found: description or identity of the data that are here now.
      there: where or when the data are that are compared with the first, in words.

    Returns:
      Such as "version 1.0.0, now 1.1.0", several differences separated by "; "; None if there is
      nothing to compare, or no difference.
    """
    if stored is None:
        return None
    differing = {
        key: (stored[key], found[key])
        for key in found
        if key in stored and not _same(stored[key], found[key])
    }
    words = []
    for key, (before, now) in differing.items():
        if key == "name":
            words.append(f"data set {before}, {there} {now}")
        elif key == "version":
            words.append(f"version {before or 'unknown'}, {there} {now or 'unknown'}")
        elif key in ("train_examples", "test_examples"):
            split = "training" if key == "train_examples" else "test"
            words.append(f"{before} {split} examples, {there} {now}")
        elif key == "image_shape":
            words.append(f"images of {_by(before)}, {there} {_by(now)}")
        elif key == "classes":
            words.append(_classes_difference(before, now, there))
    for split in ("train", "test"):
        # Other sizes have been named already, and imply other digests.
        said = {f"{split}_examples", "image_shape"} & differing.keys()
        if f"{split}_sha256" in differing and not said:
            words.append(
                f"other pixels or labels in the {split} split"
                + ("" if there == "now" else f" {there}")
            )
    return "; ".join(words) or None


def _same(before: Any, now: Any) -> bool:
    """Whether two values agree; a number of classes agrees with as many names."""
    if isinstance(before, int) != isinstance(now, int):
        return _count(before) == _count(now)
    return bool(before == now)


def _count(classes: Sequence[str] | int) -> int:
    """Returns how many classes there are."""
    return classes if isinstance(classes, int) else len(classes)


def _by(shape: Sequence[int]) -> str:
    """Returns a shape as people write it, such as 28x28x1."""
    return "x".join(map(str, shape))


def _classes_difference(before: Sequence[str] | int, now: Sequence[str] | int, there: str) -> str:
    """Says how two lists of classes differ."""
    if _count(before) != _count(now) or isinstance(before, int) or isinstance(now, int):
        return f"{_count(before)} classes, {there} {_count(now)}"
    index = next(i for i, (one, other) in enumerate(zip(before, now, strict=True)) if one != other)
    return f"class {index} is called {before[index]!r}, {there} {now[index]!r}"
