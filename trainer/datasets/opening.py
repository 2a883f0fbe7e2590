"""A data set by its name: which kind it is, and what a run needs to know before reading it."""

import dataclasses
import os
import re

import tensorflow_datasets as tfds

from trainer.datasets import damage, foreign, mnist_idx, own, prepare
from trainer.datasets.arrays import Dataset
from trainer.datasets.prepared import DatasetSource
from trainer.datasets.splits import choose_splits
from trainer.errors import UsageError


def open_dataset(
    name: str,
    data_dir: str = "",
    *,
    train_split: str = "",
    test_split: str = "",
    image_size: str = "",
) -> DatasetSource:
    """Finds a data set, and prepares it where that was not done yet. Reads no examples.

    Args:
      name: "mnist", "fashion_mnist", "kmnist", or the TFDS name of a data set that lies in
        `data_dir` already, prepared in the format array_record, with the features "image"
        (uint8) and "label" (a ClassLabel); or a folder of pictures, see `folders`; or an .npz
        file, see `npz`.
      data_dir: root folder of TFDS data sets; "" is the default one of TFDS.
      train_split: the examples to train on, a split or slices in the notation of TFDS, such as
        "train[:90%]"; "" for "train".
      test_split: the examples to test on; "" for "test", or "validation" where there is no "test".
      image_size: "HxW" in pixels, to which all images are resized; "" leaves them as they are.

    Returns:
      The description of the data set; its `read()` gives the arrays.

    Raises:
      UsageError: unknown name, unusable `data_dir`, missing archives, or a data set without what
        is listed above.
      RunError: an archive or the prepared data set is damaged.
    """
    size = _parse_size(image_size)
    data_dir = prepare.root_dir(data_dir)
    path = own.find_path(name, data_dir)
    if path is not None:
        builder = own.open_own(name, path, data_dir, size)
        # Neither a version nor a size is left to choose: they are as they were prepared.
        source = _describe(name, builder, train_split, test_split, None, made_here=True)
        return dataclasses.replace(
            source,
            name=os.path.basename(os.path.abspath(path)),
            version=None,
            path=str(path.absolute()),
        )
    made_here = name in mnist_idx.NAMES
    if made_here:
        builder = prepare.open_prepared(name, data_dir)
    else:
        builder = foreign.open_foreign(name, data_dir)
    return _describe(name, builder, train_split, test_split, size, made_here)


def load(name: str, data_dir: str = "", **selection: str) -> Dataset:
    """Returns `open_dataset(name, data_dir, **selection).read()`.

    Args:
      name: see `open_dataset`.
      data_dir: see `open_dataset`.
      selection: train_split, test_split, image_size: see `open_dataset`.

    Returns:
      The whole data set.

    Raises:
      UsageError: see `open_dataset`.
      RunError: see `open_dataset`.
    """
    return open_dataset(name, data_dir, **selection).read()


def _describe(
    name: str,
    builder: tfds.core.DatasetBuilder,
    train_split: str,
    test_split: str,
    image_size: tuple[int, int] | None,
    made_here: bool,
) -> DatasetSource:
    """Returns a prepared data set with what is known of it."""
    info = builder.info
    train_split, test_split = choose_splits(name, info.splits, train_split, test_split)
    try:
        image_shape = foreign.image_shape(builder, train_split, image_size)
    # array_record, protobuf and PIL each have their own errors for damaged files.
    except Exception as error:
        folder, split = str(builder.data_dir), info.splits[train_split]
        raise damage.explain(name, folder, split, error, made_here) from error
    label = info.features["label"]
    return DatasetSource(
        # Without the version, which is told apart.
        name=name.split(":")[0],
        num_train=info.splits[train_split].num_examples,
        num_test=info.splits[test_split].num_examples,
        image_shape=image_shape,
        num_classes=label.num_classes,
        data_dir=str(builder.data_dir),
        builder=builder,
        train_split=train_split,
        test_split=test_split,
        image_size=image_size,
        version=str(info.version),
        class_names=tuple(label.names),
        made_here=made_here,
    )


def _parse_size(text: str) -> tuple[int, int] | None:
    """Returns (H, W) of "HxW", or None of ""."""
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text.strip())
    if match is None or 0 in (size := (int(match[1]), int(match[2]))):
        raise UsageError(
            f"--image_size={text} is no size in pixels; use HEIGHTxWIDTH, as in --image_size=28x28"
        )
    return size
