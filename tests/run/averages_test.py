"""Averages of the parameters, the checkpoints that stay for them, and what is made of both."""

import dataclasses
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.helpers import assert_same_bits, read_metrics, smallest_run, stored_state
from trainer import load_checkpoint
from trainer.checkpoints import read_newest, stored_steps
from trainer.commands import inspection
from trainer.commands.predict.inference import create_inference
from trainer.config import TrainConfig
from trainer.errors import UsageError
from trainer.run.loop import train
from trainer.run.selection import Selection

ON = {"average_cycles": 2, "ema_decay": 0.8}
CYCLE, NUM_STEPS = 4, 19


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A small run that saves every step; its third cycle ends in its third epoch."""
    return smallest_run(
        tmp_path_factory.mktemp("averages"),
        num_train=80,
        steps_per_cycle=CYCLE,
        num_steps=NUM_STEPS,
        checkpoint_every_steps=1,
        keep_checkpoints=100,
        eval_every_steps=3,
        num_devices=2,
    )


@pytest.fixture(scope="module")
def averaged_run(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run with both averages; tests do not write to it."""
    workdir = tmp_path_factory.mktemp("averaged")
    train(dataclasses.replace(config, **ON), workdir)
    return workdir


def mean(trees: list) -> dict:
    return jax.tree.map(lambda *leaves: np.mean(np.asarray(leaves, np.float64), axis=0), *trees)


def assert_close(found: dict, expected: dict) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7 * np.abs(other).max())


def test_the_average_is_the_mean_of_the_ends_of_cycles(averaged_run: Path) -> None:
    """Ends 2, 3 and 4, at steps 8, 12 and 16, and no step beside them."""
    for step, ends in [(8, [8]), (11, [8]), (12, [8, 12]), (NUM_STEPS, [8, 12, 16])]:
        found = load_checkpoint(averaged_run, step).average
        assert_close(found, mean([load_checkpoint(averaged_run, end).params for end in ends]))
    assert load_checkpoint(averaged_run, 7).average is None


def test_the_moving_average_is_its_recurrence(config: TrainConfig, averaged_run: Path) -> None:
    steps = [load_checkpoint(averaged_run, step) for step in range(1, NUM_STEPS + 1)]
    first = jax.tree.map(np.float64, steps[0].network.init(jax.random.key(config.seed))[0])
    expected = first
    for checkpoint in steps:
        expected = jax.tree.map(lambda old, new: 0.8 * old + 0.2 * new, expected, checkpoint.params)
        assert_close(checkpoint.ema, expected)


def test_they_change_nothing_else(config: TrainConfig, averaged_run: Path, tmp_path: Path) -> None:
    """Without them there is no leaf of them; with them the parameters have the same bits."""
    train(config, tmp_path)
    plain, averaged = (read_newest(workdir).meta["digests"] for workdir in (tmp_path, averaged_run))
    assert plain == {k: v for k, v in averaged.items() if not k.startswith("averages/")}
    assert len(averaged) > len(plain)
    with pytest.raises(UsageError, match="--params=ema: the run keeps none; train with --ema_d"):
        Selection(params="ema").load(tmp_path)


@pytest.mark.system
@pytest.mark.parametrize(
    "num_devices", [[2, 1, 2], pytest.param([8, 4, 1], marks=pytest.mark.slow)]
)
def test_stops_and_other_devices(
    config: TrainConfig, averaged_run: Path, tmp_path: Path, num_devices: list[int]
) -> None:
    """In mid-cycle, at the end of a cycle, and on other devices after each stop."""
    for count, stop in zip(num_devices, (6, 12, NUM_STEPS), strict=True):
        part = dataclasses.replace(config, **ON, num_devices=count, num_steps=stop)
        train(part, tmp_path)
    assert_same_bits(stored_state(tmp_path, NUM_STEPS), stored_state(averaged_run, NUM_STEPS))
    ours, theirs = (read_metrics(workdir, "test") for workdir in (tmp_path, averaged_run))
    assert [line for line in ours if line in theirs] == theirs


def test_tests_are_made_of_each_kind(config: TrainConfig, averaged_run: Path) -> None:
    """As soon as there is something of it; `evaluate` finds the same."""
    tests = read_metrics(averaged_run, "test")
    kinds = [[name for name in ("average", "ema") if name in line] for line in tests]
    assert kinds == [["ema"]] * 2 + [["average", "ema"]] * 5
    for kind in ("average", "ema"):
        found = inspection.evaluate(averaged_run, config, Selection(params=kind))
        assert found["params"] == kind
        assert {name: found[name] for name in ("loss", "accuracy")} == tests[-1][kind]
    early = Selection(checkpoint="7", params="average")
    with pytest.raises(UsageError, match="checkpoint 7 holds none yet, as no cycle has ended"):
        early.load(averaged_run)


