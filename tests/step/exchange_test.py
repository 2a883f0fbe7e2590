"""Rows come to the device that asks for them, from whichever device holds them."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from trainer import devices
from trainer.step.examples import SHARDED, Examples, specs
from trainer.step.exchange import fetch


@pytest.mark.parametrize("num_devices", [1, 2, 3, 8])
@pytest.mark.parametrize("image_shape", [(5, 3, 1), (4, 4, 3), (1, 1, 1)])
def test_every_device_gets_its_rows(num_devices: int, image_shape: tuple[int, int, int]) -> None:
    """Pixels that fill no whole words, some rows twice, some from nowhere, labels of all sizes."""
    mesh = devices.create_mesh("cpu", num_devices)
    rng = np.random.default_rng(0)
    size, batch_size = 12 * num_devices, 6 * num_devices
    images = rng.integers(0, 256, (size, *image_shape), np.uint8)
    labels = rng.integers(0, 2**31 - 1, size).astype(np.int32)
    indices = rng.integers(0, size, batch_size).astype(np.int32)
    indices[[1, -1]] = -1
    indices[[0, 2]] = size - 1
    cut, everywhere = devices.sharded(mesh), devices.replicated(mesh)
    examples = Examples(
        devices.place(images, cut),
        devices.place(labels, cut),
        *(devices.place(np.float32(moment)[...], everywhere) for moment in (0.25, 0.5)),
    )
    exchange = jax.jit(
        jax.shard_map(
            fetch,
            mesh=mesh,
            in_specs=(specs(SHARDED), P("data")),
            out_specs=(specs(SHARDED), P("data")),
        )
    )
    rows, places = exchange(examples, devices.place(indices, cut))
    there = indices >= 0
    np.testing.assert_array_equal(np.asarray(rows.images)[there], images[indices[there]])
    np.testing.assert_array_equal(np.asarray(rows.labels)[there], labels[indices[there]])
    assert not np.asarray(rows.images)[~there].any()
    assert (float(rows.mean), float(rows.std)) == (0.25, 0.5)
    np.testing.assert_array_equal(places, np.where(there, np.arange(batch_size) % 6, -1))
    # Each device holds its own rows, and nothing else.
    assert {shard.data.shape for shard in rows.images.addressable_shards} == {(6, *image_shape)}
