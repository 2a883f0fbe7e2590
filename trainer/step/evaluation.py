"""Evaluation of a whole split: every example counted once, on any number of devices."""

from collections.abc import Callable

import flax.linen as nn
import optax
from jax.sharding import Mesh

from trainer.devices import place, replicated, sharded
from trainer.step.batches import evaluation_batches
from trainer.step.train_step import Examples, Metrics, create_eval_step, zero_sums

# Examples a device takes at once: small enough for the caches of a CPU core.
_EXAMPLES_PER_DEVICE = 125


def create_evaluate(
    model: nn.Module, mesh: Mesh, params: optax.Params, examples: Examples
) -> Callable[[optax.Params, Examples], Metrics]:
    """Return the compiled function that evaluates parameters on a split.

    Args:
      model: the network.
      mesh: the devices.
      params: its parameters, or their shapes, dtypes and shardings.
      examples: the split, or its shapes, dtypes and shardings.

    Returns:
      evaluate(params, examples) -> sums, see `steps.create_eval_step`; it does not wait for the
      devices. sums["examples"] is the size of the split.
    """
    num_examples = examples.labels.shape[0]
    rows = evaluation_batches(num_examples, _EXAMPLES_PER_DEVICE * mesh.size)
    batches = [place(row, sharded(mesh)) for row in rows]
    zeros = zero_sums(replicated(mesh))
    eval_step = create_eval_step(model, mesh).lower(params, examples, batches[0], zeros).compile()

    def evaluate(params: optax.Params, examples: Examples) -> Metrics:
        sums = zeros
        for indices in batches:
            sums = eval_step(params, examples, indices, sums)
        return sums

    return evaluate
