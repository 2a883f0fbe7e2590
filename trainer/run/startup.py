"""From a job to programs, data and state on the devices."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from trainer import devices
from trainer.checkpoints.store import Restored
from trainer.datasets import Dataset
from trainer.run.job import Job
from trainer.run.programs import Programs, compile_programs
from trainer.step.state import (
    TrainState,
    abstract_train_state,
    create_train_state,
    train_state_init,
)
from trainer.step.train_step import Examples, place_examples


@dataclasses.dataclass(frozen=True)
class Data:
    """Both splits on the devices, and what a checkpoint must know of the inputs."""

    train: Examples
    test: Examples
    inputs: dict[str, Any]


def start(job: Job, restored: Restored | None) -> tuple[Programs, Data, TrainState]:
    """Return the compiled programs, the data and the first state; data are read meanwhile.

    Args:
      job: the run.
      restored: the checkpoint that it goes on from, or None.

    Raises:
      RunError: the data are damaged.
    """
    sharding = devices.replicated(job.mesh)
    init = train_state_init(job.model, job.tx, job.config.seed, job.source.image_shape)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(job.source.read)
        programs = compile_programs(job, abstract_train_state(init, sharding))
        state = restored.state if restored else create_train_state(init, sharding)
        return programs, _place(job, reading.result()), state


def _place(job: Job, dataset: Dataset) -> Data:
    """Put both splits whole on every device."""
    mean, std = dataset.input_moments(job.config.standardize)
    sharding = devices.replicated(job.mesh)
    train = place_examples(dataset.train_images, dataset.train_labels, mean, std, sharding)
    test = place_examples(dataset.test_images, dataset.test_labels, mean, std, sharding)
    inputs = {
        "image_shape": list(job.source.image_shape),
        "num_classes": dataset.num_classes,
        "mean": mean,
        "std": std,
    }
    return Data(train, test, inputs)
