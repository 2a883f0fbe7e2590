"""What the files of a run say of it, whatever has become of them."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from trainer.config import TrainConfig
from trainer.errors import RunError, UsageError
from trainer.records.history import Resume, note_resume, read_history

TRAIN = {"split": "train", "epoch": 0, "learning_rate": 0.1, "loss": 2.0, "accuracy": 0.1}
TEST = {"split": "test", "loss": 1.0, "accuracy": 0.5, "examples": 10}


def write(workdir: Path, records: list[dict], config: str | None = None) -> None:
    text = json.dumps(dataclasses.asdict(TrainConfig(num_steps=99)))
    (workdir / "config.json").write_text(text if config is None else config)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_a_run_in_progress(tmp_path: Path) -> None:
    """The last line is cut off; no test has been made."""
    write(tmp_path, [{**TRAIN, "step": step} for step in range(50)])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    note_resume(epath.Path(tmp_path), 30)
    run = read_history(tmp_path)
    np.testing.assert_array_equal(run.train["step"], np.arange(49))
    assert (len(run.test["step"]), run.averages, run.resumes) == (0, {}, [Resume(30)])
    assert run.config == TrainConfig(num_steps=99)


def test_columns(tmp_path: Path) -> None:
    """Momentum from a resume on, averages from a cycle on."""
    records = [{**TRAIN, "step": 0}, {**TRAIN, "step": 1, "momentum": 0.9}]
    tests = [
        {**TEST, "step": 1},
        {**TEST, "step": 2, "ema": {"loss": None, "accuracy": 0.75}},
    ]
    write(tmp_path, [records[0], tests[0], records[1], tests[1]])
    run = read_history(tmp_path)
    np.testing.assert_array_equal(run.train["momentum"], [np.nan, 0.9])
    np.testing.assert_array_equal(run.test["step"], [1, 2])
    assert run.averages.keys() == {"ema"}
    np.testing.assert_array_equal(run.averages["ema"]["step"], [2])
    np.testing.assert_array_equal(run.averages["ema"]["accuracy"], [0.75])
    np.testing.assert_array_equal(run.averages["ema"]["loss"], [np.nan])


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"metrics.jsonl": ""},
        {"config.json": "{}"},
        {"config.json": "{}", "metrics.jsonl": "damaged\n"},
    ],
)
def test_no_records(
    files: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """That is said, once."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=f"--workdir={tmp_path}: there are no records .* use a"):
        read_history(tmp_path)
    assert caplog.records == []


def test_lines_that_are_no_records_are_skipped_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, [{**TRAIN, "step": 1}, {"a": 1}, {**TRAIN, "step": 0}])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n")
    with caplog.at_level(logging.WARNING):
        run = read_history(tmp_path)
    np.testing.assert_array_equal(run.train["step"], [0, 1])
    assert "lines 2 and 4 skipped" in caplog.text


@pytest.mark.parametrize(
    "config",
    ["", '{"lr_max": 0.0', "[]", "3", '{"lr_min": "low"}', '{"lr_min": 2, "lr_max": 1}', "\xff"],
)
def test_a_configuration_that_was_cut_short_or_edited(tmp_path: Path, config: str) -> None:
    write(tmp_path, [{**TRAIN, "step": 0}], config)
    with pytest.raises(RunError, match=r"config.json does not hold .* inspect --workdir="):
        read_history(tmp_path)


def test_records_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path, [])
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"metrics.jsonl could not be read: Is a directory"):
        read_history(tmp_path)


def resumes(workdir: Path) -> list[Resume]:
    write(workdir, [{**TRAIN, "step": 0}])
    return read_history(workdir).resumes


def test_resumes_outlive_rewinds(tmp_path: Path) -> None:
    seen = []
    for first_step in (0, 20, 20, 50, 30, 0):
        note_resume(epath.Path(tmp_path), first_step)
        seen.append([resume.step for resume in resumes(tmp_path)])
    assert seen == [[], [20], [20], [20, 50], [20, 30], []]


def test_what_was_changed_at_a_resume(tmp_path: Path) -> None:
    first = {"step": 20, "changes": {"lr_max": [0.03, 0.1]}}
    second = {"step": 50, "changes": {"momentum": [0.9, 0.5], "nesterov": [False, True]}}
    note_resume(epath.Path(tmp_path), 20, [first])
    note_resume(epath.Path(tmp_path), 30, [first])
    note_resume(epath.Path(tmp_path), 50, [first, second])
    assert resumes(tmp_path) == [
        Resume(20, {"lr_max": (0.03, 0.1)}),
        Resume(30, {}),
        Resume(50, {"momentum": (0.9, 0.5), "nesterov": (False, True)}),
    ]


def test_resumes_of_an_older_version(tmp_path: Path) -> None:
    (tmp_path / "resumes.json").write_text("[20, 50]")
    note_resume(epath.Path(tmp_path), 60)
    assert resumes(tmp_path) == [Resume(20), Resume(50), Resume(60)]


@pytest.mark.parametrize(
    "text",
    [
        *("", "[20", "{}", "3", '["a"]', '[{"step": 1}]', '[{"step": 1, "changes": {"a": 1}}]'),
        '[{"step": 1e999, "changes": {}}]',
    ],
)
def test_damaged_resumes_are_no_resumes(tmp_path: Path, text: str) -> None:
    (tmp_path / "resumes.json").write_text(text)
    assert resumes(tmp_path) == []
    note_resume(epath.Path(tmp_path), 30)
    assert resumes(tmp_path) == [Resume(30)]
