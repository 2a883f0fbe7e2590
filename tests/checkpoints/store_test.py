"""What is saved comes back bit for bit, on any number of devices."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from tests.helpers import assert_same_bits, checkpoint_steps
from trainer import devices
from trainer.checkpoints.store import Checkpointer, DamagedError, read_meta, restore
from trainer.errors import RunError
from trainer.step.networks import create_model
from trainer.step.optimizers import create_optimizer
from trainer.step.state import (
    TrainState,
    abstract_train_state,
    create_train_state,
    train_state_init,
)


def init():
    tx = create_optimizer("adamw", 0.9, False, 0.1)
    return train_state_init(create_model("mlp", 10), tx, 0, (28, 28, 1))


def folder(workdir: Path, step: int) -> epath.Path:
    return epath.Path(workdir) / "checkpoints" / str(step)


def replicated(num_devices: int):
    return devices.replicated(devices.create_mesh("cpu", num_devices))


@functools.cache
def first_state(num_devices: int) -> TrainState:
    return create_train_state(init(), replicated(num_devices))


def state_at(step: int, num_devices: int = 8) -> TrainState:
    """A new state whose numbers tell the step."""
    return jax.tree.map(lambda leaf: leaf + step, first_state(num_devices))


@pytest.mark.parametrize(("saved_on", "restored_on"), [(8, 8), (8, 1), (1, 8), (2, 3)])
def test_round_trip(tmp_path: Path, saved_on: int, restored_on: int) -> None:
    state = state_at(5, saved_on)
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        checkpointer.save(state, 5, {"step": 5, "config": {"lr_max": 0.03}})
    abstract = abstract_train_state(init(), replicated(restored_on))
    restored = restore(folder(tmp_path, 5), 5, abstract)
    assert_same_bits(restored.state, state)
    assert restored.meta["config"] == {"lr_max": 0.03}
    for leaf in jax.tree.leaves(restored.state):
        assert len(leaf.sharding.device_set) == restored_on


def test_the_newest_are_kept(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(state_at(step), step, {"step": step})
    assert checkpoint_steps(tmp_path) == {2, 3}


def test_a_save_survives_the_donation_of_its_state(tmp_path: Path) -> None:
    """The step that follows may overwrite the buffers at once."""
    overwrite = jax.jit(lambda s: jax.tree.map(lambda leaf: leaf * 0 - 1, s), donate_argnums=0)
    with Checkpointer(tmp_path, keep=20) as checkpointer:
        for step in range(1, 11):
            state = state_at(step, 2)
            checkpointer.save(state, step, {"step": step})
            jax.block_until_ready(overwrite(state))
    abstract = abstract_train_state(init(), replicated(1))
    for step in range(1, 11):
        assert_same_bits(restore(folder(tmp_path, step), step, abstract).state, state_at(step, 1))


def test_a_step_that_exists_is_not_saved_again_silently(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        checkpointer.save(state_at(5), 5, {"step": 5})
        with pytest.raises(RunError, match="step 5 was not saved"):
            checkpointer.save(state_at(5), 5, {"step": 5})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_saved(tmp_path: Path, bad: float) -> None:
    state = state_at(1)
    bias = state.params["Dense_1"]["bias"].at[3].set(bad)
    params = state.params | {"Dense_1": state.params["Dense_1"] | {"bias": bias}}
    with (
        Checkpointer(tmp_path, keep=2) as checkpointer,
        pytest.raises(RunError, match="params/Dense_1/bias is not finite after 1 steps"),
    ):
        checkpointer.save(state.replace(params=params), 1, {"step": 1})


def test_meta_is_verified(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        checkpointer.save(state_at(1), 1, {"step": 1, "note": "abcdef"})
    path = tmp_path / "checkpoints" / "1" / "meta" / "metadata"
    path.write_text(path.read_text().replace("abcdef", "abcdeg"))
    with pytest.raises(DamagedError, match="meta differs from its digest"):
        read_meta(folder(tmp_path, 1))


def test_other_leaves_are_no_damage(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        checkpointer.save(state_at(1), 1, {"step": 1})
    tx = create_optimizer("sgd", 0.9, False, 0.0)
    sgd = train_state_init(create_model("mlp", 10), tx, 0, (28, 28, 1))
    with pytest.raises(RunError, match="made by another version: only one side has opt_state"):
        restore(folder(tmp_path, 1), 1, abstract_train_state(sgd, replicated(1)))
