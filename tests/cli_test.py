"""Flags become the configuration, and a mistake in them ends in one message."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import ROOT
from trainer import cli
from trainer.config import TrainConfig


def parse(*arguments: str) -> TrainConfig:
    values = cli._define_flags()
    cli._parse(values, ["trainer", *arguments])
    return TrainConfig(**{f.name: values[f.name].value for f in dataclasses.fields(TrainConfig)})


def test_no_flags_are_the_defaults() -> None:
    assert parse() == TrainConfig()


def test_mnist_cfg_is_the_defaults() -> None:
    assert parse(f"--flagfile={ROOT}/configs/mnist.cfg") == TrainConfig()


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.cfg")), ids=lambda path: path.name)
def test_every_flagfile_is_valid(path: Path) -> None:
    parse(f"--flagfile={path}").plan(60000)


@pytest.mark.parametrize("name", ["gpu_8", "tpu_v5e_8"])
def test_flagfiles_for_eight_devices(
    command: Callable[..., int], capsys: pytest.CaptureFixture, tmp_path: Path, name: str
) -> None:
    flagfile = f"--flagfile={ROOT}/configs/{name}.cfg"
    assert command("--dry_run", flagfile, f"--workdir={tmp_path}") == 0
    plan = capsys.readouterr().err
    assert "each 128 of the 1024 examples" in plan
    assert ", 1 cycle of" in plan


def test_later_flags_win() -> None:
    flagfile = f"--flagfile={ROOT}/configs/smoke.cfg"
    assert parse(flagfile, "--num_steps=9").num_steps == 9
    assert parse("--num_steps=9", flagfile).num_steps == 200


@pytest.mark.parametrize("field", dataclasses.fields(TrainConfig), ids=lambda field: field.name)
def test_every_field_is_a_flag(field: dataclasses.Field) -> None:
    """A value other than the default, given as text, arrives as what it is."""
    if field.metadata["choices"]:
        value = field.metadata["choices"][-1]
    elif isinstance(field.default, bool):
        value = not field.default
    elif isinstance(field.default, str):
        value = "something"
    elif field.type == float | None:  # momentum_min and momentum_max go together
        value = 0.025
        assert parse("--momentum_min=0.025", "--momentum_max=0.025") == dataclasses.replace(
            TrainConfig(), momentum_min=0.025, momentum_max=0.025
        )
        return
    elif isinstance(field.default, float):
        value = 0.025
    else:
        value = 16
    assert value != field.default
    assert parse(f"--{field.name}={value}") == dataclasses.replace(
        TrainConfig(), **{field.name: value}
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stpes=5"], "Unknown command line flag 'stpes'"),
        (["--lr_mx=5"], "Did you mean: lr_max"),
        (["--batch_size=many"], "--batch_size=many"),
        (["--batch_size=-1"], "--batch_size=-1 is not valid; valid: 1 and more"),
        (["--optimizer=adm"], "--optimizer=adm: value should be one of <sgd|adamw>"),
        (["--steps_per_cycle=1"], "--steps_per_cycle=1 is not valid; valid: 2 and more"),
        (["--lr_min=1"], "--lr_min=1.0 is above --lr_max=0.03"),
        (["--flagfile=none.cfg"], "none.cfg"),
        (["trian"], "'trian'; valid: one of the commands train, evaluate, inspect"),
        (["train", "5"], "unexpected argument '5'"),
    ],
)
def test_mistakes_end_in_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    assert cli.run(["trainer", *arguments, f"--workdir={workdir}"]) == 1
    out, err = capsys.readouterr()
    assert message in err
    assert err.startswith("error: ")
    assert out == ""
    assert not workdir.exists()


def test_help_lists_every_flag_with_default_and_meaning(capsys: pytest.CaptureFixture) -> None:
    assert cli.run(["trainer", "--help"]) == 0
    text = capsys.readouterr().out
    flat = " ".join(text.split())
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name} (default" in text
        assert field.metadata["help"] in flat
    assert "--workdir (default runs/mnist)" in text


def test_dry_run_writes_only_a_picture(
    command: Callable[..., int], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    assert command("--dry_run", f"--workdir={tmp_path}/runs/a") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "4680 steps, 10 epochs of 468" in err
    assert "40 cycles of 117 steps" in err
    assert "warning" not in err
    assert "▁█" * 40 + "\n" in err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [tmp_path / "runs/a/schedule.png"]
