"""Where the examples of a run are to lie: what each way needs, and the first that fits."""

import dataclasses
import math

from jax.sharding import Mesh

from trainer.datasets import DatasetSource
from trainer.errors import UsageError
from trainer.run import streaming
from trainer.run.memory import Memory
from trainer.step import REPLICATED, SHARDED, STREAMED

AUTO = "auto"
# In the order in which `auto` tries them: what comes first has less to do in a step.
PLACEMENTS = (REPLICATED, SHARDED, STREAMED)
# The part of the free memory that `auto` gives to the examples; the state, the batches and what a
# step keeps for the way back need the rest.
_AUTO_PART = 0.5


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes that the examples of a run take.

    Attributes:
      device: on each device.
      host: in each process, beside its devices, at the moment that takes most.
    """

    device: int
    host: int


def needed(placement: str, source: DatasetSource, mesh: Mesh, batch_size: int) -> Need:
    """Return what the examples of both splits take, and the order of an epoch.

    Args:
      placement: "replicated", "sharded" or "streamed".
      source: the data set.
      mesh: the devices.
      batch_size: over all devices together.
    """
    row = math.prod(source.image_shape) + 4
    both, order = (source.num_train + source.num_test) * row, 4 * source.num_train
    largest = max(source.num_train, source.num_test)
    if placement == REPLICATED:
        return Need(both + order // mesh.size, both)
    if placement == SHARDED:
        part = -(-largest // mesh.size) * row
        return Need(-(-both // mesh.size) + order // mesh.size, 2 * part)
    local = len(mesh.local_devices) or 1
    ahead = streaming.bytes_ahead(source.image_shape, -(-batch_size * local // mesh.size))
    return Need(-(-ahead // local), 2 * ahead + 3 * order)


def choose_placement(
    asked: str, source: DatasetSource, mesh: Mesh, batch_size: int, memory: Memory
) -> tuple[str, str]:
    """Return where the examples are to lie, and why, in words. Nothing has been read for that.

    Args:
      asked: by the user; "auto" takes the first that fits into half of what is free, and streams
        them otherwise.
      source: the data set.
      mesh: the devices.
      batch_size: over all devices together.
      memory: that is free.

    Raises:
      UsageError: what is asked for does not fit, or nothing does.
    """
    needs = {each: needed(each, source, mesh, batch_size) for each in PLACEMENTS}
    tried = PLACEMENTS if asked == AUTO else (asked,)
    passed: dict[str, str] = {}
    for placement in tried:
        part = _AUTO_PART if asked == AUTO and placement != PLACEMENTS[-1] else 1.0
        shortage = _shortage(needs[placement], mesh, memory, part)
        if not shortage:
            reasons = [f"{each} needs {why}" for each, why in passed.items()]
            reason = "; ".join(reasons) or "there is room for them"
            return placement, reason if asked == AUTO else "as asked for"
        passed[placement] = shortage
    others = [each for each in PLACEMENTS if not _shortage(needs[each], mesh, memory, 1.0)]
    hint = f"use --data_placement={' or '.join([*others, AUTO])}, or" if others else "use"
    raise UsageError(
        f"--data_placement={asked}: {placement} examples of --dataset={source.name} need {shortage}"
        f"; {hint} more devices or memory"
    )


def _shortage(need: Need, mesh: Mesh, memory: Memory, part: float) -> str:
    """Return what is missing, in words with bytes needed and bytes there; "" if all fits."""
    half = " half of" if part < 1 else ""
    if memory.device is not None and need.device > part * memory.device:
        return f"{_bytes(need.device)} on each device, more than{half} the {_there(memory.device)}"
    # Where devices have no memory of their own, theirs is the host's.
    local = len(mesh.local_devices) if memory.device is None else 0
    in_host = need.host + local * need.device
    if memory.host is not None and in_host > part * memory.host:
        return f"{_bytes(in_host)} in each process, more than{half} the {_there(memory.host)}"
    return ""


def _there(count: int) -> str:
    """Return bytes that are free, in words."""
    return f"{_bytes(count)} that are free there"


def _bytes(count: int) -> str:
    """Return a number of bytes, in words."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
