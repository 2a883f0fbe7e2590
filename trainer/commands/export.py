"""A trained network as one file, which jax runs without the trainer."""

import os
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from etils import epath

from trainer.commands.predict.inference import Predictor
from trainer.config.own import is_own
from trainer.errors import RunError, UsageError
from trainer.run.selection import AS_TRAINED, Selection
from trainer.workdir.storage import write_whole

EXPORT_FILE = "model.jaxexport"

_PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    workdir: epath.PathLike,
    output: epath.PathLike | None,
    selection: Selection = AS_TRAINED,
) -> dict[str, Any]:
    """Write a checkpoint's network, weights included, for any number of images.

    `jax.export.deserialize(content).call(images)` maps uint8[n, H, W, C], n >= 1, as they are in
    the data set, to probabilities float32[n, num_classes]: scaling and softmax are part of it.

    Args:
      workdir: of a run.
      output: the file; None: model.jaxexport in the workdir. Another export there is replaced.
      selection: which parameters.

    Returns:
      file, step (of the checkpoint), dataset, platforms, input, output, bytes.

    Raises:
      UsageError: there is no checkpoint, or the file cannot be written or is no export.
      RunError: no checkpoint is good, or the disk is full.
    """
    path = epath.Path(workdir) / EXPORT_FILE if output is None else epath.Path(output)
    _check_replaceable(path)
    predictor = Predictor(workdir, selection=selection)
    (n,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((n, *predictor.image_shape), jnp.uint8)
    try:
        exported = jax.export.export(jax.jit(predictor.infer), platforms=_PLATFORMS)(images)
    except Exception as error:
        if not is_own(predictor.model):
            raise
        # Whatever a network makes of a number of images that is not known.
        raise UsageError(
            f"--model={predictor.model} cannot be exported for any number of images and for "
            f"{', '.join(_PLATFORMS)}: {type(error).__name__}: {str(error).splitlines()[0]}; in "
            "the network, inputs.shape[0] is that number, and len(inputs) is not known"
        ) from error
    content = exported.serialize()
    _write(path, content)
    return {
        "file": str(path),
        "step": predictor.step,
        "dataset": predictor.dataset,
        "platforms": list(exported.platforms),
        "input": exported.in_avals[0].str_short(),
        "output": exported.out_avals[0].str_short(),
        "bytes": len(content),
    }


def _check_replaceable(path: epath.Path) -> None:
    """Refuse to write over what is no export, before any work is done."""
    if path.is_dir():
        reason = "it is a folder"
    elif os.path.exists(path) and not os.path.isfile(path):
        reason = "it is no regular file"  # To read a pipe is to wait.
    elif path.exists() and not _is_export(path):
        reason = "there is a file that is no export"
    else:
        return
    raise UsageError(f"--output={path}: {reason}; use a new file, or an older export")


def _is_export(path: epath.Path) -> bool:
    """Return whether jax could run what is in a file."""
    try:
        jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception:  # Whatever the first bytes of something else happen to mean.
        return False
    return True


def _write(path: epath.Path, content: bytes | bytearray) -> None:
    """Write a file whole or not at all."""
    try:
        write_whole(path, bytes(content))
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UsageError(
            f"--output={path} cannot be written: {error.strerror}; use a file in a folder that "
            "exists and may be written"
        ) from error
    except OSError as error:
        raise RunError(f"{path} could not be written: {error.strerror}; free space") from error
