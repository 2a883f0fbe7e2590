"""Training by the tree gives the same bits on every number of devices, and is the same training."""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import also, assert_same_bits, read_metrics, stored_state
from trainer import devices
from trainer.config import TrainConfig
from trainer.datasets import Dataset
from trainer.errors import UsageError
from trainer.run.loop import train
from trainer.schedules.cyclical import create_triangular_schedule
from trainer.step.batches import epoch_batches
from trainer.step.examples import place_examples
from trainer.step.networks import create_network
from trainer.step.optimizers import create_optimizer
from trainer.step.reductions import choose_reduction
from trainer.step.state import (
    TrainState,
    compile_first_state,
    train_state_init,
)
from trainer.step.train_step import create_train_step

IMAGE_SHAPE = (28, 28, 1)
NUM_TRAIN = 960
OPTIMIZERS = {
    "sgd": create_optimizer("sgd", 0.9, False, 0.0),
    "nesterov": create_optimizer("sgd", 0.9, True, 1e-3),
    "adamw": create_optimizer("adamw", 0.9, False, 1e-2),
}
RATES = {"sgd": (3e-3, 3e-2), "nesterov": (3e-3, 3e-2), "adamw": (1e-4, 2e-3)}


def run(
    mnist: Dataset,
    num_devices: int,
    *,
    model_name: str = "mlp",
    optimizer: str = "nesterov",
    num_steps: int = 30,
    batch_size: int = 120,
    reduction: str = "tree",
    gradient_shards: int = 8,
    accumulation_steps: int = 1,
) -> tuple[TrainState, list[dict]]:
    """Train on standardised images, on some devices; return the last state and all metrics."""
    mesh = devices.create_mesh("cpu", num_devices)
    replicated = devices.replicated(mesh)
    model, tx = create_network(model_name, (28, 28, 1), 10), OPTIMIZERS[optimizer]
    schedule = create_triangular_schedule(*RATES[optimizer], 13)
    state = compile_first_state(train_state_init(model, tx, 0), replicated)()
    images, labels = mnist.train_images[:NUM_TRAIN], mnist.train_labels[:NUM_TRAIN]
    examples = place_examples(images, labels, mnist.pixel_mean, mnist.pixel_std, replicated)
    batches = epoch_batches(0, 0, NUM_TRAIN, batch_size)
    batches = jax.device_put(batches, devices.sharded(mesh, axis=1))
    train_step = create_train_step(
        model,
        tx,
        schedule,
        mesh,
        reduction=reduction,
        gradient_shards=gradient_shards,
        accumulation_steps=accumulation_steps,
    )
    train_step = train_step.lower(state, examples, batches).compile()
    all_metrics = []
    for _ in range(num_steps):
        state, metrics = train_step(state, examples, batches)
        all_metrics.append(jax.device_get(metrics))
    return state, all_metrics


@pytest.mark.parametrize(
    ("optimizer", "all_num_devices"),
    [("nesterov", [8]), also("nesterov", [2, 4]), also("adamw", [8])],
)
def test_the_same_bits_on_every_number_of_devices(
    mnist: Dataset, optimizer: str, all_num_devices: list[int]
) -> None:
    """Shards of 15 examples, so no division happens to be exact."""
    expected = run(mnist, 1, optimizer=optimizer)
    for num_devices in all_num_devices:
        assert_same_bits(run(mnist, num_devices, optimizer=optimizer), expected)


@pytest.mark.system
@pytest.mark.parametrize("model_name", ["cnn", "small_cnn"])
def test_the_same_bits_with_convolutions(mnist: Dataset, model_name: str) -> None:
    """On 2 and 4 devices, too, in the slow tier."""
    given = {"model_name": model_name, "num_steps": 6, "batch_size": 96}
    assert_same_bits(run(mnist, 8, **given), run(mnist, 1, **given))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("model_name", "batch_size"), [("mlp", 120), ("cnn", 64), ("small_cnn", 128)]
)
def test_the_same_bits_after_500_steps(
    mnist: Dataset, model_name: str, batch_size: int, optimizer: str
) -> None:
    given = {
        "model_name": model_name,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "num_steps": 500,
    }
    expected = run(mnist, 1, **given)
    for num_devices in (2, 4, 8):
        assert_same_bits(run(mnist, num_devices, **given), expected)


