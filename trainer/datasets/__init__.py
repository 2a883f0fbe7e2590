"""Data sets as arrays: TFDS without TensorFlow."""

from trainer.datasets.arrays import Dataset as Dataset
from trainer.datasets.arrays import DatasetSource as DatasetSource
from trainer.datasets.arrays import load as load
from trainer.datasets.arrays import open_dataset as open_dataset
