"""The gradient of a batch by one program a shard: the same instructions on any devices."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from trainer.devices import DATA_AXIS
from trainer.step.examples import Examples, specs
from trainer.step.state import TrainState

# Sums over a shard or a batch: gradient, statistics, metrics.
Sums = Any


@dataclasses.dataclass(frozen=True)
class ShardPrograms:
    """A gradient in programs of their own, at any of jax's stages.

    In one program with those of other shards, and with the sums, XLA:CPU fuses the layers of a
    shard as suits the whole: a batch norm then has other last bits on 8 devices, a shard each,
    than on one with 8. A program that knows one shard alone is the same everywhere.

    Attributes:
      select: (step, batches) -> the indices and the number of each shard of a device.
      gradient: (state, examples, indices, number) -> sums over a shard on each device.
      add_up: (shards, sums of each) -> means over the batch.
    """

    select: Any
    gradient: Any
    add_up: Any

    def __call__(self, state: TrainState, examples: Examples, batches: jax.Array) -> Sums:
        """Return the means over the batch of this step."""
        shards = self.select(state.step, batches)
        return self.add_up(shards, [self.gradient(state, examples, *shard) for shard in shards])

    def lower(self, state: TrainState, examples: Examples, batches: Any) -> "ShardPrograms":
        """Return all programs lowered for arguments of these shapes, as jax.stages does."""
        select = self.select.lower(state.step, batches)
        shards = select.out_info
        gradient = self.gradient.lower(state, examples, *shards[0])
        add_up = self.add_up.lower(shards, [gradient.out_info] * len(shards))
        return ShardPrograms(select, gradient, add_up)

    def compile(self) -> "ShardPrograms":
        """Return all lowered programs compiled, as jax.stages does."""
        programs = self.select, self.gradient, self.add_up
        return ShardPrograms(*(program.compile() for program in programs))

    def parts(self) -> dict[str, Any]:
        """Return all programs by name."""
        return {"select": self.select, "shard_gradient": self.gradient, "add_up": self.add_up}

    @property
    def out_info(self) -> Sums:
        """Shapes and dtypes of the result, once it is lowered."""
        return self.add_up.out_info


def create_shard_programs(
    select: Callable[[jax.Array, jax.Array], list[tuple[jax.Array, jax.Array]]],
    gradient: Callable[[TrainState, Examples, jax.Array, jax.Array], Sums],
    mean: Callable[[list[Sums], int], Sums],
    mesh: Mesh,
    placement: str,
) -> ShardPrograms:
    """Return the jitted programs of a gradient over all devices of the mesh.

    Args:
      select: (step int32[], batches) -> for each shard of a device its indices and its number.
      gradient: (state, examples, indices int32[B], number int32[]) -> sums over a shard.
      mean: (sums of a device's shards, examples of the batch) -> means over the batch, replicated.
      mesh: the devices, one axis "data".
      placement: how the examples are laid out, see `examples.specs`.
    """

    def select_all(step: jax.Array, batches: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        return [(indices, number[None]) for indices, number in select(step, batches)]

    def gradient_of(
        state: TrainState, examples: Examples, indices: jax.Array, number: jax.Array
    ) -> Sums:
        sums = gradient(state, examples, indices, number[0])
        return jax.tree.map(lambda leaf: leaf[None], sums)

    def add_up(shards: list[tuple[jax.Array, jax.Array]], sums: list[Sums]) -> Sums:
        num_examples = mesh.size * sum(indices.size for indices, _ in shards)
        return mean(jax.tree.map(lambda leaf: leaf[0], sums), num_examples)

    def over_devices(function: Callable, in_specs: tuple[Any, ...], out_specs: P) -> Any:
        # Unchecked: see `create_train_step`.
        mapped = jax.shard_map(
            function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return jax.jit(mapped)

    of_device = P(DATA_AXIS)
    return ShardPrograms(
        select=over_devices(select_all, (P(), P(None, DATA_AXIS)), of_device),
        gradient=over_devices(
            gradient_of, (P(), specs(placement), of_device, of_device), of_device
        ),
        add_up=over_devices(add_up, (of_device, of_device), P()),
    )
