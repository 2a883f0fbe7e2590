"""metrics.jsonl has every step once, whatever happened to the run before."""

import logging
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests.helpers import read_metrics
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.records.metrics import Records
from trainer.schedules import create_plan
from trainer.workdir.files import METRICS_FILE

CONFIG = TrainConfig(num_steps=100, batch_size=50, log_every_steps=10)
PLAN = create_plan(CONFIG, 1000)


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


@pytest.mark.parametrize("rest", ['{"split": "train", "st', '{"split": "train"}', "{"])
def test_a_line_that_was_cut_off_is_dropped_without_a_word(
    tmp_path: Path, rest: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 0, 20)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write(rest)
    write(tmp_path, 20, 25)
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(25))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert copies(tmp_path) == []


def copies(workdir: Path) -> list[bytes]:
    return [path.read_bytes() for path in workdir.glob("metrics.jsonl.*")]


def instead(old: bytes, new: bytes):
    return lambda lines: [lines[0].replace(old, new), *lines[1:]]


# What somebody did to the lines of steps 0 to 19, what is said, and which steps are gone then.
EDITS = [
    (lambda lines: lines[:3] + lines[8:12] + lines[13:], "", "3 to 7 and 12"),
    (lambda lines: [], "", "0 to 19"),
    (lambda lines: [*lines[:5], b"# a note\n", *lines[5:]], "line 6 is not a record, or", None),
    (lambda lines: [*lines[:5], b"\xff\xfe\x00\n", *lines[6:]], "line 6 is not", "5"),
    (lambda lines: [*lines[:5], b"[" * 10**5 + b"\n", *lines[5:]], "line 6 is not", None),
    (lambda lines: [*lines, b"not finished"], "line 21 is not", None),
    (lambda lines: [*lines, *lines[:2]], "lines 21 and 22 are not records, or repeat", None),
    (lambda lines: [b'{"split": "train"}\n', b'{"step": 3}\n', *lines], "lines 1 and 2", None),
    (instead(b"0.5", b"NaN"), "line 1 is not", "0"),
    (instead(b"0.5", b"1e999"), "line 1 is not", "0"),
    (instead(b"0.5", b'"0.5"'), "line 1 is not", "0"),
    (instead(b'"step": 0', b'"step": -1'), "line 1 is not", "0"),
    (lambda lines: [lines[1], lines[0], *lines[2:]], "in another order", None),
]


@pytest.mark.parametrize(("edit", "said", "missing"), EDITS)
def test_an_edited_file_is_kept_and_its_steps_are_told(
    tmp_path: Path, edit, said: str, missing: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 0, 20)
    path = tmp_path / METRICS_FILE
    edited = b"".join(edit(path.read_bytes().splitlines(keepends=True)))
    path.write_bytes(edited)
    write(tmp_path, 20, 25)
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == bool(said) + bool(missing)
    assert not said or said in warnings[0]
    assert not missing or f"has no record of steps {missing}:" in warnings[-1]
    # What is not the run's own is not lost.
    assert copies(tmp_path) == ([edited] if said else [])
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert steps == sorted(set(steps))
    assert steps[-5:] == list(range(20, 25))
    if missing is None:
        assert steps == list(range(25))


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.rstrip(b"\n"),
        lambda text: text.replace(b"\n", b"\n\n"),
    ],
    ids=["CRLF", "byte order mark", "no end", "blank lines"],
)
def test_what_an_editor_does_on_saving_is_no_edit(
    tmp_path: Path, edit, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 0, 20)
    path = tmp_path / METRICS_FILE
    text = path.read_bytes()
    path.write_bytes(edit(text))
    write(tmp_path, 20, 25)
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(25))
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert copies(tmp_path) == []


def test_a_file_that_is_gone_at_a_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, 0, 20)
    (tmp_path / METRICS_FILE).unlink()
    write(tmp_path, 20, 25)
    assert "metrics.jsonl has no record of steps 0 to 19: it was edited" in caplog.text
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(20, 25))


def test_a_file_that_is_gone_in_mid_run_ends_it(tmp_path: Path) -> None:
    with Records(epath.Path(tmp_path), CONFIG, PLAN, 0) as records:
        records.train(0, 1, metrics(0))
        records.flush()
        (tmp_path / METRICS_FILE).rename(tmp_path / "moved")
        records.train(1, 1, metrics(1))
        with pytest.raises(RunError, match=r"metrics.jsonl was deleted or replaced while"):
            records.flush()
        (tmp_path / METRICS_FILE).touch()
        with pytest.raises(RunError, match=r"metrics.jsonl was deleted or replaced while"):
            records.flush()


def test_the_last_test_and_the_last_rate(tmp_path: Path) -> None:
    """What a checkpoint says of the run until then."""
    with Records(epath.Path(tmp_path), CONFIG, PLAN, 0) as records:
        assert records.last_test is None
        for step in range(40):
            records.train(step, 1, metrics(step))
        records.test(40, sums())
        records.flush()
        assert records.last_test == read_metrics(tmp_path, "test")[0]
        assert np.float32(records.last_learning_rate) == np.float32(0.1 + 39 / 1000)
        assert records.folder == epath.Path(tmp_path)


def test_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).mkdir()
    with pytest.raises(RunError, match=r"metrics.jsonl could not be written: Is a dir.*; make"):
        Records(epath.Path(tmp_path), CONFIG, PLAN, 0)


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, loss: float) -> None:
    with Records(epath.Path(tmp_path), CONFIG, PLAN, 0) as records:
        records.train(0, 1, metrics(0))
        records.train(1, 1, metrics(1) | {"loss": jnp.float32(loss)})
        with pytest.raises(RunError, match=f"the loss is {loss} at step 1: epoch 1, .* lower --lr"):
            records.flush()
    with Records(epath.Path(tmp_path), CONFIG, PLAN, 0) as records:
        records.train(0, 1, metrics(0))
        records.test(1, sums() | {"loss": jnp.float32(loss)})
        with pytest.raises(RunError, match=f"the test loss is {loss} at step 1: .* rate 0.1;"):
            records.flush()
    assert "NaN" not in (tmp_path / METRICS_FILE).read_text()


def test_several_steps_a_call(tmp_path: Path) -> None:
    rows = {name: jnp.arange(1, 5, dtype=jnp.float32) for name in metrics(0)}
    with Records(epath.Path(tmp_path), CONFIG, PLAN, 0) as records:
        records.train(0, 4, rows)
        records.flush()
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 2, 3]
    assert [line["loss"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
