"""From the records of a prepared TFDS data set to arrays, without a protobuf parse per example."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from trainer.datasets.pictures import resize
from trainer.errors import UsageError

# A label takes as many bytes as it has groups of 7 bits; 4 are enough for 268 million classes.
_LABEL_BYTES = range(1, 5)


class SplitReader:
    """Random access to the images and labels of one split.

    array_record stores a hash with each record and compares it at every read, so that what comes
    back is what was written.

    Args:
      builder: a data set prepared in the format array_record.
      split: name of a split, or slices of splits such as "train[:90%]".
      image_size: (H, W) to resize the images to, or None to leave them as they are.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        self._features = builder.info.features
        self._files = builder.info.splits[split].file_instructions
        self._image_size = image_size
        self._source = builder.as_data_source(
            split,
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
            file_format="array_record",
        )

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._source)

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Reads some examples.

        Args:
          indices: each from 0 to len(self) - 1, in any order, at least one.

        Returns:
          images uint8[len(indices), H, W, C], labels int64[len(indices)].

        Raises:
          UsageError: the images differ in shape.
          IndexError: there is no such example.
          Exception: whatever array_record and TFDS raise on damaged files.
        """
        first, last = indices[0], indices[-1] + 1
        if indices == list(range(first, last)):
            records = self._read_run(first, last)
        else:
            records = self._source.__getitems__(indices)
        arrays = _decode_together(records, self._features) if not self._image_size else None
        images, labels = arrays or _decode_one_by_one(records, self._features, self._image_size)
        # Grey images may come without an axis for it.
        return images.reshape(*images.shape[:3], -1), labels

    def _read_run(self, start: int, stop: int) -> list[bytes]:
        """Reads records that follow each other: so TFDS's look-up of each of them is spared."""
        records: list[bytes] = []
        for file in self._files:
            first, last = max(start, 0), min(stop, file.take)
            if first < last:
                with contextlib.closing(ArrayRecordReader(file.filename)) as reader:
                    records += reader.read(file.skip + first, file.skip + last)
            start, stop = start - file.take, stop - file.take
        return records


def _decode_one_by_one(
    records: Sequence[bytes], features: Any, image_size: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes every record the ordinary way of TFDS, and resizes it if that is asked for."""
    examples = [features.deserialize_example_np(record) for record in records]
    images = [np.asarray(example["image"]) for example in examples]
    if image_size:
        images = [resize(image, image_size) for image in images]
    check_one_shape({image.shape for image in images})
    return np.stack(images), np.asarray([example["label"] for example in examples], np.int64)


def check_one_shape(shapes: set[tuple[int, ...]]) -> None:
    """Refuses images of several shapes.

    Raises:
      UsageError: there are several; it names up to five.
    """
    if len(shapes) > 1:
        sizes = ["x".join(map(str, shape)) for shape in sorted(shapes)]
        more = f" and {len(sizes) - 5} others" if len(sizes) > 5 else ""
        raise UsageError(
            f"the images have different shapes: {', '.join(sizes[:5])}{more}; "
            "use --image_size=HxW to resize them all to one height and width"
        )


def _decode_together(
    records: Sequence[bytes], features: Any
) -> tuple[np.ndarray, np.ndarray] | None:
    """Cuts images and labels out of records that differ in nothing else; None where they do.

    Records of one length have labels of one length, too, and are cut together.
    """
    lengths = np.array([len(record) for record in records])
    images, labels = None, np.empty(len(records), np.int64)
    for length in np.unique(lengths):
        places = np.flatnonzero(lengths == length)
        arrays = _cut([records[place] for place in places.tolist()], features)
        if arrays is None:
            return None
        if images is None:
            images = np.empty((len(records), *arrays[0].shape[1:]), arrays[0].dtype)
        if arrays[0].shape[1:] != images.shape[1:]:
            return None
        images[places], labels[places] = arrays
    return None if images is None else (images, labels)


def _cut(records: Sequence[bytes], features: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Cuts records of one length; None if something else than image and label differs.

    The place of the two is taken from the first record: the order of features in a serialized
    tf.train.Example is random, but the same in all that one process wrote.
    """
    first = records[0]
    example = features.deserialize_example_np(first)
    image = np.asarray(example["image"])
    pixels = image.tobytes()
    image_at, image_end = first.find(pixels), first.find(pixels) + len(pixels)
    label_at, label_end = _find_label(first)
    if (
        not 0 <= image_at == first.rfind(pixels)
        or label_end == 0
        or image_at <= label_at < image_end
        or _varints(np.frombuffer(first[label_at:label_end], np.uint8)[None]) != example["label"]
    ):
        return None
    table = np.frombuffer(b"".join(records), np.uint8).reshape(len(records), len(first))
    fixed = np.delete(table, [*range(image_at, image_end), *range(label_at, label_end)], axis=1)
    labels = table[:, label_at:label_end]
    # The high bit of a byte says that the number continues in the next one.
    ends_where_it_should = (labels >> 7 == labels[0] >> 7).all()
    if (fixed != fixed[0]).any() or not ends_where_it_should:
        return None
    images = np.ascontiguousarray(table[:, image_at:image_end]).view(image.dtype)
    return images.reshape(len(records), *image.shape), _varints(labels)


def _find_label(record: bytes) -> tuple[int, int]:
    """Returns where the value of the feature "label" begins and ends; (0, 0) if not found."""
    for size in _LABEL_BYTES:
        # How a tf.train.Example wraps an integer of that many bytes.
        prefix = b"\n\x05label\x12" + bytes([size + 4, 0x1A, size + 2, 0x0A, size])
        if record.count(prefix) == 1:
            begin = record.index(prefix) + len(prefix)
            return begin, begin + size
    return 0, 0


def _varints(values: np.ndarray) -> np.ndarray:
    """Returns int64[N] of N numbers of k bytes each, uint8[N, k], 7 bits a byte, lowest first."""
    shifts = 7 * np.arange(values.shape[1])
    return ((values & 0x7F).astype(np.int64) << shifts).sum(axis=1)
