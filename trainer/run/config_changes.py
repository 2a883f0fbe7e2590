"""What a run was made with and what is given now: refused, or accepted by name and recorded."""

from collections.abc import Collection
from typing import Any

import numpy as np

from trainer.config import TrainConfig
from trainer.errors import UsageError
from trainer.schedules import create_schedule

# A state made with other values of these has other leaves.
_FIXED = ("model", "optimizer", "dataset", "train_split", "test_split", "image_size")


def check_names(allowed: Collection[str]) -> None:
    """Refuse names that are no fields, or of fields that cannot change within a run.

    Args:
      allowed: names of fields that the user lets differ.

    Raises:
      UsageError: a name is not one of those that may be allowed.
    """
    offered = [name for name in TrainConfig.trajectory_fields() if name not in _FIXED]
    for name in allowed:
        if name in _FIXED:
            reason = "it cannot change within a run, whose state has other arrays then; use another"
            raise UsageError(f"--allow_config_change={name}: {reason} --workdir")
        if name not in offered:
            raise UsageError(
                f"--allow_config_change={name}: no such field, or one that may always change; use "
                f"names out of {', '.join(offered)}"
            )


def check_config_change(
    stored: TrainConfig, given: TrainConfig, step: int, allowed: Collection[str], workdir: object
) -> dict[str, list[Any]]:
    """Compare the configuration of a run with the one given to continue with.

    Fields that change nothing about the parameters (length, records, devices) may always differ.

    Args:
      stored: the configuration in the checkpoint.
      given: the configuration now, resolved.
      step: the checkpoint's step.
      allowed: names of fields that the user lets differ.
      workdir: of the run, for the message.

    Returns:
      The fields that differ, all of them allowed: name to [stored, given].

    Raises:
      UsageError: other fields differ; the message is a table of them and of the learning rates.
    """
    names = TrainConfig.trajectory_fields()
    pairs = {name: [getattr(stored, name), getattr(given, name)] for name in names}
    changes = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    refused = [name for name in changes if name not in allowed or name in _FIXED]
    if refused:
        raise UsageError(_table(stored, given, changes, refused, step, workdir))
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
        else f"; or --allow_config_change={','.join(changes)} to continue with the given values"
    )
    return (
        f"--workdir={workdir} holds a run at step {step} that was made with other values:\n"
        f"{table}\nuse the stored values; or another --workdir{allow}"
    )


def _rates(config: TrainConfig, step: int) -> np.ndarray:
    """Return the learning rates of one cycle from `step` on."""
    assert config.steps_per_cycle is not None  # Both are resolved.
    return np.asarray(create_schedule(config)(step + np.arange(config.steps_per_cycle)))
