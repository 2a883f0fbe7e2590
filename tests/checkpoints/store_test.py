"""What is saved comes back bit for bit, on any number of devices."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from tests.helpers import assert_same_bits, checkpoint_steps
from trainer import devices
from trainer.checkpoints.keeping import Keeping
from trainer.checkpoints.store import Checkpointer, DamagedError, restore
from trainer.errors import RunError
from trainer.step.networks import create_network
from trainer.step.optimizers import create_optimizer
from trainer.step.state import TrainState, compile_first_state, leaf_name, train_state_init


def init():
    tx = create_optimizer("adamw", 0.9, False, 0.1)
    return train_state_init(create_network("mlp", (28, 28, 1), 10), tx, 0)


def folder(workdir: Path, step: int) -> epath.Path:
    return epath.Path(workdir) / "checkpoints" / str(step)


def replicated(num_devices: int):
    return devices.replicated(devices.create_mesh("cpu", num_devices))


@functools.cache
def first_state(num_devices: int) -> TrainState:
    if num_devices > 1:
        return jax.device_put(first_state(1), replicated(num_devices))
    return compile_first_state(init(), replicated(1))()


def state_at(step: int, num_devices: int = 8) -> TrainState:
    """A new state whose numbers tell the step."""
    return jax.tree.map(lambda leaf: leaf + step, first_state(num_devices))


def leaves(state: TrainState) -> dict[str, np.ndarray]:
    found = jax.tree_util.tree_flatten_with_path(state)[0]
    return {leaf_name(path): np.asarray(leaf) for path, leaf in found}


@pytest.mark.parametrize("saved_on", [8, 1])
def test_round_trip(tmp_path: Path, saved_on: int) -> None:
    state = state_at(5, saved_on)
    with Checkpointer(tmp_path, Keeping(2)) as checkpointer:
        checkpointer.save(state, 5, {"step": 5, "config": {"lr_max": 0.03}})
    restored = restore(folder(tmp_path, 5), 5)
    assert_same_bits(restored.leaves, leaves(state))
    assert restored.leaves["step"] == 5
    assert restored.meta["config"] == {"lr_max": 0.03}


def test_the_newest_are_kept(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, Keeping(2)) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(state_at(step), step, {"step": step})
    assert checkpoint_steps(tmp_path) == {2, 3}


def test_a_save_survives_the_donation_of_its_state(tmp_path: Path) -> None:
    """The step that follows may overwrite the buffers at once."""
    overwrite = jax.jit(lambda s: jax.tree.map(lambda leaf: leaf * 0 - 1, s), donate_argnums=0)
    with Checkpointer(tmp_path, Keeping(20)) as checkpointer:
        for step in range(1, 11):
            state = state_at(step, 2)
            checkpointer.save(state, step, {"step": step})
            jax.block_until_ready(overwrite(state))
    for step in range(1, 11):
        found = restore(folder(tmp_path, step), step).leaves
        assert_same_bits(found, leaves(state_at(step, 1)))


def test_a_step_that_exists_is_not_saved_again_silently(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, Keeping(2)) as checkpointer:
        checkpointer.save(state_at(5), 5, {"step": 5})
        with pytest.raises(RunError, match="step 5 was not saved"):
            checkpointer.save(state_at(5), 5, {"step": 5})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_saved(tmp_path: Path, bad: float) -> None:
    state = state_at(1)
    bias = state.params["dense2"]["bias"].at[3].set(bad)
    params = state.params | {"dense2": state.params["dense2"] | {"bias": bias}}
    with (
        Checkpointer(tmp_path, Keeping(2)) as checkpointer,
        pytest.raises(RunError, match="params/dense2/bias is not finite after 1 steps"),
    ):
        checkpointer.save(state.replace(params=params), 1, {"step": 1})


def test_meta_is_verified(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, Keeping(2)) as checkpointer:
        checkpointer.save(state_at(1), 1, {"step": 1, "note": "abcdef"})
    path = tmp_path / "checkpoints" / "1" / "meta" / "metadata"
    path.write_text(path.read_text().replace("abcdef", "abcdeg"))
    with pytest.raises(DamagedError, match="meta differs from its digest"):
        restore(folder(tmp_path, 1), 1)


@pytest.mark.parametrize("form", [None, 1, 3])
def test_another_form_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: int | None
) -> None:
    """The first version wrote no form; its networks had parameters of other names."""
    monkeypatch.setattr("trainer.checkpoints.store._FORMAT", form)
    versions = {"cyclic-trainer": "9.8.7"}
    with Checkpointer(tmp_path, Keeping(2)) as checkpointer:
        checkpointer.save(state_at(1), 1, {"step": 1, "versions": versions})
    monkeypatch.undo()
    with pytest.raises(RunError, match=r"made by cyclic-trainer 9\.8\.7, .* another form; finish"):
        restore(folder(tmp_path, 1), 1)
