"""Examples of which each device holds a part: the rows of a batch, exchanged between devices."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from trainer.devices import DATA_AXIS
from trainer.step.examples import SHARDED, Examples, abstract_examples, specs
from trainer.step.state import TrainState
from trainer.step.train_step import Metrics, TwoPrograms


def fetch(examples: Examples, indices: jax.Array) -> tuple[Examples, jax.Array]:
    """Bring each device the rows that it asks for; inside `jax.shard_map` over "data".

    All devices learn all indices, and each contributes the rows that it holds, and zeros for all
    others. Of the contributions to a row one at most is not zero, so adding them up as integers
    loses nothing, whatever the order.

    Args:
      examples: this device's part of a split. Parts are equally long; part i begins at row
        i * len(part) of the split.
      indices: int32[b], this device's, into the whole split; -1 stands for no row.

    Returns:
      Examples of b rows, those at the indices in their order, zeros where there is none; and
      int32[b], the places of the rows among them: 0, 1, ..., or -1 where there is none.
    """
    part = len(examples.labels)
    places = jax.lax.all_gather(indices, DATA_AXIS, tiled=True)
    places -= jax.lax.axis_index(DATA_AXIS) * part
    here = (places >= 0) & (places < part)
    places = jnp.where(here, places, 0)
    images = examples.images.at[places].get(mode="promise_in_bounds")
    labels = examples.labels.at[places].get(mode="promise_in_bounds")
    contribution = jnp.where(here[:, None], _pack(images, labels), 0)
    rows = jax.lax.psum_scatter(contribution, DATA_AXIS, tiled=True)
    images, labels = _unpack(rows, examples.images.shape[1:])
    own = jnp.where(indices < 0, -1, jnp.arange(len(indices), dtype=jnp.int32))
    return Examples(images, labels, examples.mean, examples.std), own


def _pack(images: jax.Array, labels: jax.Array) -> jax.Array:
    """Return uint32[B, K] of uint8[B, H, W, C] and int32[B]: one exchange, of whole words."""
    pixels = images.reshape(len(images), -1)
    pixels = jnp.pad(pixels, [(0, 0), (0, -pixels.shape[1] % 4)])
    words = jax.lax.bitcast_convert_type(pixels.reshape(len(images), -1, 4), jnp.uint32)
    return jnp.concatenate([words, labels.astype(jnp.uint32)[:, None]], axis=1)


def _unpack(rows: jax.Array, image_shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Return what `_pack` was given."""
    pixels = jax.lax.bitcast_convert_type(rows[:, :-1], jnp.uint8).reshape(len(rows), -1)
    size = image_shape[0] * image_shape[1] * image_shape[2]
    return pixels[:, :size].reshape(-1, *image_shape), rows[:, -1].astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class WithExchange:
    """A train step of several programs and, before them, the exchange, at any of jax's stages.

    Attributes:
      exchange: (step, examples, batches) -> (rows, places).
      train_step: see `train_step.create_train_step`, for devices that hold their own rows.
      mesh: the devices.
    """

    exchange: Any
    train_step: Any
    mesh: Mesh

    def __call__(
        self, state: TrainState, examples: Examples, batches: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Take one step."""
        rows, places = self.exchange(state.step, examples, batches)
        return self.train_step(state, rows, places)

    def lower(self, state: TrainState, examples: Examples, batches: Any) -> "WithExchange":
        """Return all programs lowered for arguments of these shapes, as jax.stages does."""
        exchange = self.exchange.lower(state.step, examples, batches)
        rows, places = exchange.out_info
        rows = abstract_examples(rows.labels.shape[0], rows.images.shape[1:], self.mesh, SHARDED)
        places = jax.ShapeDtypeStruct(places.shape, places.dtype, sharding=batches.sharding)
        return dataclasses.replace(
            self, exchange=exchange, train_step=self.train_step.lower(state, rows, places)
        )

    def compile(self) -> "WithExchange":
        """Return all lowered programs compiled, as jax.stages does."""
        return dataclasses.replace(
            self, exchange=self.exchange.compile(), train_step=self.train_step.compile()
        )

    def parts(self) -> dict[str, Any]:
        """Return the programs by name."""
        return {"exchange": self.exchange, **self.train_step.parts()}


def with_exchange(train_step: Any, mesh: Mesh) -> Any:
    """Return the train step for a training split of which each device holds a part.

    Args:
      train_step: see `train_step.create_train_step`, for devices that hold their own rows.
      mesh: the devices, one axis "data".

    Returns:
      What `create_train_step` returns for a replicated split, but `examples` is cut over the
      devices, filled up to equal parts; see `fetch`.
    """

    def exchange(
        step: jax.Array, examples: Examples, batches: jax.Array
    ) -> tuple[Examples, jax.Array]:
        rows, places = fetch(examples, batches[step % len(batches)])
        return rows, places[None]

    in_a_row = P(None, DATA_AXIS)
    over_devices = jax.jit(
        jax.shard_map(
            exchange,
            mesh=mesh,
            in_specs=(P(), specs(SHARDED), in_a_row),
            out_specs=(specs(SHARDED), in_a_row),
        )
    )
    if isinstance(train_step, TwoPrograms):
        # The step's own programs stay those of rows that were read from files, and so their bits.
        return WithExchange(over_devices, train_step, mesh)

    def in_one(
        state: TrainState, examples: Examples, batches: jax.Array
    ) -> tuple[TrainState, Metrics]:
        return train_step(state, *over_devices(state.step, examples, batches))

    return jax.jit(in_one, donate_argnums=(0,))