@pytest.mark.system
@pytest.mark.parametrize(("gradient_shards", "all_num_devices"), [(4, [1, 4]), (16, [2, 8])])
def test_other_numbers_of_shards(
    mnist: Dataset, gradient_shards: int, all_num_devices: list[int]
) -> None:
    given = {"gradient_shards": gradient_shards, "num_steps": 10, "batch_size": 96}
    states = [run(mnist, num_devices, **given) for num_devices in all_num_devices]
    for state in states[1:]:
        assert_same_bits(state, states[0])
    other, _ = run(mnist, 8, num_steps=10, batch_size=96)  # 8 shards
    kernel = np.asarray(states[0][0].params["dense1"]["kernel"])
    assert not np.array_equal(kernel, other.params["dense1"]["kernel"])
    np.testing.assert_allclose(kernel, other.params["dense1"]["kernel"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model_name", ["mlp", also("cnn")])
def test_the_tree_takes_the_step_of_allreduce(mnist: Dataset, model_name: str) -> None:
    """Against the whole batch in one piece on one device."""
    given = {"model_name": model_name, "optimizer": "sgd", "num_steps": 1, "batch_size": 96}
    tree, tree_metrics = run(mnist, 8, **given)
    plain, plain_metrics = run(mnist, 1, reduction="allreduce", **given)
    for name, value in plain_metrics[0].items():
        np.testing.assert_allclose(tree_metrics[0][name], value, rtol=1e-5)
    # After one step the momentum is the gradient.
    for one, other in zip(
        jax.tree.leaves(tree.opt_state), jax.tree.leaves(plain.opt_state), strict=True
    ):
        one, other = np.asarray(one), np.asarray(other)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * np.abs(other).max())


def test_the_rate_returned_is_the_rate_applied(mnist: Dataset) -> None:
    before, _ = run(mnist, 4, optimizer="sgd", num_steps=8)
    after, metrics = run(mnist, 4, optimizer="sgd", num_steps=9)
    schedule = create_triangular_schedule(*RATES["sgd"], 13)
    rates = np.array([m["learning_rate"] for m in metrics])
    np.testing.assert_array_equal(rates, schedule(np.arange(9)))
    # Of SGD the momentum is the direction.
    direction = optax.tree_utils.tree_get(after.opt_state, "trace")["dense2"]["bias"]
    bias_before, bias_after = (
        np.asarray(state.params["dense2"]["bias"], np.float64) for state in (before, after)
    )
    np.testing.assert_allclose((bias_before - bias_after) / direction, rates[-1], rtol=1e-4)


def test_state_is_replicated_and_donated(mnist: Dataset) -> None:
    mesh = devices.create_mesh("cpu", 4)
    replicated = devices.replicated(mesh)
    model, tx = create_network("mlp", (28, 28, 1), 10), OPTIMIZERS["sgd"]
    first = state = compile_first_state(train_state_init(model, tx, 0), replicated)()
    examples = place_examples(
        mnist.train_images[:64], mnist.train_labels[:64], 0.0, 1.0, replicated
    )
    batches = jax.device_put(epoch_batches(0, 0, 64, 64), devices.sharded(mesh, axis=1))
    schedule = create_triangular_schedule(3e-3, 3e-2, 5)
    train_step = create_train_step(model, tx, schedule, mesh, reduction="tree", gradient_shards=8)
    for _ in range(3):
        state, metrics = train_step(state, examples, batches)
    assert state.step.dtype == jnp.int32
    assert int(state.step) == 3
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    for leaf in jax.tree.leaves((state, metrics)):
        assert leaf.sharding.is_equivalent_to(replicated, leaf.ndim)
        for shard in leaf.addressable_shards[1:]:
            np.testing.assert_array_equal(shard.data, leaf.addressable_shards[0].data)


WRONG = [
    (3, 8, 24, "3 devices cannot share .*=8 .*use --num_devices=1 or 2 or 4 or 8"),
    (8, 4, 24, "8 devices cannot share .*=4 .*use --num_devices=1 or 2 or 4"),
    (4, 8, 100, "--batch_size=100 cannot .*--gradient_shards=8 .*such as 96 or 104"),
    (2, 16, 8, "--batch_size=8 cannot .*--gradient_shards=16 .*such as 16"),
]


@pytest.mark.parametrize(("num_devices", "shards", "batch_size", "message"), WRONG)
def test_where_the_tree_does_not_fit(
    num_devices: int,
    shards: int,
    batch_size: int,
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is refused; auto takes allreduce and says why; allreduce does not mind."""
    mesh = devices.create_mesh("cpu", num_devices)
    with pytest.raises(UsageError, match=f"--reduction=tree .*{message}; or --reduction=allreduce"):
        choose_reduction("tree", shards, batch_size, mesh)
    with caplog.at_level(logging.INFO, "trainer"):
        assert choose_reduction("allreduce", shards, batch_size, mesh)[0] == "allreduce"
        assert not caplog.records
        assert choose_reduction("auto", shards, batch_size, mesh)[0] == "allreduce"
    assert "--reduction=auto takes allreduce, not tree: " in caplog.text


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
def test_auto_is_the_tree_on_cpu(num_devices: int, caplog: pytest.LogCaptureFixture) -> None:
    mesh = devices.create_mesh("cpu", num_devices)
    with caplog.at_level(logging.INFO, "trainer"):
        assert choose_reduction("auto", 0, 128, mesh) == ("tree", 8)
    assert not caplog.records


@pytest.mark.parametrize(
    ("batch_size", "shards"),
    [(8, 8), (64, 8), (128, 8), (129 * 8, 8), (256, 16), (512, 32), (1024, 64), (3000, 8)],
)
@pytest.mark.parametrize("num_devices", [1, 8])
def test_shards_are_chosen_by_the_batch_alone(
    batch_size: int, shards: int, num_devices: int
) -> None:
    """At least 8, and of at most 16 examples where powers of two allow it."""
    mesh = devices.create_mesh("cpu", num_devices)
    assert choose_reduction("auto", 0, batch_size, mesh) == ("tree", shards)


@pytest.fixture
def config(config: TrainConfig) -> TrainConfig:
    """On standardised inputs, whose division once had other bits on other devices."""
    return dataclasses.replace(config, standardize=True)


def test_stop_on_eight_and_resume_on_two_is_no_stop_on_four(
    config: TrainConfig, tmp_path: Path
) -> None:
    """Parameters, training records and test records; the stop is in mid-epoch and mid-cycle."""
    train(dataclasses.replace(config, num_devices=4), tmp_path / "unbroken")
    train(dataclasses.replace(config, num_devices=8, num_steps=31), tmp_path / "broken")
    train(dataclasses.replace(config, num_devices=2), tmp_path / "broken")
    assert_same_bits(*(stored_state(tmp_path / name, 60) for name in ("broken", "unbroken")))
    broken, unbroken = (read_metrics(tmp_path / name) for name in ("broken", "unbroken"))
    # A run tests its model where it ends: once more in the broken one.
    assert [line for line in broken if line["step"] != 31 or line["split"] == "train"] == unbroken


def test_a_run_keeps_its_reduction(config: TrainConfig, tmp_path: Path) -> None:
    def reduction() -> str:
        return json.loads((tmp_path / "config.json").read_text())["reduction"]

    config = dataclasses.replace(config, batch_size=120)
    train(dataclasses.replace(config, num_devices=2, num_steps=1), tmp_path)
    assert reduction() == "tree"
    with pytest.raises(UsageError, match=r"of the run in the workdir\): 3 devices"):
        train(dataclasses.replace(config, num_devices=3, num_steps=2), tmp_path)
    wanted = dataclasses.replace(config, gradient_shards=4, num_devices=2, num_steps=2)
    with pytest.raises(UsageError, match=r"gradient_shards +8 +4\n"):
        train(wanted, tmp_path)
    wanted = dataclasses.replace(config, reduction="allreduce", num_devices=2, num_steps=2)
    with pytest.raises(UsageError, match=r"reduction +tree +allreduce\n"):
        train(wanted, tmp_path)
    train(wanted, tmp_path, ["reduction"])
    train(dataclasses.replace(config, num_devices=2, num_steps=3), tmp_path)
    assert reduction() == "allreduce"
