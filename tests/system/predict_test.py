"""A network that was trained as a user would reads digits that are not of MNIST."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT
from trainer.cli.arguments import parse
from trainer.commands.predict.inference import Predictor
from trainer.datasets import Dataset
from trainer.run.loop import train

pytestmark = pytest.mark.system

DIGITS = sorted((ROOT / "tests" / "digits").glob("*.png"))


@pytest.fixture(scope="module")
def predictor(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """Half of configs/fast.cfg: more than 98 % on the test split."""
    workdir = tmp_path_factory.mktemp("run")
    half = ("--num_steps=330", "--steps_per_cycle=330", "--num_devices=2")
    flags = (f"--flagfile={ROOT}/configs/fast.cfg", f"--data_dir={data_dir}", *half)
    train(parse(["trainer", *flags]).config, workdir)
    return Predictor(workdir)


def test_fifteen_pictures(predictor: Predictor) -> None:
    answers = list(predictor.predict([str(path) for path in DIGITS]))
    assert len(answers) == 15
    right = [answer["digit"] == int(Path(answer["file"]).name[0]) for answer in answers]
    assert sum(right) >= 13


def paint(digit: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A digit of random size and place, in random colours that differ, in uneven light."""
    side, room = int(rng.integers(20, 150)), rng.uniform(1, 2.5, 2)
    height, width = (int(side * factor) for factor in room)
    y, x = (int(rng.integers(0, length - side + 1)) for length in (height, width))
    part = np.zeros((height, width, 1))
    large = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    part[y : y + side, x : x + side, 0] = np.asarray(large) / 255
    ink, background = rng.uniform(0, 1, (2, 3))
    while abs(ink.mean() - background.mean()) < 0.3:
        ink = rng.uniform(0, 1, 3)
    slope = rng.uniform(-0.2, 0.2) * np.linspace(-1, 1, width)[None, :, None]
    noise = rng.normal(0, rng.uniform(0, 0.05), (height, width, 1))
    colours = background * (1 - part) + ink * part + slope + noise
    return Image.fromarray(np.uint8(255 * colours.clip(0, 1)))


def test_two_hundred_painted_digits(predictor: Predictor, mnist: Dataset, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{number}.png") for number in range(200)]
    for path, image in zip(paths, mnist.test_images[:200, ..., 0], strict=True):
        paint(image, rng).save(path)
    answers = list(predictor.predict(paths))
    digits = np.array([answer["digit"] for answer in answers])
    assert (digits == mnist.test_labels[:200]).mean() >= 0.95
