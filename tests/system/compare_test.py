"""`compare` as a user runs it: beside a run that goes on, after kill -9, and without jax."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import (
    SAVING,
    assert_no_traceback,
    read_metrics,
    trainer_environment,
    wait_for_checkpoint,
)

pytestmark = pytest.mark.system


def test_a_run_in_progress_a_killed_one_and_one_that_has_ended(
    trainer: Callable, start: Callable, unbroken: Path, tmp_path: Path
) -> None:
    process = start("--workdir=run", *SAVING, "--num_steps=100000")
    wait_for_checkpoint(tmp_path / "run", 10, process)
    during = trainer("compare", str(unbroken), "run")
    assert process.poll() is None
    process.kill()
    process.wait()
    steps = len(read_metrics(tmp_path / "run", "train"))
    after = trainer("compare", "run", str(unbroken), "--output=after.png")
    for done in (during, after):
        assert done.returncode == 0, done.stderr
        assert_no_traceback(done.stderr)
    ended, going_on = json.loads(during.stdout)["runs"]
    assert (ended["steps"], ended["num_steps"]) == (100, 100)
    assert 10 <= going_on["steps"] <= steps < going_on["num_steps"] == 100000
    killed = json.loads(after.stdout)["runs"][0]
    assert killed["steps"] == steps
    assert killed["seconds"] > 0
    assert (tmp_path / "compare.png").exists()
    assert (tmp_path / "after.png").exists()


def test_nothing_heavy_is_imported(unbroken: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from trainer import cli\n"
        f"code = cli.run(['trainer', 'compare', {str(unbroken)!r}])\n"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'tensorflow_datasets'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if heavy or code else 0)"
    )
    command = [sys.executable, "-c", program]
    environment = trainer_environment()
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)


def test_report_imports_nothing_heavy_either(unbroken: Path) -> None:
    program = (
        "import sys; from trainer import cli\n"
        f"code = cli.run(['trainer', 'report', '--workdir={unbroken}'])\n"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'tensorflow_datasets'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if heavy or code else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=trainer_environment())
