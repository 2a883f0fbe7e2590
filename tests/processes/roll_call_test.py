"""Processes that meet must be as many as they say, and have been given the same."""

import logging
import socket
import threading
from collections.abc import Callable

import pytest

from tests.helpers import free_port
from trainer.errors import RunError, UsageError
from trainer.processes import roll_call as rollcall
from trainer.processes.cluster import Cluster


def roll_call(hellos: list[tuple[int, int, dict]], count: int = 3) -> list[object]:
    """Call the roll with processes in threads; return how it ended for each, process 0 first."""
    port = free_port()
    ends: list[object] = [None] * (len(hellos) + 1)

    def take_part(slot: int, call: Callable, cluster: Cluster, settings: dict) -> None:
        try:
            ends[slot] = call(cluster, settings)
        except (UsageError, RunError) as error:
            ends[slot] = error

    def thread(slot: int, call: Callable, index: int, number: int, settings: dict):
        cluster = Cluster(f"127.0.0.1:{port}", number, index)
        return threading.Thread(target=take_part, args=(slot, call, cluster, settings))

    threads = [thread(0, rollcall._call_roll, 0, count, {"lr_max": 0.1})]
    for slot, hello in enumerate(hellos, start=1):
        threads.append(thread(slot, rollcall._report, *hello))
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)
        assert not each.is_alive()
    for end in ends:
        for connection in end if isinstance(end, list) else []:
            connection.close()
    return ends


HINT = " (SLURM_NTASKS=3 says so; --num_processes=1 trains in this process alone)"


def of_slurm(process_id: int) -> Cluster:
    return Cluster(f"127.0.0.1:{free_port()}", 3, process_id, source="SLURM_NTASKS=3")


@pytest.mark.parametrize(
    ("process_id", "waiting", "message"),
    [
        (0, "waiting for process 1, 2", "of 3 processes, 1, 2 did not report"),
        (1, "waiting for process 0", "process 1 could not report to process 0"),
    ],
)
def test_who_waits_says_what_was_believed(
    process_id: int,
    waiting: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And how to overrule it: a shell in an allocation of Slurm, say, is no process of three."""
    monkeypatch.setattr(rollcall, "_ROLL_CALL_SECONDS", 1.5)
    monkeypatch.setattr(rollcall, "_PATIENCE_SECONDS", 0.1)
    with caplog.at_level(logging.INFO, "trainer"), pytest.raises(RunError, match=message) as error:
        rollcall.meet(of_slurm(process_id), {})
    assert str(error.value).endswith(HINT)
    (line,) = [line for line in caplog.messages if line.startswith(waiting)]
    assert line.endswith(HINT)


def test_a_port_that_is_taken() -> None:
    cluster = of_slurm(0)
    with (
        socket.create_server((cluster.host, cluster.port)),
        pytest.raises(UsageError, match="process 0 cannot listen there") as error,
    ):
        rollcall.meet(cluster, {})
    assert str(error.value).endswith(HINT)


def test_roll_call_orders_the_processes() -> None:
    same = {"lr_max": 0.1}
    first, *others = roll_call([(2, 3, same), (1, 3, same)])
    assert [connection.name.split(" on ")[0] for connection in first] == ["process 1", "process 2"]
    assert all(len(other) == 1 for other in others)


@pytest.mark.parametrize(
    ("hellos", "message"),
    [
        ([(1, 3, {"lr_max": 0.2})], "--lr_max=0.2, process 0 with --lr_max=0.1"),
        ([(1, 4, {"lr_max": 0.1})], "--num_processes=4, process 0 with 3"),
        ([(1, 3, {"lr_max": 0.1}), (1, 3, {"lr_max": 0.1})], "two processes have --process_id=1"),
    ],
)
def test_processes_that_disagree_are_refused(hellos: list, message: str) -> None:
    for end in roll_call(hellos):
        assert isinstance(end, UsageError)
        assert message in str(end)
