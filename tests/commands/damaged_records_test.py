"""A checkpoint is used whatever has become of the records beside it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import also


def answer(command: Callable[..., int], capsys: pytest.CaptureFixture, *words: str) -> dict:
    """The JSON object that a command prints."""
    capsys.readouterr()
    assert command(*words) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", None),
        ("config.json", b'{"num_'),
        ("config.json", b'{"lr_max": NaN}'),
        also("config.json", b"[]"),
        also("config.json", b"\xff"),
        ("metrics.jsonl", None),
        ("metrics.jsonl", b'{"loss": 1e999}\n{\xff'),
    ],
)
def test_evaluate_and_predict(
    command: Callable[..., int],
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    file: str,
    content: bytes | None,
) -> None:
    """None: the file is gone. What the checkpoint itself holds is enough."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    digit = str(tmp_path / "digit.png")
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(pixels).save(digit)
    evaluate = ("evaluate", f"--workdir={workdir}")
    predict = ("predict", digit, f"--workdir={workdir}")
    before = [answer(command, capsys, *words) for words in (evaluate, predict)]
    if content is None:
        (workdir / file).unlink()
    else:
        (workdir / file).write_bytes(content)
    assert [answer(command, capsys, *words) for words in (evaluate, predict)] == before
