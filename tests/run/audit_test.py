"""--audit_every_steps in a run."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.helpers import also, checkpoint_steps
from trainer.commands import inspection
from trainer.config import TrainConfig
from trainer.errors import RunError, UsageError
from trainer.run.loop import train
from trainer.step import train_step


@pytest.fixture
def audited(config: TrainConfig) -> TrainConfig:
    """Two devices, an audit with every checkpoint."""
    return dataclasses.replace(
        config, num_devices=2, num_steps=15, checkpoint_every_steps=5, audit_every_steps=5
    )


@pytest.mark.parametrize("placement", ["replicated", also("sharded"), also("streamed")])
def test_an_audit_changes_nothing(audited: TrainConfig, tmp_path: Path, placement: str) -> None:
    audited = dataclasses.replace(audited, data_placement=placement)
    train(audited, tmp_path / "audited")
    train(dataclasses.replace(audited, audit_every_steps=None), tmp_path / "plain")
    digests = [inspection.inspect(tmp_path / run)["digest"] for run in ("audited", "plain")]
    assert digests[0] == digests[1]


def test_it_stops_before_the_checkpoint(
    audited: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_programs: dict
) -> None:
    """A device that computes wrongly from step 7 on is noticed at 10; that is not saved."""
    real = train_step._gradient_sum

    def faulty(network: Any, label_smoothing: float, state: Any, *rest: Any) -> Any:
        grads, statistics, metrics = real(network, label_smoothing, state, *rest)
        wrong = (jax.lax.axis_index("data") == 1) & (state.step >= 7)
        bias = grads["dense2"]["bias"]
        grads["dense2"]["bias"] = jnp.where(wrong, jnp.nextafter(bias, jnp.inf), bias)
        return grads, statistics, metrics

    monkeypatch.setattr(train_step, "_gradient_sum", faulty)
    shared_programs.clear()
    with pytest.raises(RunError, match=r"audit of step 10 .* the gradient of dense2/bias from"):
        train(audited, tmp_path)
    assert checkpoint_steps(tmp_path) == {5}
    shared_programs.clear()  # Those that are faulty.


def test_one_device_cannot_be_audited(audited: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--audit_every_steps=5: one device has no neighbour"):
        train(dataclasses.replace(audited, num_devices=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_audits_rest_where_the_run_resumes_on_one_device(
    audited: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody asked for them there: the flag was not given."""
    train(dataclasses.replace(audited, num_steps=7), tmp_path / "run")
    given = ["num_devices", "num_steps"]
    train(dataclasses.replace(audited, num_devices=1), tmp_path / "run", given=given)
    assert caplog.text.count("no audits on one device, which has no neighbour") == 1
    assert checkpoint_steps(tmp_path / "run") == {5, 7, 10, 15}
    # The field stays.
    assert inspection.inspect(tmp_path / "run")["config"]["audit_every_steps"] == 5
