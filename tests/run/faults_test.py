"""What goes wrong in a run ends in one message, and costs no good checkpoint."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import checkpoint_steps, read_metrics
from trainer.commands import inspection
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.run.loop import train
from trainer.schedules.cyclical import create_triangular_schedule


@pytest.fixture
def config(config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(config, num_steps=40)


def test_a_loss_that_is_no_number_stops_the_run(config: TrainConfig, tmp_path: Path) -> None:
    train(dataclasses.replace(config, num_steps=10), tmp_path)
    wild = dataclasses.replace(config, lr_max=1e30)
    with pytest.raises(RunError) as error:
        train(wild, tmp_path, ["lr_max"])
    text = str(error.value)
    assert "the loss is nan at step 1" in text or "the loss is inf at step 1" in text
    assert "epoch 1, cycle 2, step" in text
    assert "learning rate" in text
    assert "try a lower --lr_max" in text
    assert checkpoint_steps(tmp_path) == {10}
    train(config, tmp_path)
    assert [line["step"] for line in read_metrics(tmp_path, "train")] == list(range(40))


def test_an_accepted_change_is_applied_and_recorded(config: TrainConfig, tmp_path: Path) -> None:
    train(dataclasses.replace(config, num_steps=10), tmp_path)
    changed = dataclasses.replace(config, lr_max=0.1, num_steps=20)
    train(changed, tmp_path, ["lr_max", "momentum"])
    train(dataclasses.replace(changed, num_steps=30), tmp_path)
    found = inspection.inspect(tmp_path)
    assert found["config_history"] == [{"step": 10, "changes": {"lr_max": [0.03, 0.1]}}]
    assert found["config"]["lr_max"] == 0.1
    before = create_triangular_schedule(3e-3, 0.03, 7)
    after = create_triangular_schedule(3e-3, 0.1, 7)
    rates = [np.float32(line["learning_rate"]) for line in read_metrics(tmp_path, "train")]
    np.testing.assert_array_equal(rates[:10], before(np.arange(10)))
    np.testing.assert_array_equal(rates[10:], after(np.arange(10, 30)))


def test_a_damaged_checkpoint_costs_only_its_steps(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(config, tmp_path / "unbroken")
    train(dataclasses.replace(config, num_steps=30), tmp_path / "broken")
    (tmp_path / "broken" / "checkpoints" / "30" / "state" / "manifest.ocdbt").unlink()
    train(config, tmp_path / "broken")
    assert "checkpoint 30 is damaged" in caplog.text
    assert "taking checkpoint 20; 10 steps are lost" in caplog.text
    assert read_metrics(tmp_path / "broken", "train") == read_metrics(
        tmp_path / "unbroken", "train"
    )
    digests = [inspection.inspect(tmp_path / name)["digest"] for name in ("broken", "unbroken")]
    assert digests[0] == digests[1]
    assert (tmp_path / "broken" / "checkpoints" / "damaged" / "30").is_dir()


def test_a_rate_that_another_version_would_apply_is_refused(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(dataclasses.replace(config, num_steps=10), tmp_path)

    def other_version(config: TrainConfig):
        return create_triangular_schedule(config.lr_min, config.lr_max, 8)

    monkeypatch.setattr("trainer.run.job.create_schedule", other_version)
    with pytest.raises(RunError, match="checkpoint 10 says that the next learning rate"):
        train(config, tmp_path)
