"""The product of dense layers is the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.step.dense import dense_product


@pytest.mark.parametrize("shape", [(16, 100), (7, 96), (2, 3, 50)])
def test_product_and_gradients_are_the_plain_ones(shape: tuple[int, ...]) -> None:
    """With whole numbers, whose sums are exact in any order."""
    random = np.random.default_rng(0)
    inputs, kernel = random.integers(-9, 9, shape), random.integers(-9, 9, (shape[-1], 5))
    grad = random.integers(-9, 9, (*shape[:-1], 5))
    args = (jnp.float32(inputs), jnp.float32(kernel))
    product, pullback = jax.vjp(dense_product, *args)
    found = (product, *pullback(jnp.float32(grad)))
    rows = inputs.reshape(-1, shape[-1])
    expected = (inputs @ kernel, grad @ kernel.T, rows.T @ grad.reshape(len(rows), -1))
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(left, right)


def test_types_stay() -> None:
    args = (jnp.ones((4, 6), jnp.bfloat16), jnp.ones((6, 3), jnp.bfloat16))
    product, pullback = jax.vjp(dense_product, *args)
    assert {leaf.dtype for leaf in (product, *pullback(product))} == {jnp.dtype(jnp.bfloat16)}
