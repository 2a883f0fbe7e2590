"""What is said of a run before it starts is what the run will do."""

import dataclasses
import re

import numpy as np
import pytest

from tests.helpers import ROOT, schedule_named
from trainer.cli.arguments import parse
from trainer.config import TrainConfig
from trainer.run.preview import advice, draw, mid_cycle_warning
from trainer.schedules import create_plan

BLOCKS = "▁▂▃▄▅▆▇█"


def drawing(width: int, **given) -> tuple[str, str]:
    """The line of blocks and the line of numbers."""
    config = TrainConfig(**given)
    plan = create_plan(config, 60000)
    schedule = schedule_named(
        config.lr_schedule,
        config.lr_min,
        config.lr_max,
        plan.steps_per_cycle,
        config.lr_gamma,
        config.cycle_up_fraction,
    )
    line, numbers = draw(schedule, config, plan, width).split("\n")
    assert len(line) <= width
    assert set(line) <= set(BLOCKS)
    return line, numbers


def test_a_step_a_column() -> None:
    line, numbers = drawing(80, num_steps=3, steps_per_cycle=4, lr_min=0.0, lr_max=0.1)
    assert line == "▁▅█"
    assert numbers == "▁ 0  █ 0.1  first 0  last 0.1  a column is a step"
    line, _ = drawing(80, num_cycles=2, steps_per_cycle=14)
    assert line == "▁▂▃▄▅▆▇█▇▆▅▄▃▂" * 2


def test_a_part_of_a_cycle_a_column() -> None:
    line, numbers = drawing(80)
    assert line == "▁█" * 40
    assert numbers == "▁ 0.003  █ 0.03  first 0.003  last 0.00391525  a column is 58.5 steps"
    line, numbers = drawing(59, steps_per_cycle=1400, num_cycles=4)
    assert line == "▁▂▃▄▅▆▇█▇▆▅▄▃▂" * 4
    assert "a column is 100 steps" in numbers


def test_some_cycles_a_column() -> None:
    line, numbers = drawing(72, num_steps=50_000)
    assert line == "█" * 72
    assert "▁ 0.003  █ 0.03 " in numbers
    assert "a column is 6 cycles, the highest rate" in numbers
    line, numbers = drawing(
        72, num_steps=50_000, lr_schedule="exp_range_boundaries", lr_gamma=0.9999
    )
    assert line == "".join(sorted(line, reverse=True))
    assert (line[0], line[-1]) == ("█", "▁")


@pytest.mark.parametrize("num_steps", [1, 3, 50_000, 2**31])
def test_constant_is_a_flat_line(num_steps: int) -> None:
    line, numbers = drawing(40, num_steps=num_steps, lr_schedule="constant")
    assert line == "█" * min(num_steps, 40)
    assert numbers.startswith("▁ 0.03  █ 0.03  first 0.03  last 0.03  a column is")


@pytest.mark.parametrize("width", [1, 7, 80])
@pytest.mark.parametrize("num_steps", [1, 117, 4681, 2**31])
@pytest.mark.parametrize("name", ["triangular", "triangular2", "exp_range_boundaries"])
def test_any_width_and_length(width: int, num_steps: int, name: str) -> None:
    drawing(width, num_steps=num_steps, lr_schedule=name)


@pytest.mark.parametrize("name", ["triangular", "triangular2", "exp_range", "exp_range_boundaries"])
@pytest.mark.parametrize("num_steps", [30, 117, 1000])
def test_the_numbers_are_those_of_all_steps(name: str, num_steps: int) -> None:
    given = {"lr_schedule": name, "num_steps": num_steps, "cycle_up_fraction": 0.3}
    _, numbers = drawing(50, **given, lr_gamma=0.999)
    rates = np.asarray(schedule_named(name, 3e-3, 3e-2, 117, 0.999, 0.3)(np.arange(num_steps)))
    assert numbers.startswith(
        f"▁ {rates.min():.6g}  █ {rates.max():.6g}  first {rates[0]:.6g}  last {rates[-1]:.6g}  "
    )


@pytest.mark.parametrize(
    "flags",
    [
        [],
        [f"--flagfile={ROOT}/configs/fast.cfg"],
        ["--num_cycles=3", "--cycles_per_epoch=7"],
        ["--num_steps=100", "--lr_schedule=constant"],
    ],
)
def test_no_warning_where_a_cycle_ends(flags: list[str]) -> None:
    config = parse(["trainer", *flags]).config
    assert mid_cycle_warning(config, create_plan(config, 60000)) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_steps": 100}, "100 of the 117 steps of cycle 1; .*: --num_steps=117 [(]1 cycle[)]$"),
        (
            {"num_steps": 300},
            "66 .* cycle 3; .*: --num_steps=234 [(]2 cycles[)] or --num_steps=351 [(]3 cycles[)]$",
        ),
        (
            {"num_epochs": 1, "cycles_per_epoch": 5},
            "3 of the 93 .*--num_steps=465 [(]5 cycles[)] or --num_steps=558 [(]6 cycles[)]$",
        ),
    ],
)
def test_the_lengths_that_a_warning_names_need_none(given: dict, message: str) -> None:
    config = TrainConfig(**given)
    warning = mid_cycle_warning(config, create_plan(config, 60000))
    assert warning is not None
    assert re.search(message, warning)
    for word in warning.split():
        if word.startswith("--num_steps="):
            better = dataclasses.replace(config, num_steps=int(word.partition("=")[2]))
            assert mid_cycle_warning(better, create_plan(better, 60000)) is None


def test_advice_of_the_paper() -> None:
    for given in (
        {"steps_per_cycle": 4 * 468, "num_cycles": 3},
        {"steps_per_cycle": 20 * 468, "num_cycles": 4},
        {"lr_schedule": "constant"},
    ):
        config = TrainConfig(**given)
        assert advice(config, create_plan(config, 60000)) is None
    for given, end in (
        ({}, "here 40 and 0.125"),
        ({"steps_per_cycle": 4 * 468, "num_cycles": 2}, "here 2 and 2"),
        ({"steps_per_cycle": 22 * 468, "num_cycles": 3}, "here 3 and 11"),
    ):
        config = TrainConfig(**given)
        assert str(advice(config, create_plan(config, 60000))).endswith(end)
