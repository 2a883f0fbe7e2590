"""The Python interface, each time in a Python that has not started jax."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import trainer_environment

pytestmark = pytest.mark.system


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=trainer_environment())


def test_import_imports_no_jax_and_lists_the_interface() -> None:
    code = (
        "import sys, trainer; "
        "assert not {'jax', 'numpy', 'flax'} & set(sys.modules); print(dir(trainer)); "
        "[getattr(trainer, name) for name in dir(trainer)]; trainer.TrainConfig(seed=3)"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "create_triangular_schedule" in done.stdout


def test_records_import_neither_pytorch_nor_the_client_of_a_cloud(tmp_path: Path) -> None:
    """Its library would, where they are installed, and a run would begin seconds later."""
    for name in ("torch", "boto3"):
        (tmp_path / f"{name}.py").write_text("Tensor = None")
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from etils import epath
from trainer.records.tensorboard import TensorBoard
from trainer.records.throughput import Throughput
TensorBoard(epath.Path(sys.argv[1]) / "board", 0, 10, [], [], Throughput(0, 10, 1)).close()
found = {"torch", "boto3", "google.cloud.storage"} & set(sys.modules)
assert not found, found
import google.cloud.storage, torch
"""
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "board").iterdir())


TRAIN = """
import json, logging, sys, trainer
logging.basicConfig()
{first}
config = trainer.TrainConfig(
    model="mlp", batch_size=3000, num_steps=3, steps_per_cycle=7, data_dir=sys.argv[1],
    num_cpu_devices=4, report=False, tensorboard=False, reduction="tree",
)
result = trainer.train(config, sys.argv[2])
again = trainer.train(config, sys.argv[2])
assert again == result and result.complete
import jax
found = trainer.load_checkpoint(sys.argv[2])
assert found.step == result.step == 3
logits = found.network.apply(found.params, found.statistics, jax.numpy.zeros((2, 28, 28, 1)))
assert logits.shape == (2, 10)
stored = found.config.num_cpu_devices
print(json.dumps([jax.device_count(), result.test_accuracy, result.workdir, stored]))
"""


@pytest.mark.parametrize("started", [False, True])
def test_train_makes_devices_unless_jax_has_started(
    data_dir: Path, tmp_path: Path, started: bool
) -> None:
    first = "import jax; jax.devices()" if started else ""
    done = python(TRAIN.format(first=first), data_dir, tmp_path)
    assert done.returncode == 0, done.stderr
    count, accuracy, workdir, stored = json.loads(done.stdout)
    assert (count, stored) == ((1, 0) if started else (4, 4))
    assert 0 < accuracy < 1
    assert workdir == str(tmp_path)
    said = "jax has started already: training takes the devices that are there (1 device"
    assert (said in done.stderr) == started
