"""What a flagfile says is read back as it was."""

from pathlib import Path

import pytest

from trainer.cli.arguments import Arguments, parse
from trainer.config import TrainConfig, flagfile, flagfile_of_run

GIVEN = TrainConfig(
    dataset="/a folder/of # pictures",
    data_dir="/another=folder//x",
    train_split="train[:90%]",
    batch_size=96,
    num_steps=7,
    lr_min=1.25e-7,
    lr_max=0.1 + 0.2,
    cycles_per_epoch=3,
    steps_per_cycle=5,
    optimizer="adamw",
    weight_decay=5e-324,
    platform="cpu",
    gradient_shards=4,
    nesterov=True,
    tensorboard=False,
    eval_every_steps=3,
)


def read(text: str, tmp_path: Path) -> Arguments:
    (tmp_path / "a b.cfg").write_text(text)
    return parse(["trainer", f"--flagfile={tmp_path}/a b.cfg"])


def test_every_value_comes_back(tmp_path: Path) -> None:
    text = flagfile(GIVEN, ["of a test", "# of it"], first=("steps_per_cycle",), workdir="runs/a b")
    assert text.startswith("# of a test\n# # of it\n--steps_per_cycle=5\n")
    found = read(text, tmp_path)
    assert (found.config, found.workdir) == (GIVEN, "runs/a b")


def test_what_is_unset_has_no_line(tmp_path: Path) -> None:
    assert "None" not in flagfile(TrainConfig(), [])
    assert read(flagfile(TrainConfig(), []), tmp_path).config == TrainConfig()


@pytest.mark.parametrize(
    "folder", ["/ends in a space ", "/has\na line", "/has\x85another", "/no\udcfftext"]
)
def test_what_a_line_cannot_hold_is_only_said(folder: str, tmp_path: Path) -> None:
    text = flagfile(TrainConfig(data_dir=folder), [])
    assert f"# no line of a flagfile can hold --data_dir={folder!r}\n" in text
    assert read(text, tmp_path).config == TrainConfig()


def test_the_copy_of_a_run_is_bound_to_no_machine_and_no_process(tmp_path: Path) -> None:
    start = {"coordinator_address": "a:1", "num_processes": 2, "process_id": 1}
    devices = {"num_devices": 2, "num_cpu_devices": 4, "steps_per_call": 8}
    run = TrainConfig(lr_max=0.5, platform="cpu", **start, **devices, num_epochs=3, num_steps=60)
    text = flagfile_of_run(run, ["at step 9, lr_max from 0.1 to 0.5"])
    found = read(text, tmp_path)
    assert found.config == TrainConfig(lr_max=0.5, num_steps=60)
    assert found.given.isdisjoint({*start, *devices, "platform"})
    assert "# Changed at step 9, lr_max from 0.1 to 0.5: " in text
    assert "# On these devices: --platform=cpu --num_devices=2 --num_cpu_devices=4\n" in text


@pytest.mark.parametrize("first", ["", "\n", "# Of a test.\n", "// Of a test.\n"])
def test_a_byte_order_mark_is_passed_over(first: str, tmp_path: Path) -> None:
    found = read(f"\ufeff{first}--seed=5\n--batch_size=96\n", tmp_path)
    assert found.config == TrainConfig(seed=5, batch_size=96)
    assert (found.command, found.files) == ("train", ())
