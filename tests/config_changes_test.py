"""A run goes on with other values only where the user says which."""

import dataclasses

import pytest

from trainer.config import TrainConfig
from trainer.config_changes import check_config_change
from trainer.errors import UsageError

STORED = TrainConfig().resolve(TrainConfig().plan(60000), "tree")


def check(allowed: tuple[str, ...] = (), **changed) -> dict:
    given = dataclasses.replace(STORED, **changed)
    return check_config_change(dataclasses.asdict(STORED), given, 1234, allowed, "runs/a")


@pytest.mark.parametrize(
    "changed",
    [
        {"num_epochs": 20, "num_steps": 9360},
        {"checkpoint_every_steps": 7, "keep_checkpoints": 1, "log_every_steps": 1},
        {"eval_every_steps": 5, "check_replicas_every_steps": 5},
        {"num_devices": 4, "num_cpu_devices": 8, "platform": "cpu", "data_dir": "elsewhere"},
        {"cycles_per_epoch": 2},  # steps_per_cycle is what counts
    ],
)
def test_what_changes_no_parameter_may_change(changed: dict) -> None:
    assert check(**changed) == {}


@pytest.mark.parametrize("field", TrainConfig.trajectory_fields())
def test_what_changes_the_parameters_is_refused(field: str) -> None:
    metadata = next(f for f in dataclasses.fields(TrainConfig) if f.name == field).metadata
    before = getattr(STORED, field)
    if metadata["choices"]:
        after = next(choice for choice in metadata["choices"] if choice not in (before, "auto"))
    elif isinstance(before, bool):
        after = not before
    elif isinstance(before, str):
        after = "another"
    else:
        after = before + 0.001 if isinstance(before, float) else before * 2 + (before == 0)
    with pytest.raises(UsageError, match=rf"{field} +{before} +{after}\n"):
        check(**{field: after})


def test_the_table_shows_the_rates_before_and_after() -> None:
    with pytest.raises(UsageError) as error:
        check(lr_max=0.1, steps_per_cycle=234, momentum=0.5)
    text = str(error.value)
    for row in (
        "lr_max                             0.03                 0.1",
        "momentum                            0.9                 0.5",
        "learning rate at step 1234    0.0277119           0.0560598",
        "over the next cycle       0.003 to 0.03        0.003 to 0.1",
        "steps of that cycle                 117                 234",
    ):
        assert " ".join(row.split()) in " ".join(text.split())
    assert "--allow_config_change=lr_max,steps_per_cycle,momentum" in text


def test_named_fields_are_accepted_and_recorded() -> None:
    changes = check(("lr_max", "momentum"), lr_max=0.1)
    assert changes == {"lr_max": [0.03, 0.1]}


def test_others_are_still_refused() -> None:
    with pytest.raises(UsageError, match="momentum"):
        check(("lr_max",), lr_max=0.1, momentum=0.5)


@pytest.mark.parametrize("field", ["lr_mx", "num_steps"])
def test_names_that_make_no_sense_are_refused(field: str) -> None:
    with pytest.raises(UsageError, match=f"--allow_config_change={field}: no such field"):
        check((field,))


def test_another_network_is_never_accepted() -> None:
    with pytest.raises(UsageError) as error:
        check(("model",), model="mlp")
    assert "or --allow_config_change" not in str(error.value)
