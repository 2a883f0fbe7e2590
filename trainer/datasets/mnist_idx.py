"""The TFDS builder of MNIST, Fashion-MNIST and KMNIST; it needs no TensorFlow."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from trainer.datasets import idx, sources
from trainer.datasets.facts import FactsInOnePass

# Romanised as in TFDS: file names and label files stay ASCII under every locale.
_CLASS_NAMES = {
    "mnist": [str(digit) for digit in range(10)],
    "fashion_mnist": [
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ],
    "kmnist": ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"],
}

_DESCRIPTIONS = {
    "mnist": "Handwritten digits (LeCun, Cortes, Burges).",
    "fashion_mnist": "Articles of clothing (Xiao, Rasul, Vollgraf).",
    "kmnist": "Cursive hiragana (Clanuwat et al.).",
}

NAMES = tuple(_CLASS_NAMES)


class MnistIdx(tfds.core.GeneratorBasedBuilder):
    """60,000 training and 10,000 test images, uint8[28, 28, 1], in ten classes."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=name, description=description)
        for name, description in _DESCRIPTIONS.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "For fashion_mnist and kmnist where there is no network: put the four original *.gz "
        "files into a folder named like the data set."
    )

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any) -> None:
        """Opens the data set; the default format is the one that needs no TensorFlow."""
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        """Describes the features; the metadata will hold a digest of each split."""
        features = tfds.features.FeaturesDict(
            {
                # As bytes: one fixed place in the record, where the default is a list of int64.
                "image": tfds.features.Tensor(
                    shape=(28, 28, 1), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
                ),
                "label": tfds.features.ClassLabel(names=_CLASS_NAMES[self.builder_config.name]),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.builder_config.description,
            features=features,
            supervised_keys=("image", "label"),
            # The order of the archives, so that test image i is everyone's test image i.
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        """Reads and checks all archives before the first example is written."""
        archives = sources.read_archives(self.builder_config.name, dl_manager)
        generators = {}
        for split, prefix in (("train", "train"), ("test", "t10k")):
            images, labels = idx.parse_split(
                archives[f"{prefix}-images-idx3-ubyte.gz"],
                archives[f"{prefix}-labels-idx1-ubyte.gz"],
                split,
            )
            found = FactsInOnePass(len(_CLASS_NAMES[self.builder_config.name]))
            found.add(images, labels)
            self.info.metadata.update(found.facts().to_metadata(split))
            generators[split] = self._generate_examples(images, labels)
        return generators

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the examples in the order of the archive."""
        for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            yield index, {"image": image, "label": label}
