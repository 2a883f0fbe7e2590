"""The data of a run: both splits, row by row, and what a checkpoint must know of them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from trainer.datasets import Dataset, DatasetFacts
from trainer.run.job import Job
from trainer.run.resume import check_data, check_processes_have_the_same_data
from trainer.run.rows import TrainingRows
from trainer.run.store import Moments, Store, open_store
from trainer.step import Batches


@dataclasses.dataclass(frozen=True)
class Data:
    """The rows of both splits, and what a checkpoint must know of the inputs.

    Attributes:
      train: gives the train step the rows of its batch.
      test: the batches of the test split.
      test_counts: examples of each class in the test split.
      inputs: shape, classes, sizes and pixel statistics of the examples, and what identifies them.
    """

    train: TrainingRows
    test: Batches
    test_counts: Sequence[int]
    inputs: dict[str, Any]

    def close(self) -> None:
        """Read no further rows."""
        self.train.close()


def open_store_of(job: Job) -> Store:
    """Return the data of a run, which are those of the checkpoint if it resumes from one.

    Args:
      job: the run.

    Raises:
      UsageError: they are others, or cannot be used.
      RunError: the files are damaged.
    """

    def accept(found: Dataset | DatasetFacts) -> Moments:
        if job.restored:
            check_data(job.restored, job.config.dataset, found.identity, "resume from it")
        return found.input_moments(job.config.standardize)

    return open_store(job.source, job.placement, job.mesh, ("train", "test"), accept)


def data_of(job: Job, store: Store, epoch_batches: Callable[[Any], Any]) -> Data:
    """Return the rows of a run from its first step on, and what is known of them.

    Args:
      job: the run.
      store: its data.
      epoch_batches: see `Store.training`.

    Raises:
      UsageError: processes that train together have other data.
    """
    check_processes_have_the_same_data(job.config.dataset, store.identity)
    source, (mean, std) = job.source, store.moments
    inputs = {
        "image_shape": list(source.image_shape),
        "num_classes": source.num_classes,
        "class_names": list(source.class_names),
        "num_train": source.num_train,
        "num_test": source.num_test,
        "data": store.identity,
        "mean": mean,
        "std": std,
    }
    train = store.training(job.plan, job.config.batch_size, job.first_step, epoch_batches)
    return Data(train, store.test(), store.test_counts, inputs)
