"""Processes that meet must be as many as they say, and have been given the same."""

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
