"""Writes examples as a TFDS data set that can be read by random access, in one pass."""

import errno
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_info import DatasetIdentity

from trainer.datasets.checking import Picture
from trainer.datasets.facts import FactsInOnePass

# TFDS writes its description anew with every batch of examples.
_BATCH = 1024
_BATCH_BYTES = 2**25
_SHARD_BYTES = 2**30


def write_dataset(
    folder: Path, pictures: Iterable[Picture], class_names: Sequence[str], description: str
) -> None:
    """Writes a data set into a folder that appears, in one rename, when all is written.

    Memory does not grow with the number of pictures, but for 4 bytes each.

    Args:
      folder: of the form ROOT/NAME/CONFIG/VERSION; it does not exist.
      pictures: of one shape, at least one; the examples of a split keep their order.
      class_names: in the order of the labels.
      description: where the pictures come from.

    Raises:
      OSError: writing failed, or somebody else's rename was faster.
      Exception: whatever `pictures` raises; nothing is left behind then.
    """
    pictures = iter(pictures)
    first = next(pictures)
    assert isinstance(first.pixels, np.ndarray)
    with tfds.core.utils.incomplete_dir(folder) as temporary:
        info = _info(folder, temporary, first.pixels.shape, class_names, description)
        # array_record reports whatever stops it, such as a full disk, as RuntimeError.
        try:
            _write(info, itertools.chain([first], pictures), first.pixels.nbytes, len(class_names))
        except RuntimeError as error:
            raise OSError(errno.EIO, str(error)) from error


def _info(
    folder: Path,
    temporary: str,
    image_shape: tuple[int, ...],
    class_names: Sequence[str],
    description: str,
) -> tfds.core.DatasetInfo:
    """Describes the data set as TFDS does."""
    config, version = folder.parts[-2:]
    identity = DatasetIdentity(
        name=folder.parts[-3],
        version=tfds.core.Version(version),
        data_dir=temporary,
        module_name="",
        config_name=config,
    )
    features = tfds.features.FeaturesDict(
        {
            # As bytes: one fixed place in the record, where the default is a list of int64.
            "image": tfds.features.Tensor(
                shape=image_shape, dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
            ),
            "label": tfds.features.ClassLabel(names=class_names),
        }
    )
    return tfds.core.DatasetInfo(
        builder=identity,
        description=description,
        features=features,
        supervised_keys=("image", "label"),
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(),
    )


def _write(
    info: tfds.core.DatasetInfo, pictures: Iterable[Picture], image_bytes: int, num_classes: int
) -> None:
    """Writes all examples, and what is known of them in the end."""
    writer = tfds.core.SequentialWriter(
        info,
        max_examples_per_shard=max(1, _SHARD_BYTES // image_bytes),
        file_format="array_record",
    )
    batch_size = max(1, min(_BATCH, _BATCH_BYTES // image_bytes))
    for split, group in itertools.groupby(pictures, lambda picture: picture.split):
        writer.initialize_splits([split])
        found = FactsInOnePass(num_classes)
        while batch := list(itertools.islice(group, batch_size)):
            images = np.ascontiguousarray([picture.pixels for picture in batch])
            labels = np.array([picture.label for picture in batch])
            found.add(images, labels)
            pairs = zip(images, labels, strict=True)
            writer.add_examples({split: [{"image": x, "label": y} for x, y in pairs]})
        info.metadata.update(found.facts().to_metadata(split))
    writer.close_all()
