"""What is saved comes back bit for bit, on any number of devices."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from trainer import devices
from trainer.checkpoints import Checkpoints
from trainer.errors import RunError
from trainer.models import create_model
from trainer.optimizers import create_optimizer
from trainer.state import TrainState, abstract_train_state, create_train_state, train_state_init


def init():
    tx = create_optimizer("adamw", 0.9, False, 0.1)
    return train_state_init(create_model("mlp", 10), tx, 0, (28, 28, 1))


def replicated(num_devices: int):
    return devices.replicated(devices.create_mesh("cpu", num_devices))


@functools.cache
def first_state(num_devices: int) -> TrainState:
    return create_train_state(init(), replicated(num_devices))


def state_at(step: int, num_devices: int = 8) -> TrainState:
    """A new state whose numbers tell the step."""
    return jax.tree.map(lambda leaf: leaf + step, first_state(num_devices))


def assert_same_bits(one: TrainState, other: TrainState) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(("saved_on", "restored_on"), [(8, 8), (8, 1), (1, 8), (2, 3)])
def test_round_trip(tmp_path: Path, saved_on: int, restored_on: int) -> None:
    state = state_at(5, saved_on)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(state, 5, {"config": {"lr_max": 0.03}})
    stored = Checkpoints(tmp_path)
    assert stored.latest_step() == 5
    assert stored.read_meta(5) == {"config": {"lr_max": 0.03}}
    abstract = abstract_train_state(init(), replicated(restored_on))
    restored = stored.restore(5, abstract)
    assert_same_bits(restored, state)
    assert all(len(leaf.sharding.device_set) == restored_on for leaf in jax.tree.leaves(restored))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state_at(step), step, {})
    names = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()}
    assert names == {"2", "3"}


def test_a_save_survives_the_donation_of_its_state(tmp_path: Path) -> None:
    """The step that follows may overwrite the buffers at once."""
    overwrite = jax.jit(lambda s: jax.tree.map(lambda leaf: leaf * 0 - 1, s), donate_argnums=0)
    with Checkpoints(tmp_path, keep=20) as checkpoints:
        for step in range(1, 11):
            state = state_at(step, 2)
            checkpoints.save(state, step, {})
            jax.block_until_ready(overwrite(state))
    abstract = abstract_train_state(init(), replicated(1))
    for step in range(1, 11):
        assert_same_bits(Checkpoints(tmp_path).restore(step, abstract), state_at(step, 1))


def test_nothing_is_written_by_reading(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").latest_step() is None
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_exists_is_not_saved_again_silently(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(state_at(5), 5, {})
        with pytest.raises(RunError, match="step 5 was not saved"):
            checkpoints.save(state_at(5), 5, {})


def test_a_failed_save_surfaces(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.directory.rmdir()
        checkpoints.directory.write_text("a file in the way")
        checkpoints.save(state_at(6), 6, {})
        with pytest.raises(RunError, match=r"could not be written to .*checkpoints: .*intact"):
            checkpoints.wait()
        checkpoints.directory.unlink()
