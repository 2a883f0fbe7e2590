"""One writer a workdir."""

import os
from pathlib import Path

import pytest
from etils import epath

from trainer.errors import UsageError
from trainer.workdir.lock import lock


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