@pytest.mark.system
def test_on_and_off_in_mid_run(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On begins with the parameters that are there, off drops it; both only when allowed."""
    train(dataclasses.replace(config, num_steps=6), tmp_path)
    on = dataclasses.replace(config, ema_decay=0.8, average_cycles=1, num_steps=9)
    with pytest.raises(UsageError, match=r"ema_decay +0.0 +0.8\n"):
        train(on, tmp_path)
    with caplog.at_level(logging.INFO, "trainer"):
        train(on, tmp_path, ["ema_decay", "average_cycles"])
    assert "from cycle 1 on, begun at step 6; exponential with decay 0.8, begun at step 6" in (
        caplog.text
    )
    params = [load_checkpoint(tmp_path, step).params for step in range(6, 10)]
    expected = params[0]
    for new in params[1:]:
        expected = jax.tree.map(lambda old, new: 0.8 * old + 0.2 * new, expected, new)
    found = load_checkpoint(tmp_path)
    assert_close(found.ema, expected)
    assert_close(found.average, params[2])  # The end at step 8; that at 4 was before it began.
    off = dataclasses.replace(config, num_steps=10, ema_decay=0.8)
    train(off, tmp_path, ["average_cycles"])
    assert (load_checkpoint(tmp_path).average, load_checkpoint(tmp_path).ema is None) == (
        None,
        False,
    )


def test_the_best_and_the_ends_of_cycles_stay(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside a single newest one, over a resume, and when the newest is damaged."""
    keeping = dataclasses.replace(
        config,
        checkpoint_every_steps=100,
        keep_checkpoints=1,
        keep_cycle_ends=2,
        keep_best=True,
        eval_every_steps=1,
    )
    for stop in (7, NUM_STEPS):
        train(dataclasses.replace(keeping, num_steps=stop), tmp_path)
    tests = {line["step"]: line["accuracy"] for line in read_metrics(tmp_path, "test")}
    best = max(tests, key=lambda step: (tests[step], -step))
    assert read_newest(tmp_path).meta["best"] == {"step": best, "accuracy": tests[best]}
    assert stored_steps(tmp_path) == sorted({best, 12, 16, NUM_STEPS}, reverse=True)
    assert inspection.evaluate(tmp_path, config, Selection("best"))["accuracy"] == tests[best]
    (tmp_path / "checkpoints" / str(NUM_STEPS) / "state" / "manifest.ocdbt").write_bytes(b"")
    assert Selection("best").load(tmp_path).step == best
    train(dataclasses.replace(keeping, num_steps=NUM_STEPS + 1), tmp_path)
    assert Selection("best").load(tmp_path).step in {best, NUM_STEPS + 1}


@pytest.mark.parametrize("damaged", [True, False])
def test_a_best_one_that_is_lost_gives_way(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: bool
) -> None:
    """It is set aside, or was deleted; the best of the tests from there on stays."""
    keeping = dataclasses.replace(
        config,
        checkpoint_every_steps=1,
        keep_checkpoints=1,
        keep_best=True,
        eval_every_steps=1,
    )
    train(dataclasses.replace(keeping, num_steps=NUM_STEPS), tmp_path)
    best = read_newest(tmp_path).meta["best"]["step"]
    assert best != NUM_STEPS
    folder = tmp_path / "checkpoints" / str(best)
    if damaged:
        (folder / "state" / "manifest.ocdbt").write_bytes(b"")
    else:
        shutil.rmtree(folder)
    caplog.clear()
    train(dataclasses.replace(keeping, num_steps=NUM_STEPS + 3), tmp_path)
    said = f"checkpoint {best}, the best so far, {'was damaged' if damaged else 'is gone'}; the"
    assert said in caplog.text
    assert (tmp_path / "checkpoints" / "damaged" / str(best)).exists() == damaged
    later = [line for line in read_metrics(tmp_path, "test") if line["step"] > NUM_STEPS]
    first_of_best = max(later, key=lambda line: (line["accuracy"], -line["step"]))["step"]
    assert Selection("best").load(tmp_path).step == first_of_best


def test_without_a_best_one(config: TrainConfig, averaged_run: Path) -> None:
    with pytest.raises(UsageError, match="keeps no best checkpoint; train with --keep_best, or"):
        Selection("best").load(averaged_run)


@pytest.mark.system
def test_an_ensemble_is_the_mean_of_probabilities(config: TrainConfig, averaged_run: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (20, 6, 6, 1), np.uint8)
    members = [load_checkpoint(averaged_run, step) for step in (8, 12, 16)]
    expected = np.mean([create_inference(member)(images) for member in members], axis=0)
    ensemble = Selection(ensemble=3).load(averaged_run)
    np.testing.assert_allclose(create_inference(ensemble)(images), expected, rtol=1e-5)
    found = inspection.evaluate(averaged_run, config, Selection(ensemble=3))
    assert (found["step"], found["ensemble"], found["examples"]) == (16, [8, 12, 16], 16)
    with np.load(config.dataset) as own:
        each = [create_inference(member)(own["x_test"][..., None]) for member in members]
        right = np.mean(each, axis=0)[np.arange(16), own["y_test"]]
    assert found["loss"] == pytest.approx(-np.log(right).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"checkpoint": "latest"}, "--checkpoint=latest is not valid; use newest, best or a step"),
        ({"checkpoint": "-3"}, "--checkpoint=-3 is not valid"),
        (
            {"checkpoint": "9" * 5000},
            f"--checkpoint={'9' * 20}... is not valid: no run has so many",
        ),
        ({"ensemble": -1}, "--ensemble=-1 is not valid"),
        ({"ensemble": 2, "params": "ema"}, "leave out --checkpoint and --params"),
        ({"ensemble": 2, "checkpoint": "best"}, "leave out --checkpoint and --params"),
        ({"checkpoint": "20"}, "there is no checkpoint 20 in .*; there are: 1, 2, "),
        ({"ensemble": 5}, "these are at the end of a cycle of 4 steps: 4, 8, 12, 16; use .* to 4"),
    ],
)
def test_what_cannot_be_chosen(averaged_run: Path, selection: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Selection(**selection).load(averaged_run)
