"""From pictures of one's own to a test accuracy, each in one command, without TensorFlow."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT, run_trainer, trainer_environment, wait_until
from trainer.datasets import Dataset

pytestmark = pytest.mark.system

# Whether TensorFlow was imported, written down by the process when it ends.
WRITE_DOWN = (
    "import atexit, pathlib, sys; atexit.register(lambda: "
    "pathlib.Path('imported.txt').write_text(str('tensorflow' in sys.modules)))"
)
SHORT = (
    *("--model=mlp", "--batch_size=25", "--num_epochs=8", "--num_devices=1", "--data_dir=data"),
    "--noreport",
)


def save_pictures(folder: pathlib.Path, mnist: Dataset) -> None:
    """600 digits as PNG files: 500 for training, 100 for testing."""
    for split, count in (("train", 500), ("test", 100)):
        images, labels = getattr(mnist, f"{split}_images"), getattr(mnist, f"{split}_labels")
        for i in range(count):
            path = folder / split / f"digit {labels[i]}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i, ..., 0]).save(path)


def accuracy(tmp_path: pathlib.Path, *arguments: str) -> float:
    """Train with one command, evaluate with another; TensorFlow is not used."""
    for command in ((*arguments, *SHORT), ("evaluate",)):
        done = run_trainer(*command, "--workdir=run", cwd=tmp_path, patch=WRITE_DOWN)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "imported.txt").read_text() == "False"
        (tmp_path / "imported.txt").unlink()
    return json.loads(done.stdout)["accuracy"]


def test_600_pictures_in_a_folder(tmp_path, mnist):
    save_pictures(tmp_path / "digits", mnist)
    assert accuracy(tmp_path, "--dataset=digits") > 0.7


def test_an_npz_file_in_parts(tmp_path, mnist):
    images, labels = mnist.train_images[:600, ..., 0], mnist.train_labels[:600]
    np.savez(tmp_path / "digits.npz", x_train=images, y_train=labels)
    parts = ("--train_split=train[:80%]", "--test_split=train[80%:]")
    assert accuracy(tmp_path, "--dataset=digits.npz", *parts) > 0.7


def test_the_page_works_as_pasted(tmp_path, mnist):
    """The builder of docs/own_data.md, and the commands beside it."""
    page = (ROOT / "docs" / "own_data.md").read_text()
    [builder] = re.findall(r"```python\n(\"\"\"Pictures of pets.*?)```", page, re.DOTALL)
    [commands] = re.findall(r"```bash\n(python my_pets.py\n.*?)```", page, re.DOTALL)
    (tmp_path / "my_pets.py").write_text(builder)
    for split, count in (("train", 200), ("test", 10)):
        images, labels = getattr(mnist, f"{split}_images"), getattr(mnist, f"{split}_labels")
        for name, digit in (("cat", 0), ("dog", 1)):
            for i in np.flatnonzero(labels == digit)[:count]:
                path = tmp_path / "pets" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images[i, ..., 0]).save(path)
    environment = trainer_environment() | {
        "TFDS_DATA_DIR": str(tmp_path / "data"),
        "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    more = " --model=mlp --num_devices=1 --num_epochs=4"
    done = subprocess.run(
        ["bash", "-e", "-c", commands.rstrip() + more],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    [result] = re.findall(r"steps in .* test accuracy +([\d.]+) % of 20 examples", done.stderr)
    assert float(result) > 90


LOAD = """
import sys
from trainer import datasets
data = datasets.load(sys.argv[1], sys.argv[2])
print(data.identity["train_sha256"], "tensorflow" in sys.modules)
"""


def start_load(
    dataset: pathlib.Path, data_dir: pathlib.Path, first: str = ""
) -> subprocess.Popen[str]:
    """Start a process that prepares and reads a data set, after a line of Python."""
    return subprocess.Popen(
        [sys.executable, "-c", f"{first}\n{LOAD}", str(dataset), str(data_dir)],
        env=trainer_environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_processes_prepare_pictures_together(tmp_path, mnist):
    save_pictures(tmp_path / "digits", mnist)
    processes = [start_load(tmp_path / "digits", tmp_path / "data") for _ in range(4)]
    said = set()
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        said.add(out)
    [out] = said
    assert out.endswith(" False\n")
    [folder] = (tmp_path / "data" / "own_pictures").iterdir()
    assert [path.name for path in folder.iterdir()] == ["1.0.0"]


def test_a_killed_preparation_leaves_nothing_that_is_taken_for_whole(tmp_path, mnist):
    path = tmp_path / "digits.npz"
    np.savez(
        path,
        x_train=mnist.train_images[:30000],
        y_train=mnist.train_labels[:30000],
        x_test=mnist.test_images,
        y_test=mnist.test_labels,
    )
    process = start_load(path, tmp_path / "data")
    wait_until(lambda: list(tmp_path.glob("data/*/*/incomplete*/*train*")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(tmp_path.glob("data/*/*/1.0.0"))
    out, err = start_load(path, tmp_path / "data").communicate(timeout=300)
    images, labels = mnist.train_images[:30000], mnist.train_labels[:30000]
    expected = Dataset("", images, labels, images[:1], labels[:1], 10).identity["train_sha256"]
    assert out == f"{expected} False\n", err


def test_a_disk_that_is_full(tmp_path, mnist):
    save_pictures(tmp_path / "digits", mnist)
    # No file may grow beyond 100 kB: the kernel says so as it does of a full disk.
    process = start_load(
        tmp_path / "digits",
        tmp_path / "data",
        first="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))",
    )
    _, err = process.communicate(timeout=300)
    [message] = [line for line in err.splitlines() if "RunError" in line]
    assert f"preparing the data set in {tmp_path}/data failed: " in message
    assert "File too large; make room there, or use another --data_dir" in message
    assert not list(tmp_path.glob("data/*/*/*"))
