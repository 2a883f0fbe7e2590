"""The first state is the same bits wherever it is made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import also
from trainer import devices
from trainer.step.networks import create_network
from trainer.step.optimizers import create_optimizer
from trainer.step.state import abstract_train_state, compile_first_state, train_state_init


@pytest.mark.parametrize("model", ["mlp", also("cnn")])
def test_first_state_does_not_depend_on_the_devices(model: str) -> None:
    tx = create_optimizer("adamw", 0.9, False, 0.1)
    init = train_state_init(create_network(model, (28, 28, 1), 10), tx, 3)
    one = compile_first_state(init, devices.replicated(devices.create_mesh("cpu", 1)))()
    many = compile_first_state(init, devices.replicated(devices.create_mesh("cpu", 8)))()
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("model", ["mlp", also("cnn")])
def test_first_state_is_that_of_a_program_compiled_for_speed(model: str) -> None:
    tx = create_optimizer("adamw", 0.9, False, 0.1)
    init = train_state_init(create_network(model, (28, 28, 1), 10), tx, 3)
    quick = compile_first_state(init, devices.replicated(devices.create_mesh("cpu", 1)))()
    for a, b in zip(jax.tree.leaves(quick), jax.tree.leaves(jax.jit(init)()), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_seed_changes_the_parameters_and_step_is_zero() -> None:
    tx = create_optimizer("sgd", 0.9, False, 0.0)
    model = create_network("mlp", (28, 28, 1), 10)
    zero, one = (train_state_init(model, tx, seed)() for seed in (0, 1))
    assert zero.step.dtype == jnp.int32
    assert int(zero.step) == 0
    kernels = [state.params["dense1"]["kernel"] for state in (zero, one)]
    assert not np.array_equal(*kernels)


def test_abstract_state_describes_the_state() -> None:
    tx = create_optimizer("adamw", 0.9, False, 0.0)
    init = train_state_init(create_network("mlp", (28, 28, 1), 10), tx, 0)
    sharding = devices.replicated(devices.create_mesh("cpu", 4))
    abstract, state = abstract_train_state(init, sharding), compile_first_state(init, sharding)()
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert b.sharding.is_equivalent_to(a.sharding, b.ndim)
