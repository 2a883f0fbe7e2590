"""Digests of leaves: the bytes that they are taken of stay the same in all versions."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from trainer.checkpoints.digests import leaf_digests


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.int32(7),
        np.array([True, False]),
        np.zeros((0, 3), np.float32),
        np.asarray(jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)),
        np.asarray(jnp.bfloat16(1.5)),
    ],
)
def test_a_digest_is_that_of_dtype_shape_and_bytes(array: np.ndarray) -> None:
    # As `shape` of a scalar is (), and bytes are in the order of rows.
    said = f"{array.dtype}{array.shape}".encode()
    expected = hashlib.sha256(said + array.tobytes()).hexdigest()
    assert leaf_digests({"a": array}) == {"a": expected}
