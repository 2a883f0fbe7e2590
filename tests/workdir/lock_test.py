"""One writer a workdir."""

import contextlib
import os
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from etils import epath

from trainer.errors import RunError, UsageError
from trainer.processes import link
from trainer.workdir import lock as lock_module
from trainer.workdir.lock import claim, lock


def test_it_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with lock(epath.Path(tmp_path)):
            pass


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    message = f"--workdir={tmp_path} is being written by process {os.getpid()} on "
    with (
        lock(epath.Path(tmp_path)),
        pytest.raises(UsageError, match=message),
        lock(epath.Path(tmp_path)),
    ):
        pass


@pytest.mark.parametrize("error", [RunError, UsageError])
def test_a_process_that_fails_and_is_ended_meanwhile_frees_the_lock_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """All fail in the same way, and another one tells first; a lease takes a while to give back."""
    joined = types.SimpleNamespace(
        cluster=types.SimpleNamespace(process_id=0), gather=lambda value: [value], if_ended=[]
    )
    freeing, go_on, freed = threading.Event(), threading.Event(), threading.Event()

    @contextlib.contextmanager
    def slow_lock(workdir: epath.Path) -> Iterator[None]:
        yield
        freeing.set()
        go_on.wait(10)
        freed.set()

    def fail() -> None:
        with contextlib.suppress(error), claim(epath.Path(tmp_path / "run")):
            raise error("in all processes")

    monkeypatch.setattr(link, "_link", joined)
    monkeypatch.setattr(lock_module, "lock", slow_lock)
    failing = threading.Thread(target=fail)
    failing.start()
    assert freeing.wait(10)
    [give_back] = joined.if_ended
    threading.Timer(0.2, go_on.set).start()
    give_back(error.exit_status)
    assert freed.is_set()
    failing.join()
    assert joined.if_ended == []
    assert (tmp_path / "run").exists() == (error is RunError)
