"""A single flipped bit on one device is seen, and named."""

import jax
import numpy as np
import pytest

from trainer import devices
from trainer.errors import RunError
from trainer.step.networks import create_network
from trainer.step.optimizers import create_optimizer
from trainer.step.replicas import create_replica_check
from trainer.step.state import TrainState, compile_first_state, train_state_init


def first_state(num_devices: int) -> tuple[TrainState, jax.sharding.Mesh]:
    mesh = devices.create_mesh("cpu", num_devices)
    tx = create_optimizer("adamw", 0.9, False, 0.0)
    init = train_state_init(create_network("mlp", (28, 28, 1), 10), tx, 0)
    one = compile_first_state(init, devices.replicated(devices.create_mesh("cpu", 1)))()
    return jax.device_put(one, devices.replicated(mesh)), mesh


def flip(leaf: jax.Array, device: int, position: int, bit: int) -> jax.Array:
    """The same array, with one bit flipped in the copy of one device."""
    copies = [np.array(shard.data) for shard in leaf.addressable_shards]
    copies[device].reshape(-1).view(np.uint32)[position] ^= np.uint32(1 << bit)
    arrays = [
        jax.device_put(copy, shard.device)
        for copy, shard in zip(copies, leaf.addressable_shards, strict=True)
    ]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, arrays)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_equal_replicas_pass(num_devices: int) -> None:
    state, mesh = first_state(num_devices)
    create_replica_check(mesh, state)(state)


@pytest.mark.parametrize(
    ("device", "position", "bit"), [(0, 0, 0), (5, 0, 31), (7, 1279, 0), (3, 700, 17)]
)
def test_one_flipped_bit_is_named(device: int, position: int, bit: int) -> None:
    state, mesh = first_state(8)
    check = create_replica_check(mesh, state)
    kernel = flip(state.params["dense2"]["kernel"], device, position, bit)
    params = state.params | {"dense2": state.params["dense2"] | {"kernel": kernel}}
    name = f"{jax.devices()[device]} differs"
    with pytest.raises(RunError, match="different bits of params/dense2/kernel") as error:
        check(state.replace(params=params))
    assert name in str(error.value)


def test_a_counter_that_differs_is_named() -> None:
    state, mesh = first_state(8)
    with pytest.raises(RunError, match="different bits of step"):
        create_replica_check(mesh, state)(state.replace(step=flip(state.step, 2, 0, 0)))
