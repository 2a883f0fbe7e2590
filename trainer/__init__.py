"""Data-parallel training in JAX, on a triangle wave that is a function of the step counter.

    import trainer
    result = trainer.train(trainer.TrainConfig(num_epochs=1), "runs/a")

The way from the command to the learning rate: `python -m trainer` calls `cli.main`, which calls
`run.loop.train`, which calls the step made by `step.train_step.create_train_step`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.config import TrainConfig as TrainConfig
    from trainer.run.interface import train as train
    from trainer.run.loop import TrainResult as TrainResult
    from trainer.run.stored import Checkpoint as Checkpoint
    from trainer.run.stored import load_checkpoint as load_checkpoint
    from trainer.schedules import (
        create_constant_schedule as create_constant_schedule,
    )
    from trainer.schedules import (
        create_exp_range_boundaries_schedule as create_exp_range_boundaries_schedule,
    )
    from trainer.schedules import create_exp_range_schedule as create_exp_range_schedule
    from trainer.schedules import create_triangular2_schedule as create_triangular2_schedule
    from trainer.schedules import create_triangular_schedule as create_triangular_schedule

# Where each name comes from. It is imported when it is used: `import trainer` imports no jax.
_HOMES = {
    "TrainConfig": "trainer.config",
    "train": "trainer.run.interface",
    "TrainResult": "trainer.run.loop",
    "load_checkpoint": "trainer.run.stored",
    "Checkpoint": "trainer.run.stored",
    "create_triangular_schedule": "trainer.schedules",
    "create_triangular2_schedule": "trainer.schedules",
    "create_exp_range_schedule": "trainer.schedules",
    "create_exp_range_boundaries_schedule": "trainer.schedules",
    "create_constant_schedule": "trainer.schedules",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    """Return a name of the interface, or the version."""
    if name == "__version__":
        from importlib.metadata import version

        return version("cyclic-trainer")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'trainer' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of the interface."""
    return sorted(__all__)
