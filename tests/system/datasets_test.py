"""Several processes prepare the data at once."""

import pathlib
import subprocess
import sys

import pytest

from tests.helpers import trainer_environment

pytestmark = pytest.mark.system

MNIST = pathlib.Path("mnist_idx", "mnist", "1.0.0")


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
