"""Batches are a pure function of seed and step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer import devices
from trainer.step.batches import epoch_batches, evaluation_batches


@pytest.mark.parametrize("batch_size", [64, 100, 128])
def test_every_example_at_most_once_an_epoch(batch_size: int) -> None:
    batches = np.asarray(epoch_batches(0, 3, 60000, batch_size))
    assert batches.shape == (60000 // batch_size, batch_size)
    assert batches.dtype == np.int32
    assert len(np.unique(batches)) == batches.size
    assert batches.min() >= 0
    assert batches.max() < 60000


def test_every_example_once_where_the_batch_divides() -> None:
    batches = np.asarray(epoch_batches(0, 0, 60000, 100))
    np.testing.assert_array_equal(np.sort(batches.ravel()), np.arange(60000))


def test_batches_are_slices_of_the_permutation() -> None:
    order = jax.random.permutation(jax.random.fold_in(jax.random.key(7), 2), 1000)
    batches = epoch_batches(7, 2, 1000, 64)
    for i in range(len(batches)):
        np.testing.assert_array_equal(batches[i], order[i * 64 : (i + 1) * 64])


def test_seed_and_epoch_change_the_order() -> None:
    first = np.asarray(epoch_batches(0, 0, 1000, 100))
    assert not np.array_equal(first, epoch_batches(0, 1, 1000, 100))
    assert not np.array_equal(first, epoch_batches(1, 0, 1000, 100))
    np.testing.assert_array_equal(first, epoch_batches(0, 0, 1000, 100))


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
def test_global_batches_do_not_depend_on_the_devices(num_devices: int) -> None:
    mesh = devices.create_mesh("cpu", num_devices)
    sharding = devices.sharded(mesh, axis=1)
    make = jax.jit(lambda epoch: epoch_batches(0, epoch, 60000, 128), out_shardings=sharding)
    batches = make(jnp.int32(1))
    np.testing.assert_array_equal(batches, epoch_batches(0, 1, 60000, 128))
    for i, shard in enumerate(batches.addressable_shards):
        share = 128 // num_devices
        expected = np.asarray(batches)[:, i * share : (i + 1) * share]
        np.testing.assert_array_equal(shard.data, expected)


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10000, 375), (10000, 1000), (7, 8)])
def test_evaluation_has_every_example_once(num_examples: int, batch_size: int) -> None:
    batches = evaluation_batches(num_examples, batch_size)
    np.testing.assert_array_equal(batches[batches >= 0], np.arange(num_examples))
    assert batches.shape[1] == batch_size
    assert batches.size - num_examples < batch_size
