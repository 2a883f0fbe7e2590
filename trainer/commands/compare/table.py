"""A comparison as a table for a terminal."""

from collections.abc import Sequence
from typing import Any

from trainer.config import AVERAGE, EMA
from trainer.config.own import short
from trainer.records.words import dataset_name

_WIDTH, _GAP = 80, "  "
# Longer names and values are cut: the end of a name says more than its beginning.
_NAME_WIDTH, _VALUE_WIDTH = 24, 22

_Column = tuple[str, list[str], bool]


def table(found: dict[str, Any]) -> str:
    """Return a comparison in lines of at most 80 columns.

    Every run is a row. Where the columns do not fit, they go on in a second table, and so on.

    Args:
      found: see `command.compare`.
    """
    runs = found["runs"]
    columns = [_differing(name, values) for name, values in found["differences"].items()]
    columns += _results(runs)
    names = _fit(_names(runs))
    blocks: list[list[_Column]] = []
    used = _WIDTH
    for column in columns:
        width = len(_GAP) + _width(column)
        if used + width > _WIDTH:
            blocks.append([])
            used = _width(("run", names, False))
        blocks[-1].append(column)
        used += width
    lines = [_block([("run", names, False), *block]) for block in blocks]
    return "\n\n".join([*lines, *_notes(found)])


def _differing(name: str, values: Sequence[Any]) -> _Column:
    """Return the column of a field of the configuration."""
    if name in ("model", "optimizer", "augment"):
        values = [short(value) for value in values]
    if name == "dataset":
        values = [dataset_name(value) for value in values]
    texts = [_number(value) if type(value) is float else _text(value) for value in values]
    heading = name if len(name) <= _VALUE_WIDTH else name[: _VALUE_WIDTH - 1] + "…"
    return heading, [_cut(text, _VALUE_WIDTH) for text in texts], False


def _results(runs: Sequence[dict[str, Any]]) -> list[_Column]:
    """Return the columns of what the runs have come to."""
    columns = [
        ("steps", [_steps(run) for run in runs], True),
        ("test %", [_percent(run["test_accuracy"]) for run in runs], True),
        ("best %", [_percent(run["best_test_accuracy"]) for run in runs], True),
    ]
    for kind in (AVERAGE, EMA):
        if any(run[kind] for run in runs):
            accuracies = [run[kind]["test_accuracy"] if run[kind] else None for run in runs]
            columns.append((f"{kind} %", [_percent(value) for value in accuracies], True))
    columns += [
        ("seconds", [_optional(run["seconds"], ",.1f") for run in runs], True),
        ("images/s", [_optional(run["images_per_second"], ",.0f") for run in runs], True),
    ]
    return columns


def _notes(found: dict[str, Any]) -> list[str]:
    """Return what the table does not say, in lines of their own."""
    notes = []
    if len(found["runs"]) > 1 and not found["differences"]:
        notes.append("the configurations are the same")
    for run in found["runs"]:
        for resume in run["changes"]:
            for name, (before, after) in resume["changes"].items():
                text = (
                    f"{run['run']}, changed at step {resume['step']:,}: {name} {before} to {after}"
                )
                notes.append(_cut(text, _WIDTH))
    return ["\n".join(notes)] if notes else []


def _block(columns: Sequence[_Column]) -> str:
    """Return some columns as lines."""
    lines = []
    for row in range(-1, len(columns[0][1])):
        cells = []
        for column in columns:
            heading, texts, is_result = column
            text, width = heading if row < 0 else texts[row], _width(column)
            cells.append(text.rjust(width) if is_result else text.ljust(width))
        lines.append(_GAP.join(cells).rstrip())
    return "\n".join(lines)


def _width(column: _Column) -> int:
    """Return the width of a column."""
    return max(map(len, (column[0], *column[1])))


def _names(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of the runs."""
    return [run["run"] for run in runs]


def _fit(names: Sequence[str]) -> list[str]:
    """Return names cut to the width of their column, and still different."""
    cut = [name if len(name) <= _NAME_WIDTH else "…" + name[1 - _NAME_WIDTH :] for name in names]
    if len(set(cut)) == len(cut):
        return cut
    numbers = [f"{number} " for number in range(1, len(cut) + 1)]
    return [
        number + name[-(_NAME_WIDTH - len(number)) :]
        for number, name in zip(numbers, names, strict=True)
    ]


def _cut(text: str, width: int) -> str:
    """Return a text, or its beginning."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _text(value: Any) -> str:
    """Return a value that is no float: nothing where it is empty or unset."""
    return "-" if value in (None, "") else str(value)


def _number(value: float) -> str:
    """Return a float as short as it can be told from the others that people give."""
    return f"{value:.10g}"


def _steps(run: dict[str, Any]) -> str:
    """Return how far a run is."""
    of = f" of {run['num_steps']:,}" if run["steps"] < run["num_steps"] else ""
    return f"{run['steps']:,}{of}"


def _percent(fraction: float | None) -> str:
    """Return an accuracy in percent."""
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def _optional(value: float | None, form: str) -> str:
    """Return a number, or a dash where there is none."""
    return "-" if value is None else format(value, form)
