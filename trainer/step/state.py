"""The state of a training run: arrays, nothing else."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from trainer import devices
from trainer.errors import RunError
from trainer.step.averages import NO_AVERAGES, Averages, Averaging
from trainer.step.functional import Arrays, Network
from trainer.step.randomness import root_key


@flax.struct.dataclass
class TrainState:
    """Everything that changes during training, replicated on every device.

    Attributes:
      step: int32[], updates made so far: the only counter that the learning rate and the data
        order read. The update that reads step = s applies schedule(s) to batch s.
      params: float32 parameters of the network, nested dictionaries by attribute name.
      statistics: what else the network keeps, such as running means; empty for the built-in ones.
      opt_state: state of the optimizer.
      averages: those of the parameters that the run keeps, by name; empty if it keeps none.
    """

    step: jax.Array
    params: Arrays
    statistics: Arrays
    opt_state: optax.OptState
    averages: Averages


def train_state_init(
    network: Network,
    tx: optax.GradientTransformation,
    seed: int,
    averaging: Averaging = NO_AVERAGES,
) -> Callable[[], TrainState]:
    """Return the pure function that makes the state before the first update.

    Args:
      network: the network.
      tx: the optimizer.
      seed: of the parameters, 0 <= seed < 2**32.
      averaging: which averages the state holds.
    """

    def init() -> TrainState:
        params, statistics = network.init(root_key(seed))
        step = jnp.zeros((), jnp.int32)
        averages = averaging.start(params, statistics)
        return TrainState(step, params, statistics, tx.init(params), averages)

    return init


def compile_first_state(
    init: Callable[[], TrainState], sharding: NamedSharding
) -> Callable[[], TrainState]:
    """Return the program that makes the state before the first update.

    Args:
      init: see `train_state_init`.
      sharding: of the state.
    """
    assert isinstance(sharding.mesh, Mesh)
    lowered = jax.jit(init, out_shardings=sharding).lower()
    return devices.compile_quickly(lowered, sharding.mesh)


def check_first_state(state: TrainState) -> None:
    """Refuse to train from parameters that are not finite.

    Raises:
      RunError: one is not; the message names it.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        if not np.isfinite(np.asarray(leaf)).all():
            raise RunError(
                f"parameter {leaf_name(path)} is not finite before the first step: its "
                "initializer in the network makes NaN or infinity"
            )


def abstract_train_state(init: Callable[[], TrainState], sharding: NamedSharding) -> TrainState:
    """Return the shapes, dtypes and sharding of the state as jax.ShapeDtypeStruct leaves."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(init),
    )


def match_leaves(abstract: Any, leaves: Mapping[str, np.ndarray]) -> Any:
    """Return arrays that are known by name as a pytree.

    Args:
      abstract: a pytree of shapes and dtypes, such as those of a state.
      leaves: leaf name to array. What belongs to other parts than those of `abstract`, such as
        "opt_state/..." where only "params" is asked for, is left out.

    Raises:
      ValueError: a leaf is missing, has another shape or dtype, or has no place; it is named.
    """
    names = {leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(abstract)}
    children = jax.tree_util.tree_leaves_with_path(abstract, is_leaf=lambda x: x is not abstract)
    parts = {leaf_name(path) for path, _ in children}
    for name in leaves:
        if name not in names and name.split("/")[0] in parts:
            raise ValueError(f"{name} has no place in it")

    def match(path: Any, expected: jax.ShapeDtypeStruct) -> np.ndarray:
        name = leaf_name(path)
        if name not in leaves:
            raise ValueError(f"{name} is missing")
        found = leaves[name]
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            raise ValueError(
                f"{name} is {found.dtype}{list(found.shape)}, not "
                f"{expected.dtype}{list(expected.shape)}"
            )
        return found

    return jax.tree_util.tree_map_with_path(match, abstract)


def repeated_leaf(tree: Any) -> str | None:
    """Return the first name that several leaves of a pytree have, or None.

    A checkpoint keeps leaves by name: of these it would keep one. A key "x/y" beside a key "y" in
    another one "x" makes such names.
    """
    seen = set()
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        if (name := leaf_name(path)) in seen:
            return name
        seen.add(name)
    return None


def leaf_name(path: Any) -> str:
    """Return the name of a leaf, such as "params/conv1/kernel", from its path in a pytree."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
