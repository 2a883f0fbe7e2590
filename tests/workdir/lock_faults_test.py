"""A lock that cannot be taken is explained, and one that is lost is noticed."""

import errno
import fcntl
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from etils import epath

from trainer.datasets import open_dataset
from trainer.errors import RunError, UsageError
from trainer.paths import expand
from trainer.workdir.lock import LOCK_FILE, lock
from trainer.workdir.storage import open_workdir


def refusal(workdir: Path) -> str:
    with pytest.raises(UsageError) as error, lock(epath.Path(workdir)):
        pass
    assert f"--workdir={workdir}" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    message = refusal(tmp_path)
    assert f"its file system cannot lock files ({os.strerror(number)})" in message
    assert "is being written by" not in message


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).mkdir()
    assert f"{tmp_path / LOCK_FILE}, cannot be opened: it is a folder" in refusal(tmp_path)


@pytest.fixture
def other_user():
    """For a moment, this process is another user than the one that makes files."""
    if os.geteuid() != 0:
        pytest.skip("needs root")

    def become() -> None:
        os.seteuid(65534)

    yield become
    os.seteuid(0)


def test_the_file_of_another_user(tmp_path: Path, other_user) -> None:
    """It can be locked if it can be read; who holds it is still said."""
    path = tmp_path / LOCK_FILE
    path.write_text("process 7 on there\n")
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/") and folder.stat().st_uid == os.getuid():
            folder.chmod(folder.stat().st_mode | 0o055)
    path.chmod(0o600)
    other_user()
    assert "it belongs to another user, and may not be read" in refusal(tmp_path)
    os.seteuid(0)
    path.chmod(0o644)
    other_user()
    with lock(epath.Path(tmp_path)) as held:
        held.confirm()
        assert "is being written by process 7 on there" in refusal(tmp_path)


@pytest.mark.parametrize("again", [False, True], ids=["gone", "made again"])
def test_a_workdir_that_is_deleted_is_noticed(tmp_path: Path, again: bool) -> None:
    workdir = tmp_path / "run"
    workdir.mkdir()
    with lock(epath.Path(workdir)) as held:
        held.confirm()
        shutil.rmtree(workdir)
        if again:
            workdir.mkdir()
            (workdir / LOCK_FILE).touch()
        with pytest.raises(RunError, match="was deleted, moved or replaced"):
            held.confirm()


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("workdir", "~/run") == f"{tmp_path}/run"
    assert open_workdir("~/run") == epath.Path(tmp_path / "run")
    assert expand("workdir", "a~/~") == "a~/~"
    assert expand("workdir", "./~") == "./~"


def test_paths_that_lead_nowhere_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--workdir= is empty"):
        open_workdir("")
    for none in (None, 5, b"run"):
        with pytest.raises(UsageError, match=f"workdir={none} is not valid; use the path of a"):
            open_workdir(none)
    with pytest.raises(UsageError, match="--output=~nobody-here/x: there is no home folder"):
        expand("output", "~nobody-here/x")


def test_names_that_are_not_utf8_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Orbax and TFDS fail at the first save, and at the first file."""
    latin1 = os.fsdecode(f"{tmp_path}/caf".encode() + b"\xe9")
    for open_one in (open_workdir, partial(open_dataset, "mnist")):
        with pytest.raises(
            UsageError, match=r"--(data_dir|workdir): the name .*/caf\\xe9 is not UTF-8"
        ):
            open_one(latin1)
    os.mkdir(latin1)
    monkeypatch.chdir(latin1)
    with pytest.raises(UsageError, match=r"--output: the name .*/caf\\xe9/a is not UTF-8"):
        expand("output", "a")
    assert expand("workdir", "gs://bucket/a") == "gs://bucket/a"
    assert expand("workdir", f"{tmp_path}/café") == f"{tmp_path}/café"


def test_no_home_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither HOME nor an entry in the list of users, as in many a container."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", _no_entry)
    with pytest.raises(UsageError, match="HOME is not set"):
        expand("workdir", "~/run")
    assert expand("workdir", "run") == "run"


def _no_entry(uid: int) -> None:
    raise KeyError(uid)
