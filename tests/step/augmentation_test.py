"""Augmentation in the step: the plain definition, and the same bits on any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import also, assert_same_bits
from trainer import devices
from trainer.datasets import Dataset
from trainer.step.augmentation import Augmentation, shift
from trainer.step.batches import epoch_batches
from trainer.step.examples import place_examples
from trainer.step.networks import create_network
from trainer.step.optimizers import create_optimizer
from trainer.step.own_augmentation import create_augmentation
from trainer.step.randomness import augmentation_keys, dropout_key, root_key
from trainer.step.state import compile_first_state, train_state_init
from trainer.step.train_step import create_train_step

BATCH_SIZE, NUM_TRAIN, SEED = 64, 256, 5


def expected_keys(step: int, count: int) -> list[jax.Array]:
    """The keys of the examples of a batch, one after the other."""
    stream = jax.random.fold_in(jax.random.key(SEED, impl="threefry2x32"), 2**31 + 1)
    of_step = jax.random.fold_in(stream, step)
    return [jax.random.fold_in(of_step, place) for place in range(count)]


def shifted(image: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Pixel by pixel what is dy rows down and dx columns to the right, or 0."""
    result = np.zeros_like(image)
    height, width, _ = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                result[y, x] = image[y + dy, x + dx]
    return result


def shifted_batch(images: np.ndarray, step: int) -> np.ndarray:
    keys = expected_keys(step, len(images))
    offsets = [np.asarray(jax.random.randint(key, (2,), -2, 3)) for key in keys]
    rows = [shifted(image, *offset) for image, offset in zip(images, offsets, strict=True)]
    return np.stack(rows)


def test_keys_belong_to_seed_step_and_place() -> None:
    for step in (0, 7, 2**31 - 1):
        found = augmentation_keys(SEED, jnp.int32(step), jnp.arange(3, dtype=jnp.int32))
        expected = [jax.random.key_data(key) for key in expected_keys(step, 3)]
        np.testing.assert_array_equal(jax.random.key_data(found), expected)
    others = [
        root_key(SEED),
        dropout_key(SEED, jnp.int32(7), jnp.int32(0)),
        augmentation_keys(SEED + 1, jnp.int32(7), jnp.arange(1, dtype=jnp.int32))[0],
        *augmentation_keys(SEED, jnp.int32(7), jnp.arange(9, dtype=jnp.int32)),
        *augmentation_keys(SEED, jnp.int32(8), jnp.arange(9, dtype=jnp.int32)),
    ]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in others}) == 21


