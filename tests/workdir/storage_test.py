"""A local workdir is its own folder, and a bucket needs packages that not everybody has."""

import sys
from pathlib import Path

import pytest
from etils import epath

from trainer.errors import UsageError
from trainer.workdir import storage


def test_local_files_are_not_copied(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("")
    files = storage.LocalFiles(epath.Path(tmp_path))
    assert files.folder == epath.Path(tmp_path)
    files.fetch("one")
    files.publish()
    files.close()
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_the_packages_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    message = r"gcsfs is not installed; .*pip install 'cyclic-trainer\[gcs\]'.* -e '\.\[gcs\]'"
    with pytest.raises(UsageError, match=message):
        storage.open_workdir("gs://bucket/folder")


@pytest.mark.parametrize("text", ["NOT_FOUND: no manifest", "DATA_LOSS: checksum", "no such leaf"])
def test_what_tells_about_a_checkpoint(text: str) -> None:
    assert not storage.is_outage(ValueError(text))
