"""A network of the user's own: made, and tried on shapes alone before any work is done."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from trainer.step import own
from trainer.step.functional import Arrays, Network
from trainer.step.state import leaf_name, repeated_leaf

_CALL = "{}(image_shape=..., num_classes=..., dtype=..., rngs=...)"


def create_own_network(
    name: str, image_shape: tuple[int, int, int], num_classes: int, dtype: Any
) -> Network:
    """Return a network of the user's own.

    Args:
      name: see `config.own`.
      image_shape: (H, W, C) of an example.
      num_classes: number of logits, >= 1.
      dtype: of the computation.

    Raises:
      UsageError: it is not there, or not what the step can use; the message shows the form.
    """
    found = own.load(f"--model={name}", _form(image_shape, num_classes))
    if inspect.isclass(found.value) and not issubclass(found.value, nnx.Module):
        raise found.refusal(f"{_name(found)} is no nnx.Module (of flax.nnx){_hint(found.value)}")
    if not callable(found.value):
        kind = type(found.value).__name__
        raise found.refusal(f"{_name(found)} is of type {kind}, and no class")
    given = {"image_shape": image_shape, "num_classes": num_classes, "dtype": dtype}

    def create(key: jax.Array) -> nnx.Module:
        return found.value(**given, rngs=nnx.Rngs(key))

    found.check_takes(found.value, _CALL.format(_name(found)), **given, rngs=None)
    network = Network(create)
    _check_module(found, network)
    _check_calls(found, network, image_shape, num_classes)
    return network


def _check_module(found: own.Own, network: Network) -> None:
    """Refuse what the constructor makes if the train state cannot hold it."""

    def create() -> nnx.Module:
        module = network.create(_key())
        if not isinstance(module, nnx.Module):
            kind = type(module).__name__
            raise found.refusal(f"{_name(found)}(...) makes {kind}, which is no nnx.Module")
        if not callable(module):
            raise found.refusal(f"{_name(found)} has no __call__, so nothing maps inputs to logits")
        _check_attributes(found, module)
        return module

    with found.explained("its constructor"):
        module = nnx.eval_shape(create)
        params, statistics = jax.eval_shape(network.init, _key())
    found.check_takes(module, "network(inputs)", jnp.zeros(()))
    if not jax.tree.leaves(params):
        raise found.refusal("it has no parameters (nnx.Param), so there is nothing to train")
    why = {
        "parameter": "dtype= of a layer is that of its computation; leave param_dtype= as it is",
        "state": "it is averaged over the parts of a batch; make constants in __call__",
    }
    for kind, arrays in (("parameter", params), ("state", statistics)):
        if repeated := repeated_leaf(arrays):
            raise found.refusal(
                f"it has two {kind}s with the name {repeated}, and a checkpoint keeps one of a "
                "name; use no / in names of layers and variables"
            )
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
            if leaf.dtype != jnp.float32:
                raise found.refusal(
                    f"its {kind} {leaf_name(path)} is {own.describe_array(leaf)}, and must be "
                    f"float32: {why[kind]}"
                )


def _check_attributes(found: own.Own, module: nnx.Module) -> None:
    """Refuse arrays outside of Flax's variables, and other things in them."""
    for path, part in nnx.iter_modules(module):
        for name, value in vars(part).items():
            if isinstance(value, jax.Array | np.ndarray):
                raise found.refusal(
                    f"its attribute {'.'.join(map(str, (*path, name)))} is an array, which Flax "
                    "neither trains nor keeps; make it in __call__, or wrap it in nnx.Param or "
                    "nnx.Variable"
                )
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(module))):
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise found.refusal(
                f"its state {leaf_name(path)} is of type {type(leaf).__name__}; keep arrays in "
                "variables of Flax, and all else in plain attributes"
            )


def _check_calls(
    found: own.Own, network: Network, image_shape: tuple[int, int, int], num_classes: int
) -> None:
    """Refuse a module whose logits or statistics are not what the step needs."""
    inputs = jax.ShapeDtypeStruct((own.TRIAL_BATCH, *image_shape), jnp.float32)
    params, statistics = jax.eval_shape(network.init, _key())
    with found.explained("its __call__ (in evaluation)"):
        logits = jax.eval_shape(network.apply, params, statistics, inputs)
    _check_logits(found, logits, num_classes)
    with found.explained("its __call__ (in training)"):
        logits, after = jax.eval_shape(
            network.apply_in_training, params, statistics, inputs, _key()
        )
    _check_logits(found, logits, num_classes)
    if _shapes(statistics) != _shapes(after):
        changed = sorted(set(_shapes(statistics).items()) ^ set(_shapes(after).items()))
        raise found.refusal(
            f"its __call__ changes the shape of what it keeps ({changed[0][0]}); all that a "
            "network keeps between steps must be there from the beginning, and stay as large"
        )


def _check_logits(found: own.Own, logits: Any, num_classes: int) -> None:
    """Refuse what is no float32[B, num_classes]."""
    expected = f"it must return the logits of {own.TRIAL_BATCH} images and {num_classes} classes, "
    expected += f"float32[{own.TRIAL_BATCH},{num_classes}]"
    if not isinstance(logits, jax.ShapeDtypeStruct):
        kind = "None" if logits is None else type(logits).__name__
        raise found.refusal(f"its __call__ returns {kind}, no array; {expected}")
    if logits.shape != (own.TRIAL_BATCH, num_classes):
        raise found.refusal(f"its __call__ returns {own.describe_array(logits)}; {expected}")
    if logits.dtype != jnp.float32:
        raise found.refusal(
            f"its __call__ returns {own.describe_array(logits)}; {expected}: end it with "
            ".astype(jnp.float32)"
        )


def _form(image_shape: tuple[int, int, int], num_classes: int) -> str:
    """Return what a network of the user's own looks like, for this data set."""
    height, width, channels = image_shape
    size = height * width * channels
    return f"""a network of your own looks like this (docs/own_network.md has a larger one):
  class Network(nnx.Module):
      def __init__(self, *, image_shape, num_classes, dtype, rngs):
          # image_shape={image_shape}, num_classes={num_classes}; all layers take rngs=rngs
          self.dense = nnx.Linear({size}, num_classes, dtype=dtype, rngs=rngs)
      def __call__(self, inputs):
          # inputs float32[B,{height},{width},{channels}], logits float32[B,{num_classes}]
          return self.dense(inputs.reshape(inputs.shape[0], -1)).astype(jnp.float32)"""


def _hint(value: Any) -> str:
    """Return how a class of another library can be used, if it is one that is known."""
    module = next((each.__module__ for each in value.__mro__ if "linen" in each.__module__), "")
    return ", but one of flax.linen, the older interface of Flax" if module else ""


def _name(found: own.Own) -> str:
    """Return the name in the source."""
    return found.flag.rpartition(":")[2]


def _key() -> jax.Array:
    """Return a key for shapes alone."""
    return jax.random.key(0, impl="threefry2x32")


def _shapes(arrays: Arrays) -> dict[str, str]:
    """Return what each leaf is, by its name."""
    return {
        leaf_name(path): own.describe_array(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }
