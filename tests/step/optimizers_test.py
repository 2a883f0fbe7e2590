"""The directions, against the update rules written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.step.optimizers import create_optimizer

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


MOMENTA = np.array([0.95, 0.9, 0.85], np.float32)


def directions_with_momenta(name: str, nesterov: bool, weight_decay: float) -> np.ndarray:
    tx = create_optimizer(name, None, nesterov, weight_decay)
    state = tx.init(jnp.asarray(PARAMS))
    fixed = create_optimizer(name, 0.9, nesterov, weight_decay).init(jnp.asarray(PARAMS))
    assert jax.tree.structure(state) == jax.tree.structure(fixed)
    found = []
    for grad, momentum in zip(GRADS, MOMENTA, strict=True):
        direction, state = tx.update(
            jnp.asarray(grad), state, jnp.asarray(PARAMS), momentum=jnp.asarray(momentum)
        )
        found.append(direction)
    return np.stack(found)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_takes_the_momentum_of_every_update(nesterov: bool, weight_decay: float) -> None:
    buffer, expected = np.zeros(2), []
    for grad, momentum in zip(GRADS, MOMENTA, strict=True):
        decayed = grad + weight_decay * PARAMS
        buffer = momentum * buffer + decayed
        expected.append(decayed + momentum * buffer if nesterov else buffer)
    found = directions_with_momenta("sgd", nesterov, weight_decay)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_takes_the_momentum_of_every_update(weight_decay: float) -> None:
    first, second, expected = np.zeros(2), np.zeros(2), []
    for t, (grad, b1) in enumerate(zip(GRADS, MOMENTA, strict=True), start=1):
        first = b1 * first + (1 - b1) * grad
        second = 0.999 * second + 0.001 * grad**2
        adam = first / (1 - b1**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        expected.append(adam + weight_decay * PARAMS)
    found = directions_with_momenta("adamw", False, weight_decay)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_an_update_without_its_momentum_is_an_error() -> None:
    tx = create_optimizer("sgd", None, False, 0.0)
    with pytest.raises(TypeError, match="momentum"):
        tx.update(jnp.asarray(GRADS[0]), tx.init(jnp.asarray(PARAMS)), jnp.asarray(PARAMS))


def test_nesterov_changes_adamw() -> None:
    assert not np.array_equal(
        directions("adamw", 0.9, True, 0.0), directions("adamw", 0.9, False, 0.0)
    )
