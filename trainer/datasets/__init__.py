"""Data sets as arrays: TFDS without TensorFlow, and pictures of the user's own.

The way of a data set: opening (by name) -> prepare (once) -> prepared (described) -> arrays.
"""

from trainer.datasets.arrays import Dataset as Dataset
from trainer.datasets.facts import DatasetFacts as DatasetFacts
from trainer.datasets.identity import identity_difference as identity_difference
from trainer.datasets.opening import load as load
from trainer.datasets.opening import open_dataset as open_dataset
from trainer.datasets.prepared import DatasetSource as DatasetSource
