"""A module of Flax NNX as pure functions of plain arrays, as the step uses it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Network:
    """A module as pure functions of plain arrays: what `shard_map` and checkpoints can hold.

    The parts of the module: `params`, its nnx.Param; `statistics`, whatever else it keeps between
    steps, such as nnx.BatchStat (empty for `CNN` and `MLP`); and the keys of its random layers,
    which are kept by nobody: every use is given a fresh one.

    Attributes:
      create: key -> the module with its first parameters.
      built_in: whether it is one of those that the trainer knows. Of these it is tested that the
        gradients of several shards in one program, which is faster, have the same bits as each in
        its own, and that the types of `jax.shard_map` let them pass.
    """

    create: Callable[[jax.Array], nnx.Module]
    built_in: bool = False

    @functools.cached_property
    def shapes(self) -> nnx.Module:
        """The module with shapes for arrays; made once, as it takes a tenth of a second."""
        module: nnx.Module = nnx.eval_shape(
            lambda: self.create(jax.random.key(0, impl="threefry2x32"))
        )
        return module

    def init(self, key: jax.Array) -> tuple[Arrays, Arrays]:
        """Return the first params and statistics, as nested dictionaries by attribute name."""
        _, params, _, statistics = _split(self.create(key))
        return nnx.to_pure_dict(params), nnx.to_pure_dict(statistics)

    def apply(self, params: Arrays, statistics: Arrays, inputs: jax.Array) -> jax.Array:
        """Return the logits as in evaluation: no dropout, the statistics as they are.

        Args:
          params: see `init`.
          statistics: see `init`.
          inputs: float32[B, H, W, C].

        Returns:
          float32[B, num_classes].
        """
        module = self._merge(params, statistics, None)
        module.eval()
        return cast(Callable, module)(inputs)

    def apply_in_training(
        self, params: Arrays, statistics: Arrays, inputs: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Arrays]:
        """Return the logits as in training, and the statistics after it.

        Args:
          params: see `init`.
          statistics: see `init`.
          inputs: float32[B, H, W, C].
          key: for random layers; each gets another one made from it.
        """
        module = self._merge(params, statistics, key)
        module.train()
        logits = cast(Callable, module)(inputs)
        return logits, nnx.to_pure_dict(_split(module)[3])

    def _merge(self, params: Arrays, statistics: Arrays, key: jax.Array | None) -> nnx.Module:
        """Return the module with these arrays in it."""
        graphdef, empty_params, random, empty_statistics = _split(self.shapes)
        random_layers = iter(range(len(jax.tree.leaves(random))))

        def fresh(leaf: Any) -> jax.Array:
            number = next(random_layers)
            if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jnp.zeros(leaf.shape, leaf.dtype)
            base = jax.random.key(0, impl="threefry2x32") if key is None else key
            return jax.random.fold_in(base, number)

        nnx.replace_by_pure_dict(empty_params, params)
        nnx.replace_by_pure_dict(empty_statistics, statistics)
        return nnx.merge(graphdef, empty_params, jax.tree.map(fresh, random), empty_statistics)


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Networks that answer together: the mean of their probabilities (Huang et al. 2017).

    Attributes:
      network: of each of them.
    """

    network: Network

    @property
    def built_in(self) -> bool:
        """Whether they are of those that the trainer knows."""
        return self.network.built_in

    def apply(self, params: Arrays, statistics: Arrays, inputs: jax.Array) -> jax.Array:
        """Return logits whose softmax is the mean of the softmax of the logits of all.

        Args:
          params: step, as text, to the parameters of that step; see `Network.init`.
          statistics: likewise.
          inputs: float32[B, H, W, C].

        Returns:
          float32[B, num_classes].
        """
        each = [
            jax.nn.log_softmax(self.network.apply(params[step], statistics[step], inputs))
            for step in sorted(params, key=int)
        ]
        return jax.nn.logsumexp(jnp.stack(each), axis=0)


def _split(module: nnx.Module) -> tuple[Any, Any, Any, Any]:
    """Return graph definition, parameters, random state and all other state of a module."""
    parts: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)
    return parts
