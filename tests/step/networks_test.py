"""The networks have the shapes they are known for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.step.networks import CNN, MLP, create_model, scale_pixels


def num_parameters(model: nn.Module) -> int:
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_cnn_is_that_of_the_flax_example() -> None:
    convolutions = (9 * 1 + 1) * 32 + (9 * 32 + 1) * 64
    assert num_parameters(CNN()) == convolutions + (7 * 7 * 64 + 1) * 256 + (256 + 1) * 10


def test_mlp() -> None:
    assert num_parameters(MLP()) == (784 + 1) * 128 + (128 + 1) * 10


@pytest.mark.parametrize("name", ["cnn", "mlp"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_float32_and_finite(name: str, dtype: str) -> None:
    model = create_model(name, num_classes=7, compute_dtype=dtype)
    inputs = jax.random.normal(jax.random.key(1), (3, 28, 28, 1))
    variables = model.init(jax.random.key(0), inputs)
    logits = model.apply(variables, inputs)
    assert logits.shape == (3, 7)
    assert logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert np.all(np.isfinite(logits))


def test_bfloat16_computes_in_bfloat16() -> None:
    inputs = jax.random.normal(jax.random.key(1), (3, 28, 28, 1))
    variables = CNN().init(jax.random.key(0), inputs)
    exact = np.asarray(CNN().apply(variables, inputs))
    rounded = np.asarray(CNN(dtype=jnp.bfloat16).apply(variables, inputs))
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, rtol=0.1, atol=0.05)


def test_scale_pixels() -> None:
    images = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
    plain = scale_pixels(images, jnp.float32(0), jnp.float32(1))
    np.testing.assert_allclose(np.ravel(plain), [0, 0.2, 1], rtol=1e-6)
    standard = scale_pixels(images, jnp.float32(0.2), jnp.float32(0.4))
    np.testing.assert_allclose(np.ravel(standard), [-0.5, 0, 2], rtol=1e-6, atol=1e-7)
