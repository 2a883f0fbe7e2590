"""The lines of metrics.jsonl: which of them are records, and what is missing between them."""

import codecs
import dataclasses
import itertools
import json
import math
from collections.abc import Iterable
from typing import Any

# What every record has; a record of a test may have these again under a kind of averaged
# parameters, such as "ema": {"loss": ..., "accuracy": ...}.
_FIELDS = {
    "train": ("epoch", "learning_rate", "loss", "accuracy"),
    "test": ("loss", "accuracy"),
}
# Larger ones fit no float, or only just.
_LARGEST = 1e300
# Ranges and lines that a message names.
_MOST_NAMED = 4


@dataclasses.dataclass(frozen=True)
class Lines:
    """What the text of metrics.jsonl holds.

    Attributes:
      kept: (step, split == "train") -> the line of the record, in the order in which a run writes
        them, every step of a split once: after n updates comes the test at step n, then the update
        that reads step n.
      foreign: numbers, from 1, of the lines that are no records, or that have the step of an
        earlier line; a last line that a crash cut off is not among them.
      in_order: whether the records stand in the text in that order.
    """

    kept: dict[tuple[int, bool], bytes]
    foreign: list[int]
    in_order: bool


def read_lines(text: bytes) -> Lines:
    """Return the records in a text that a run wrote, and that anyone may have edited since.

    Args:
      text: of metrics.jsonl.
    """
    kept: dict[tuple[int, bool], bytes] = {}
    foreign = []
    lines = text.removeprefix(codecs.BOM_UTF8).split(b"\n")
    for number, line in enumerate(lines, 1):
        record = parse_record(line)
        place = (record["step"], record["split"] == "train") if record else None
        if place and place not in kept:
            kept[place] = line.strip()
        # What follows the last end of a line is empty, or was cut off by a crash.
        elif line.strip() and not (number == len(lines) and line.startswith(b"{")):
            foreign.append(number)
    places = list(kept)
    in_order = all(low < high for low, high in itertools.pairwise(places))
    return Lines(kept if in_order else dict(sorted(kept.items())), foreign, in_order)


def parse_record(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line, or None if there is none: all its numbers are finite.

    Args:
      line: of metrics.jsonl, whoever wrote it.
    """
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if type(record) is not dict or record.get("split") not in ("train", "test"):
        return None
    if type(record.get("step")) is not int or not 0 <= record["step"] <= 2**31:
        return None
    for name in _FIELDS[record["split"]]:
        value: Any = record.get(name)
        if type(value) not in (int, float) or not -_LARGEST < value < _LARGEST:
            return None
    return record


def missing_steps(steps: Iterable[int], first_step: int) -> list[tuple[int, int]]:
    """Return the ranges of steps before `first_step` that are missing, as (first, last).

    Args:
      steps: of the training records before `first_step`, rising.
      first_step: the step at which a run resumes.
    """
    edges = itertools.chain([-1], steps, [first_step])
    return [(low + 1, high - 1) for low, high in itertools.pairwise(edges) if high - low > 1]


def describe_ranges(ranges: list[tuple[int, int]]) -> str:
    """Return such as "3 to 7, 12 and 20 to 29", the first few of them if they are many."""
    texts = [f"{low}" if low == high else f"{low} to {high}" for low, high in ranges[:_MOST_NAMED]]
    if len(ranges) > _MOST_NAMED:
        texts.append(f"{len(ranges) - _MOST_NAMED} more ranges")
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def describe_numbers(numbers: list[int]) -> str:
    """Return such as "3, 7 and 20", the first few of them if they are many."""
    return describe_ranges([(number, number) for number in numbers]).replace("ranges", "lines")


def finite_or_none(value: Any) -> Any:
    """Return a value as JSON can hold it: what is not a finite number in it becomes null.

    Args:
      value: of dicts, lists, numbers and texts.
    """
    if isinstance(value, dict):
        return {name: finite_or_none(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
