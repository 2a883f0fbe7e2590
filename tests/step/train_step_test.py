"""The sharded step is one step on the whole batch, and applies the rate that it returns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from tests.helpers import also, schedule_named
from trainer import devices
from trainer.datasets import Dataset
from trainer.schedules.cyclical import (
    create_momentum_schedule,
    create_triangular_schedule,
)
from trainer.step.batches import epoch_batches
from trainer.step.eval_step import batches_of, create_evaluate
from trainer.step.examples import place_examples
from trainer.step.networks import create_network
from trainer.step.optimizers import create_optimizer
from trainer.step.state import (
    TrainState,
    abstract_train_state,
    compile_first_state,
    train_state_init,
)
from trainer.step.train_step import Metrics, create_train_step

SCHEDULE = create_triangular_schedule(3e-3, 3e-2, 5)
SGD = create_optimizer("sgd", 0.9, False, 0.0)
BATCH_SIZE = 64
NUM_TRAIN = 640


def run_steps(
    mnist: Dataset,
    num_devices: int,
    model_name: str = "mlp",
    num_steps: int = 1,
    tx: optax.GradientTransformation = SGD,
    schedule: optax.Schedule = SCHEDULE,
    reduction: str = "allreduce",
    momentum_schedule: optax.Schedule | None = None,
    label_smoothing: float = 0.0,
) -> tuple[TrainState, list[Metrics]]:
    """Train on the first images, on some devices."""
    mesh = devices.create_mesh("cpu", num_devices)
    replicated = devices.replicated(mesh)
    model = create_network(model_name, (28, 28, 1), 10)
    state = compile_first_state(train_state_init(model, tx, 0), replicated)()
    train_step = create_train_step(
        model,
        tx,
        schedule,
        mesh,
        reduction=reduction,
        momentum_schedule=momentum_schedule,
        label_smoothing=label_smoothing,
    )
    examples = place_examples(
        mnist.train_images[:NUM_TRAIN], mnist.train_labels[:NUM_TRAIN], 0.13, 0.31, replicated
    )
    batches = epoch_batches(0, 0, NUM_TRAIN, BATCH_SIZE)
    batches = jax.device_put(batches, devices.sharded(mesh, axis=1))
    all_metrics = []
    for _ in range(num_steps):
        state, metrics = train_step(state, examples, batches)
        all_metrics.append(jax.device_get(metrics))
    return state, all_metrics


def test_there_are_devices_to_test_with() -> None:
    assert len(jax.devices()) == 8


@pytest.mark.parametrize("model_name", ["mlp", also("cnn")])
def test_one_step_on_eight_devices_is_one_step_on_one(mnist: Dataset, model_name: str) -> None:
    state_1, metrics_1 = run_steps(mnist, 1, model_name)
    state_8, metrics_8 = run_steps(mnist, 8, model_name)
    mesh = devices.create_mesh("cpu", 1)
    start = compile_first_state(
        train_state_init(create_network(model_name, (28, 28, 1), 10), SGD, 0),
        devices.replicated(mesh),
    )()
    for name in ("loss", "accuracy", "learning_rate"):
        np.testing.assert_allclose(metrics_8[0][name], metrics_1[0][name], rtol=1e-5)
    # The updates, not the parameters: a gradient 8 times too large would hide in the parameters.
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(state_1.opt_state))
    for before, one, eight in zip(
        jax.tree.leaves(start.params),
        jax.tree.leaves(state_1.params),
        jax.tree.leaves(state_8.params),
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(eight), np.asarray(one), rtol=1e-5, atol=1e-8)
        assert not np.array_equal(before, one)
    for one, eight in zip(
        jax.tree.leaves(state_1.opt_state), jax.tree.leaves(state_8.opt_state), strict=True
    ):
        # Sums of a batch cancel: an entry near zero is as exact as the largest, not as itself.
        np.testing.assert_allclose(np.asarray(eight), np.asarray(one), rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_step_is_plain_gradient_descent(mnist: Dataset, smoothing: float) -> None:
    """Against a step written without shard_map, with the whole batch in one piece."""
    plain = create_optimizer("sgd", 0.0, False, 0.0)
    state, metrics = run_steps(mnist, 8, "mlp", num_steps=1, tx=plain, label_smoothing=smoothing)
    model = create_network("mlp", (28, 28, 1), 10)
    params = train_state_init(model, plain, 0)().params
    indices = np.asarray(epoch_batches(0, 0, NUM_TRAIN, BATCH_SIZE))[0]
    inputs = (mnist.train_images[indices] / np.float32(255) - 0.13) / 0.31
    labels = mnist.train_labels[indices]

    def loss_fn(params: optax.Params) -> jax.Array:
        log_p = jax.nn.log_softmax(model.apply(params, {}, inputs))
        of_labels = log_p[jnp.arange(len(labels)), labels]
        return -jnp.mean((1 - smoothing) * of_labels + smoothing * log_p.mean(axis=-1))

    loss, grads = jax.value_and_grad(loss_fn)(params)
    np.testing.assert_allclose(metrics[0]["loss"], loss, rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - np.float32(3e-3) * g, params, grads)
    for one, other in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-5, atol=1e-8)


def test_the_rate_returned_is_the_rate_applied(mnist: Dataset) -> None:
    """With plain SGD the update divided by the gradient is the rate."""
    plain = create_optimizer("sgd", 1e-30, False, 0.0)  # keeps the last gradient in its state
    before, _ = run_steps(mnist, 2, num_steps=3, tx=plain)
    after, metrics = run_steps(mnist, 2, num_steps=4, tx=plain)
    bias = lambda state: np.asarray(state.params["dense2"]["bias"], np.float64)  # noqa: E731
    trace = after.opt_state["momentum"].trace
    gradient = np.asarray(trace["dense2"]["bias"], np.float64)
    applied = (bias(before) - bias(after)) / gradient
    np.testing.assert_allclose(applied, metrics[3]["learning_rate"], rtol=1e-3)


def test_the_counter_drives_the_rate(mnist: Dataset) -> None:
    state, metrics = run_steps(mnist, 2, num_steps=12)
    assert state.step.dtype == jnp.int32
    assert int(state.step) == 12
    rates = [m["learning_rate"] for m in metrics]
    np.testing.assert_array_equal(rates, SCHEDULE(jnp.arange(12)))


@pytest.mark.parametrize(
    ("name", "reduction"),
    [also("triangular2", "tree"), also("exp_range", "allreduce"), ("exp_range_boundaries", "tree")],
)
def test_the_bits_of_the_schedules_in_the_step(mnist: Dataset, name: str, reduction: str) -> None:
    """Compiled with the update that reads them, they are what they are alone."""
    rates = schedule_named(name, 3e-3, 3e-2, 5, 0.97, 0.5)
    momenta = create_momentum_schedule(name, 0.83, 0.94, 5, 0.97, 0.5)
    tx = create_optimizer("sgd", None, True, 1e-4)
    _, metrics = run_steps(
        mnist,
        2,
        num_steps=24,
        tx=tx,
        schedule=rates,
        reduction=reduction,
        momentum_schedule=momenta,
    )
    steps = np.arange(24)
    np.testing.assert_array_equal([m["learning_rate"] for m in metrics], rates(steps))
    np.testing.assert_array_equal([m["momentum"] for m in metrics], momenta(steps))


@pytest.mark.parametrize("reduction", ["allreduce", "tree"])
def test_the_momentum_returned_is_the_momentum_applied(mnist: Dataset, reduction: str) -> None:
    """The trace less the gradient, divided by the trace before, is the momentum."""
    momenta = create_momentum_schedule("triangular", 0.5, 0.9, 6, 1.0, 0.5)
    cycled = create_optimizer("sgd", None, False, 0.0)
    still = create_optimizer("sgd", 0.0, False, 0.0)
    given = {"reduction": reduction, "momentum_schedule": momenta, "tx": cycled}
    before, _ = run_steps(mnist, 2, num_steps=3, **given)
    after, metrics = run_steps(mnist, 2, num_steps=4, **given)
    assert [float(m["momentum"]) for m in metrics] == [float(momenta(step)) for step in range(4)]
    assert float(metrics[3]["momentum"]) == 0.5
    assert "momentum" not in run_steps(mnist, 2, tx=still)[1][0]
    trace_before, trace_after = (
        np.asarray(state.opt_state["momentum"].trace["dense2"]["bias"], np.float64)
        for state in (before, after)
    )
    rate = float(metrics[3]["learning_rate"])
    moved = [np.asarray(state.params["dense2"]["bias"], np.float64) for state in (before, after)]
    np.testing.assert_allclose((moved[0] - moved[1]) / rate, trace_after, rtol=1e-3)
    model = create_network("mlp", (28, 28, 1), 10)
    indices = np.asarray(epoch_batches(0, 0, NUM_TRAIN, BATCH_SIZE))[3]
    inputs = (mnist.train_images[indices] / np.float32(255) - 0.13) / 0.31
    labels = mnist.train_labels[indices]

    def loss_fn(params: optax.Params) -> jax.Array:
        log_p = jax.nn.log_softmax(model.apply(params, {}, inputs))
        return -jnp.mean(log_p[jnp.arange(len(labels)), labels])

    grad = np.asarray(jax.grad(loss_fn)(jax.device_get(before.params))["dense2"]["bias"])
    np.testing.assert_allclose((trace_after - grad) / trace_before, 0.5, rtol=1e-3)


def test_state_is_replicated_and_donated(mnist: Dataset) -> None:
    mesh = devices.create_mesh("cpu", 4)
    replicated = devices.replicated(mesh)
    model = create_network("mlp", (28, 28, 1), 10)
    init = train_state_init(model, SGD, 0)
    state = compile_first_state(init, replicated)()
    examples = place_examples(
        mnist.train_images[:64], mnist.train_labels[:64], 0.0, 1.0, replicated
    )
    batches = jax.device_put(epoch_batches(0, 0, 64, 64), devices.sharded(mesh, axis=1))
    train_step = create_train_step(model, SGD, SCHEDULE, mesh)
    new_state, metrics = train_step(state, examples, batches)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    for leaf in jax.tree.leaves((new_state, metrics)):
        assert leaf.sharding.is_equivalent_to(replicated, leaf.ndim)
        assert len(leaf.sharding.device_set) == 4
    for leaf in jax.tree.leaves(new_state):
        for shard in leaf.addressable_shards[1:]:
            np.testing.assert_array_equal(shard.data, leaf.addressable_shards[0].data)
    abstract = abstract_train_state(init, replicated)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), abstract) == jax.tree.map(
        lambda a: (a.shape, a.dtype), new_state
    )
    assert batches.sharding.spec == P(None, "data")


@pytest.mark.parametrize("num_devices", [1, 3])
def test_evaluation_counts_every_test_example_once(mnist: Dataset, num_devices: int) -> None:
    mesh = devices.create_mesh("cpu", num_devices)
    model = create_network("mlp", (28, 28, 1), 10)
    params = train_state_init(model, SGD, 0)().params
    examples = place_examples(
        mnist.test_images, mnist.test_labels, 0.0, 1.0, devices.replicated(mesh)
    )
    on_devices = jax.device_put(params, devices.replicated(mesh))
    evaluate = create_evaluate(model, mesh, on_devices, {}, examples)
    (sums,) = evaluate([(on_devices, {})], batches_of(examples, 10000, mesh))
    logits = np.asarray(
        model.apply(params, {}, mnist.test_images.astype(np.float32) / np.float32(255))
    )
    assert int(sums["examples"]) == 10000
    assert int(sums["correct"]) == (logits.argmax(-1) == mnist.test_labels).sum()
    log_p = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    loss = -log_p[np.arange(10000), mnist.test_labels].sum()
    np.testing.assert_allclose(sums["loss"], loss, rtol=1e-5)
