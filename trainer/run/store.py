"""Where the examples of a data set lie: opened, placed, and asked for the rows of a batch."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from trainer import devices
from trainer.datasets import Dataset, DatasetFacts, DatasetSource
from trainer.run.rows import ResidentTraining, TrainingRows
from trainer.run.streaming import RowPlacer, StreamedTest, StreamedTraining
from trainer.schedules import Plan
from trainer.step import (
    REPLICATED,
    SHARDED,
    STREAMED,
    Batches,
    Examples,
    abstract_examples,
    batches_of,
    evaluation_batch_size,
    place_examples,
)

Moments = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Store:
    """A data set that may be trained on or tested on, wherever its examples lie.

    Attributes:
      source: the data set.
      placement: "replicated", "sharded" or "streamed".
      mesh: the devices.
      identity: see `datasets.Dataset.identity`.
      moments: mean and standard deviation of the inputs, see `examples.Examples`.
      test_counts: examples of each class in the test split.
      splits: name of a split -> its examples on the devices; empty if they are streamed.
    """

    source: DatasetSource
    placement: str
    mesh: Mesh
    identity: dict[str, Any]
    moments: Moments
    test_counts: Sequence[int]
    splits: dict[str, Examples]

    def training(
        self, plan: Plan, batch_size: int, first_step: int, epoch_batches: Callable[[Any], Any]
    ) -> TrainingRows:
        """Return the rows of a run, from a step on.

        Args:
          plan: of the run.
          batch_size: over all devices together.
          first_step: that is taken first.
          epoch_batches: see `ResidentTraining`; or if they are streamed `StreamedTraining`.
        """
        if self.placement != STREAMED:
            return ResidentTraining(self.splits["train"], epoch_batches, plan)
        rows = RowPlacer(self.source, "train", self.moments, self.mesh, batch_size)
        return StreamedTraining(rows, epoch_batches, plan, first_step, self.mesh)

    def test(self) -> Batches:
        """Return the batches of the test split, for `eval_step.create_evaluate`."""
        num_test = self.source.num_test
        if self.placement != STREAMED:
            return batches_of(self.splits["test"], num_test, self.mesh)
        size = evaluation_batch_size(self.mesh)
        rows = RowPlacer(self.source, "test", self.moments, self.mesh, size)
        return StreamedTest(rows, num_test, self.mesh)


def open_store(
    source: DatasetSource,
    placement: str,
    mesh: Mesh,
    splits: Sequence[str],
    accept: Callable[[Dataset | DatasetFacts], Moments],
) -> Store:
    """Look at a data set, and put its examples where they are to lie.

    Of a split that is shared among the devices, each process reads the parts of its own devices,
    one part at a time. All of a data set is in the memory of a process only if it is replicated.

    Args:
      source: the data set.
      placement: "replicated", "sharded" or "streamed".
      mesh: the devices.
      splits: "train" and "test", those that are needed.
      accept: given what is known of the examples, raises if they are not the right ones, and
        returns the moments of the inputs.

    Raises:
      RunError: the files are damaged.
      UsageError: the data set cannot be used.
    """
    found = source.read() if placement == REPLICATED else source.facts()
    moments = accept(found)
    placed = {}
    if isinstance(found, Dataset):
        arrays = {
            "train": (found.train_images, found.train_labels),
            "test": (found.test_images, found.test_labels),
        }
        everywhere = devices.replicated(mesh)
        placed = {split: place_examples(*arrays[split], *moments, everywhere) for split in splits}
    elif placement == SHARDED:
        placed = {split: _place_parts(source, split, moments, mesh) for split in splits}
    return Store(source, placement, mesh, found.identity, moments, found.test_class_counts, placed)


def _place_parts(source: DatasetSource, split: str, moments: Moments, mesh: Mesh) -> Examples:
    """Put a part of a split on each device; parts are equally long, and the last end in zeros."""
    size = source.size(split)
    shapes = _abstract(source, split, SHARDED, mesh, 0)
    images, labels = [], []
    total = len(shapes.labels)
    parts: Mapping[Any, Any] = devices.sharded(mesh).addressable_devices_indices_map((total,))
    for device, (rows,) in parts.items():
        start, stop, _ = rows.indices(total)
        known = min(stop, size) - min(start, size)
        part = source.part(split, min(start, size), min(stop, size))
        if known < stop - start:
            filling = [(0, stop - start - known)]
            part = np.pad(part[0], filling + 3 * [(0, 0)]), np.pad(part[1], filling)
        images.append(jax.device_put(part[0], device))
        labels.append(jax.device_put(part[1], device))
    of_parts = jax.make_array_from_single_device_arrays
    everywhere = devices.replicated(mesh)
    mean, std = (devices.place(np.array(moment, np.float32), everywhere) for moment in moments)
    return Examples(
        of_parts(shapes.images.shape, shapes.images.sharding, images),
        of_parts(shapes.labels.shape, shapes.labels.sharding, labels),
        mean,
        std,
    )


def abstract_test(source: DatasetSource, placement: str, mesh: Mesh) -> Examples:
    """Return shapes and shardings of the examples that the evaluation is given.

    Args:
      source: the data set.
      placement: "replicated", "sharded" or "streamed".
      mesh: the devices.
    """
    return _abstract(source, "test", placement, mesh, evaluation_batch_size(mesh))


def abstract_training(
    source: DatasetSource, placement: str, mesh: Mesh, batch_size: int
) -> Examples:
    """Return shapes and shardings of the examples that the train step is given.

    Args:
      source: the data set.
      placement: "replicated", "sharded" or "streamed".
      mesh: the devices.
      batch_size: over all devices together.
    """
    return _abstract(source, "train", placement, mesh, batch_size)


def _abstract(
    source: DatasetSource, split: str, placement: str, mesh: Mesh, batch_size: int
) -> Examples:
    """Return shapes and shardings of a split, or if it is streamed of a batch of it."""
    size = source.size(split)
    # Parts are equally long.
    filled_up = -(-size // mesh.size) * mesh.size
    rows = {REPLICATED: size, SHARDED: filled_up, STREAMED: batch_size}[placement]
    return abstract_examples(rows, source.image_shape, mesh, placement)
