"""A trace is written once, where it is looked for, and changes nothing about the run."""

import dataclasses
import gzip
import json
import pathlib

import pytest

from trainer.commands.inspection import inspect
from trainer.config import TrainConfig
from trainer.run.loop import train


def test_trace_opens_and_changes_nothing(config: TrainConfig, tmp_path: pathlib.Path) -> None:
    config = dataclasses.replace(config, num_steps=45, eval_every_steps=1000)
    train(config, tmp_path / "plain")
    train(dataclasses.replace(config, profile=True), tmp_path / "traced")
    assert not (tmp_path / "plain/profile").exists()
    (path,) = (tmp_path / "traced/profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    # Two programs a step, on two devices each.
    executed = [event for event in events if event.get("name") == "ThunkExecutor::Execute"]
    assert len(executed) >= 2 * 2 * 20
    assert list((tmp_path / "traced/profile").rglob("*.xplane.pb"))
    digests = [inspect(tmp_path / run)["digests"] for run in ("plain", "traced")]
    assert digests[0] == digests[1]


def test_run_too_short_for_a_trace_has_none(config: TrainConfig, tmp_path: pathlib.Path) -> None:
    train(dataclasses.replace(config, num_steps=10, profile=True), tmp_path)
    assert not (tmp_path / "profile").exists()


@pytest.mark.system
def test_run_that_ends_inside_the_trace_has_its_part(
    config: TrainConfig, tmp_path: pathlib.Path
) -> None:
    train(dataclasses.replace(config, num_steps=30, profile=True), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
