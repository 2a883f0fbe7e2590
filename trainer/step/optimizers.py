"""Update directions without a learning rate; the train step scales them by its own."""

from collections.abc import Callable
from typing import Any

import jax
import optax


def create_optimizer(
    name: str, momentum: float | None, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
    """Return the transformation from gradients to the unscaled direction d of params -= lr * d.

    sgd:   d = trace(g + weight_decay * params), the momentum buffer of PyTorch's and Flax's SGD;
    adamw: d = adam(g) + weight_decay * params, with b1 = momentum and b2 = 0.999.

    Args:
      name: "sgd" or "adamw".
      momentum: decay of the first moment, 0 <= momentum < 1; or None: every update takes it as an
        argument, `tx.update(grads, opt_state, params, momentum=...)`. The state is the same.
      nesterov: look ahead along the momentum (Dozat's form for adamw).
      weight_decay: >= 0; part of the gradient for sgd, decoupled for adamw.

    Returns:
      An optax transformation whose updates have the sign of the gradient.

    Raises:
      KeyError: no optimizer has that name.
    """
    # Named, so that a leaf of the state keeps its name whichever parts are there: a run may switch
    # the decay on or off at a resume.
    decay = [("weight_decay", optax.add_decayed_weights(weight_decay))] if weight_decay else []
    create: Callable[[Any], optax.GradientTransformation] = {
        "sgd": lambda momentum: optax.named_chain(
            *decay, ("momentum", optax.trace(momentum, nesterov))
        ),
        "adamw": lambda momentum: optax.named_chain(
            ("adam", optax.scale_by_adam(b1=momentum, nesterov=nesterov)), *decay
        ),
    }[name]
    return _with_momentum_given(create) if momentum is None else create(momentum)


def _with_momentum_given(
    create: Callable[[Any], optax.GradientTransformation],
) -> optax.GradientTransformationExtraArgs:
    """Return the transformation `create(momentum)`, made anew with the momentum of each update.

    adamw's correction of the bias is 1 - momentum**t with the momentum of update t, as in PyTorch.
    """

    def update(
        grads: optax.Updates,
        opt_state: optax.OptState,
        params: optax.Params | None = None,
        *,
        momentum: jax.Array,
        **_: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        return create(momentum).update(grads, opt_state, params)

    return optax.GradientTransformationExtraArgs(create(0.0).init, update)
