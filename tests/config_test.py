"""Wrong hyperparameters are refused with the flag, the value and what would be valid."""

import dataclasses
import math

import pytest

from trainer.config import TrainConfig
from trainer.errors import UsageError


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "--batch_size=0 .*valid: 1 and more"),
        ({"steps_per_cycle": 1}, "--steps_per_cycle=1 .*valid: 2 and more"),
        ({"steps_per_cycle": 0}, "--steps_per_cycle=0 .*valid: 2 and more"),
        ({"lr_min": -0.1}, "--lr_min=-0.1 .*valid: 0 and more"),
        ({"lr_max": math.nan}, "--lr_max=nan .*valid"),
        ({"lr_max": math.inf}, "--lr_max=inf .*valid: a finite number"),
        ({"lr_min": 0.5}, "--lr_min=0.5 is above --lr_max=0.03; valid: 0 <= lr_min <= lr_max"),
        ({"momentum": 1.0}, "--momentum=1.0 .*valid: 0 <= momentum < 1"),
        ({"optimizer": "adm"}, "--optimizer=adm .*valid: sgd or adamw"),
        ({"num_steps": 0}, "--num_steps=0 .*valid: 1 and more"),
        ({"seed": -1}, "--seed=-1 .*valid: 0 and more"),
        ({"reduction": "sum"}, "--reduction=sum .*valid: auto or tree or allreduce"),
        ({"gradient_shards": 0}, "--gradient_shards=0 .*valid: 1 and more"),
        ({"gradient_shards": 6}, "--gradient_shards=6 .*valid: a power of two"),
    ],
)
def test_wrong_values_are_named(wrong: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(**wrong)


def test_every_number_has_a_range_and_every_field_a_help() -> None:
    for field in dataclasses.fields(TrainConfig):
        assert field.metadata["help"]
        assert field.metadata["group"]
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            assert field.metadata["minimum"] is not None, field.name


def test_defaults_are_those_of_the_how_to() -> None:
    plan = TrainConfig().plan(60000)
    assert (plan.steps_per_epoch, plan.steps_per_cycle, plan.num_steps) == (468, 117, 4680)
    assert plan.eval_every_steps == 468


def test_steps_override_epochs() -> None:
    plan = TrainConfig(num_steps=7, steps_per_cycle=5, eval_every_steps=3).plan(60000)
    assert (plan.num_steps, plan.steps_per_cycle, plan.eval_every_steps) == (7, 5, 3)


def test_resolving_twice_is_resolving_once() -> None:
    config = TrainConfig(batch_size=100, num_epochs=3)
    resolved = config.resolve(config.plan(60000), "tree")
    assert resolved.num_steps == 1800
    assert resolved.reduction == "tree"
    assert resolved.resolve(resolved.plan(60000), resolved.reduction) == resolved


@pytest.mark.parametrize(
    ("given", "num_examples", "message"),
    [
        ({"batch_size": 101}, 100, "--batch_size=101 is more than the 100 .*valid: 1 to 100"),
        ({"cycles_per_epoch": 300}, 60000, "leaves 1 steps .*--cycles_per_epoch up to 234"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(
    given: dict, num_examples: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(**given).plan(num_examples)
