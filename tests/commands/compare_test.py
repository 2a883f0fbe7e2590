"""Runs side by side: numbers of real runs, a table of 80 columns, and what is refused."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import assert_no_traceback, read_metrics, smallest_run
from trainer.commands.compare.command import compare
from trainer.commands.compare.runs import differences
from trainer.commands.compare.table import table
from trainer.config import TrainConfig
from trainer.run.loop import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real runs: one with averages, one longer at another rate, one that was resumed."""
    folder = tmp_path_factory.mktemp("runs")
    config = smallest_run(folder, steps_per_cycle=4, eval_every_steps=4, num_steps=12)
    train(dataclasses.replace(config, average_cycles=1, ema_decay=0.5), folder / "averaged")
    train(dataclasses.replace(config, lr_max=0.2, num_steps=20), folder / "longer")
    train(dataclasses.replace(config, num_steps=6), folder / "resumed")
    changed = dataclasses.replace(config, lr_max=0.1)
    train(changed, folder / "resumed", allow_config_change=["lr_max"])
    return folder


@pytest.fixture
def three(runs: Path, tmp_path: Path) -> dict[str, Any]:
    """What is found out about all three."""
    paths = [str(runs / name) for name in ("averaged", "longer", "resumed")]
    return compare(paths, str(tmp_path / "compare.png"))


def test_the_numbers_are_those_of_the_records(three: dict[str, Any], runs: Path) -> None:
    assert [run["run"] for run in three["runs"]] == ["averaged", "longer", "resumed"]
    for run in three["runs"]:
        tests = read_metrics(run["workdir"], "test")
        accuracies = [test["accuracy"] for test in tests]
        assert run["test_accuracy"] == accuracies[-1]
        assert run["test_loss"] == tests[-1]["loss"]
        assert run["best_test_accuracy"] == max(accuracies)
        assert run["best_step"] == tests[accuracies.index(max(accuracies))]["step"]
        assert run["steps"] == run["num_steps"] == len(read_metrics(run["workdir"], "train"))
        assert run["config"] == json.loads((Path(run["workdir"]) / "config.json").read_text())
        assert run["seconds"] > 0
        assert run["images_per_second"] == pytest.approx(run["steps"] * 16 / run["seconds"])
    averaged, longer, resumed = three["runs"]
    last = read_metrics(runs / "averaged", "test")[-1]
    assert averaged["average"]["test_accuracy"] == last["average"]["accuracy"]
    assert averaged["ema"]["test_loss"] == last["ema"]["loss"]
    assert (longer["average"], longer["ema"], longer["changes"]) == (None, None, [])
    assert resumed["changes"] == [{"step": 6, "changes": {"lr_max": [0.03, 0.1]}}]
    assert three["differences"] == {
        "num_steps": [12, 20, 12],
        "lr_max": [0.03, 0.2, 0.1],
        "average_cycles": [1, 0, 0],
        "ema_decay": [0.5, 0.0, 0.0],
    }


def test_what_does_not_count_is_no_difference() -> None:
    one = TrainConfig(num_steps=9, steps_per_cycle=3)
    other = dataclasses.replace(
        one, num_epochs=3, cycles_per_epoch=2, checkpoint_every_steps=7, data_dir="d", report=False
    )
    assert differences([one, other]) == {}
    assert differences([one]) == {}
    assert differences([one, dataclasses.replace(one, num_devices=2)]) == {"num_devices": [0, 2]}


def test_the_table_fits_80_columns_and_has_every_run_in_every_part(three: dict[str, Any]) -> None:
    text = table(three)
    assert max(map(len, text.splitlines())) <= 80
    *parts, notes = text.split("\n\n")
    assert notes == "resumed, changed at step 6: lr_max 0.03 to 0.1"
    columns: dict[str, str] = {}
    for part in parts:
        lines = part.splitlines()
        assert [line.split()[0] for line in lines] == ["run", "averaged", "longer", "resumed"]
        columns |= dict(zip(lines[0].replace(" %", "%").split(), lines[2].split(), strict=True))
    expected = ["run", "num_steps", "lr_max", "average_cycles", "ema_decay", "steps", "test%"]
    assert list(columns)[:7] == expected
    assert list(columns)[7:] == ["best%", "average%", "ema%", "seconds", "images/s"]
    assert columns["lr_max"] == "0.2"
    assert columns["average%"] == "-"
    assert columns["best%"] == f"{100 * three['runs'][1]['best_test_accuracy']:.2f}"


def test_long_names_and_values_are_cut_and_stay_different(three: dict[str, Any]) -> None:
    for number, run in enumerate(three["runs"]):
        run["run"] = f"{number}{'x' * 60}"
    three["differences"]["model"] = [f"{'n' * 99}.py:Network"] * 3
    three["differences"]["train_split"] = ["", "train[:90%]", "train[:\n9%]" * 9]
    text = table(three)
    assert max(map(len, text.splitlines())) <= 80
    assert "\n2 xxxx" in text
    assert "…" in text


