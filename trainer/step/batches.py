"""Which examples make a batch: a pure function of the seed and the step, whatever the devices."""

import jax
import jax.numpy as jnp
import numpy as np

from trainer.step.randomness import root_key


def epoch_batches(
    seed: int, epoch: jax.typing.ArrayLike, num_examples: int, batch_size: int
) -> jax.Array:
    """Return the batches of one epoch.

    Batch i of epoch e is permutation(fold_in(key(seed), e))[i * B : (i + 1) * B] with
    B = batch_size; the remainder of the permutation is dropped. Nothing else decides the data
    order, so a run that resumes at any step, on any devices, needs no saved position.

    Args:
      seed: of the run, >= 0.
      epoch: counted from 0; may be traced.
      num_examples: size of the training split.
      batch_size: global batch size, 1 <= batch_size <= num_examples.

    Returns:
      int32[num_examples // batch_size, batch_size], indices into the training split.
    """
    # Its own generator: no setting of the user's changes the order of the data.
    key = jax.random.fold_in(root_key(seed), epoch)
    order = jax.random.permutation(key, num_examples).astype(jnp.int32)
    return order[: num_examples - num_examples % batch_size].reshape(-1, batch_size)


def evaluation_batches(num_examples: int, batch_size: int) -> np.ndarray:
    """Return batches that hold every example once; the last one is filled up with -1.

    Args:
      num_examples: size of the split.
      batch_size: global batch size of the evaluation.

    Returns:
      int32[ceil(num_examples / batch_size), batch_size], indices into the split, or -1.
    """
    num_batches = -(-num_examples // batch_size)
    indices = np.full(num_batches * batch_size, -1, np.int32)
    indices[:num_examples] = np.arange(num_examples)
    return indices.reshape(num_batches, batch_size)
