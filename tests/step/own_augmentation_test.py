"""Beginners' mistakes in an augmentation of one's own: one message each, no traceback."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.config import TrainConfig
from trainer.errors import UsageError
from trainer.step.own_augmentation import create_augmentation

SHAPE = (9, 7, 3)


def body(*lines: str, signature: str = "key, image") -> str:
    """An augmentation with this body."""
    start = "import random\nimport jax, jax.numpy as jnp, numpy as np\n"
    return start + f"def augment({signature}):\n" + "".join(f"    {line}\n" for line in lines)


MISTAKES = {
    "no function of that name": (
        "def augmnet(key, image):\n    return image\n",
        "own.py has no augment (did you mean augmnet?)",
    ),
    "an empty file": ("", "own.py has no augment; it defines nothing"),
    "an import that is not there": ("import torhc\n", "ModuleNotFoundError: No module named 'torh"),
    "no function": ("augment = 3\n", "augment is of type int, and no function"),
    "only the image": (
        body("return image", signature="image"),
        "it is called as augment(key, image), and does not take that: too many positional",
    ),
    "an argument more": (
        body("return image", signature="key, image, label"),
        "does not take that: missing a required argument: 'label'",
    ),
    "nothing returned": (
        body("image[:, ::-1]"),
        "augment returns None, no array; it must return the image, float32[9,7,3], changed",
    ),
    "two results": (body("return key, image"), "augment returns tuple, no array; it must"),
    "a batch": (
        body("return image[None]"),
        "augment returns float32[1,9,7,3]; it must return the image, float32[9,7,3], changed: it "
        "is called for one image at a time",
    ),
    "a smaller image": (body("return image[1:]"), "augment returns float32[8,7,3]; it must"),
    "one channel lost": (body("return image[..., 0]"), "augment returns float32[9,7]; it must"),
    "whole numbers": (
        body("return (255 * image).astype(jnp.uint8)"),
        "augment returns uint8[9,7,3]; it must return the image, float32[9,7,3], changed: end it "
        "with .astype(image.dtype)",
    ),
    "truth values": (body("return image > 0.5"), "augment returns bool[9,7,3]; it must return"),
    "a number": (body("return 0.5"), "augment returns float32[]; it must return the image"),
    "an if": (
        body("if jax.random.uniform(key) > 0.5:", "    return image[:, ::-1]", "return image"),
        "augment(key, image) raises TracerBoolConversionError: ",
    ),
    "an error": (
        body("return jax.random.kye(key)"),
        "own.py, line 4: return jax.random.kye(key))",
    ),
    "NumPy on a traced image": (
        body("return np.rot90(np.array(image), 2)"),
        "augment(key, image) raises TracerArrayConversionError: ",
    ),
    "the random numbers of NumPy": (
        body("return jnp.roll(image, np.random.randint(1000000), 0)"),
        "it draws numbers with numpy.random or random, which would be the same in every step; "
        "draw them with jax.random, from the key",
    ),
    "noise of NumPy": (
        body("return image + np.random.normal(size=image.shape).astype('float32')"),
        "augment(key, image) is another function whenever it is compiled",
    ),
    "the random numbers of Python": (
        body("return image * random.random()"),
        "augment(key, image) is another function whenever it is compiled",
    ),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.py").write_text(text)
    name = f"{tmp_path}/own.py:augment"
    with pytest.raises(UsageError) as raised:
        create_augmentation(name, SHAPE)
    said = str(raised.value)
    assert message in said
    assert said.startswith(f"--augment={name}: ")
    form = said[said.index("\nan augmentation of your own looks like this") :]
    assert "  def augment(key, image):\n      # image float32[9,7,3], pixels in [0, 1];" in form


def test_the_form_of_the_messages_works(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("augment = 3\n")
    with pytest.raises(UsageError) as raised:
        create_augmentation(f"{tmp_path}/own.py:augment", SHAPE)
    lines = [line[2:] for line in str(raised.value).splitlines() if line.startswith("  ")]
    (tmp_path / "form.py").write_text("\n".join([*lines[:-1], ""]))
    augmentation = create_augmentation(f"{tmp_path}/form.py:augment", SHAPE)
    images = np.random.default_rng(0).random((50, *SHAPE), np.float32)
    found = np.asarray(augmentation(jax.random.split(jax.random.key(0), 50), images))
    turned = (found == images[:, :, ::-1]).all((1, 2, 3))
    assert (turned | (found == images).all((1, 2, 3))).all()
    assert 10 < turned.sum() < 40


def test_what_is_right(tmp_path: Path) -> None:
    """Constants, keys and activations of jax, classes with __call__, partials."""
    text = body(
        "noise = jax.random.normal(key, image.shape) * 0.1",
        "return jax.nn.relu(image + noise + TABLE) + jax.random.uniform(OTHER)",
    )
    text += "TABLE, OTHER = np.ones((9, 7, 3), np.float32), jax.random.key(3)\n"
    text += "class Flip:\n    def __call__(self, key, image):\n        return image[::-1]\n"
    text += "flip = Flip()\nimport functools\n"
    text += "def gain(key, image, by):\n    return image * by\n"
    text += "partial = functools.partial(gain, by=2)\n"
    (tmp_path / "own.py").write_text(text)
    for name in ("augment", "flip", "partial"):
        augmentation = create_augmentation(f"{tmp_path}/own.py:{name}", SHAPE)
        images = jnp.ones((2, *SHAPE))
        assert augmentation(jax.random.split(jax.random.key(0), 2), images).shape == images.shape


@pytest.mark.parametrize("name", ["shfit", "own.augment", "own.py", "none"])
def test_names_that_are_none(name: str) -> None:
    message = f"--augment={name} is not valid"
    with pytest.raises(UsageError, match=message) as raised:
        TrainConfig(augment=name)
    valid = "use empty or shift, or your own: package.module:augment or path/file.py:augment"
    assert valid in str(raised.value)
    assert ("did you mean shift?" in str(raised.value)) == (name == "shfit")
