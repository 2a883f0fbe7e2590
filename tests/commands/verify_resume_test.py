"""verify_resume keeps quiet where all is well, and tells where it is not."""

import dataclasses
from pathlib import Path

import pytest

from trainer.commands import verify_resume as verification
from trainer.commands.verify_resume import Comparison, kept, report, stops, verify_resume
from trainer.config import TrainConfig
from trainer.errors import Interrupted, Stopped
from trainer.schedules import create_plan


@pytest.fixture
def config(config: TrainConfig) -> TrainConfig:
    """One cycle with three steps of the next."""
    return dataclasses.replace(config, steps_per_cycle=4, num_steps=7)


def test_stops_are_telling() -> None:
    plan = create_plan(TrainConfig(), 60000)
    assert stops(plan, None) == {
        29: "in mid-cycle, rising",
        59: "at the peak",
        88: "in mid-cycle, falling",
        117: "at the lowest rate",
        468: "at the end of an epoch",
    }
    assert list(stops(plan, 100)) == [29, 59, 88]
    early = create_plan(TrainConfig(cycle_up_fraction=0.25), 60000)
    assert list(stops(early, 100)) == [14, 29, 73]


def test_one_number_of_devices_is_exact(config: TrainConfig) -> None:
    comparisons = verify_resume(config, [2])
    assert all(each.promised and each.difference is None for each in comparisons)
    assert [each.count for each in comparisons] == [9, 7, 7, 7, 7, 7]
    assert "changed nothing that is promised" in report(comparisons)


@pytest.mark.system
@pytest.mark.parametrize("placement", ["sharded", "streamed"])
def test_examples_elsewhere(config: TrainConfig, placement: str) -> None:
    config = dataclasses.replace(config, data_placement=placement, reduction="tree")
    comparisons = verify_resume(config, [2, 1])
    assert kept(comparisons)
    assert all(each.difference is None for each in comparisons)


def test_cycled_momentum_and_a_length_in_cycles(config: TrainConfig) -> None:
    config = dataclasses.replace(
        config,
        num_steps=None,
        num_cycles=1,
        num_epochs=1,
        steps_per_cycle=3,
        lr_schedule="exp_range",
        momentum_min=0.8,
        momentum_max=0.9,
    )
    comparisons = verify_resume(config, [2])
    assert kept(comparisons)
    assert {each.what: each.count for each in comparisons}["momentums, formula"] == 3


def test_a_wrong_rate_after_a_resume_is_found(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the schedule began anew: the bug this program exists to make impossible."""
    config = dataclasses.replace(config, num_steps=3)
    real = verification.train

    def forgetful(config: TrainConfig, workdir: Path) -> None:
        if workdir.name == "broken":
            config = TrainConfig(**{**vars(config), "lr_max": 0.031})
            real(config, workdir, ["lr_max"])
        else:
            real(config, workdir)

    monkeypatch.setattr(verification, "train", forgetful)
    comparisons = verify_resume(config, [2])
    assert not kept(comparisons)
    text = report(comparisons)
    assert "learning rates, unbroken run" in text
    assert "DIFFERENT: step 1:" in text
    assert "NOT the same run: leaves of the final state: params/" in text


def test_report_and_verdict() -> None:
    same, unpromised = Comparison("a", 3, None), Comparison("b", 3, "step 2", promised=False)
    assert kept([same, unpromised])
    assert (
        "b                                           3  DIFFERENT: step 2 (not promised"
        in report([same, unpromised])
    )
    broken = Comparison("c", 3, "step 1: x and y")
    assert not kept([same, broken])
    assert report([same, broken]).endswith("NOT the same run: c: step 1: x and y")


def test_a_signal_ends_it_with_true_words(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runs are temporary: no checkpoint is left from which anything could resume."""

    def stop(*_: object) -> None:
        raise Stopped("stopped by SIGINT at step 3, checkpoint saved")

    monkeypatch.setattr(verification, "train", stop)
    with pytest.raises(Interrupted, match="nothing was proven and nothing is kept"):
        verify_resume(config, [2])
