"""From the records of a prepared TFDS data set to arrays, without a protobuf parse per example."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from trainer.errors import UsageError

# How a tf.train.Example ends the entry of the feature "label" when its value is below 128.
_LABEL_PREFIX = b"\n\x05label\x12\x05\x1a\x03\n\x01"


def read_split(builder: tfds.core.DatasetBuilder, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads the features "image" and "label" of one split.

    Args:
      builder: a data set prepared in the format array_record.
      split: name of the split.

    Returns:
      images, C-contiguous, in the dtype and shape of their feature: [N, H, W, C] or [N, H, W];
      labels int64[N].

    Raises:
      UsageError: images of differing shapes.
      Exception: whatever array_record and TFDS raise on damaged files.
    """
    source = builder.as_data_source(
        split,
        deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
        file_format="array_record",
    )
    records = source.__getitems__(range(len(source)))
    features = builder.info.features
    arrays = _decode_together(records, features)
    return arrays or _decode_one_by_one(records, features, split)


def _decode_together(
    records: Sequence[bytes], features: Any
) -> tuple[np.ndarray, np.ndarray] | None:
    """Cuts images and labels out of records that differ in nothing else; None where they do.

    The place of the two is taken from the first record: the order of features in a serialized
    tf.train.Example is random, but the same in all that one process wrote.
    """
    first = records[0]
    example = features.deserialize_example_np(first)
    image = np.asarray(example["image"])
    pixels = image.tobytes()
    image_at, image_end = first.find(pixels), first.find(pixels) + len(pixels)
    label_at = first.find(_LABEL_PREFIX) + len(_LABEL_PREFIX)
    found = (
        0 <= image_at == first.rfind(pixels)
        and first.count(_LABEL_PREFIX) == 1
        and not image_at <= label_at < image_end
        and first[label_at] == example["label"]
    )
    if not found or {len(record) for record in records} != {len(first)}:
        return None
    table = np.frombuffer(b"".join(records), np.uint8).reshape(len(records), len(first))
    fixed = np.delete(table, [*range(image_at, image_end), label_at], axis=1)
    labels = table[:, label_at]
    if (fixed != fixed[0]).any() or (labels >= 128).any():
        return None
    images = np.ascontiguousarray(table[:, image_at:image_end]).view(image.dtype)
    return images.reshape(len(records), *image.shape), labels.astype(np.int64)


def _decode_one_by_one(
    records: Sequence[bytes], features: Any, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes every record the ordinary way of TFDS."""
    examples = [features.deserialize_example_np(record) for record in records]
    images = [np.asarray(example["image"]) for example in examples]
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise UsageError(
            f"the images of split {split!r} have different shapes, such as "
            f"{' and '.join(str(shape) for shape in sorted(shapes)[:2])}: all must have one shape"
        )
    return np.stack(images), np.asarray([example["label"] for example in examples], np.int64)
