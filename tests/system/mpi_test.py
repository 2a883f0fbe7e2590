"""Under a real mpirun the processes find each other by themselves."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import QUICK, ROOT, read_metrics

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        shutil.which("mpirun") is None,
        reason="mpirun is not installed (Debian: apt-get install openmpi-bin)",
    ),
]

# mpirun refuses root, and more processes than cores, unless told otherwise; and it would bind each
# process, with all its threads, to one core.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
}


def mpirun(data_dir: Path, tmp_path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *("mpirun", "-n", "2", sys.executable, "-m", "trainer"),
            *(*QUICK, "--workdir=run"),
            *(f"--data_dir={data_dir}", *flags),
        ],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_two_processes_find_each_other(data_dir: Path, tmp_path: Path) -> None:
    done = mpirun(data_dir, tmp_path, "--num_steps=40")
    assert done.returncode == 0, done.stderr
    assert "of 2 processes" in done.stderr
    lines = read_metrics(tmp_path / "run", "train")
    assert [line["step"] for line in lines] == list(range(40))
    again = mpirun(data_dir, tmp_path, "--num_steps=40")
    assert again.returncode == 0, again.stderr
    assert "is complete: 40 steps" in again.stderr


def test_wrong_flags_end_both(data_dir: Path, tmp_path: Path) -> None:
    done = mpirun(data_dir, tmp_path, "--lr_min=2", "--lr_max=1")
    assert done.returncode == 1
    assert "--lr_min=2.0 is above --lr_max=1.0" in done.stderr
    assert not (tmp_path / "run").exists()
