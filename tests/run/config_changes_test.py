"""A run resumes with other values only where the user says which."""

import dataclasses

import pytest

from tests.helpers import resolved
from trainer.config import TrainConfig
from trainer.errors import UsageError
from trainer.run.config_changes import check_config_change, check_names

STORED = resolved(TrainConfig())


def check(allowed: tuple[str, ...] = (), **changed) -> dict:
    given = dataclasses.replace(STORED, **changed)
    return check_config_change(STORED, given, 1234, allowed, "runs/a")


@pytest.mark.parametrize(
    "changed",
    [
        {"num_epochs": 20, "num_steps": 9360},
        {"num_steps": None, "num_cycles": 50},
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
    others = {}
    if before is None:  # momentum_min and momentum_max
        after, others = 0.5, {"momentum_min": 0.5, "momentum_max": 0.5}
    elif isinstance(metadata["valid"], tuple):
        after = next(choice for choice in metadata["valid"] if choice not in (before, "auto"))
    elif isinstance(before, bool):
        after = not before
    elif isinstance(before, str):
        after = "another"
    else:
        after = before - 0.002 if isinstance(before, float) else before * 2 + (before == 0)
        after = 0.001 if field in ("weight_decay", "ema_decay", "label_smoothing") else after
    with pytest.raises(UsageError, match=rf"{field} +{before} +{after}\n"):
        check(**{**others, field: after})


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


def test_the_table_shows_the_rates_of_other_schedules() -> None:
    with pytest.raises(UsageError) as error:
        check(lr_schedule="triangular2", cycle_up_fraction=0.25)
    text = " ".join(str(error.value).split())
    # After 10 cycles 0.027 * 53/88 of height are 1024 times less.
    assert "learning rate at step 1234 0.0277119 0.00301588" in text
    assert "over the next cycle 0.003 to 0.03 0.003 to 0.00301588" in text
    assert "cycle_up_fraction 0.5 0.25" in text


def test_named_fields_are_accepted_and_recorded() -> None:
    changes = check(("lr_max", "momentum"), lr_max=0.1)
    assert changes == {"lr_max": [0.03, 0.1]}


def test_others_are_still_refused() -> None:
    with pytest.raises(UsageError, match="momentum"):
        check(("lr_max",), lr_max=0.1, momentum=0.5)


@pytest.mark.parametrize("field", ["lr_mx", "num_steps"])
def test_names_that_make_no_sense_are_refused(field: str) -> None:
    with pytest.raises(UsageError, match=f"--allow_config_change={field}: no such field"):
        check_names((field,))


@pytest.mark.parametrize("field", ["model", "optimizer", "dataset"])
def test_what_cannot_change_is_refused_by_name(field: str) -> None:
    with pytest.raises(UsageError, match=f"--allow_config_change={field}: it cannot change"):
        check_names((field,))
    with pytest.raises(UsageError) as error:
        check(**{field: {"model": "mlp", "optimizer": "adamw"}.get(field, "other")})
    assert "or --allow_config_change" not in str(error.value)
