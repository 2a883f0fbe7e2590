"""An optimizer of the user's own: made, and tried on the shapes of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from trainer.step import own
from trainer.step.functional import Network
from trainer.step.state import leaf_name, repeated_leaf

_FORM = """an optimizer of your own looks like this:
  import optax
  def create():
      return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(1e-4))
  it returns a direction d, and the trainer updates params -= learning_rate * d"""


def create_own_optimizer(name: str, network: Network) -> optax.GradientTransformation:
    """Return an optimizer of the user's own.

    Args:
      name: see `config.own`.
      network: whose parameters it will update.

    Raises:
      UsageError: it is not there, or not what the step can use; the message shows the form.
    """
    found = own.load(f"--optimizer={name}", _FORM)
    function = name.rpartition(":")[2]
    if not callable(found.value):
        raise found.refusal(f"{function} is of type {type(found.value).__name__}, and no function")
    found.check_takes(found.value, f"{function}()")
    with found.explained(f"{function}()"):
        tx = found.value()
    if not isinstance(tx, optax.GradientTransformation):
        raise found.refusal(f"{function}() returns {_kind(tx)}, no optax transformation")
    params, _ = jax.eval_shape(network.init, jax.random.key(0, impl="threefry2x32"))
    with found.explained("its init"):
        before = jax.eval_shape(tx.init, params)
    with found.explained("its update"):
        direction, after = jax.eval_shape(tx.update, params, before, params)
    if _shapes(direction) != _shapes(params):
        raise found.refusal("its update returns something of another shape than the parameters")
    _check_state(found, before, after)
    with found.explained("its update"):
        _check_sign(found, tx, params)
    return tx


def _check_state(found: own.Own, before: Any, after: Any) -> None:
    """Refuse a state that changes its form, or that a checkpoint cannot hold."""
    forms: list[Any] = [jax.tree.structure(state) for state in (before, after)]
    if forms[0] != forms[1] or _shapes(before) != _shapes(after):
        raise found.refusal("its update returns a state of another form than its init")
    if repeated := repeated_leaf(before):
        raise found.refusal(
            f"its state has two leaves with the name {repeated}, and a checkpoint keeps one of a "
            "name; use no / in keys"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(before):
        if not (jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == jnp.bool):
            what = " ".join(["its state", *filter(None, [leaf_name(path)])])
            raise found.refusal(f"{what} has dtype {leaf.dtype}; keep numbers in it")


def _check_sign(found: own.Own, tx: optax.GradientTransformation, params: Any) -> None:
    """Refuse a direction that already has a learning rate in it, and with it the minus sign."""

    @jax.jit
    def along_the_gradient() -> jax.Array:
        gradient = jax.tree.map(
            lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape),
            params,
        )
        direction, _ = tx.update(gradient, tx.init(gradient), gradient)
        return optax.tree_utils.tree_vdot(direction, gradient)

    if along_the_gradient() < 0:
        raise found.refusal(
            "it returns a step against the gradient, as optax.adam(learning_rate) does; leave the "
            "learning rate out, which the trainer multiplies by: use optax.scale_by_adam() "
            "for optax.adam, optax.trace(0.9) for optax.sgd, and no optax.scale_by_learning_rate"
        )


def _kind(value: Any) -> str:
    """Return the type of a value in words."""
    return "None" if value is None else type(value).__name__


def _shapes(tree: Any) -> list[tuple[str, Any, Any]]:
    """Return name, shape and dtype of every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(leaf_name(path), leaf.shape, leaf.dtype) for path, leaf in leaves]
