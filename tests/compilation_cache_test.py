"""Compiled programs are kept where the user keeps caches, and nowhere the user does not want."""

import pathlib
from collections.abc import Iterator

import jax
import pytest

from trainer import devices

_OPTION = "jax_compilation_cache_dir"


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """No folder is chosen yet, and caches belong into the folder returned."""
    names = [
        _OPTION,
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ]
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(_OPTION, None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def test_folder_is_the_users(unset: pathlib.Path) -> None:
    devices.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(devices.cache_dir())
    assert devices.cache_dir().is_relative_to(unset / "cyclic-trainer")


def test_folder_that_the_user_chose_stays(unset: pathlib.Path) -> None:
    jax.config.update(_OPTION, str(unset / "mine"))
    devices.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(unset / "mine")


def test_home_without_room_for_it_is_no_error(unset: pathlib.Path) -> None:
    (unset / "cyclic-trainer").write_text("a file where the folder should be")
    devices.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
