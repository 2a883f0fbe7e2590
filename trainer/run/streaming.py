"""Rows that are read from the prepared files while the devices take the steps before."""

import functools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from trainer import devices
from trainer.datasets import DatasetSource
from trainer.run.ahead import Ahead
from trainer.schedules import Plan
from trainer.step import Examples, evaluation_batch_size
from trainer.step.batches import evaluation_batches

# Rows that a thread reads at a time, for one or several steps, and their bytes. Each read costs
# some milliseconds, however few rows it is for.
_BLOCK_ROWS, _BLOCK_BYTES = 1024, 2**24
# Blocks that are read or waiting: one for each thread, and one that is being used up.
_BLOCKS, _THREADS = 3, 2


class Block(NamedTuple):
    """Successive batches of one epoch: its number, the first of them, and one after the last."""

    epoch: int
    first: int
    stop: int


def bytes_ahead(image_shape: tuple[int, int, int], num_rows: int) -> int:
    """Return the bytes that are read in advance, with those that the devices are using.

    Args:
      image_shape: (H, W, C).
      num_rows: of a batch, of those that the process reads.
    """
    rows = num_rows * _batches_per_block(image_shape, num_rows)
    return (_BLOCKS + 1) * rows * (math.prod(image_shape) + 4)


def _batches_per_block(image_shape: tuple[int, int, int], num_rows: int) -> int:
    """Return how many batches are read together."""
    rows = min(_BLOCK_ROWS, _BLOCK_BYTES // (math.prod(image_shape) + 4))
    return max(1, rows // num_rows)


class RowPlacer:
    """Reads rows of one split and puts them on the devices of this process.

    Args:
      source: the data set.
      split: "train" or "test".
      moments: mean and standard deviation of the inputs, see `examples.Examples`.
      mesh: the devices.
      batch_size: rows of a batch, over all devices together.
    """

    def __init__(
        self,
        source: DatasetSource,
        split: str,
        moments: tuple[float, float],
        mesh: Mesh,
        batch_size: int,
    ) -> None:
        self._source, self._split, self.batch_size = source, split, batch_size
        self._sharding = devices.sharded(mesh)
        mean, std = (np.float32(moment) for moment in moments)
        self._mean, self._std = (
            devices.place(np.asarray(moment), devices.replicated(mesh)) for moment in (mean, std)
        )
        self.columns = own_columns(mesh, batch_size)
        """The places in a batch of the rows that this process reads."""
        self.batches_per_block = _batches_per_block(source.image_shape, len(self.columns))
        """Batches that are read together."""

    def __call__(self, indices: np.ndarray) -> list[Examples]:
        """Return the rows of some batches, on the devices.

        Args:
          indices: int32[n, len(columns)], into the split; -1 stands for a row of zeros.
        """
        images = np.zeros((*indices.shape, *self._source.image_shape), np.uint8)
        labels = np.zeros(indices.shape, np.int32)
        wanted = indices >= 0
        if wanted.any():
            images[wanted], labels[wanted] = self._source.rows(self._split, indices[wanted])
        return [
            Examples(
                self._place(images[i]),
                self._place(labels[i]),
                self._mean,
                self._std,
            )
            for i in range(len(indices))
        ]

    def _place(self, rows: np.ndarray) -> jax.Array:
        """Return an array over all devices, of which this process has the given rows."""
        shape = (self.batch_size, *rows.shape[1:])

        # Each device by its own place: those of a process need not follow each other in the mesh,
        # as jax.make_array_from_process_local_data would have it.
        def of_device(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(self.batch_size)
            first = np.searchsorted(self.columns, start)
            return rows[first : first + stop - start]

        return jax.make_array_from_callback(shape, self._sharding, of_device)


def own_columns(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Return the places in a global batch of the rows on the devices of this process, in order."""
    parts = devices.sharded(mesh).addressable_devices_indices_map((batch_size,))
    return np.sort(np.concatenate([np.arange(batch_size)[index] for index in parts.values()]))


def places_on_devices(indices: np.ndarray, mesh: Mesh) -> jax.Array:
    """Return where the rows of a batch lie among those of their device, -1 where there is none.

    Args:
      indices: int32[..., B], of which only the sign is looked at.
      mesh: the devices; the last axis of the result is cut over them.
    """
    batch_size = indices.shape[-1]
    places = np.arange(batch_size, dtype=np.int32) % (batch_size // mesh.size)
    places = np.where(indices < 0, np.int32(-1), places)
    return devices.place(places, devices.sharded(mesh, axis=indices.ndim - 1))


class StreamedTraining:
    """The batches of a run from its first step on; see `rows.TrainingRows`.

    Args:
      rows: reads them.
      order: epoch -> int32[steps_per_epoch, B], the batches of the epoch; called in threads.
      plan: of the run.
      first_step: that is taken first; from then on one after the other.
      mesh: the devices.
    """

    def __init__(
        self,
        rows: RowPlacer,
        order: Callable[[int], np.ndarray],
        plan: Plan,
        first_step: int,
        mesh: Mesh,
    ) -> None:
        self._rows, self._order = rows, order
        self._lock = threading.Lock()
        self._batches = functools.lru_cache(maxsize=2)(self._own_batches)
        blocks = self._blocks(plan, first_step)
        self._ahead = Ahead(self._read, blocks, _BLOCKS, _THREADS)
        self._ready: list[Examples] = []
        self._next_step = first_step
        self._places = places_on_devices(np.zeros((1, rows.batch_size), np.int32), mesh)

    def at(self, step: int, counter: jax.Array) -> tuple[Examples, jax.Array]:
        """Return the rows of a step, and int32[1, B], their places on each device.

        Args:
          step: the one after that of the last call.
          counter: the same step, on the devices.

        Raises:
          RunError: the files are damaged, or cannot be read.
        """
        if step != self._next_step:
            raise ValueError(f"step {step} was asked for, and {self._next_step} comes next")
        if not self._ready:
            self._ready = next(self._ahead)[::-1]
        self._next_step += 1
        return self._ready.pop(), self._places

    def close(self) -> None:
        """Read no further."""
        self._ahead.close()

    def _blocks(self, plan: Plan, first_step: int) -> Iterator[Block]:
        """Yield what is to be read, for ever; a block ends with its epoch."""
        epoch, first = divmod(first_step, plan.steps_per_epoch)
        while True:
            stop = min(first + self._rows.batches_per_block, plan.steps_per_epoch)
            yield Block(epoch, first, stop)
            epoch, first = (epoch, stop) if stop < plan.steps_per_epoch else (epoch + 1, 0)

    def _read(self, block: Block) -> list[Examples]:
        """Read the rows of some batches, and put them on the devices."""
        with self._lock:
            batches = self._batches(block.epoch)
        return self._rows(batches[block.first : block.stop])

    def _own_batches(self, epoch: int) -> np.ndarray:
        """Return the part of an epoch's batches that this process reads."""
        return self._order(epoch)[:, self._rows.columns]


class StreamedTest:
    """The batches of the test split, read anew each time; see `eval_step.Batches`.

    Args:
      rows: reads them, in batches of `evaluation_batch_size`.
      num_examples: of the split.
      mesh: the devices.
    """

    def __init__(self, rows: RowPlacer, num_examples: int, mesh: Mesh) -> None:
        self._rows = rows
        self._batches = evaluation_batches(num_examples, evaluation_batch_size(mesh))
        whole, last = (places_on_devices(row, mesh) for row in self._batches[[0, -1]])
        self._places = [whole] * (len(self._batches) - 1) + [last]

    def __iter__(self) -> Iterator[tuple[Examples, jax.Array]]:
        """Yield examples and places of one batch after the other."""
        count = self._rows.batches_per_block
        own = self._batches[:, self._rows.columns]
        blocks = [own[i : i + count] for i in range(0, len(own), count)]
        ahead = Ahead(self._rows, blocks, _BLOCKS, _THREADS)
        try:
            examples = (each for block in ahead for each in block)
            yield from zip(examples, self._places, strict=True)
        finally:
            ahead.close()
