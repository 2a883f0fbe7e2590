"""Between checkpoints the loop reads nothing of the devices but old metrics, and sends nothing."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax._src.array import ArrayImpl

from trainer.config import TrainConfig
from trainer.run import loop
from trainer.run.programs import Programs


class Watch:
    """Notes every read of an array that lies on several devices, and when it was made.

    Attributes:
      calls: of the train step so far.
      reads: (calls at the time of the read, calls when the array was made); the second is None for
        an array that is not the metrics of a step or of an evaluation.
    """

    def __init__(self) -> None:
        """Have seen nothing."""
        self.calls = 0
        self.reads: list[tuple[int, int | None]] = []
        self._made: dict[int, tuple[int, jax.Array]] = {}

    def read(self, array: jax.Array) -> None:
        """Note a read."""
        made, _ = self._made.get(id(array), (None, None))
        self.reads.append((self.calls, made))

    def made(self, arrays: Any) -> None:
        """Note metrics; they are kept, so that no other array gets their id."""
        self._made |= {id(array): (self.calls, array) for array in jax.tree.leaves(arrays)}


def patch_steps(monkeypatch: pytest.MonkeyPatch, patch: Callable) -> None:
    """Let the real loop run with other programs than those that it has compiled."""
    real = loop.start

    def start(*arguments: Any) -> tuple:
        programs, data, state = real(*arguments)
        return patch(programs), data, state

    monkeypatch.setattr(loop, "start", start)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch, value = Watch(), ArrayImpl._value

    def read(array: jax.Array) -> Any:
        watch.read(array)
        return value.fget(array)

    def watched(programs: Programs) -> Programs:
        def train_steps(*arguments: Any) -> tuple:
            watch.calls += 1
            state, metrics = programs.train_steps(*arguments)
            watch.made(metrics)
            return state, metrics

        def evaluate(*arguments: Any) -> dict:
            sums = programs.evaluate(*arguments)
            watch.made(sums)
            return sums

        return dataclasses.replace(programs, train_steps=train_steps, evaluate=evaluate)

    # All ways from a device to NumPy or to a number of Python end there, if there are several.
    monkeypatch.setattr(ArrayImpl, "_value", property(read))
    patch_steps(monkeypatch, watched)
    return watch


@pytest.mark.parametrize(
    ("reduction", "steps_per_call"), [("tree", 1), ("allreduce", 1), ("allreduce", 4)]
)
def test_the_host_reads_old_metrics_only(
    config: TrainConfig, tmp_path: Path, watch: Watch, reduction: str, steps_per_call: int
) -> None:
    """Through three epochs, each with a test at its end, up to the checkpoint at the end of all."""
    config = dataclasses.replace(
        config,
        reduction=reduction,
        steps_per_call=steps_per_call,
        checkpoint_every_steps=1000,
        eval_every_steps=20 * steps_per_call,
        num_epochs=3 * steps_per_call,
    )
    loop.train(config, tmp_path)
    calls = watch.calls
    assert calls == 60
    reads = [(at, made) for at, made in watch.reads if 0 < at < calls]
    assert reads
    # What is read was made many calls ago, so the devices have work queued meanwhile,
    assert None not in [made for _, made in reads]
    assert min(at - made for at, made in reads) >= 8
    # and the host stops for it seldom.
    assert len({at for at, _ in reads}) <= calls // 16


def test_the_loop_sends_nothing(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that the host would send with each step is refused where it is sent."""

    def sending(programs: Programs) -> Programs:
        def train_steps(*arguments: Any) -> tuple:
            jnp.float32(1) + jnp.float32(2)
            return programs.train_steps(*arguments)

        return dataclasses.replace(programs, train_steps=train_steps)

    patch_steps(monkeypatch, sending)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        loop.train(dataclasses.replace(config, num_steps=2), tmp_path)
