"""metrics.jsonl has every step once, whatever happened to the run before."""

import logging
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests.helpers import read_metrics
from trainer.config import TrainConfig
from trainer.records.metrics import Records, mean_metrics
from trainer.workdir.files import METRICS_FILE

CONFIG = TrainConfig(num_steps=100, batch_size=50, log_every_steps=10)
PLAN = CONFIG.plan(1000)


def metrics(step: int) -> dict:
    return {
        "loss": jnp.float32(1 / (step + 1)),
        "accuracy": jnp.float32(0.5),
        "learning_rate": jnp.float32(0.1 + step / 1000),
    }


def sums() -> dict:
    return {"loss": jnp.float32(20), "correct": jnp.int32(7), "examples": jnp.int32(10)}


def write(
    workdir: Path, first: int, last: int, tests: tuple[int, ...] = (), flush: bool = True
) -> None:
    with Records(epath.Path(workdir), CONFIG, PLAN, first) as records:
        for step in range(first, last):
            records.train(step, 1, metrics(step))
            if step + 1 in tests:
                records.test(step + 1, sums())
        if flush:
            records.flush()


def test_lines_are_as_specified(tmp_path: Path) -> None:
    write(tmp_path, 0, 45, tests=(20,))
    found, train = read_metrics(tmp_path), read_metrics(tmp_path, "train")
    assert [line["step"] for line in train] == list(range(45))
    assert [line["epoch"] for line in train] == [step // 20 for step in range(45)]
    for line in train:
        assert list(line) == ["split", "step", "epoch", "learning_rate", "loss", "accuracy"]
        assert np.float32(line["learning_rate"]) == np.float32(0.1 + line["step"] / 1000)
        assert np.float32(line["loss"]) == np.float32(1 / (line["step"] + 1))
    assert found[20] == {"split": "test", "step": 20, "loss": 2.0, "accuracy": 0.7, "examples": 10}


def test_the_host_reads_late_and_flush_reads_all(tmp_path: Path) -> None:
    with Records(epath.Path(tmp_path), CONFIG, PLAN, 0) as records:
        for step in range(40):
            records.train(step, 1, metrics(step))
        assert 0 < len(read_metrics(tmp_path)) < 40
        records.flush()
        assert len(read_metrics(tmp_path)) == 40


@pytest.mark.parametrize("resumed_at", [0, 1, 9, 30, 40])
def test_a_resumed_run_has_every_step_once(tmp_path: Path, resumed_at: int) -> None:
    write(tmp_path, 0, 40, tests=(10, 30, 40))
    write(tmp_path, resumed_at, 60, tests=(50,))
    found = read_metrics(tmp_path)
    assert [x["step"] for x in found if x["split"] == "train"] == list(range(60))
    expected = [step for step in (10, 30, 40) if step <= resumed_at] + [50]
    assert [x["step"] for x in found if x["split"] == "test"] == expected


@pytest.mark.parametrize("rest", ['{"split": "train", "st', "garbage\n", '{"split": "train"}'])
def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path, rest: str) -> None:
    write(tmp_path, 0, 20)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write(rest)
    write(tmp_path, 20, 25)
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(25))


def test_log_lines_where_there_is_no_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "trainer"):
        write(tmp_path, 80, 100, tests=(100,))
    text = caplog.text
    assert "step 90/100  epoch 5  loss 0.0111  accuracy 0.500  learning rate 0.18900" in text
    assert "step 100/100" in text
    assert "step 95" not in text
    assert "test accuracy 70.00 % of 10 examples" in text
    assert "images/s" in text


def test_the_rate_counts_this_process_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0])
    monkeypatch.setattr("trainer.records.progress.time.monotonic", lambda: next(clock))
    with Records(epath.Path(tmp_path), CONFIG, PLAN, 80) as records:
        for step in range(80, 90):
            records.train(step, 1, metrics(step))
        records.flush()
        # 10 steps of 50 images in 10 s, although the run stands at step 90.
        assert records.summary().startswith("10 steps in 10.0 s (50 images/s")


def test_means_divide_by_what_was_counted() -> None:
    assert mean_metrics(sums()) == {"loss": 2.0, "accuracy": 0.7, "examples": 10}
