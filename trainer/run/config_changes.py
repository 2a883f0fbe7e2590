"""What a run was made with and what is given now: refused, or accepted by name and recorded."""

from collections.abc import Collection
from typing import Any

import numpy as np

from trainer.config import TrainConfig
from trainer.errors import UsageError
from trainer.schedules.cyclical import create_schedule

# A state made with other values of these has other leaves.
_FIXED = ("model", "optimizer", "dataset")


def check_config_change(
    stored: dict[str, Any], given: TrainConfig, step: int, allowed: Collection[str], workdir: object
) -> dict[str, list[Any]]:
    """Compare the configuration of a run with the one given to go on with.

    Fields that change nothing about the parameters (length, records, devices) may always differ.

    Args:
      stored: the configuration in the checkpoint; one of an older version may lack fields.
      given: the configuration now, resolved.
      step: the checkpoint's step.
      allowed: names of fields that the user lets differ.
      workdir: of the run, for the message.

    Returns:
      The fields that differ, all of them allowed: name to [stored, given].

    Raises:
      UsageError: other fields differ; the message is a table of them and of the learning rates.
      RunError: a newer version has stored fields that this one does not know.
    """
    trajectory = TrainConfig.trajectory_fields()
    unknown = sorted(set(allowed) - set(trajectory))
    if unknown:
        raise UsageError(
            f"--allow_config_change={unknown[0]}: no such field, or one that may always change; "
            f"valid: names out of {', '.join(trajectory)}"
        )
    before = TrainConfig.from_stored(stored)
    pairs = {name: [getattr(before, name), getattr(given, name)] for name in trajectory}
    changes = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    refused = [name for name in changes if name not in allowed or name in _FIXED]
    if refused:
        raise UsageError(_table(before, given, changes, refused, step, workdir))
    return changes


def _table(
    stored: TrainConfig,
    given: TrainConfig,
    changes: dict[str, list[Any]],
    refused: list[str],
    step: int,
    workdir: object,
) -> str:
    """Return the message field by field, with the learning rates before and after."""
    rows: list[tuple[str, ...]] = [("", "stored", "given")]
    rows += [(name, str(before), str(after)) for name, (before, after) in changes.items()]
    rates = [_rates(config, step) for config in (stored, given)]
    rows += [
        (f"learning rate at step {step}", *(f"{rate[0]:.6g}" for rate in rates)),
        ("over the next cycle", *(f"{r.min():.6g} to {r.max():.6g}" for r in rates)),
        ("steps of that cycle", *(str(len(rate)) for rate in rates)),
    ]
    width = max(len(row[0]) for row in rows)
    table = "\n".join(f"  {row[0]:{width}}  {row[1]:>18}  {row[2]:>18}" for row in rows)
    fixed = [name for name in refused if name in _FIXED]
    allow = (
        ""
        if fixed
        else f"; or --allow_config_change={','.join(changes)} to go on with the given values"
    )
    return (
        f"--workdir={workdir} holds a run at step {step} that was made with other values:\n"
        f"{table}\nvalid: the stored values; or another --workdir{allow}"
    )


def _rates(config: TrainConfig, step: int) -> np.ndarray:
    """Return the learning rates of one cycle from `step` on."""
    assert config.steps_per_cycle is not None  # Both are resolved.
    schedule = create_schedule(
        config.lr_schedule,
        config.lr_min,
        config.lr_max,
        config.steps_per_cycle,
        config.lr_gamma,
        config.cycle_up_fraction,
    )
    return np.asarray(schedule(step + np.arange(config.steps_per_cycle)))
