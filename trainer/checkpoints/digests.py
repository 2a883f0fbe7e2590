"""Digests of arrays: what a checkpoint must still say when it is read again."""

import hashlib
import json
from typing import Any

import jax
import numpy as np

from trainer.step.state import leaf_name


def leaf_digests(tree: Any) -> dict[str, str]:
    """Return a digest of every leaf.

    Args:
      tree: a pytree of arrays.

    Returns:
      Leaf name, such as "params/conv1/kernel", to the SHA-256 of dtype, shape and bytes, in hex.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {leaf_name(path): _digest(np.asarray(leaf)) for path, leaf in leaves}


def json_digest(content: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys, in hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def float_bits(value: Any) -> str:
    """Return the bits of a float32 as 8 hex digits."""
    return f"{np.float32(value).view(np.uint32):08x}"


def _digest(array: np.ndarray) -> str:
    """Return the SHA-256 of dtype, shape and bytes."""
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    # As bytes: bfloat16 is no type of NumPy's own, and lends no buffer.
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
