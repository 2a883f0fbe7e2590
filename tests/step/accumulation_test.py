"""Gradients in pieces are the gradients of the whole."""

import jax
import numpy as np
import optax
import pytest

from tests.helpers import also, assert_same_bits
from tests.step.reductions_test import run
from trainer import devices
from trainer.datasets import Dataset
from trainer.errors import UsageError
from trainer.step import train_step as train_step_module
from trainer.step.accumulation import check_accumulation
from trainer.step.batches import epoch_batches
from trainer.step.examples import abstract_examples
from trainer.step.networks import create_network
from trainer.step.state import abstract_train_state, train_state_init
from trainer.step.train_step import TwoPrograms, create_train_step


@pytest.mark.parametrize(
    ("num_devices", "accumulation_steps"), [also(1, 2), also(1, 8), (2, 4)], ids=lambda n: str(n)
)
def test_with_the_tree_the_same_bits(
    mnist: Dataset, num_devices: int, accumulation_steps: int
) -> None:
    expected = run(mnist, 1, num_steps=6)
    assert_same_bits(
        run(mnist, num_devices, num_steps=6, accumulation_steps=accumulation_steps), expected
    )


@pytest.mark.system
def test_with_the_tree_the_same_bits_of_the_cnn(mnist: Dataset) -> None:
    given = {"model_name": "cnn", "num_steps": 4, "batch_size": 96}
    expected = run(mnist, 1, **given)
    for num_devices, pieces in ((1, 4), (2, 4)):
        assert_same_bits(run(mnist, num_devices, accumulation_steps=pieces, **given), expected)


@pytest.mark.parametrize("loops", [also(False), True], ids=["unrolled", "in a loop"])
def test_with_allreduce_the_same_sum(
    mnist: Dataset, loops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the form for accelerators."""
    monkeypatch.setattr(train_step_module, "loops_are_fast", lambda mesh: loops)
    given = {"reduction": "allreduce", "num_steps": 3}
    _, whole = run(mnist, 2, **given)
    _, pieces = run(mnist, 2, accumulation_steps=5, **given)
    for name in ("loss", "accuracy", "learning_rate"):
        values = [[metrics[name] for metrics in each] for each in (whole, pieces)]
        np.testing.assert_allclose(*values, rtol=1e-5)


@pytest.mark.system
@pytest.mark.parametrize("reduction", ["tree", "allreduce"])
def test_less_memory(reduction: str) -> None:
    """The temporary memory of the CNN's gradient, as XLA has laid it out."""
    found = {
        pieces: temporary_bytes(reduction=reduction, gradient_shards=8, accumulation_steps=pieces)
        for pieces in (1, 8)
    }
    assert found[8] < found[1] / 2, found


def temporary_bytes(**given: object) -> int:
    """Those of a step of 512 images on one device."""
    mesh = devices.create_mesh("cpu", 1)
    network, tx = create_network("cnn", (28, 28, 1), 10), optax.identity()
    state = abstract_train_state(train_state_init(network, tx, 0), devices.replicated(mesh))
    examples = abstract_examples(1024, (28, 28, 1), mesh)
    batches = jax.ShapeDtypeStruct(
        epoch_batches(0, 0, 1024, 512).shape, np.int32, sharding=devices.sharded(mesh, axis=1)
    )
    step = create_train_step(network, tx, lambda step: 0.1, mesh, **given)
    compiled = step.lower(state, examples, batches).compile()
    gradient = compiled.gradient if isinstance(compiled, TwoPrograms) else compiled
    return gradient.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("pieces", "reduction", "num_devices", "message"),
    [
        (3, "tree", 2, "4 gradient shards that each of 2 devices .*use one of 1, 2, 4 "),
        (16, "tree", 1, "8 gradient shards that each of 1 devices .*use one of 1, 2, 4, 8 "),
        (5, "allreduce", 4, "24 examples .*use one of 1, 2, 3, 4, 6, 8, 12, 24 "),
    ],
)
def test_pieces_that_do_not_fit(
    pieces: int, reduction: str, num_devices: int, message: str
) -> None:
    mesh = devices.create_mesh("cpu", num_devices)
    with pytest.raises(UsageError, match=message):
        check_accumulation(pieces, reduction, 8, 96, mesh)
    check_accumulation(2, reduction, 8, 96, mesh)
