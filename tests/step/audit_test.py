"""A device that computes a wrong gradient is found, and named."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import also
from trainer import devices
from trainer.datasets import Dataset
from trainer.errors import RunError
from trainer.step import audit, train_step
from trainer.step.batches import epoch_batches
from trainer.step.examples import REPLICATED, STREAMED, Examples, place_examples
from trainer.step.networks import create_network
from trainer.step.state import TrainState, compile_first_state, train_state_init

NUM_DEVICES, NUM_EXAMPLES, BATCH = 4, 256, 32
LEAVES = ["dense1/bias", "dense1/kernel", "dense2/bias", "dense2/kernel"]


def prepare(
    mnist: Dataset,
    reduction: str,
    placement: str = REPLICATED,
    fault: Callable[..., Any] = lambda of_shard: of_shard,
) -> tuple[audit.Audit, TrainState, Examples, jax.Array]:
    """The audit of the MLP and its arguments."""
    mesh = devices.create_mesh("cpu", NUM_DEVICES)
    everywhere = devices.replicated(mesh)
    network = create_network("mlp", (28, 28, 1), 10)
    init = train_state_init(network, optax.sgd(0.1), 0)
    state = compile_first_state(init, everywhere)()
    images, labels = mnist.train_images[:NUM_EXAMPLES], mnist.train_labels[:NUM_EXAMPLES]
    rows = epoch_batches(0, 0, NUM_EXAMPLES, BATCH)
    if placement == STREAMED:
        # The rows of a batch, and of each device its places among its own.
        images, labels = images[np.asarray(rows[0])], labels[np.asarray(rows[0])]
        rows = np.arange(BATCH, dtype=np.int32)[None] % (BATCH // NUM_DEVICES)
    batches = jax.device_put(rows, devices.sharded(mesh, axis=1))
    examples = place_examples(images, labels, 0.5, 0.25, everywhere)
    if placement == STREAMED:
        cut = devices.sharded(mesh)
        examples = dataclasses.replace(
            examples,
            images=jax.device_put(examples.images, cut),
            labels=jax.device_put(examples.labels, cut),
        )
    gradients = train_step.shard_gradients(
        network, mesh, seed=0, reduction=reduction, gradient_shards=8
    )
    gradients = dataclasses.replace(gradients, of_shard=fault(gradients.of_shard))
    lowered = audit.lower_audit(gradients, mesh, state, examples, batches, placement=placement)
    return audit.create_audit(lowered, state, mesh), state, examples, batches


@pytest.mark.parametrize(
    ("reduction", "placement"),
    [("tree", REPLICATED), also("allreduce", REPLICATED), also("tree", STREAMED)],
)
def test_every_fault_is_found_and_named(mnist: Dataset, reduction: str, placement: str) -> None:
    """At step i the i-th of 100: one bit of one leaf of one shard of one device, at random."""
    random = np.random.default_rng(0)
    per_device = 2 if reduction == "tree" else 1
    faults = [
        {"device": random.integers(NUM_DEVICES), "shard": random.integers(per_device)}
        | {
            "leaf": random.integers(4),
            "element": random.integers(2**31),
            "bit": random.integers(32),
        }
        for _ in range(100)
    ]

    def with_fault(of_shard: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(state: TrainState, examples: Examples, indices: Any, number: Any) -> Any:
            grads, statistics, metrics = of_shard(state, examples, indices, number)
            fault = {
                name: jnp.asarray([each[name] for each in faults], jnp.int32)[state.step]
                for name in faults[0]
            }
            here = jax.lax.axis_index("data") == fault["device"]
            here &= number % per_device == fault["shard"]
            leaves, structure = jax.tree.flatten(grads)
            for i, leaf in enumerate(leaves):
                bits = jax.lax.bitcast_convert_type(leaf.ravel(), jnp.uint32)
                flip = jnp.where(here & (fault["leaf"] == i), jnp.uint32(1) << fault["bit"], 0)
                at = fault["element"] % leaf.size
                bits = bits.at[at].set(bits[at] ^ flip.astype(jnp.uint32))
                leaves[i] = jax.lax.bitcast_convert_type(bits, jnp.float32).reshape(leaf.shape)
            return jax.tree.unflatten(structure, leaves), statistics, metrics

        return faulty

    check, state, examples, batches = prepare(mnist, reduction, placement, with_fault)
    for step, fault in enumerate(faults):
        at = dataclasses.replace(
            state, step=devices.place(np.asarray(step, np.int32), state.step.sharding)
        )
        with pytest.raises(RunError) as error:
            check(at, examples, batches)
        message = str(error.value)
        device = jax.devices()[fault["device"]]
        assert message.startswith(f"the audit of step {step} found that ")
        assert f"the gradient of {LEAVES[fault['leaf']]} " in message
        assert f"; {device} is in both pairs that differ; nothing was saved since" in message


@pytest.mark.parametrize("placement", [REPLICATED, also(STREAMED)])
def test_no_false_alarm(mnist: Dataset, placement: str) -> None:
    check, state, examples, batches = prepare(mnist, "tree", placement)
    for _ in range(20):
        check(state, examples, batches)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["tree", "allreduce"])
def test_no_false_alarm_in_10_000_steps(mnist: Dataset, reduction: str) -> None:
    """Each of another batch."""
    check, state, examples, batches = prepare(mnist, reduction)
    steps = [
        devices.place(np.asarray(step, np.int32), state.step.sharding)
        for step in range(len(batches))
    ]
    for i in range(10_000):
        check(dataclasses.replace(state, step=steps[i % len(steps)]), examples, batches)
