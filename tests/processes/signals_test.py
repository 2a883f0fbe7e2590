"""A signal sets a flag; the run saves, says so, and the same command resumes."""

import gc
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from trainer.processes import signals
from trainer.processes.signals import StopRequest


@pytest.fixture(autouse=True)
def interrupts_are_not_ignored() -> Iterator[None]:
    """As in the background of a script, from which tests may be started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_sets_the_flag_and_nothing_else(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal_name == number.name
    assert signal.getsignal(number) is before


def test_no_handlers_outside_the_main_thread() -> None:
    found = []

    def enter() -> None:
        with StopRequest() as stop:
            found.append(bool(stop))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [False]


def test_leaving_looks_for_no_garbage() -> None:
    """What a command leaves behind is frozen; here it is given back to the collector."""
    before, responsible = gc.get_freeze_count(), list(signals._responsible)
    try:
        with pytest.raises(SystemExit, match="75"):
            signals.leave(75, at_once=False)
        assert gc.get_freeze_count() > before + 10_000
    finally:
        gc.unfreeze()
        signals._responsible[:] = responsible
