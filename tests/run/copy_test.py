"""workdir/config.cfg: a flagfile with which another run is the same run."""

import dataclasses
import json
from pathlib import Path

from trainer.cli.arguments import parse
from trainer.commands.inspection import inspect
from trainer.config import TrainConfig
from trainer.run.loop import train


def train_again(workdir: Path, other: Path, num_devices: int) -> None:
    """As `python -m trainer --flagfile=WORKDIR/config.cfg --workdir=OTHER` does."""
    found = parse(["trainer", f"--flagfile={workdir}/config.cfg", f"--workdir={other}"])
    config = dataclasses.replace(found.config, num_devices=num_devices)
    train(config, found.workdir, given=found.given)


def test_the_flagfile_of_a_run_trains_it_again(config: TrainConfig, tmp_path: Path) -> None:
    """With the same resolved configuration and the same bits."""
    first, second = tmp_path / "a", tmp_path / "b c"
    third_of = {"lr_min": 0.1 / 3, "lr_max": 0.2 / 3, "cycles_per_epoch": 2}
    train(dataclasses.replace(config, steps_per_cycle=None, num_epochs=1, **third_of), first)
    train_again(first, second, config.num_devices)
    stored = [json.loads((path / "config.json").read_text()) for path in (first, second)]
    assert stored[0] | {"num_epochs": 10} == stored[1]  # num_steps says how long.
    assert inspect(first)["digest"] == inspect(second)["digest"]
    assert (first / "config.cfg").read_text() == (second / "config.cfg").read_text()


def test_a_change_within_the_run_is_said(config: TrainConfig, tmp_path: Path) -> None:
    train(dataclasses.replace(config, num_steps=5), tmp_path)
    train(dataclasses.replace(config, num_steps=7, lr_max=0.1), tmp_path, ["lr_max"])
    text = (tmp_path / "config.cfg").read_text()
    assert "# Changed at step 5, lr_max from 0.03 to 0.1: below are the values" in text
    assert "\n--lr_max=0.1\n" in text
