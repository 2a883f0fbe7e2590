"""A network and an optimizer of one's own through the life of a run: every command knows them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.helpers import stored_state
from trainer.checkpoints import read_newest
from trainer.commands import export, find_lr, inspection
from trainer.commands.predict.inference import Predictor
from trainer.config import TrainConfig
from trainer.errors import RunError, UsageError
from trainer.run.loop import train
from trainer.run.stored import load_checkpoint

SOURCE = """
import jax.numpy as jnp, optax
from flax import nnx

class Network(nnx.Module):
    def __init__(self, *, image_shape, num_classes, dtype, rngs):
        self.dense = nnx.Linear(36, num_classes, rngs=rngs)
        self.norm = nnx.BatchNorm(36, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, inputs):
        return self.dense(self.dropout(self.norm(inputs.reshape(inputs.shape[0], -1))))

def create():
    return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(1e-3))
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """64 examples of 6x6 pixels, and both of one's own, named as from the folder of the file."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (80, 6, 6), np.uint8), np.arange(80) % 4
    own = {"x_train": images[16:], "y_train": labels[16:], "x_test": images[:16]}
    np.savez(tmp_path / "own.npz", **own, y_test=labels[:16])
    (tmp_path / "own.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return TrainConfig(
        dataset=str(tmp_path / "own.npz"),
        data_dir=str(tmp_path / "data"),
        model="own.py:Network",
        optimizer="own.py:create",
        batch_size=16,
        steps_per_cycle=7,
        num_steps=5,
        num_devices=1,
        tensorboard=False,
        report=False,
    )


def longer(config: TrainConfig, num_steps: int = 6) -> TrainConfig:
    return dataclasses.replace(config, num_steps=num_steps)


def test_every_command_knows_it(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another folder, as the checkpoint names the file by its whole path."""
    result = train(config, tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = inspection.inspect(tmp_path / "run")
    assert found["config"]["model"] == f"{tmp_path}/own.py:Network"
    assert f"{tmp_path}/own.py:create" in inspection.summary(found)
    evaluated = inspection.evaluate(tmp_path / "run", TrainConfig(num_devices=1))
    assert evaluated["accuracy"] == result.test_accuracy
    checkpoint = load_checkpoint(tmp_path / "run")
    assert set(checkpoint.statistics["norm"]) == {"mean", "var"}
    images = np.random.default_rng(1).integers(0, 256, (3, 6, 6, 1), np.uint8)
    logits = checkpoint.network.apply(
        checkpoint.params, checkpoint.statistics, images.astype(np.float32) / 255
    )
    expected = jax.nn.softmax(logits)
    np.testing.assert_allclose(Predictor(tmp_path / "run").infer(images), expected, rtol=1e-5)
    export.export(tmp_path / "run", None)
    exported = jax.export.deserialize(bytearray((tmp_path / "run/model.jaxexport").read_bytes()))
    np.testing.assert_allclose(exported.call(images), expected, rtol=1e-4)
    flagfile = find_lr.flagfile(config, "run", [])
    assert f"--model={tmp_path}/own.py:Network\n--" in flagfile


def test_the_relative_path_is_no_change(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(config, tmp_path / "run")
    again = dataclasses.replace(config, model="./own.py:Network", num_steps=6)
    assert train(again, tmp_path / "run").complete
    assert "is not the file" not in caplog.text
    with pytest.raises(UsageError, match=r"\n +model +/.*own.py:Network +mlp\n"):
        train(dataclasses.replace(config, model="mlp", num_steps=7), tmp_path / "run")


@pytest.mark.parametrize(
    ("old", "new", "leaf"),
    [
        ("", "", ""),
        (
            "nnx.BatchNorm(36, ",
            "nnx.BatchNorm(36, use_bias=False, ",
            "norm/bias has no place",
        ),
        (
            "self.dropout = ",
            "self.more = nnx.Linear(2, 2, rngs=rngs); self.dropout = ",
            "more/bias",
        ),
    ],
)
def test_a_file_that_has_changed(
    config: TrainConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    old: str,
    new: str,
    leaf: str,
) -> None:
    """It is said; with other parameters it is refused."""
    train(config, tmp_path / "run")
    before = read_newest(tmp_path / "run").meta["sources"]
    assert set(before) == {"model", "optimizer"}
    changed = SOURCE.replace(old, new) if leaf else SOURCE + "# A remark.\n"
    (tmp_path / "own.py").write_text(changed)
    if leaf:
        with pytest.raises(RunError, match=f"checkpoint 5 does not fit the run: .*{leaf}"):
            train(longer(config), tmp_path / "run")
    else:
        assert train(longer(config), tmp_path / "run").complete
        assert read_newest(tmp_path / "run").meta["sources"] != before
    said = [record.getMessage() for record in caplog.records if "is not the file" in record.msg]
    assert len(said) == 2
    assert f"{before['model'][:8]}..., now " in said[0]


def test_a_network_that_cannot_be_exported(
    config: TrainConfig, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture
) -> None:
    """It counts the images, whose number an export leaves open."""
    (tmp_path / "own.py").write_text(SOURCE.replace("inputs.shape[0]", "len(inputs)"))
    train(config, tmp_path / "run")
    assert command("export", f"--workdir={tmp_path}/run") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: --model={tmp_path}/own.py:Network cannot be exported")
    assert "inputs.shape[0] is that number, and len(inputs) is not known" in error
    assert "Traceback" not in error


def test_a_file_that_is_gone(
    config: TrainConfig, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture
) -> None:
    train(config, tmp_path / "run")
    (tmp_path / "own.py").rename(tmp_path / "moved.py")
    assert command("evaluate", f"--workdir={tmp_path}/run") == 1
    error = capsys.readouterr().err
    assert f"error: --model={tmp_path}/own.py:Network: there is no file {tmp_path}/own.py" in error


def test_parameters_that_are_not_finite(config: TrainConfig, tmp_path: Path) -> None:
    """The shapes cannot tell; the first state does."""
    wrong = "num_classes, kernel_init=nnx.initializers.constant(float('nan')), "
    (tmp_path / "own.py").write_text(SOURCE.replace("num_classes, rngs", f"{wrong}rngs"))
    with pytest.raises(RunError, match="parameter dense/kernel is not finite before the first"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_state_with_truth_values(config: TrainConfig, tmp_path: Path) -> None:
    """Of optax.apply_if_finite: saved, compared between devices, and restored."""
    text = SOURCE.replace(
        "optax.scale_by_adam()", "optax.apply_if_finite(optax.scale_by_adam(), 2)"
    )
    (tmp_path / "own.py").write_text(text)
    config = dataclasses.replace(config, num_devices=2)
    train(config, tmp_path / "run")
    train(longer(config), tmp_path / "run")
    assert any(leaf.dtype == bool for leaf in stored_state(tmp_path / "run", 6).values())
