"""What the environment of a process sets: no bit changes, or it is said that they may."""

import os
import pathlib
import shutil

import pytest

from tests.helpers import SAVING, assert_no_traceback, checkpoint_steps, trainer_environment
from trainer.commands.inspection import inspect

pytestmark = pytest.mark.system

DIFFER = "the last bits may differ from here on"


@pytest.fixture
def stopped(unbroken: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the run that nobody stopped, without its newest checkpoint."""
    workdir = tmp_path / "run"
    shutil.copytree(unbroken, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(max(checkpoint_steps(workdir))))
    return workdir


@pytest.mark.parametrize(
    "variables",
    [
        # Settings that change how jax traces and draws.
        {
            "JAX_ENABLE_X64": "1",
            "JAX_NUMPY_DTYPE_PROMOTION": "strict",
            "JAX_NUMPY_RANK_PROMOTION": "raise",
            "JAX_RANDOM_SEED_OFFSET": "3",
            "JAX_DEFAULT_PRNG_IMPL": "rbg",
            "JAX_THREEFRY_PARTITIONABLE": "0",
            "JAX_LEGACY_PRNG_KEY": "error",
            "JAX_DEBUG_NANS": "1",
            "JAX_CHECK_TRACER_LEAKS": "1",
        },
        # Python, and a machine without a language.
        {
            "PYTHONOPTIMIZE": "2",
            "PYTHONHASHSEED": "7",
            "PYTHONWARNINGS": "error",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "LC_ALL": "C",
            "TZ": "Nowhere/Land",
        },
    ],
    ids=["jax", "python"],
)
def test_settings_that_change_no_bit(
    trainer, stopped: pathlib.Path, unbroken: pathlib.Path, variables: dict[str, str]
) -> None:
    done = trainer(f"--workdir={stopped}", *SAVING, env=trainer_environment() | variables)
    assert done.returncode == 0, done.stderr
    assert_no_traceback(done.stderr)
    assert DIFFER not in done.stderr
    assert inspect(stopped)["digests"] == inspect(unbroken)["digests"]


def test_settings_that_may_change_bits_are_said(
    trainer, stopped: pathlib.Path, unbroken: pathlib.Path
) -> None:
    """XLA:CPU with narrower registers, and so sums in another order, and less fusion."""
    before = os.environ.get("XLA_FLAGS", "")
    variables = {
        "XLA_FLAGS": f"{before} --xla_cpu_max_isa=SSE4_2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    done = trainer(f"--workdir={stopped}", *SAVING, env=trainer_environment() | variables)
    assert done.returncode == 0, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if DIFFER in line]
    assert "XLA_FLAGS unset, now --xla_cpu_max_isa=SSE4_2" in said
    assert "jax_disable_most_optimizations False, now True" in said
    assert inspect(stopped)["digests"] != inspect(unbroken)["digests"]
    assert inspect(stopped)["environment"]["XLA_FLAGS"] == "--xla_cpu_max_isa=SSE4_2"


def test_find_lr_obeys_none_of_them_either(trainer, tmp_path: pathlib.Path) -> None:
    """The same curve: order, shifts and first parameters are those that training would have."""
    flags = ("find_lr", "--model=mlp", "--batch_size=64", "--augment=shift", "--find_lr_steps=60")
    variables = {"JAX_ENABLE_X64": "1", "JAX_THREEFRY_PARTITIONABLE": "0"}
    curves = []
    for name, more in (("plain", {}), ("other", variables)):
        trainer(*flags, f"--workdir={name}", env=trainer_environment() | more)
        curves.append((tmp_path / name / "find_lr.csv").read_bytes())
    assert curves[0] == curves[1]
