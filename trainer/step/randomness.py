"""Keys that depend on the seed of a run and on nothing else of the machine or its settings."""

import jax
import jax.numpy as jnp

# The order of the data folds in the epoch, which is below 2**31; other streams start above.
_DROPOUT = 2**31
_AUGMENTATION = 2**31 + 1


def root_key(seed: int) -> jax.Array:
    """Return the key of a run: what `jax.random.key(seed, impl="threefry2x32")` is by default.

    Made from its bits, so that neither JAX_DEFAULT_PRNG_IMPL nor JAX_RANDOM_SEED_OFFSET changes it.

    Args:
      seed: of the run, 0 <= seed < 2**32.
    """
    return jax.random.wrap_key_data(jnp.array([0, seed], jnp.uint32), impl="threefry2x32")


def dropout_key(seed: int, step: jax.Array, shard: jax.Array) -> jax.Array:
    """Return the key of the random masks of one gradient shard at one step.

    Args:
      seed: of the run.
      step: int32[], state.step.
      shard: int32[], the shard's place in the global batch.
    """
    key = jax.random.fold_in(root_key(seed), _DROPOUT)
    return jax.random.fold_in(jax.random.fold_in(key, step), shard)


def augmentation_keys(seed: int, step: jax.Array, places: jax.Array) -> jax.Array:
    """Return the keys of the augmentation of some examples at one step.

    Args:
      seed: of the run.
      step: int32[], state.step.
      places: int32[B], of the examples in the global batch.

    Returns:
      key[B].
    """
    key = jax.random.fold_in(root_key(seed), _AUGMENTATION)
    key = jax.random.fold_in(key, step)
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
