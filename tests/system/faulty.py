"""A network for `--model` whose process hangs, fails or computes wrongly when a file says so.

The file is that of the process, `fault0` or `fault1`, in the folder TRAINER_TEST_FAULTS, and holds
one of the words below; a file `hangs0` or `hangs1` then says since when the process hangs. A file
`slow` makes every step slow.
"""

import functools
import os
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.run import outputs, rows
from trainer.step import networks

# Sleep before the rows of a step are taken, on the device, or instead of saving.
HANGS = (DATA, STEP, SAVE) = "data", "step", "save"
# An exception, or twice the right logits, on the device.
FAIL, WRONG = "fail", "wrong"

_FOLDER = pathlib.Path(os.environ["TRAINER_TEST_FAULTS"])
_ID = next((word.split("=")[1] for word in sys.argv if word.startswith("--process_id=")), "0")


class Network(networks.MLP):
    """The MLP, times what is 1 while there is no fault."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map inputs float32[B, H, W, C] to logits float32[B, num_classes]."""
        factor = jax.pure_callback(_factor, jax.ShapeDtypeStruct((), jnp.float32))
        return super().__call__(inputs) * factor


def _factor() -> np.float32:
    """Do what the file says; return 1 unless that is to compute wrongly."""
    if (_FOLDER / "slow").exists():
        time.sleep(0.03)
    _hang_if_asked(STEP)
    if _fault() == FAIL:
        raise RuntimeError("a fault that was asked for")
    return np.float32(2 if _fault() == WRONG else 1)


def _fault() -> str:
    """Return what the file says."""
    try:
        return (_FOLDER / f"fault{_ID}").read_text()
    except FileNotFoundError:
        return ""


def _hang_if_asked(where: str) -> None:
    """Sleep for longer than anybody waits, if the file says to do so here."""
    if _fault() == where:
        (_FOLDER / f"hangs{_ID}").touch()
        time.sleep(3600)


def _hanging(where: str, method: Any) -> Any:
    """Return a method that hangs if the file says so."""

    @functools.wraps(method)
    def hang_or_call(*args: Any, **kwargs: Any) -> Any:
        _hang_if_asked(where)
        return method(*args, **kwargs)

    return hang_or_call


# The module of one's network is loaded before the first step.
rows.ResidentTraining.at = _hanging(DATA, rows.ResidentTraining.at)  # type: ignore[method-assign]
for _kind in (outputs.Writer, outputs.Silent):
    _kind.save = _hanging(SAVE, _kind.save)  # type: ignore[method-assign,attr-defined]
