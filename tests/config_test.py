"""Wrong hyperparameters are refused with the flag, the value and what would be valid."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

from trainer.config import Range, TrainConfig
from trainer.errors import RunError, UsageError
from trainer.schedules import create_plan


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "--batch_size=0 .*use batch_size >= 1"),
        ({"steps_per_cycle": 1}, "--steps_per_cycle=1 .*use steps_per_cycle >= 2"),
        ({"steps_per_cycle": 0}, "--steps_per_cycle=0 .*use steps_per_cycle >= 2"),
        ({"lr_min": -0.1}, "--lr_min=-0.1 .*use lr_min >= 0"),
        ({"lr_max": math.nan}, "--lr_max=nan .*valid"),
        ({"lr_max": math.inf}, "--lr_max=inf .*use 0 <= lr_max <= 3.4"),
        ({"lr_min": 0.5}, "--lr_min=0.5 is above --lr_max=0.03; use 0 <= lr_min <= lr_max"),
        ({"momentum": 1.0}, "--momentum=1.0 .*use 0 <= momentum < 1"),
        ({"optimizer": "adm"}, "--optimizer=adm .*use sgd or adamw"),
        (
            {"model": "nets/own:Network"},
            "--model=nets/own:Network is not valid; use cnn, small_cnn or mlp, or your own: "
            "package.module:Network or path/file.py:Network",
        ),
        (
            {"model": "nets/own.py"},
            "--model=nets/own.py is not valid; use cnn, small_cnn or mlp, or your own",
        ),
        ({"optimizer": "own.create"}, "--optimizer=own.create .* or path/file.py:create"),
        (
            {"optimizer": "own:create", "momentum": 0.5},
            "--momentum=0.5 is for sgd and adamw, and has no effect on --optimizer=own:create; ",
        ),
        (
            {"optimizer": "own:create", "momentum_min": 0.8, "momentum_max": 0.9},
            "--momentum_min=0.8 is for sgd and adamw, and has no effect on --optimizer=own:create",
        ),
        ({"num_steps": 0}, "--num_steps=0 .*use num_steps >= 1"),
        ({"seed": -1}, "--seed=-1 .*use 0 <= seed <= 4294967295"),
        ({"reduction": "sum"}, "--reduction=sum .*use auto, tree or allreduce"),
        ({"gradient_shards": -1}, "--gradient_shards=-1 .*use gradient_shards >= 0"),
        ({"gradient_shards": 6}, "--gradient_shards=6 .*use a power of two"),
        ({"lr_gamma": 0.0}, "--lr_gamma=0.0 .*use 0 < lr_gamma <= 1"),
        ({"lr_gamma": 1.01}, "--lr_gamma=1.01 .*use 0 < lr_gamma <= 1"),
        ({"lr_gamma": math.nan}, "--lr_gamma=nan .*valid"),
        ({"cycle_up_fraction": 1.0}, "--cycle_up_fraction=1.0 .*0 <= cycle_up_fraction < 1"),
        ({"cycle_up_fraction": -0.1}, "--cycle_up_fraction=-0.1 .*0 <= cycle_up_fraction < 1"),
        ({"num_cycles": 0}, "--num_cycles=0 .*use num_cycles >= 1"),
        (
            {"num_cycles": 3, "num_steps": 9},
            "--num_steps=9 and --num_cycles=3 both say .*give one of them",
        ),
        ({"momentum_min": 0.8}, "--momentum_min=0.8 is one end only; give both"),
        ({"momentum_max": 0.9}, "--momentum_max=0.9 is one end only; give both"),
        ({"momentum_min": -0.1, "momentum_max": 0.9}, "--momentum_min=-0.1 .*use 0 <="),
        ({"momentum_min": 0.8, "momentum_max": 1.0}, "--momentum_max=1.0 .*momentum_max < 1"),
        (
            {"momentum_min": 0.95, "momentum_max": 0.85},
            "--momentum_min=0.95 is above --momentum_max=0.85; use 0 <= momentum_min",
        ),
        (
            {"momentum_min": 0.8, "momentum_max": 0.9, "lr_schedule": "constant"},
            "--lr_schedule=constant keeps still; use a cyclical --lr_schedule",
        ),
    ],
)
def test_wrong_values_are_named(wrong: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(**wrong)


def test_the_path_of_a_file_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is the same file wherever the run resumes; a module has no folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    names = ("nets/own.py:Network", "../own.py:Network", "~/own.py:Network", "nets.own:Network")
    found = [TrainConfig(model=name).model for name in names]
    assert found == [
        f"{tmp_path}/nets/own.py:Network",
        f"{tmp_path.parent}/own.py:Network",
        "/home/me/own.py:Network",
        "nets.own:Network",
    ]
    assert [TrainConfig(model=name).model for name in found] == found


def test_every_number_has_a_range_and_every_field_a_help() -> None:
    for field in dataclasses.fields(TrainConfig):
        assert field.metadata["help"]
        assert field.metadata["group"]
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            assert isinstance(field.metadata["valid"], Range), field.name


def test_defaults_are_those_of_the_how_to() -> None:
    plan = create_plan(TrainConfig(), 60000)
    assert (plan.steps_per_epoch, plan.steps_per_cycle, plan.num_steps) == (468, 117, 4680)
    assert plan.eval_every_steps == 468


def test_steps_override_epochs() -> None:
    plan = create_plan(TrainConfig(num_steps=7, steps_per_cycle=5, eval_every_steps=3), 60000)
    assert (plan.num_steps, plan.steps_per_cycle, plan.eval_every_steps) == (7, 5, 3)


@pytest.mark.parametrize("given", [{"steps_per_cycle": 5}, {"cycles_per_epoch": 3}, {}])
def test_cycles_override_epochs(given: dict) -> None:
    config = TrainConfig(num_cycles=7, **given)
    plan = create_plan(config, 60000)
    assert plan.num_steps == 7 * plan.steps_per_cycle


def test_what_an_older_version_stored_has_the_defaults_of_what_it_lacks() -> None:
    stored = dataclasses.asdict(TrainConfig(lr_max=0.1))
    del stored["lr_gamma"], stored["momentum_min"], stored["cycle_up_fraction"]
    assert TrainConfig.from_stored(stored) == TrainConfig(lr_max=0.1)


def test_what_a_newer_version_stored_is_refused_by_name() -> None:
    stored = dataclasses.asdict(TrainConfig()) | {"lr_delta": 3}
    with pytest.raises(RunError, match=r"lr_delta=3; continue with that version"):
        TrainConfig.from_stored(stored)


@pytest.mark.parametrize(
    ("given", "num_examples", "message"),
    [
        ({"batch_size": 101}, 100, "--batch_size=101 is more than the 100 .*use 1 to 100"),
        ({"cycles_per_epoch": 300}, 60000, "has 468 steps .*--cycles_per_epoch=234 or less"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(
    given: dict, num_examples: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        create_plan(TrainConfig(**given), num_examples)


@pytest.mark.parametrize("steps_per_epoch", range(1, 8))
def test_a_short_epoch_is_told_which_flag_would_work(steps_per_epoch: int) -> None:
    """The default of 4 cycles an epoch needs 8 steps."""
    with pytest.raises(UsageError) as error:
        create_plan(TrainConfig(batch_size=10), 10 * steps_per_epoch + 9)
    offered = re.findall(r"--(cycles_per_epoch|steps_per_cycle)=(\d+)", str(error.value))[1:]
    assert {name for name, _ in offered} >= {"steps_per_cycle"}
    assert ("cycles_per_epoch" in dict(offered)) == (steps_per_epoch > 1)
    for name, value in offered:
        config = TrainConfig(batch_size=10, **{name: int(value)})
        assert create_plan(config, 10 * steps_per_epoch + 9).steps_per_cycle >= 2
