"""One writer a workdir in a bucket: by conditional writes, for as long as it says so."""

import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from tests.helpers import SAVING, free_port, wait_for_checkpoint
from trainer.errors import RunError, UsageError
from trainer.workdir.lock import LOCK_FILE, lock

pytestmark = pytest.mark.system

HOLD = (
    "import sys, time; from etils import epath; from trainer.workdir.lease import Lease\n"
    "with Lease(epath.Path(sys.argv[1]), 'the other trainer', seconds=float(sys.argv[2])):\n"
    "    print('locked', flush=True)\n"
    "    time.sleep(60)\n"
)


@pytest.fixture
def lease(remote_workdir: str):
    """Make leases of one path."""
    from trainer.workdir.lease import Lease

    path = epath.Path(remote_workdir) / LOCK_FILE
    return lambda holder="this trainer", seconds=60.0: Lease(path, holder, seconds)


@pytest.fixture
def holder(remote_workdir: str):
    """Another process that holds the lease, 2 s at a time."""
    command = [sys.executable, "-c", HOLD, f"{remote_workdir}/{LOCK_FILE}", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_lease_is_refused_while_its_holder_lives_and_taken_when_it_was_killed(
    holder, lease, caplog: pytest.LogCaptureFixture
) -> None:
    time.sleep(3)
    message = r"is being written by the other trainer, which said so \d s ago; use another"
    with pytest.raises(UsageError, match=message), lease():
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    caplog.clear()
    began = time.monotonic()
    with lease() as taken:
        assert time.monotonic() - began < 10
        taken.confirm()
    assert "if it was killed, its lease ends in" in caplog.text


def test_one_that_is_given_back_meanwhile_is_taken(lease) -> None:
    first = lease(seconds=60)
    first.__enter__()
    giving_back = threading.Timer(1, first.__exit__)
    giving_back.start()
    began = time.monotonic()
    with lease() as taken:
        assert time.monotonic() - began < 10
        taken.confirm()
    giving_back.join()


def test_a_process_that_another_one_ends_gives_the_lease_back(
    start_one_of, remote_workdir: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Process 1 is killed: the same command resumes the run, and does not wait for process 0."""
    workdir, port = epath.Path(remote_workdir), free_port()
    flags = (*SAVING, "--num_steps=1000000", f"--workdir={remote_workdir}")
    pair = [start_one_of(i, 2, port, *flags) for i in range(2)]
    wait_for_checkpoint(workdir, process=pair[1])
    pair[1].kill()
    _, error = pair[0].communicate(timeout=60)
    assert pair[0].returncode == 2, error
    with lock(workdir):
        assert "waiting" not in caplog.text


def test_a_lease_that_was_given_back_is_free(lease) -> None:
    for _ in range(3):
        with lease() as taken:
            taken.confirm()


def test_a_copy_of_a_local_lock_file_is_free(lease, remote_workdir: str) -> None:
    (epath.Path(remote_workdir) / LOCK_FILE).write_text("process 1 on another host\n")
    with lease() as taken:
        taken.confirm()


def test_of_many_at_once_one_gets_it(lease) -> None:
    start, done, results = threading.Barrier(8), threading.Barrier(8), []

    def take(number: int) -> None:
        start.wait()
        try:
            with lease(f"trainer {number}", seconds=8.0):
                results.append("taken")
                done.wait()
        except UsageError:
            results.append("refused")
            done.wait()

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["refused"] * 7 + ["taken"]


def test_who_lost_it_is_told_who_has_it(lease) -> None:
    with lease("the paused one", seconds=0.2) as lost:
        # As in a machine that was suspended: nothing renews it.
        lost._closing.set()
        time.sleep(0.3)
        with lease("the next one") as taken:
            with pytest.raises(RunError, match="is being written by the next one now"):
                lost.confirm()
            taken.confirm()
    with lease():
        pass


def test_an_answer_that_was_lost_on_its_way_loses_no_lease(lease) -> None:
    with lease() as taken:
        before = taken._generation
        taken.confirm()
        # As if this trainer had never heard that the write above was done.
        taken._generation = before
        taken.confirm()
        assert taken._generation > before


def test_the_lock_of_a_workdir_in_a_bucket_is_a_lease(
    remote_workdir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.workdir.lease._RENEW_SECONDS", 0.5)
    message = f"--workdir={remote_workdir} is being written by process .* on "
    with lock(epath.Path(remote_workdir)) as held:
        held.confirm()
        with pytest.raises(UsageError, match=message), lock(epath.Path(remote_workdir)):
            pass
