"""Data sets that other people's TFDS code prepared: what they must have to be usable here."""

import os
import re

import numpy as np
import tensorflow_datasets as tfds

from trainer.datasets.mnist_idx import NAMES
from trainer.errors import UsageError


def open_foreign(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Opens a data set that is already prepared, by its TFDS name.

    Args:
      name: TFDS name, with config and version where needed.
      data_dir: root folder of TFDS data sets; "" is the default one of TFDS.

    Returns:
      A builder whose data are prepared in array_record, with the features "image" (uint8, rank 2
      or 3) and "label" (ClassLabel). Of several versions it is the one that the data set's code
      names, or without its code the highest.

    Raises:
      UsageError: it is unknown, not prepared, or lacks some of this.
    """
    root = data_dir or tfds.core.constants.DATA_DIR
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    # Its code may raise anything, and so does TFDS on a damaged description.
    except Exception as error:
        raise UsageError(f"--dataset={name}: {_reason(error, name, root)}") from error
    missing = _missing(builder)
    if missing:
        raise UsageError(f"--dataset={name} in {builder.data_dir}: {missing}")
    return builder


def image_shape(
    builder: tfds.core.DatasetBuilder, split: str, image_size: tuple[int, int] | None
) -> tuple[int, int, int]:
    """Returns (H, W, C) of the images.

    Where the description of the features leaves it open, the first example tells.

    Args:
      builder: a prepared data set with a feature "image".
      split: with at least one example.
      image_size: (H, W) that they are resized to, or None.

    Returns:
      Height, width, channels.

    Raises:
      Exception: whatever array_record and TFDS raise on damaged files.
    """
    shape = builder.info.features["image"].shape
    if None in shape:
        shape = np.shape(builder.as_data_source(split, file_format="array_record")[0]["image"])
    height, width, channels = (*shape, 1)[:3]
    height, width = image_size or (height, width)
    return int(height), int(width), int(channels)


def _reason(error: Exception, name: str, root: str) -> str:
    """Says why TFDS opens no data set of that name, in one line."""
    lines = str(error).strip().splitlines() or [""]
    unknown = isinstance(error, tfds.core.registered.DatasetNotFoundError)
    if unknown or lines[0].startswith("Parsing builder name"):
        # TFDS lists all names it knows, one a line; only its guess is of use.
        guess = "".join(f" {line.strip()}" for line in lines if "did you mean" in line.lower())
        return (
            f"{lines[0].strip()}{guess} Valid are {', '.join(NAMES)}, data sets that TFDS finds "
            f"prepared in {root}, a folder of pictures (there is no {os.path.abspath(name)}) "
            "and an .npz file"
        )
    cause = re.sub(r'^Failed to construct dataset .*builder_kwargs ".*?": ', "", lines[0])
    return (
        f"TFDS cannot open what lies in {os.path.join(root, name)}: {type(error).__name__}: {cause}"
    )


def _missing(builder: tfds.core.DatasetBuilder) -> str:
    """Says what keeps a data set from being usable; "" if nothing does."""
    info = builder.info
    if not info.splits:
        return (
            "not prepared; prepare it with TFDS: "
            "builder.download_and_prepare(file_format='array_record')"
        )
    formats = {file_format.value for file_format in info.available_file_formats()}
    if "array_record" not in formats:
        return (
            f"prepared as {', '.join(sorted(formats))}, which cannot be read without TensorFlow; "
            "prepare it with file_format='array_record'"
        )
    features = info.features
    names = set(features) if isinstance(features, tfds.features.FeaturesDict) else set()
    if not {"image", "label"} <= names:
        return f"has the features {', '.join(sorted(names))}; needed are 'image' and 'label'"
    image, label = features["image"], features["label"]
    is_image = isinstance(image, tfds.features.Tensor | tfds.features.Image)
    if not is_image or image.np_dtype != np.uint8 or len(image.shape) not in (2, 3):
        return f"its feature 'image' is {image}; needed is uint8[H, W, C] or uint8[H, W]"
    if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        return "its feature 'label' is no ClassLabel with a number of classes"
    return ""
