"""Batch norm and dropout in the step: the plain definitions, and the same bits on any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.helpers import also, assert_same_bits
from trainer import devices
from trainer.datasets import Dataset
from trainer.step.batches import epoch_batches
from trainer.step.examples import place_examples
from trainer.step.functional import Network
from trainer.step.optimizers import create_optimizer
from trainer.step.state import TrainState, compile_first_state, train_state_init
from trainer.step.train_step import create_train_step

RATE, BATCH_SIZE, NUM_TRAIN, SHARDS = 0.5, 64, 256, 8


class Normed(nnx.Module):
    """A batch norm of the pixels and a dense layer."""

    def __init__(self, *, rngs):
        self.norm = nnx.BatchNorm(784, rngs=rngs)
        self.dense = nnx.Linear(784, 10, rngs=rngs)

    def __call__(self, inputs):
        """Return logits."""
        return self.dense(self.norm(inputs.reshape(inputs.shape[0], -1)))


class Restless(nnx.Module):
    """A batch norm behind a convolution, dropout, and a loop over the rows."""

    def __init__(self, *, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.dense = nnx.Linear(14 * 4, 10, rngs=rngs)

    def __call__(self, inputs):
        """Return logits."""
        x = nnx.relu(self.norm(self.conv(inputs)))
        rows = self.dropout(x.reshape(*x.shape[:2], -1)).swapaxes(0, 1)
        # As in nnx.RNN: the types of shard_map do not let it pass.
        last, _ = jax.lax.scan(lambda sum, row: (sum + row, None), jnp.zeros_like(rows[0]), rows)
        return self.dense(last)


def run(
    mnist: Dataset, module: type, num_devices: int, num_steps: int, reduction: str
) -> tuple[TrainState, TrainState, list[dict]]:
    """The state before and after some steps on the first images, and the metrics."""
    mesh = devices.create_mesh("cpu", num_devices)
    everywhere = devices.replicated(mesh)
    network = Network(lambda key: module(rngs=nnx.Rngs(key)))
    tx = create_optimizer("sgd", 0.0, False, 0.0)
    state = compile_first_state(train_state_init(network, tx, 0), everywhere)()
    before = jax.device_get(state)
    images, labels = mnist.train_images[:NUM_TRAIN], mnist.train_labels[:NUM_TRAIN]
    examples = place_examples(images, labels, 0.0, 1.0, everywhere)
    batches = epoch_batches(0, 0, NUM_TRAIN, BATCH_SIZE)
    batches = jax.device_put(batches, devices.sharded(mesh, axis=1))
    schedule = optax.constant_schedule(RATE)
    step = create_train_step(
        network, tx, schedule, mesh, reduction=reduction, gradient_shards=SHARDS
    )
    step = step.lower(state, examples, batches).compile()
    metrics = []
    for _ in range(num_steps):
        state, of_step = step(state, examples, batches)
        metrics.append(jax.device_get(of_step))
    return before, jax.device_get(state), metrics


@pytest.mark.parametrize(
    ("reduction", "num_devices", "num_shards"),
    [
        also("allreduce", 1, 1),
        also("allreduce", 2, 2),
        also("tree", 1, SHARDS),
        ("tree", 4, SHARDS),
    ],
)
def test_batch_norm_is_its_formula_in_every_shard(
    mnist: Dataset, reduction: str, num_devices: int, num_shards: int
) -> None:
    """Gradients and running statistics, by hand in NumPy and float64."""
    before, after, metrics = run(mnist, Normed, num_devices, 1, reduction)
    rows = np.asarray(epoch_batches(0, 0, NUM_TRAIN, BATCH_SIZE))[0]
    inputs = mnist.train_images[rows].reshape(BATCH_SIZE, -1) / 255.0
    targets = np.eye(10)[mnist.train_labels[rows]]
    kernel, bias = (np.float64(before.params["dense"][name]) for name in ("kernel", "bias"))
    grads = {"scale": 0, "shift": 0, "kernel": 0, "bias": 0}
    means, variances, loss = [], [], 0.0
    for x, target in zip(np.split(inputs, num_shards), np.split(targets, num_shards), strict=True):
        means.append(x.mean(0))
        variances.append(x.var(0))
        hidden = (x - means[-1]) / np.sqrt(variances[-1] + 1e-5)
        logits = hidden @ kernel + bias
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        loss -= np.log((p * target).sum(1)).sum()
        error = p - target
        grads["kernel"] += hidden.T @ error
        grads["bias"] += error.sum(0)
        grads["scale"] += (hidden * (error @ kernel.T)).sum(0)
        grads["shift"] += (error @ kernel.T).sum(0)
    np.testing.assert_allclose(metrics[0]["loss"], loss / BATCH_SIZE, rtol=1e-4)
    moved = jax.tree.map(lambda a, b: (np.float64(a) - b) / RATE, before.params, after.params)
    found = {
        "kernel": moved["dense"]["kernel"],
        "bias": moved["dense"]["bias"],
        "scale": moved["norm"]["scale"],
        "shift": moved["norm"]["bias"],
    }
    for name, gradient in grads.items():
        expected = gradient / BATCH_SIZE
        limit = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=limit, err_msg=name)
    running = {"mean": np.mean(means, 0) * 0.01, "var": 0.99 + np.mean(variances, 0) * 0.01}
    for name, expected in running.items():
        np.testing.assert_allclose(
            after.statistics["norm"][name], expected, rtol=1e-5, atol=1e-7, err_msg=name
        )


@pytest.mark.system
def test_the_same_bits_on_every_number_of_devices(mnist: Dataset) -> None:
    """With all that a network can have: its own program for each shard, also for a loop."""
    expected = run(mnist, Restless, 1, 3, "tree")
    for num_devices in (2, 8):
        assert_same_bits(run(mnist, Restless, num_devices, 3, "tree"), expected)
