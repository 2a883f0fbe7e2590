"""The program as a user runs it: real processes, real flags, real kills."""

import dataclasses
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest

from trainer import cli
from trainer.config import TrainConfig
from trainer.schedules.cyclical import create_triangular_schedule

ROOT = Path(__file__).parent.parent
QUICK = ("--model=mlp", "--batch_size=3000", "--steps_per_cycle=7")


def parse(*arguments: str) -> TrainConfig:
    values = cli._define_flags()
    cli._parse(values, ["trainer", *arguments])
    return TrainConfig(**{f.name: values[f.name].value for f in dataclasses.fields(TrainConfig)})


def train_lines(workdir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "train"]


def test_no_flags_are_the_defaults() -> None:
    assert parse() == TrainConfig()


def test_mnist_cfg_is_the_defaults() -> None:
    assert parse(f"--flagfile={ROOT}/configs/mnist.cfg") == TrainConfig()


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.cfg")), ids=lambda path: path.name)
def test_every_flagfile_is_valid(path: Path) -> None:
    parse(f"--flagfile={path}").plan(60000)


@pytest.mark.parametrize("name", ["gpu_8", "tpu_v5e_8"])
def test_flagfiles_for_eight_devices(trainer, name: str) -> None:
    flagfile = f"--flagfile={ROOT}/configs/{name}.cfg"
    done = trainer("--dry_run", "--num_cpu_devices=8", flagfile)
    assert done.returncode == 0, done.stderr
    assert "each 128 of the 1024 examples" in done.stderr
    assert ", 1 cycle of" in done.stderr


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


def test_help_and_mistakes_import_nothing_heavy() -> None:
    program = (
        "import sys; from trainer import cli\n"
        "codes = [cli.run(['trainer', '--help']), cli.run(['trainer', '--stpes=1'])]\n"
        "heavy = {'jax', 'flax', 'orbax', 'tensorflow_datasets', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'{codes} {heavy}' if heavy or codes != [0, 1] else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_dry_run_writes_only_a_picture(trainer, tmp_path: Path) -> None:
    done = trainer("--dry_run")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "4680 steps, 10 epochs of 468" in done.stderr
    assert "40 cycles of 117 steps" in done.stderr
    assert "warning" not in done.stderr
    assert "▁█" * 40 + "\n" in done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [tmp_path / "runs/mnist/schedule.png"]


def test_commands_end_to_end(trainer, tmp_path: Path) -> None:
    done = trainer("--workdir=run", *QUICK, "--num_steps=30")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "test accuracy" in done.stderr
    assert "Traceback" not in done.stderr
    assert "WARNING" not in done.stderr
    evaluated = trainer("evaluate", "--workdir=run")
    assert json.loads(evaluated.stdout).keys() == {"step", "loss", "accuracy", "examples"}
    inspected = trainer("inspect", "--workdir=run")
    found = json.loads(inspected.stdout)
    assert (found["step"], found["cycle_step"]) == (30, 2)
    picture = tmp_path / "run/report.png"
    drawn = picture.read_bytes()
    picture.unlink()
    reported = trainer("report", "--workdir=run")
    assert reported.returncode == 0, reported.stderr
    assert picture.read_bytes() == drawn
    again = trainer("--workdir=run", *QUICK, "--num_steps=30")
    assert again.returncode == 0
    assert "is complete" in again.stderr


def test_what_the_command_does_not_use_is_not_imported(data_dir: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from trainer import cli, loop\n"
        "assert 'matplotlib' not in sys.modules\n"  # Imported when the run has ended.
        f"code = cli.run(['trainer', '--num_steps=2', '--workdir={tmp_path}/run',"
        f" '--data_dir={data_dir}', '--model=mlp', '--notensorboard'])\n"
        "unused = {'tensorflow', 'torch', 'tensorboardX'} & set(sys.modules)\n"
        "sys.exit(f'{code} {unused}' if unused or code else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_progress_bar_of_a_terminal(data_dir: Path, tmp_path: Path) -> None:
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 150, 0, 0))
    command = [sys.executable, "-m", "trainer", f"--data_dir={data_dir}", *QUICK, "--num_steps=60"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stderr=child, cwd=tmp_path, env=environment)
    os.close(child)
    output = b""
    while True:
        try:
            chunk = os.read(parent, 4096)
        except OSError:  # The other end is closed.
            break
        if not chunk:
            break
        output += chunk
    assert process.wait() == 0
    text = output.decode()
    assert "60/60" in text
    assert "learning rate 0.0" in text
    assert re.search(r"test accuracy \d\d\.\d\d % of 10000", text)


def test_kill_in_mid_cycle_then_the_same_command(trainer, data_dir: Path, tmp_path: Path) -> None:
    flags = [*QUICK, "--num_steps=400", "--checkpoint_every_steps=25", "--keep_checkpoints=1"]
    done = trainer("--workdir=unbroken", *flags)
    assert done.returncode == 0, done.stderr
    command = [
        sys.executable,
        "-m",
        "trainer",
        f"--data_dir={data_dir}",
        "--workdir=broken",
        *flags,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for kills in range(3):
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
        )
        wait_for_step(tmp_path / "broken", 60 + 100 * kills, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    done = trainer("--workdir=broken", *flags)
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stderr
    broken, unbroken = (train_lines(tmp_path / name) for name in ("broken", "unbroken"))
    assert broken == unbroken
    assert [line["step"] for line in broken] == list(range(400))
    schedule = create_triangular_schedule(3e-3, 3e-2, 7)
    rates = [np.float32(line["learning_rate"]) for line in broken]
    np.testing.assert_array_equal(rates, schedule(np.arange(400)))


def wait_for_step(workdir: Path, step: int, process: subprocess.Popen) -> None:
    """Return when the records of a running process have reached a step."""
    for _ in range(6000):
        assert process.poll() is None, "ended before it could be killed"
        if (workdir / "metrics.jsonl").exists():
            text = (workdir / "metrics.jsonl").read_text()
            if f'"step": {step},' in text:
                return
        time.sleep(0.01)
    raise AssertionError(f"never reached step {step}")
