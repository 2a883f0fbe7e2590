"""A second run compiles nothing anew, unless the user does not want to keep anything."""

import os
import pathlib

import pytest

pytestmark = pytest.mark.system


def test_second_run_compiles_nothing_anew(
    trainer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_LOGGING_LEVEL", "DEBUG")
    flags = ("--model=mlp", "--num_steps=1", "--noreport")
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
