"""Flags become the configuration, and a mistake in them ends in one message."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import ROOT
from trainer import cli
from trainer.cli import actions
from trainer.cli.arguments import Arguments
from trainer.cli.arguments import parse as arguments_of
from trainer.cli.commands import COMMANDS
from trainer.config import TrainConfig
from trainer.schedules import create_plan


def parse(*arguments: str) -> TrainConfig:
    return arguments_of(["trainer", *arguments]).config


def test_no_flags_are_the_defaults() -> None:
    assert parse() == TrainConfig()


def test_mnist_cfg_is_the_defaults() -> None:
    assert parse(f"--flagfile={ROOT}/configs/mnist.cfg") == TrainConfig()


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.cfg")), ids=lambda path: path.name)
def test_every_flagfile_is_valid(path: Path) -> None:
    create_plan(parse(f"--flagfile={path}"), 60000)


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
    if isinstance(field.metadata["valid"], tuple):
        value = field.metadata["valid"][-1]
    elif isinstance(field.default, bool):
        value = not field.default
    elif isinstance(field.default, str):
        value = "something"
    elif field.name in (
        "momentum_min",
        "momentum_max",
    ):  # both, or none
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
        (["--stpes=5"], "unknown flag --stpes"),
        (["--lr_mx=5"], "unknown flag --lr_mx (did you mean lr_max?)"),
        (
            ["--batch_size=many"],
            "--batch_size=many is not valid; use a whole number, batch_size >= 1",
        ),
        (["--batch_size", "--lr_max=1"], "--batch_size=--lr_max=1 is not valid; use a whole"),
        (["--batch_size=-1"], "--batch_size=-1 is not valid; use batch_size >= 1"),
        (["--optimizer=adam"], "--optimizer=adam is not valid (did you mean adamw?); use sgd or"),
        (["--model=resnet"], "--model=resnet is not valid; use cnn, small_cnn or mlp"),
        (["--nesterov=maybe"], "--nesterov=maybe is not valid; use --nesterov or --nonesterov"),
        (["--nesterov", "True"], "unexpected argument 'True' after --nesterov; use --nesterov or"),
        (["--lr_max=1e39"], "--lr_max=1e+39 is not valid; use 0 <= lr_max <= 3.4"),
        (
            ["--steps_per_cycle=67108865"],
            "=67108865 is not valid; use 2 <= steps_per_cycle <= 671088",
        ),
        (["--num_cpu_devices=1000"], "use 0 <= num_cpu_devices <= 256"),
        (["--seed=4294967296"], "--seed=4294967296 is not valid; use 0 <= seed <= 4294967295"),
        (["--seed=99999999999999999999"], "--seed=99999999999999999999 is not valid; use 0 <="),
        (["--steps_per_cycle=1"], "--steps_per_cycle=1 is not valid; use steps_per_cycle >= 2"),
        (["--lr_min=1"], "--lr_min=1.0 is above --lr_max=0.03"),
        (
            ["--flagfile=none.cfg"],
            "--flagfile cannot be read (No such file or directory: 'none.cfg')",
        ),
        (["--flagfile=."], "--flagfile cannot be read (Is a directory: '.')"),
        (["--flagfile"], "--flagfile has no value; use --flagfile=VALUE"),
        (["--nonesterov=1"], "--nonesterov=1 is not valid; use --nesterov or --nonesterov"),
        (["--find_lr_ramp=curved"], "--find_lr_ramp=curved is not valid; use exponential or lin"),
        (["trian"], "unexpected command 'trian' (did you mean train?); use one of the commands"),
        (["evalute"], "unexpected command 'evalute' (did you mean evaluate?)"),
        (["train", "5"], "unexpected argument '5'"),
        (
            ["--", "--seed=4"],
            "unexpected command '--seed=4': what follows -- is no flag; leave out",
        ),
        (["--devices=7"], "--devices is a flag of verify_resume, not of train"),
        (["report", "--output=x"], "--output is a flag of compare and export, not of report"),
        (["inspect", "--nonesterov"], "--nesterov is a flag of train and find_lr and verify_res"),
    ],
)
def test_mistakes_end_in_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    assert cli.run(["trainer", f"--workdir={workdir}", *arguments]) == 1
    out, err = capsys.readouterr()
    assert message in err
    assert err.startswith("error: ")
    assert out == ""
    assert not workdir.exists()


def test_an_error_that_nobody_foresaw_is_a_failed_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """Its traceback is shown, and a launcher may start the run again: status 2, not 1."""

    def fail(arguments: Arguments) -> int:
        raise MemoryError("nothing left")

    monkeypatch.setitem(actions.ACTIONS, "report", fail)
    assert cli.run(["trainer", "report", f"--workdir={tmp_path}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-2:] == [
        "MemoryError: nothing left",
        "error: this failure was not foreseen; older checkpoints are intact, and the same command "
        "resumes from the newest",
    ]


def test_help_lists_every_flag_with_default_and_meaning(capsys: pytest.CaptureFixture) -> None:
    assert cli.run(["trainer", "--help"]) == 0
    text = capsys.readouterr().out
    flat = " ".join(text.split())
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name} (default" in text
        assert field.metadata["help"] in flat
    assert "--workdir (default runs/mnist)" in text
    for name, command in COMMANDS.items():
        assert f"  {name:14} {command.purpose}\n" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_lists_its_flags_and_an_example(
    name: str, capsys: pytest.CaptureFixture
) -> None:
    assert cli.run(["trainer", name, "--help"]) == 0
    text = capsys.readouterr().out
    listed = {line.split()[0][2:] for line in text.splitlines() if line.startswith("  --")}
    assert listed == {*COMMANDS[name].flags, "flagfile"}
    assert f"Example: python -m trainer {COMMANDS[name].example}" in text
    for line in text.splitlines():
        assert len(line) <= 80 or line.startswith(("Example: ", f"{name}: ")), line


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_is_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert arguments_of(["trainer", *COMMANDS[name].example.split()]).command == name


def test_version(capsys: pytest.CaptureFixture) -> None:
    assert cli.run(["trainer", "--version"]) == 0
    assert capsys.readouterr().out.startswith("cyclic-trainer ")


@pytest.mark.parametrize(
    ("arguments", "length"),
    [
        (["--num_steps=5", "--num_epochs=2"], {"num_epochs": 2}),
        (["--num_epochs=2", "--num_steps=5"], {"num_steps": 5}),
        (["--num_steps=5", "--num_cycles=3"], {"num_cycles": 3}),
        (["--num_cycles=3", "--num_epochs=2", "--num_steps=7"], {"num_steps": 7}),
        (["--flagfile=FAST", "--num_epochs=2"], {"num_epochs": 2}),
        (["--num_epochs=2", "--flagfile=FAST"], {"num_steps": 660}),
    ],
)
def test_of_the_lengths_the_last_counts(arguments: list[str], length: dict) -> None:
    words = [word.replace("FAST", f"{ROOT}/configs/fast.cfg") for word in arguments]
    config = parse(*words)
    found = {name: getattr(config, name) for name in ("num_epochs", "num_steps", "num_cycles")}
    assert found == {"num_epochs": 10, "num_steps": None, "num_cycles": None} | length


def test_a_typed_number_of_cycles_wins_over_a_flagfile() -> None:
    flagfile = f"--flagfile={ROOT}/configs/smoke.cfg"
    assert parse(flagfile).steps_per_cycle == 50
    assert parse(flagfile, "--cycles_per_epoch=2").steps_per_cycle is None
    assert parse("--steps_per_cycle=9", "--cycles_per_epoch=2").steps_per_cycle == 9


def test_one_flagfile_serves_all_commands() -> None:
    found = arguments_of(["trainer", "evaluate", f"--flagfile={ROOT}/configs/fast.cfg"])
    assert found.workdir == "runs/fast"
    assert found.config == TrainConfig()


def test_what_was_given_is_known() -> None:
    found = arguments_of(["trainer", "--lr_max=0.03", "--nonesterov", "--workdir=x"])
    assert found.given == {"lr_max", "nesterov"}


def test_dry_run_writes_only_a_picture(
    command: Callable[..., int], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    assert command("--dry_run", f"--workdir={tmp_path}/runs/a") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "4680 steps, 10 epochs of 468 steps" in err
    assert "40 cycles of 117 steps" in err
    assert "warning" not in err
    assert "▁█" * 40 + "\n" in err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [tmp_path / "runs/a/schedule.png"]
