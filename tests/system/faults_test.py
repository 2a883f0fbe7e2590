"""What goes wrong in a real run ends in one message, and costs no good checkpoint."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from trainer.commands import inspection
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.run.loop import train
from trainer.schedules.cyclical import create_triangular_schedule

ROOT = Path(__file__).parents[2]
QUICK = ("--model=mlp", "--batch_size=3000", "--steps_per_cycle=7")


@pytest.fixture
def config(config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(config, num_steps=40)


def lines(workdir: Path, split: str = "train") -> list[dict]:
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == split]


def steps_stored(workdir: Path) -> set[int]:
    return {int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()}


def test_a_loss_that_is_no_number_stops_the_run(config: TrainConfig, tmp_path: Path) -> None:
    train(dataclasses.replace(config, num_steps=10), tmp_path)
    wild = dataclasses.replace(config, lr_max=1e30)
    with pytest.raises(RunError) as error:
        train(wild, tmp_path, ["lr_max"])
    text = str(error.value)
    assert "the loss is nan at step 1" in text or "the loss is inf at step 1" in text
    assert "epoch 1, cycle 2, step" in text
    assert "learning rate" in text
    assert "try a lower --lr_max" in text
    assert steps_stored(tmp_path) == {10}
    train(config, tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == list(range(40))


def test_an_accepted_change_is_applied_and_recorded(config: TrainConfig, tmp_path: Path) -> None:
    train(dataclasses.replace(config, num_steps=10), tmp_path)
    changed = dataclasses.replace(config, lr_max=0.1, num_steps=20)
    train(changed, tmp_path, ["lr_max", "momentum"])
    train(dataclasses.replace(changed, num_steps=30), tmp_path)
    found = inspection.inspect(tmp_path)
    assert found["config_history"] == [{"step": 10, "changes": {"lr_max": [0.03, 0.1]}}]
    assert found["config"]["lr_max"] == 0.1
    before = create_triangular_schedule(3e-3, 0.03, 7)
    after = create_triangular_schedule(3e-3, 0.1, 7)
    rates = [np.float32(line["learning_rate"]) for line in lines(tmp_path)]
    np.testing.assert_array_equal(rates[:10], before(np.arange(10)))
    np.testing.assert_array_equal(rates[10:], after(np.arange(10, 30)))


def test_a_damaged_checkpoint_costs_only_its_steps(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(config, tmp_path / "unbroken")
    train(dataclasses.replace(config, num_steps=30), tmp_path / "broken")
    (tmp_path / "broken" / "checkpoints" / "30" / "state" / "manifest.ocdbt").unlink()
    train(config, tmp_path / "broken")
    assert "checkpoint 30 is damaged" in caplog.text
    assert "taking checkpoint 20; 10 steps are lost" in caplog.text
    assert lines(tmp_path / "broken") == lines(tmp_path / "unbroken")
    digests = [inspection.inspect(tmp_path / name)["digest"] for name in ("broken", "unbroken")]
    assert digests[0] == digests[1]
    assert (tmp_path / "broken" / "checkpoints" / "damaged" / "30").is_dir()


def test_a_rate_that_another_version_would_apply_is_refused(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(dataclasses.replace(config, num_steps=10), tmp_path)

    def other_version(name: str, lr_min: float, lr_max: float, steps_per_cycle: int, *_: float):
        return create_triangular_schedule(lr_min, lr_max, steps_per_cycle + 1)

    monkeypatch.setattr("trainer.run.job.create_schedule", other_version)
    with pytest.raises(RunError, match="checkpoint 10 says that the next learning rate"):
        train(config, tmp_path)


def command(data_dir: Path, workdir: Path, *flags: str) -> list[str]:
    return [
        sys.executable, "-m", "trainer", f"--data_dir={data_dir}", f"--workdir={workdir}", *flags
    ]  # fmt: skip


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    ("kilobytes", "message"),
    [(300, "a checkpoint could not be written to"), (4, "metrics.jsonl could not be written")],
)
def test_a_file_that_cannot_be_written_ends_the_run(
    data_dir: Path, tmp_path: Path, kilobytes: int, message: str
) -> None:
    """Larger files fail, as on a full disk; a checkpoint fails in the background."""
    flags = [*QUICK, "--num_steps=100", "--checkpoint_every_steps=50"]
    limited = ["bash", "-c", f'ulimit -f {kilobytes} && exec "$@"', "bash"]
    done = subprocess.run(
        [*limited, *command(data_dir, tmp_path / "run", *flags)],
        env=ENVIRONMENT | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    error = done.stderr[done.stderr.index("error: ") :]
    assert message in error
    assert "File too large" in error
    assert len(error.splitlines()) == 1
    again = subprocess.run(
        command(data_dir, tmp_path / "run", *flags), env=ENVIRONMENT, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(100))


def test_a_second_trainer_is_refused(data_dir: Path, tmp_path: Path) -> None:
    flags = [*QUICK, "--num_steps=100000"]
    with subprocess.Popen(
        command(data_dir, tmp_path / "run", *flags), env=ENVIRONMENT, stderr=subprocess.PIPE
    ) as first:
        wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), first)
        second = subprocess.run(
            command(data_dir, tmp_path / "run", *flags),
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        assert second.returncode == 1, second.stderr
        assert f"is being written by process {first.pid} on " in second.stderr
        assert first.poll() is None
        first.send_signal(signal.SIGTERM)
        first.communicate()
        assert first.returncode == 75


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "kills", [2, pytest.param(50, marks=pytest.mark.slow)], ids=lambda kills: f"{kills} kills"
)
def test_killed_at_random_moments(data_dir: Path, tmp_path: Path, kills: int) -> None:
    """Kill -9 while it starts, restores, trains and saves; a save is nearly always under way."""
    kills = int(os.environ.get("TRAINER_TEST_KILLS", kills)) if kills == 50 else kills
    flags = [*QUICK, "--num_steps=600", "--checkpoint_every_steps=5", "--keep_checkpoints=2"]
    subprocess.run(
        command(data_dir, tmp_path / "unbroken", *flags),
        env=ENVIRONMENT,
        check=True,
        stderr=subprocess.DEVNULL,
    )
    expected = inspection.inspect(tmp_path / "unbroken")["digest"]
    rng, done, rounds = random.Random(kills), 0, 0
    while done < kills:
        workdir, rounds = tmp_path / f"broken{rounds}", rounds + 1
        while True:
            process = subprocess.Popen(
                command(data_dir, workdir, *flags),
                env=ENVIRONMENT,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                _, err = process.communicate(timeout=rng.uniform(0.5, 6) if done < kills else None)
                assert process.returncode == 0, err
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                done += 1
        assert lines(workdir) == lines(tmp_path / "unbroken")
        assert inspection.inspect(workdir)["digest"] == expected
    print(f"{done} kills in {rounds} runs")