@pytest.mark.parametrize("shape", [(28, 28, 1), (5, 7, 3), (2, 1, 2), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_shift_is_its_plain_definition(shape: tuple[int, int, int], dtype: type) -> None:
    images = np.random.default_rng(0).integers(1, 256, (200, *shape)).astype(dtype)
    keys = augmentation_keys(SEED, jnp.int32(3), jnp.arange(200, dtype=jnp.int32))
    found = jax.jit(Augmentation(shift))(keys, images)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, shifted_batch(images, 3))


def test_every_shift_is_drawn_as_often() -> None:
    keys = augmentation_keys(SEED, jnp.int32(0), jnp.arange(5000, dtype=jnp.int32))
    image = jnp.arange(1, 26, dtype=jnp.float32).reshape(5, 5, 1)
    middles = jax.jit(jax.vmap(lambda key: shift(key, image)[2, 2, 0]))(keys)
    counts = np.bincount(np.asarray(middles).astype(int), minlength=26)[1:]
    assert counts.sum() == 5000  # Never filled: 2 pixels from the middle are still inside.
    assert ((counts - 200) ** 2 / 200).sum() < 53  # chi2 with 24 degrees: 1 of 1,600 is above.


def rotate(key: jax.Array, image: jax.Array) -> jax.Array:
    """Arithmetic that a compiler may contract: another angle and another contrast."""
    angle_key, gain_key = jax.random.split(key)
    angle = jax.random.uniform(angle_key, minval=-0.3, maxval=0.3)
    y, x = jnp.meshgrid(jnp.arange(28.0) - 13.5, jnp.arange(28.0) - 13.5, indexing="ij")
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    places = jnp.stack([cosine * y - sine * x, sine * y + cosine * x]) + 13.5
    turned = jax.scipy.ndimage.map_coordinates(image[..., 0], list(places), order=1)
    gain = jax.random.uniform(gain_key, minval=0.8, maxval=1.2)
    # A loop, which the types of shard_map do not let pass.
    turned, _ = jax.lax.scan(
        lambda sum, row: (sum + row, None), turned * gain, jnp.zeros((2, 28, 28))
    )
    return turned[..., None]


def run(
    mnist: Dataset,
    augmentation: Augmentation | None,
    num_devices: int = 1,
    num_steps: int = 1,
    reduction: str = "tree",
    images: np.ndarray | None = None,
) -> tuple:
    """State and metrics after some steps on the first images, standardised."""
    mesh = devices.create_mesh("cpu", num_devices)
    everywhere = devices.replicated(mesh)
    network = create_network("mlp", (28, 28, 1), 10)
    tx = create_optimizer("sgd", 0.9, False, 0.0)
    state = compile_first_state(train_state_init(network, tx, SEED), everywhere)()
    images = mnist.train_images[:NUM_TRAIN] if images is None else images
    examples = place_examples(images, mnist.train_labels[:NUM_TRAIN], 0.13, 0.31, everywhere)
    batches = epoch_batches(SEED, 0, NUM_TRAIN, BATCH_SIZE)
    batches = jax.device_put(batches, devices.sharded(mesh, axis=1))
    schedule = optax.constant_schedule(0.1)
    step = create_train_step(
        network,
        tx,
        schedule,
        mesh,
        seed=SEED,
        reduction=reduction,
        gradient_shards=8,
        augmentation=augmentation,
    )
    step = step.lower(state, examples, batches).compile()
    metrics = []
    for _ in range(num_steps):
        state, of_step = step(state, examples, batches)
        metrics.append(jax.device_get(of_step))
    return jax.device_get(state), metrics


@pytest.mark.parametrize(
    ("reduction", "num_devices"),
    [also("tree", 1), ("tree", 4), also("allreduce", 1), also("allreduce", 8)],
)
def test_the_step_trains_on_shifted_images(
    mnist: Dataset, reduction: str, num_devices: int
) -> None:
    """As a step without augmentation does on images that were shifted beforehand, in NumPy."""
    images = mnist.train_images[:NUM_TRAIN].copy()
    rows = np.asarray(epoch_batches(SEED, 0, NUM_TRAIN, BATCH_SIZE))[0]
    images[rows] = shifted_batch(images[rows], 0)
    expected, expected_metrics = run(mnist, None, images=images)
    plain, _ = run(mnist, None)
    found, metrics = run(mnist, Augmentation(shift, built_in=True), num_devices, 1, reduction)
    np.testing.assert_allclose(metrics[0]["loss"], expected_metrics[0]["loss"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    kernels = [state.params["dense1"]["kernel"] for state in (found, plain)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


@pytest.mark.system
@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(shift, built_in=True), Augmentation(rotate)],
    ids=["shift", "own"],
)
def test_the_same_bits_on_every_number_of_devices(
    mnist: Dataset, augmentation: Augmentation
) -> None:
    """Of the CNN, and between processes, too: tests/system/augmentation_test.py."""
    expected = run(mnist, augmentation, 1, 3)
    for num_devices in (2, 8):
        assert_same_bits(run(mnist, augmentation, num_devices, 3), expected)


@pytest.mark.system
def test_own_arithmetic_works_with_allreduce(mnist: Dataset) -> None:
    one, eight = (run(mnist, Augmentation(rotate), count, 2, "allreduce") for count in (1, 8))
    np.testing.assert_allclose(one[1][1]["loss"], eight[1][1]["loss"], rtol=1e-5)


def test_names() -> None:
    assert create_augmentation("", (28, 28, 1)) is None
    found = create_augmentation("shift", (28, 28, 1))
    assert found == Augmentation(shift, built_in=True)
