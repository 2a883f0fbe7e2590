"""An exported network runs where there is nothing but jax."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainer.commands.export import export
from trainer.commands.predict.inference import Predictor
from trainer.config import TrainConfig
from trainer.datasets import Dataset
from trainer.run.loop import train

pytestmark = pytest.mark.system

# A Python that could have jax, numpy and flatbuffers alone.
PROGRAM = """
import sys
import jax, jax.export, numpy as np
images = np.load(sys.argv[2])
network = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
np.save(sys.argv[3], network.call(images))
foreign = {"trainer", "flax", "optax", "orbax", "tensorflow_datasets", "absl", "PIL"}
assert not foreign & set(sys.modules), foreign & set(sys.modules)
"""


def test_an_export_needs_jax_alone(config: TrainConfig, mnist: Dataset, tmp_path: Path) -> None:
    train(dataclasses.replace(config, num_steps=10), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "digits.jaxexport")
    images = mnist.test_images[:150]
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", PROGRAM, "digits.jaxexport", "images.npy", "out.npy"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"JAX_PLATFORMS": "cpu"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=300)
    expected = np.asarray(Predictor(tmp_path / "run").infer(images))
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-4, atol=1e-12)
