"""A trace is written once, where it is looked for, and changes nothing about the run."""

import dataclasses
import gzip
import json
import pathlib

import pytest

from trainer.commands.inspection import inspect
from trainer.config import TrainConfig
from trainer.run.loop import train


@pytest.mark.parametrize("num_steps", [45, 30])
def test_trace_opens_and_changes_nothing(
    config: TrainConfig, tmp_path: pathlib.Path, num_steps: int
) -> None:
    """With 30 steps the run ends inside the trace."""
    config = dataclasses.replace(config, num_steps=num_steps, eval_every_steps=1000)
    train(config, tmp_path / "plain")
    train(dataclasses.replace(config, profile=True), tmp_path / "traced")
    assert not (tmp_path / "plain/profile").exists()
    (path,) = (tmp_path / "traced/profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    # Two programs a step, on two devices each: the whole trace, or what the run left of it.
    traced = min(20, num_steps - 20)
    executed = [event for event in events if event.get("name") == "ThunkExecutor::Execute"]
    assert len(executed) >= 2 * 2 * traced
    assert list((tmp_path / "traced/profile").rglob("*.xplane.pb"))
    digests = [inspect(tmp_path / run)["digests"] for run in ("plain", "traced")]
    assert digests[0] == digests[1]


def test_run_too_short_for_a_trace_has_none(config: TrainConfig, tmp_path: pathlib.Path) -> None:
    train(dataclasses.replace(config, num_steps=10, profile=True), tmp_path)
    assert not (tmp_path / "profile").exists()
