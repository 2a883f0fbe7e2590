"""One writer a workdir among processes, for as long as it lives."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from trainer.errors import UsageError
from trainer.workdir.lock import LOCK_FILE, lock

pytestmark = pytest.mark.system


HOLD = (
    "import sys, time; from etils import epath; from trainer.workdir.lock import lock\n"
    "with lock(epath.Path(sys.argv[1])):\n"
    "    print('locked', flush=True)\n"
    "    time.sleep(60)\n"
)


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_writer_is_refused(holder: subprocess.Popen, tmp_path: Path) -> None:
    message = f"--workdir={tmp_path} is being written by process {holder.pid} on "
    with pytest.raises(UsageError, match=message), lock(epath.Path(tmp_path)):
        pass


def test_the_lock_of_a_killed_process_is_free(holder: subprocess.Popen, tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    # As if the system had given this very process the number of the killed one.
    (tmp_path / LOCK_FILE).write_text(f"process {os.getpid()} on here\n")
    with lock(epath.Path(tmp_path)):
        assert f"process {os.getpid()} on " in (tmp_path / LOCK_FILE).read_text()
