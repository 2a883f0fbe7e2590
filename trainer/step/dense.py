"""The product of a dense layer, whose gradient has the same bits on any number of CPU threads."""

from typing import Any

import jax
import jax.numpy as jnp

# Eigen multiplies in blocks of this many rows: 24 with AVX2, 48 with AVX-512, 12 with NEON.
_BLOCK_ROWS = 48


def dense_product(
    inputs: jax.Array, kernel: jax.Array, dimension_numbers: Any = None, **_: Any
) -> jax.Array:
    """Multiply as a dense layer does: the `dot_general` of a `flax.nnx.Linear`.

    XLA:CPU cuts the gradient of the kernel, [K, B] times [B, N], by its threads, and Eigen adds up
    the rows that are left over from whole blocks in another order, so the last bits of some rows
    would depend on the number of threads, and with it on the number of virtual devices and cores.
    With K padded to whole blocks none are left over. For parts of a batch (B) up to 128.

    Args:
      inputs: [..., K].
      kernel: [K, N].
      dimension_numbers: those of a dense layer, the only ones it is called with.

    Returns:
      [..., N], of the type of the inputs.
    """
    return _product(inputs, kernel)


@jax.custom_vjp
def _product(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the product; its gradient is `_backward`."""
    return inputs @ kernel


def _forward(inputs: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Return the product, and what its gradient needs."""
    return inputs @ kernel, (inputs, kernel)


def _backward(
    residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of inputs and kernel."""
    inputs, kernel = residuals
    size = len(kernel)
    rows = inputs.reshape(-1, size)
    padded = jnp.pad(rows, [(0, 0), (0, -size % _BLOCK_ROWS)])
    kernel_grad = padded.T @ grad.reshape(len(rows), -1)
    return grad @ kernel.T, kernel_grad[:size]


_product.defvjp(_forward, _backward)
