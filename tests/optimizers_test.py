"""The directions, against the update rules written out in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from trainer.optimizers import create_optimizer

GRADS = np.array([[0.5, -2.0], [0.1, 3.0], [-1.0, 0.2]], np.float32)
PARAMS = np.array([1.0, -2.0], np.float32)


def directions(name: str, momentum: float, nesterov: bool, weight_decay: float) -> np.ndarray:
    tx = create_optimizer(name, momentum, nesterov, weight_decay)
    state = tx.init(jnp.asarray(PARAMS))
    found = []
    for grad in GRADS:
        direction, state = tx.update(jnp.asarray(grad), state, jnp.asarray(PARAMS))
        found.append(direction)
    return np.stack(found)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_that_of_pytorch(momentum: float, nesterov: bool, weight_decay: float) -> None:
    buffer, expected = np.zeros(2), []
    for grad in GRADS:
        decayed = grad + weight_decay * PARAMS
        buffer = momentum * buffer + decayed
        expected.append(decayed + momentum * buffer if nesterov else buffer)
    found = directions("sgd", momentum, nesterov, weight_decay)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_that_of_the_paper(weight_decay: float) -> None:
    first, second, expected = np.zeros(2), np.zeros(2), []
    for t, grad in enumerate(GRADS, start=1):
        first = 0.9 * first + 0.1 * grad
        second = 0.999 * second + 0.001 * grad**2
        adam = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        expected.append(adam + weight_decay * PARAMS)
    found = directions("adamw", 0.9, False, weight_decay)
    # In float32 the bias correction 1 - 0.999**t alone is off by 5e-5.
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_nesterov_changes_adamw() -> None:
    assert not np.array_equal(
        directions("adamw", 0.9, True, 0.0), directions("adamw", 0.9, False, 0.0)
    )
