"""The networks have the shapes they are known for."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from trainer.errors import UsageError
from trainer.step.examples import scale_pixels
from trainer.step.functional import Network
from trainer.step.networks import create_network

KEY = jax.random.key(0)


def num_parameters(network: Network) -> int:
    params, statistics = jax.eval_shape(network.init, KEY)
    assert not jax.tree.leaves(statistics)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_cnn_is_that_of_the_flax_example() -> None:
    convolutions = (9 * 1 + 1) * 32 + (9 * 32 + 1) * 64
    expected = convolutions + (7 * 7 * 64 + 1) * 256 + (256 + 1) * 10
    assert num_parameters(create_network("cnn", (28, 28, 1), 10)) == expected


def test_small_cnn() -> None:
    convolutions = (25 * 1 + 1) * 32 + (9 * 32 + 1) * 32
    expected = convolutions + (5 * 5 * 32 + 1) * 256 + (256 + 1) * 10
    assert num_parameters(create_network("small_cnn", (28, 28, 1), 10)) == expected


def test_mlp() -> None:
    expected = (784 + 1) * 128 + (128 + 1) * 10
    assert num_parameters(create_network("mlp", (28, 28, 1), 10)) == expected


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, (28, 28, 1)) for name in ("cnn", "small_cnn", "mlp")]
    + [
        ("cnn", (4, 5, 3)),
        ("small_cnn", (11, 14, 3)),
        ("small_cnn", (15, 12, 3)),
        ("mlp", (4, 5, 3)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_float32(name: str, dtype: str, shape: tuple[int, int, int]) -> None:
    network = create_network(name, shape, num_classes=7, compute_dtype=dtype)
    inputs = jax.random.normal(jax.random.key(1), (3, *shape))
    params, statistics = jax.eval_shape(network.init, KEY)
    logits = jax.eval_shape(network.apply, params, statistics, inputs)
    assert logits.shape == (3, 7)
    assert logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


CONVOLUTION = functools.partial(
    jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC")
)


def by_hand_cnn(params: dict, x: jax.Array) -> jax.Array:
    """What comes out of the convolutions of the CNN, by plain lax operations."""
    for layer in ("conv1", "conv2"):
        x = CONVOLUTION(x, params[layer]["kernel"], (1, 1), "SAME")
        x = jnp.maximum(x + params[layer]["bias"].reshape(1, 1, 1, -1), 0)
        x = x.reshape(3, x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean((2, 4))
    return x


def by_hand_small_cnn(params: dict, x: jax.Array) -> jax.Array:
    """The same of the small one, its ReLU before its pooling."""
    for layer, stride in (("conv1", 2), ("conv2", 1)):
        x = CONVOLUTION(x, params[layer]["kernel"], (stride, stride), "VALID")
        x = jnp.maximum(x + params[layer]["bias"].reshape(1, 1, 1, -1), 0)
    return x.reshape(3, x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4))


@pytest.mark.system
@pytest.mark.parametrize(
    ("name", "convolve"), [("cnn", by_hand_cnn), ("small_cnn", by_hand_small_cnn)]
)
def test_the_networks_are_their_formulas(name: str, convolve: Callable) -> None:
    """Against plain lax operations, without flax."""
    network = create_network(name, (28, 28, 1), 10)
    params, statistics = network.init(KEY)
    inputs = jax.random.normal(jax.random.key(1), (3, 28, 28, 1))
    x = convolve(params, inputs).reshape(3, -1)
    x = x @ params["dense1"]["kernel"] + params["dense1"]["bias"].reshape(1, -1)
    expected = jnp.maximum(x, 0) @ params["dense2"]["kernel"]
    expected = expected + params["dense2"]["bias"].reshape(1, -1)
    found = network.apply(params, statistics, inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    trained, _ = network.apply_in_training(params, statistics, inputs, KEY)
    np.testing.assert_array_equal(trained, found)


def test_bfloat16_computes_in_bfloat16() -> None:
    inputs = jax.random.normal(jax.random.key(1), (3, 28, 28, 1))
    exact, rounded = (
        create_network("mlp", (28, 28, 1), 10, dtype) for dtype in ("float32", "bfloat16")
    )
    variables = exact.init(KEY)
    one, other = (np.asarray(each.apply(*variables, inputs)) for each in (exact, rounded))
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(other, one, rtol=0.1, atol=0.05)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("cnn", (3, 9, 1), r"these are 3x9 pixels; use .* --model=mlp"),
        ("small_cnn", (28, 10, 1), r"these are 28x10; use --model=cnn .* or --model=mlp"),
    ],
)
def test_images_that_are_too_small_are_refused(
    name: str, shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        create_network(name, shape, 10)


class Restless(nnx.Module):
    """Batch norm and two dropouts: what a network may keep between steps, and what it may not."""

    def __init__(self, *, image_shape, num_classes, dtype, rngs):
        self.norm = nnx.BatchNorm(math.prod(image_shape), rngs=rngs)
        self.first = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs):
        """Return what both dropouts let through."""
        x = self.norm(inputs.reshape(inputs.shape[0], -1))
        return jnp.concatenate([self.first(x), self.second(x)], axis=1)


def test_statistics_and_random_layers() -> None:
    arguments = {"image_shape": (4, 4, 1), "num_classes": 2, "dtype": jnp.float32}
    network = Network(lambda key: Restless(**arguments, rngs=nnx.Rngs(key)))
    params, statistics = network.init(KEY)
    assert set(statistics) == {"norm"}
    inputs = 3 + jax.random.normal(jax.random.key(1), (64, 4, 4, 1))
    one, after = network.apply_in_training(params, statistics, inputs, jax.random.key(1))
    again, _ = network.apply_in_training(params, statistics, inputs, jax.random.key(1))
    other, _ = network.apply_in_training(params, statistics, inputs, jax.random.key(2))
    np.testing.assert_array_equal(one, again)
    masks = [np.asarray(each) == 0 for each in (one, other)]
    assert 0.4 < masks[0].mean() < 0.6
    assert (masks[0] != masks[1]).any()
    # Two layers of one shape draw two masks.
    assert (masks[0][:, :16] != masks[0][:, 16:]).any()
    expected = 0.99 * 0 + 0.01 * np.asarray(inputs).reshape(64, -1).mean(0)
    np.testing.assert_allclose(after["norm"]["mean"], expected, rtol=1e-4)
    still = network.apply(params, statistics, inputs)
    np.testing.assert_array_equal(still[:, :16], still[:, 16:])
    assert not np.array_equal(still, network.apply(params, after, inputs))


def test_scale_pixels() -> None:
    images = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
    plain = scale_pixels(images, jnp.float32(0), jnp.float32(1))
    np.testing.assert_allclose(np.ravel(plain), [0, 0.2, 1], rtol=1e-6)
    standard = scale_pixels(images, jnp.float32(0.2), jnp.float32(0.4))
    np.testing.assert_allclose(np.ravel(standard), [-0.5, 0, 2], rtol=1e-6, atol=1e-7)
