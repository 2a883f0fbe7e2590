"""Compiled programs are kept where the user keeps caches, and nowhere the user does not want."""

import os
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


def test_second_run_compiles_nothing_anew(
    trainer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_LOGGING_LEVEL", "DEBUG")
    flags = ("--model=mlp", "--num_steps=1")
    results = [trainer(*flags, f"--workdir=run{i}") for i in range(2)]
    wrote = ["Writing jit_gradient to persistent" in result.stderr for result in results]
    found = ["cache hit for 'jit_gradient'" in result.stderr for result in results]
    assert (wrote, found) == ([True, False], [False, True])
    assert list((tmp_path / "cache").rglob("*-cache"))


def test_switched_off_nothing_is_kept(
    trainer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = trainer("--model=mlp", "--num_steps=1", "--nocompilation_cache", "--noreport")
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "cache" / "cyclic-trainer").exists()
