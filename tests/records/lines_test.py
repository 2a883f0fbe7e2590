"""Whatever a file holds, the records in it are found, and nothing else is taken for one."""

import json

import pytest

from trainer.cli import actions
from trainer.records.lines import (
    describe_numbers,
    describe_ranges,
    finite_or_none,
    missing_steps,
    parse_record,
    read_lines,
)

TRAIN = {"split": "train", "epoch": 0, "learning_rate": 0.1, "loss": 2, "accuracy": 0.5}
TEST = {"split": "test", "loss": 2.0, "accuracy": 0.5, "examples": 10}


def line(record: dict, step: object) -> bytes:
    return json.dumps({**record, "step": step}).encode()


def test_records_are_put_in_the_order_of_a_run() -> None:
    """The test after 2 updates stands before the update that reads step 2."""
    lines = [line(TRAIN, 2), line(TEST, 2), line(TRAIN, 0), line(TRAIN, 1)]
    found = read_lines(b"\n".join(lines))
    assert list(found.kept.values()) == [lines[2], lines[3], lines[1], lines[0]]
    assert (found.foreign, found.in_order) == ([], False)
    assert read_lines(b"\n".join(found.kept.values())).in_order


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\x00\xff",
        b"null",
        b"[1]",
        b"3",
        b'"split"',
        line({**TRAIN, "split": "other"}, 0),
        line({**TRAIN, "split": ["train"]}, 0),
        line(TRAIN, 1.0),
        line(TRAIN, True),
        line(TRAIN, "0"),
        line(TRAIN, -1),
        line(TRAIN, 2**40),
        line({**TRAIN, "loss": None}, 0),
        line({**TRAIN, "loss": float("inf")}, 0),
        line({**TRAIN, "loss": 10**400}, 0),
        line({**TRAIN, "loss": True}, 0),
        line({name: TRAIN[name] for name in ("split", "loss")}, 0),
        b"[" * 100_000,
    ],
)
def test_what_is_no_record(text: bytes) -> None:
    assert parse_record(text) is None


def test_what_else_a_record_has_stays() -> None:
    record = {**TEST, "step": 3, "ema": {"loss": None, "accuracy": 0.5}}
    assert parse_record(json.dumps(record).encode()) == record


@pytest.mark.parametrize(
    ("steps", "first_step", "missing"),
    [
        ([], 0, []),
        ([], 3, [(0, 2)]),
        ([0, 1, 2], 3, []),
        ([1, 2, 5], 8, [(0, 0), (3, 4), (6, 7)]),
    ],
)
def test_missing_steps(steps: list[int], first_step: int, missing: list) -> None:
    assert missing_steps(steps, first_step) == missing


def test_many_ranges_are_not_all_named() -> None:
    assert describe_ranges([(3, 7)]) == "3 to 7"
    assert describe_ranges([(3, 7), (9, 9)]) == "3 to 7 and 9"
    assert describe_ranges([(i, i) for i in range(9)]) == "0, 1, 2, 3 and 5 more ranges"
    assert describe_numbers([1, 2, 3]) == "1, 2 and 3"
    assert describe_numbers(list(range(9))) == "0, 1, 2, 3 and 5 more lines"


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"loss": float("nan"), "list": [1, float("inf")], "text": "NaN", "pair": (1.5, None)}
    finite = {"loss": None, "list": [1, None], "text": "NaN", "pair": [1.5, None]}
    assert finite_or_none(value) == finite
    actions._print_json(value)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == finite