def test_runs_of_the_same_name_are_told_apart(runs: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(runs / "longer", tmp_path / name / "run")
    found = compare([str(tmp_path / "one/run"), str(tmp_path / "two/run")], str(tmp_path / "a.png"))
    assert [run["run"] for run in found["runs"]] == ["one/run", "two/run"]
    assert table(found).endswith("the configurations are the same")


def test_a_run_that_was_killed_and_one_of_an_older_version(runs: Path, tmp_path: Path) -> None:
    """No test yet, no time noted, and a last line that was cut off."""
    shutil.copytree(runs / "longer", tmp_path / "killed")
    (tmp_path / "killed/timing.json").unlink()
    lines = (runs / "longer/metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "killed/metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:20])
    found = compare([str(tmp_path / "killed"), str(runs / "longer")], str(tmp_path / "a.png"))
    killed = found["runs"][0]
    assert (killed["steps"], killed["num_steps"]) == (3, 20)
    nothing = ("test_accuracy", "best_step", "seconds", "images_per_second")
    assert [killed[name] for name in nothing] == [None] * 4
    row = table(found).splitlines()[1]
    assert row.split() == ["killed", "3", "of", "20", "-", "-", "-", "-"]


@pytest.fixture
def say(
    command: Callable[..., int],
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[int, str, str]]:
    """Run `compare` in an empty folder; the answer is status, output and error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = command("compare", *arguments)
        captured = capsys.readouterr()
        assert_no_traceback(captured.err)
        return status, captured.out, captured.err

    return run


def test_the_command(say: Callable, runs: Path, tmp_path: Path) -> None:
    """One JSON object where there is no terminal, a table on one, and the picture's path."""
    status, out, err = say(str(runs / "longer"), str(runs / "averaged"))
    assert (status, err) == (0, "compare.png\n")
    assert [run["run"] for run in json.loads(out)["runs"]] == ["longer", "averaged"]
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    # An older picture is replaced; folders are made.
    assert say(str(runs / "longer"), "--output=compare.png", "--json")[0] == 0
    assert say(str(runs / "longer"), "--output=new/folder/a.png")[0] == 0
    assert (tmp_path / "new/folder/a.png").exists()


def test_on_a_terminal(
    say: Callable, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import sys

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, out, _ = say(str(runs / "longer"), str(runs / "averaged"))
    assert out.startswith("run       num_steps")
    _, out, _ = say(str(runs / "longer"), "--json")
    assert json.loads(out)["differences"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "compare: no runs given; use python -m trainer compare RUN..."),
        (("{runs}/longr",), "there is no folder {runs}/longr (did you mean {runs}/longer?); use"),
        (("nothing/here",), "compare: there is no folder nothing/here; use workdirs of"),
        (("{runs}/longer", "empty"), "compare: empty holds no run (there is no config.json in it)"),
        (("{runs}",), "compare {runs}/averaged {runs}/longer {runs}/resumed\n"),
        (("file.txt",), "compare: file.txt is a file, and no workdir"),
        (("begun",), "compare: begun has the config.json of a run, and no metrics.jsonl"),
        (("first",), "compare: the run in first has not recorded a step yet; leave it out"),
        (("edited",), "compare: edited: there are no records of training steps"),
        (
            ("{runs}/longer", "{runs}/../{name}/longer/"),
            "the same run is given twice: {runs}/longer and {runs}/../{name}/longer/; give each",
        ),
        (("link", "{runs}/longer"), "given twice: link and {runs}/longer"),
        (("s3://a/b",), "compare: s3://a/b: use a local folder, or gs://bucket/folder"),
        (("{runs}/longer", "--output=a.jpg"), "--output=a.jpg is not valid; use a name that ends"),
        (("{runs}/longer", "--output="), "--output= is empty"),
        (("{runs}/longer", "--output=dir.png"), "--output=dir.png: it is a folder; use another"),
        (("{runs}/longer", "--output=no.png"), "--output=no.png: there is a file that is no PNG"),
        (("{runs}/longer", "--output=file.txt/a.png"), "a.png: it cannot be written there"),
        (("{runs}/longer", "--output=s3://a/b.png"), "--output=s3://a/b.png: use a local folder"),
        (("{runs}/longer", "--workdir=a"), "--workdir is a flag of "),
        (("{runs}/longer", "--batch_size=3"), "--batch_size is a flag of "),
    ],
)
def test_wrong_input_is_one_message(
    say: Callable, runs: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "dir.png").mkdir()
    (tmp_path / "file.txt").write_text("a")
    (tmp_path / "no.png").write_text("a thesis")
    (tmp_path / "link").symlink_to(runs / "longer")
    config = (runs / "longer/config.json").read_text()
    for name, records in (("begun", None), ("first", ""), ("edited", "my notes\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
        if records is not None:
            (tmp_path / name / "metrics.jsonl").write_text(records)
    places = {"runs": str(runs), "name": runs.name}
    status, out, err = say(*(argument.format(**places) for argument in arguments))
    assert (status, out) == (1, "")
    assert message.format(**places) in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "compare.png").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"stpes": 1}', '{"lr_min": "x"}'])
def test_a_damaged_configuration_is_named(
    say: Callable, runs: Path, tmp_path: Path, text: str
) -> None:
    shutil.copytree(runs / "longer", tmp_path / "run")
    (tmp_path / "run/config.json").write_text(text)
    status, _, err = say("run")
    assert status == 2
    assert "run/config.json" in err or "another version" in err


def test_records_that_are_a_folder(say: Callable, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "longer", tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").unlink()
    (tmp_path / "run/metrics.jsonl").mkdir()
    status, _, err = say("run")
    assert (status, err) == (
        2,
        "error: run/metrics.jsonl could not be read: Is a directory\n",
    )
