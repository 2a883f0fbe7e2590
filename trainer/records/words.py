"""Numbers as people read them: in log lines, on a progress bar, in pictures."""

import os
from typing import Any


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: "1 step", "2,000 steps"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def quantity(value: float, noun: str) -> str:
    """Return a number, whole or not, with its noun: "1 epoch", "2.5 epochs"."""
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{text} {noun}{'' if text == '1' else 's'}"


def dataset_name(dataset: str) -> str:
    """Return what to call a data set: the user's own folder or file without where it is."""
    return os.path.basename(dataset) if os.path.isabs(dataset) else dataset


def short(number: float) -> str:
    """Return a large number for an axis: "4,680", "2.5M"."""
    return f"{number:,.0f}" if number < 1e6 else f"{number / 1e6:,g}M"


def learning_rate(value: float, digits: int = 4) -> str:
    """Return a learning rate with a fixed number of significant digits."""
    return f"{value:#.{digits}g}"


def loss(value: float) -> str:
    """Return a loss with four decimals while it is of a usual size."""
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return such as "00:36", "1:02:03" or "3 days 04:05:06"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{counted(days, 'day')} {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute:02}:{second:02}"


def test_result(record: dict[str, Any]) -> str:
    """Return the metrics of an evaluation, those of averaged parameters included."""
    text = (
        f"test loss {loss(record['loss'])}  test accuracy {100 * record['accuracy']:.2f} % "
        f"of {record['examples']} example{'' if record['examples'] == 1 else 's'}"
    )
    for kind, metrics in record.items():
        if isinstance(metrics, dict):
            text += f"  {kind} {100 * metrics['accuracy']:.2f} %"
    return text
