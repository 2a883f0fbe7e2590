"""The range test as a user runs it, and the run that follows."""

import json
from pathlib import Path

import pytest

from tests.helpers import assert_no_traceback

pytestmark = pytest.mark.system


def test_the_command(trainer, tmp_path: Path) -> None:
    flags = ("--model=mlp", "--batch_size=512", "--find_lr_steps=200", "--workdir=run")
    done = trainer("find_lr", *flags, "--num_steps=60")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == [
        "lr_min",
        "lr_max",
        "steps_per_cycle",
        "steepest_loss",
        "confidence",
        "equally_good",
    ]
    assert_no_traceback(done.stderr)
    assert "python -m trainer --flagfile=run/find_lr.cfg" in done.stderr
    trained = trainer("--flagfile=run/find_lr.cfg")
    assert trained.returncode == 0, trained.stderr
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        [
            "find_lr.cfg",
            "find_lr.csv",
            "find_lr.png",
            "checkpoints",
            "config.cfg",
            "config.json",
            "lock",
            "metrics.jsonl",
            "report.png",
            "tensorboard",
            "timing.json",
        ]
    )
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps_per_cycle"] == 60
