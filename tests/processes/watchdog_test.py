"""What is a hang, and what only takes long."""

import threading
import time
from collections.abc import Callable

import jax
import numpy as np
import pytest

from trainer import devices, processes
from trainer.processes import ending, link, watchdog


@pytest.fixture
def hangs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a watchdog says when it would end the process; it looks often."""
    said: list[str] = []
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(ending, "end_with_stacks", said.append)
    return said


def wait(condition: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not condition():
        time.sleep(0.01)
    return bool(condition())


def test_no_progress_is_a_hang(hangs: list[str]) -> None:
    with processes.Watchdog(0.2) as dog:
        dog.progress(412, "in an evaluation")
        assert wait(lambda: hangs, 20)
    assert "no progress for 0.2 s: this process is behind, at step 412, in an evalu" in hangs[0]
    assert "--hang_seconds" in hangs[0]


def test_progress_is_none(hangs: list[str]) -> None:
    with processes.Watchdog(1.0) as dog:
        for step in range(100):
            dog.progress(step, "in a step")
            time.sleep(0.02)
    assert not hangs


@pytest.mark.parametrize("what", ["starting", "in a save"])
def test_what_computes_is_none_and_what_sleeps_is(hangs: list[str], what: str) -> None:
    with processes.Watchdog(0.5) as dog:
        if what != "starting":
            dog.progress(5, what, may_take_long=True)
        started = time.monotonic()
        while time.monotonic() - started < 1.5:
            sum(range(1000))
        assert not hangs
        assert wait(lambda: hangs, 20)
    assert f", {what}; where all threads were" in hangs[0]


def test_a_step_that_waits_busily_is(hangs: list[str]) -> None:
    with processes.Watchdog(0.3) as dog:
        dog.progress(5, "in a step")
        assert wait(lambda: sum(range(1000)) and hangs, 20)


def test_zero_watches_nothing(hangs: list[str]) -> None:
    with processes.Watchdog(0):
        time.sleep(0.2)
    assert not hangs


@pytest.mark.parametrize(
    ("others", "behind"),
    [
        ({"process 1 on b": [400, "in a save", 9.0]}, "process 1 on b is behind, at step 400"),
        ({"process 1 on b": [420, "in a step", 9.0]}, "this process is behind, at step 412"),
        ({"process 1 on b": [412, "in a step", 99.0]}, "process 1 on b is behind, at step 412"),
        (
            {"process 1 on b": [420, watchdog._IN_CALLBACK, 9.0]},
            "process 1 on b is behind, at step 420, in a callback of its devices; this process at",
        ),
        ({"process 1 on b": [400, "in a save", 0.0]}, None),  # It writes.
        ({"process 1 on b": None}, None),  # It compiles.
    ],
)
def test_the_one_behind_is_named(
    hangs: list[str], monkeypatch: pytest.MonkeyPatch, others: dict, behind: str | None
) -> None:
    monkeypatch.setattr(link, "progress_of_others", lambda: others)
    dog = processes.Watchdog(5)
    dog.progress(412, "in a step")
    dog._end = hangs.append
    dog._idle = 9.0
    dog._judge()
    assert hangs == [] if behind is None else behind in hangs[0]


def test_devices_in_a_callback_are_told_from_those_that_wait() -> None:
    """A callback is Python in a thread of XLA; those of a single device may run in the caller's."""
    asleep, leave = threading.Event(), threading.Event()

    def sleep() -> np.float32:
        asleep.set()
        leave.wait(20)
        return np.float32(1)

    def multiply(x: jax.Array) -> jax.Array:
        return x * jax.pure_callback(sleep, jax.ShapeDtypeStruct((), np.float32))

    mesh = devices.create_mesh("cpu", 2)
    spec = jax.sharding.PartitionSpec("data")
    program = jax.jit(
        jax.shard_map(multiply, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    )
    dog = processes.Watchdog(5)
    dog.progress(5, "in a step")
    result = program(jax.device_put(np.ones(2, np.float32), devices.sharded(mesh)))
    assert asleep.wait(20)
    during = dog._report()
    leave.set()
    result.block_until_ready()
    assert during == [5, "in a callback of its devices", 0.0]
    assert wait(lambda: dog._report() == [5, "in a step", 0.0], 20)
