"""Several processes prepare the data at once."""

import pathlib
import subprocess
import sys

import pytest

from tests.helpers import QUICK, run_trainer, trainer_environment

pytestmark = pytest.mark.system

MNIST = pathlib.Path("mnist_idx", "mnist", "1.0.0")

NO_HOME = """\
import os, pwd
os.environ.pop("HOME", None)
os.environ.pop("TFDS_DATA_DIR", None)
def no_entry(user):
    raise KeyError(user)
pwd.getpwuid = pwd.getpwnam = no_entry
"""


def test_a_host_without_a_home_folder(tmp_path):
    """Neither HOME nor an entry in the list of users, as in a container: the data find a place."""
    (tmp_path / "tmp").mkdir()
    environment = trainer_environment() | {"TMPDIR": str(tmp_path / "tmp")}
    patch = f"exec({NO_HOME!r})"
    flags = (f"--workdir={tmp_path}/run", *QUICK, "--num_steps=3")
    done = run_trainer(*flags, patch=patch, env=environment)
    assert done.returncode == 0, done.stderr
    assert "there is no home folder here (HOME is not set): data sets are in" in done.stderr
    assert list((tmp_path / "tmp").glob(f"cyclic-trainer-*/{MNIST}/*.array_record*"))
    refused = run_trainer(*flags, "--data_dir=~/data", patch=patch, env=environment)
    assert refused.returncode == 1
    assert "error: --data_dir=~/data: there is no home folder ~ here" in refused.stderr


def run_python(code, *args, **kwargs):
    """Starts a Python process that can import this checkout."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(
        command,
        env=trainer_environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **kwargs,
    )


LOAD = """
import sys
from trainer import datasets
source = datasets.open_dataset("mnist", sys.argv[1])
assert source.read().train_images.shape == (60000, 28, 28, 1)
print(sorted({"tensorflow", "tensorflow_cpu"} & set(sys.modules)))
"""


def test_processes_may_prepare_together_and_none_imports_tensorflow(tmp_path):
    processes = [run_python(LOAD, tmp_path) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert out == "[]\n"
    assert sorted(path.name for path in (tmp_path / MNIST.parent).iterdir()) == ["1.0.0"]
