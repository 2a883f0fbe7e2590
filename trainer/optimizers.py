"""Update directions without a learning rate; the train step scales them by its own."""

import optax


def create_optimizer(
    name: str, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
    """Return the transformation from gradients to the unscaled direction d of params -= lr * d.

    sgd:   d = trace(g + weight_decay * params), the momentum buffer of PyTorch's and Flax's SGD;
    adamw: d = adam(g) + weight_decay * params, with b1 = momentum and b2 = 0.999.

    Args:
      name: "sgd" or "adamw".
      momentum: decay of the first moment, 0 <= momentum < 1.
      nesterov: look ahead along the momentum (Dozat's form for adamw).
      weight_decay: >= 0; part of the gradient for sgd, decoupled for adamw.

    Returns:
      An optax transformation whose updates have the sign of the gradient.

    Raises:
      KeyError: no optimizer has that name.
    """
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    return {
        "sgd": lambda: optax.chain(*decay, optax.trace(momentum, nesterov)),
        "adamw": lambda: optax.chain(optax.scale_by_adam(b1=momentum, nesterov=nesterov), *decay),
    }[name]()
