"""Digits in files are read right, and an exported network says what the trainer says."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image

from tests.helpers import also
from trainer import cli
from trainer.checkpoints import Checkpointer, Keeping, read_newest
from trainer.commands.export import EXPORT_FILE, export
from trainer.commands.predict import inference
from trainer.commands.predict.inference import Predictor
from trainer.config import TrainConfig
from trainer.datasets import Dataset
from trainer.errors import UsageError
from trainer.run.loop import train
from trainer.run.stored import load_checkpoint
from trainer.step.examples import scale_pixels

DIGITS = sorted((Path(__file__).parents[1] / "digits").glob("*.png"))


@pytest.fixture(scope="module")
def workdir(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a network that was trained, for a second, on pictures of digits."""
    return copied(trained, tmp_path_factory.mktemp("digits"), "mnist")


@pytest.fixture(scope="module")
def predictor(workdir: Path) -> Predictor:
    return Predictor(workdir)


@pytest.fixture(scope="module")
def reference(workdir: Path):
    """Logits without the function under test: images uint8[B, 28, 28, 1] -> float32[B, 10]."""
    checkpoint = load_checkpoint(workdir)
    inputs, network = checkpoint.inputs, checkpoint.network

    def logits(images: np.ndarray) -> np.ndarray:
        scaled = scale_pixels(images, np.float32(inputs["mean"]), np.float32(inputs["std"]))
        return np.asarray(network.apply(checkpoint.params, {}, scaled), np.float64)

    return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_answers_in_order(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches, the last one of which is not full; what is answered adds up."""
    monkeypatch.setattr(inference, "_BATCH_SIZE", 4)
    paths = [str(path) for path in DIGITS]
    answers = list(predictor.predict(paths))
    assert [answer["file"] for answer in answers] == paths
    for answer in answers:
        assert list(answer) == ["file", "digit", "probabilities"]
        assert len(answer["probabilities"]) == 10
        assert sum(answer["probabilities"]) == pytest.approx(1, rel=1e-5)
        assert answer["digit"] == int(np.argmax(answer["probabilities"]))


def test_probabilities_are_those_of_the_network(
    predictor: Predictor, reference, mnist: Dataset
) -> None:
    images = mnist.test_images[:50]
    found = np.asarray(predictor.infer(images))
    np.testing.assert_allclose(found, softmax(reference(images)), rtol=1e-4, atol=1e-12)


def test_predict_answers_what_it_can(
    command: Callable[..., int], capsys: pytest.CaptureFixture, workdir: Path, tmp_path: Path
) -> None:
    Image.new("L", (60, 60), 200).save(tmp_path / "blank.png")
    os.mkfifo(tmp_path / "pipe")
    odd = [tmp_path / name for name in ("blank.png", "missing.png", "pipe")]
    files = [DIGITS[0], *odd, DIGITS[1]]
    assert command("predict", *map(str, files), f"--workdir={workdir}") == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["file"] for line in out.splitlines()] == list(map(str, DIGITS[:2]))
    assert err.splitlines() == [
        f"error: {tmp_path}/blank.png: blank: nothing stands out from the background",
        f"error: {tmp_path}/missing.png: No such file or directory",
        f"error: {tmp_path}/pipe: no regular file; save the picture in one",
    ]


def test_predict_as_a_user_does(
    command: Callable[..., int], capsys: pytest.CaptureFixture, workdir: Path
) -> None:
    assert command("predict", *map(str, DIGITS), f"--workdir={workdir}") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [json.loads(line)["file"] for line in out.splitlines()] == list(map(str, DIGITS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict"], "predict: no files given"),
        (["export", "a.png"], "unexpected argument 'a.png'"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.run(["trainer", *arguments]) == 1
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


@pytest.mark.parametrize("use", [Predictor, lambda workdir: export(workdir, None)])
def test_no_checkpoint(use: Callable, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no checkpoint in"):
        use(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def copied(workdir: Path, target: Path, dataset: str) -> Path:
    """The same run, as if it had been trained on another data set."""
    restored = read_newest(workdir)
    meta = restored.meta | {"config": restored.meta["config"] | {"dataset": dataset}}
    with Checkpointer(target, Keeping(1)) as checkpointer:
        checkpointer.save(restored.leaves, restored.step, meta)
    return target


def test_other_data_sets(workdir: Path, tmp_path: Path) -> None:
    fashion = Predictor(copied(workdir, tmp_path / "fashion", "fashion_mnist"))
    (answer,) = fashion.predict([str(DIGITS[0])])
    assert list(answer) == ["file", "label", "class", "probabilities"]


@pytest.mark.parametrize("image_size", [also(""), "6x5"])
def test_pictures_of_ones_own_data(tmp_path: Path, image_size: str) -> None:
    """Each is what it was when the data were prepared; the answer has the name of its class."""
    random = np.random.default_rng(0)
    for name, level in (("cat", 40), ("dog", 200)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(random.normal(level, 10, (8, 7, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    config = TrainConfig(
        dataset=str(tmp_path / "pets"),
        data_dir=str(tmp_path / "data"),
        train_split="train[:80%]",
        test_split="train[80%:]",
        image_size=image_size,
        **{"model": "mlp", "batch_size": 8, "num_steps": 60, "steps_per_cycle": 10},
        **{"report": False, "tensorboard": False, "gradient_shards": 8},
    )
    train(config, tmp_path / "run")
    Image.new("RGB", (7, 8), (205, 200, 190)).save(tmp_path / "a.png")
    Image.new("L", (7, 8), 45).save(tmp_path / "grey.png")
    Image.new("RGB", (9, 8), (205, 200, 190)).save(tmp_path / "wide.png")
    files = [str(tmp_path / name) for name in ("a.png", "grey.png", "wide.png", "none.png")]
    dog, cat, wide, missing = Predictor(tmp_path / "run").predict(files)
    assert list(dog) == ["file", "label", "class", "probabilities"]
    assert [(answer["label"], answer["class"]) for answer in (dog, cat)] == [(1, "dog"), (0, "cat")]
    assert "No such file" in missing["error"]
    if image_size:
        assert wide["class"] == "dog"
    else:
        assert wide["error"] == (
            "8x9 pixels in colours, and the network has learned from 8x7 pixels in colours"
        )


def test_an_export_answers_as_the_network(
    workdir: Path, reference: Callable, mnist: Dataset, tmp_path: Path
) -> None:
    """With any number of images."""
    done = export(workdir, tmp_path / "digits.jaxexport")
    assert (done["step"], done["platforms"]) == (60, ["cpu", "cuda", "tpu"])
    assert (done["input"], done["output"]) == ("uint8[n,28,28,1]", "float32[n,10]")
    network = jax.export.deserialize(bytearray((tmp_path / "digits.jaxexport").read_bytes()))
    assert network.platforms == ("cpu", "cuda", "tpu")
    images = mnist.test_images[:150]
    expected = softmax(reference(images))
    for count in (1, 150):
        answer = np.asarray(network.call(images[:count]))
        assert (answer.shape, answer.dtype) == ((count, 10), np.float32)
        np.testing.assert_allclose(answer, expected[:count], rtol=1e-4, atol=1e-12)


def test_an_export_lies_in_the_workdir_and_replaces_its_like(
    command: Callable[..., int], capsys: pytest.CaptureFixture, workdir: Path, tmp_path: Path
) -> None:
    run = copied(workdir, tmp_path / "run", "mnist")
    assert command("export", f"--workdir={run}") == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert found["file"] == str(run / EXPORT_FILE)
    assert found["bytes"] == (run / EXPORT_FILE).stat().st_size
    before = (run / EXPORT_FILE).stat().st_mtime_ns
    export(run, None)
    assert (run / EXPORT_FILE).stat().st_mtime_ns > before
    assert {path.name for path in run.iterdir()} == {"checkpoints", EXPORT_FILE}


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("thesis.pdf", "there is a file that is no export"),
        ("empty", "there is a file that is no export"),
        ("folder", "it is a folder"),
        ("pipe", "it is no regular file"),
        ("missing/file", "cannot be written: No such file or directory"),
        ("thesis.pdf/file", "cannot be written: Not a directory"),
    ],
)
def test_an_export_overwrites_nothing_else(
    workdir: Path, tmp_path: Path, output: str, message: str
) -> None:
    (tmp_path / "thesis.pdf").write_text("years of work")
    (tmp_path / "empty").write_text("")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=message):
        export(workdir, tmp_path / output)
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {"thesis.pdf", "empty", "folder", "pipe"}
    assert (tmp_path / "thesis.pdf").read_text() == "years of work"
