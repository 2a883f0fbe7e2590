"""An .npz file with x_train, y_train, x_test and y_test, as Keras stores MNIST."""

import lzma
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from trainer.errors import UsageError

_SPLITS = ("train", "test")
# Of a data set with fewer examples; else it may have as many classes as examples.
_MOST_CLASSES = 1000


def read_npz(dataset: str, path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads the arrays of an .npz file; nothing is ever unpickled.

    Args:
      dataset: as the user gave it, for messages.
      path: of a file with the arrays x_train and y_train, and x_test and y_test if it has a test
        split. x: uint8[N, H, W] or uint8[N, H, W, C]; y: integers[N] or [N, 1], from 0.

    Returns:
      Split -> images uint8[N, H, W, C], labels int64[N].

    Raises:
      UsageError: damaged, unreadable, or with other arrays; the message says what to do.
    """
    try:
        with path.open("rb") as file:
            return _read(file)
    except _ContentError as error:
        raise UsageError(f"--dataset={dataset}: {error}") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"--dataset={dataset}: {path} cannot be read: {reason}") from error
    except MemoryError as error:
        raise UsageError(
            f"--dataset={dataset}: {path} is damaged, or larger than the memory: {error}"
        ) from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        ValueError,
        KeyError,
    ) as error:
        raise UsageError(f"--dataset={dataset}: {path} is damaged: {error}") from error


class _ContentError(Exception):
    """What is wrong with the arrays."""


def _read(opened: BinaryIO) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads and checks the arrays."""
    try:
        file = np.load(opened, allow_pickle=False)
    except ValueError as error:
        # NumPy takes it for a pickle, and tells how to load it, which could run any program.
        if "pickle" in str(error):
            raise ValueError("it does not begin as an .npz file does") from None
        raise
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise _ContentError("this is a single array; np.savez stores several in an .npz")
    with file:
        there = ", ".join(file.files) or "none"
        needed = ["x_train", "y_train"]
        if {"x_test", "y_test"} & set(file.files):
            needed += ["x_test", "y_test"]
        if missing := [name for name in needed if name not in file.files]:
            raise _ContentError(
                f"the array {missing[0]} is missing (there are: {there}); the names must be "
                "x_train, y_train, x_test and y_test"
            )
        arrays = {name: _array(file, name) for name in needed}
    num_examples = sum(array.size for name, array in arrays.items() if name.startswith("y_"))
    most_classes = max(_MOST_CLASSES, num_examples)
    splits = {
        split: _check_split(split, arrays[f"x_{split}"], arrays[f"y_{split}"], most_classes)
        for split in _SPLITS
        if f"x_{split}" in arrays
    }
    _check_together(splits)
    return splits


def _array(file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """Returns one array; NumPy compares it with its checksum."""
    try:
        array = file[name]
    except RuntimeError as error:  # Of zipfile, as is NotImplementedError.
        reason = "it is encrypted" if "encrypted" in str(error) else str(error)
        raise _ContentError(
            f"the array {name} cannot be read: {reason}; store it with np.savez"
        ) from None
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise _ContentError(
                f"the array {name} holds Python objects, which could run any program when they "
                "are read; store it as an array of numbers"
            ) from None
        raise
    if not isinstance(array, np.ndarray):
        raise _ContentError(f"{name} is no array of NumPy; store it with np.savez")
    return array


def _check_split(
    split: str, images: np.ndarray, labels: np.ndarray, most_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8[N, H, W, C] and labels int64[N], or says what is wrong."""
    x, y = f"x_{split}", f"y_{split}"
    if images.dtype != np.uint8:
        if np.issubdtype(images.dtype, np.floating):
            top = "255 * " if images.size and images.max() <= 1 else ""
            hint = f"np.rint({top}{x}).astype('uint8')"
        else:
            hint = f"{x}.astype('uint8'), if they are from 0 to 255"
        raise _ContentError(f"{x} is {images.dtype}, and pixels must be uint8; store {hint}")
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise _ContentError(f"{x} has the shape {images.shape}; use [N, H, W] or [N, H, W, C]")
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise _ContentError(
            f"{x} has the shape {images.shape}, with its channels first; store "
            f"{x}.transpose(0, 2, 3, 1)"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise _ContentError(f"{y} is {labels.dtype}; labels must be integers, from 0")
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise _ContentError(
            f"{y} has the shape {labels.shape}, a row for each label; store {y}.argmax(axis=1)"
        )
    if labels.ndim == 0 or labels.size != len(labels):
        raise _ContentError(f"{y} has the shape {labels.shape}; use [N]")
    if len(labels) != len(images):
        raise _ContentError(f"{len(images)} images in {x}, but {len(labels)} labels in {y}")
    if labels.min() < 0:
        raise _ContentError(f"{y} has the label {labels.min()}; labels begin at 0")
    if labels.max() >= most_classes:
        raise _ContentError(
            f"{y} has the label {labels.max()}, which would make more classes than there are "
            f"examples; number the classes from 0 (here up to {most_classes - 1})"
        )
    images = np.ascontiguousarray(images)
    return images.reshape(*images.shape[:3], -1), labels.reshape(-1).astype(np.int64)


def _check_together(splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Refuses one class only, and splits that do not belong together."""
    train_images, train_labels = splits["train"]
    known = np.unique(train_labels)
    if len(known) < 2:
        raise _ContentError(f"all labels in y_train are {known[0]}, and two classes are needed")
    if "test" in splits:
        test_images, test_labels = splits["test"]
        if test_images.shape[3] != train_images.shape[3]:
            raise _ContentError(
                f"images of {train_images.shape[3]} channels in x_train, but of "
                f"{test_images.shape[3]} in x_test"
            )
        if unknown := sorted(set(np.unique(test_labels).tolist()) - set(known.tolist())):
            raise _ContentError(f"class {unknown[0]} is in y_test, but not in y_train")
