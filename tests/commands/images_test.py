"""Whatever a digit is drawn with and on, the pixels are those that MNIST would hold."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from trainer.commands.predict.images import digit_pixels, object_pixels, read_image
from trainer.commands.predict.ink import ImageError
from trainer.datasets import Dataset

DIGITS = Path(__file__).parents[1] / "digits"


def drawing(digit: np.ndarray, side: int = 112, margin: int = 30) -> Image.Image:
    """A digit, dark on light, with room around it."""
    large = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    return ImageOps.expand(ImageOps.invert(large), margin, 255)


@pytest.fixture(scope="module")
def digits(mnist: Dataset) -> list[np.ndarray]:
    return list(mnist.test_images[:10, ..., 0])


@pytest.fixture
def picture(digits: list[np.ndarray]) -> Image.Image:
    return drawing(digits[0])


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference of the pixels, in parts of the ink."""
    a, b = one.astype(float), other.astype(float)
    return np.abs(a - b).sum() / b.sum()


def test_the_form_is_that_of_mnist(digits: list[np.ndarray]) -> None:
    """A box of 20 pixels, the centre of mass in the middle of pixel 14."""
    y, x = np.mgrid[:28, :28] + 0.5
    for digit in digits:
        pixels = digit_pixels(drawing(digit))
        assert (pixels.shape, pixels.dtype) == ((28, 28, 1), np.uint8)
        ink = pixels[..., 0] / 255
        rows, columns = (np.flatnonzero((ink > 0.25).any(axis)) for axis in (1, 0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20, 21)
        assert (ink * y).sum() / ink.sum() == pytest.approx(14.5, abs=0.1)
        assert (ink * x).sum() / ink.sum() == pytest.approx(14.5, abs=0.1)
        assert ink.max() == 1


def test_an_image_of_the_data_set_stays_what_it_is(mnist: Dataset) -> None:
    """But for its centre, which MNIST put on a whole pixel, and strokes of unusual width."""
    distances = [
        distance(digit_pixels(Image.fromarray(image)), image[..., None])
        for image in mnist.test_images[:100, ..., 0]
    ]
    assert np.median(distances) < 0.3
    # Another digit is much farther away: the bound above says something.
    shifted = np.roll(mnist.test_images[:100], 1, axis=0)
    others = [distance(a, b) for a, b in zip(shifted, mnist.test_images[:100], strict=True)]
    assert np.median(others) > 1


@pytest.mark.parametrize(
    "change",
    [
        ImageOps.invert,
        lambda image: ImageOps.expand(image, (70, 3, 11, 40), 255),
        lambda image: image.point(lambda value: 40 + value // 3),
        lambda image: image.convert("RGB"),
        lambda image: image.convert("RGBA"),
        lambda image: image.convert("LA"),
        lambda image: image.convert("CMYK"),
        lambda image: image.convert("YCbCr"),
        lambda image: image.convert("I"),
        lambda image: image.convert("F"),
        lambda image: Image.fromarray(np.asarray(image, np.uint16) * 257),
        lambda image: image.convert("P"),
        lambda image: ImageOps.colorize(image, "red", "green"),
        lambda image: ImageOps.colorize(image, "yellow", "navy"),
        lambda image: image.resize((image.width * 5, image.height * 5), Image.Resampling.BICUBIC),
    ],
    ids=[
        *("inverted", "shifted", "pale", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I", "F"),
        *("16-bit", "palette", "red-on-green", "yellow-on-navy", "large"),
    ],
)
def test_colour_size_place_and_mode_change_nothing(picture: Image.Image, change) -> None:
    assert distance(digit_pixels(change(picture)), digit_pixels(picture)) < 0.06


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((43, 43)),
        lambda image: image.convert("1", dither=Image.Dither.NONE),
    ],
    ids=["small", "1-bit"],
)
def test_what_costs_detail_changes_little(picture: Image.Image, change) -> None:
    assert distance(digit_pixels(change(picture)), digit_pixels(picture)) < 0.15


@pytest.mark.parametrize("ink", ["black", "white", "red"])
def test_ink_on_nothing(picture: Image.Image, ink: str) -> None:
    cut_out = Image.new("RGBA", picture.size, ink)
    cut_out.putalpha(ImageOps.invert(picture))
    assert distance(digit_pixels(cut_out), digit_pixels(picture)) < 0.01


def test_paper_on_nothing(picture: Image.Image) -> None:
    """What is transparent around a sheet is not ink, whatever colour lies hidden there."""
    sheet = Image.new("RGBA", (300, 300), (0, 0, 0, 0))
    sheet.paste(picture, (40, 60))
    assert distance(digit_pixels(sheet), digit_pixels(picture)) < 0.06


@pytest.mark.parametrize("light", ["slope", "lamp", "noise", "specks"])
def test_uneven_light(picture: Image.Image, light: str) -> None:
    values = np.asarray(picture.point(lambda value: 100 + value // 3), float)
    y, x = (np.linspace(-1, 1, side) for side in values.shape)
    x, y = np.meshgrid(x, y)
    rng = np.random.default_rng(0)
    values += {
        "slope": 60 * x - 30 * y,
        "lamp": -50 * (x**2 + (y - 0.3) ** 2),
        "noise": rng.normal(0, 6, x.shape),
        "specks": -80.0 * (rng.random(x.shape) < 0.002),
    }[light]
    uneven = Image.fromarray(np.uint8(values.clip(0, 255)))
    assert distance(digit_pixels(uneven), digit_pixels(picture)) < 0.15


@pytest.mark.parametrize("width", [1, 2, 4, 16, 24, 50])
def test_strokes_are_as_wide_as_those_of_mnist(width: int) -> None:
    """A zero whose line is 0.1 to 6 pixels wide when it is scaled to the box."""
    zero = Image.new("L", (250, 200), 255)
    ImageDraw.Draw(zero).ellipse((40, 20, 200, 180), outline=0, width=width)
    found = digit_pixels(zero)[14, :14].sum() / 255
    # A line that is made wider or thinner changes the size of the zero a little.
    assert found == pytest.approx(np.clip(20 * width / 160, 1.7, 4), rel=0.16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_says_how_it_was_held(
    picture: Image.Image, tmp_path: Path, orientation: int
) -> None:
    """A file whose orientation tag undoes what was done to its pixels is the picture itself."""
    undone_by = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = picture.transpose(undone_by[orientation]) if orientation > 1 else picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), picture)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_formats(picture: Image.Image, tmp_path: Path, kind: str) -> None:
    picture.save(tmp_path / "picture", format=kind)
    pixels = digit_pixels(read_image(tmp_path / "picture"))
    assert distance(pixels, digit_pixels(picture)) < 0.06


def blank(kind: str) -> Image.Image:
    noise = np.random.default_rng(0).normal(128, 20, (90, 120)).clip(0, 255)
    return {
        "white": Image.new("L", (50, 40), 255),
        "colour": Image.new("RGB", (50, 40), "teal"),
        "transparent": Image.new("RGBA", (50, 40), (9, 9, 9, 0)),
        "slope": Image.linear_gradient("L"),
        "noise": Image.fromarray(np.uint8(noise)),
        "one pixel": Image.new("L", (1, 1)),
        "one row": Image.new("L", (70, 1)),
        "float": Image.new("F", (30, 30), 7.5),
        "no numbers": Image.new("F", (30, 30), np.nan),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "white",
        "colour",
        "transparent",
        "slope",
        "noise",
        "one pixel",
        "one row",
        "float",
        "no numbers",
    ],
)
@pytest.mark.parametrize("prepare", [digit_pixels, object_pixels])
def test_nothing_drawn(kind: str, prepare) -> None:
    with pytest.raises(ImageError, match="blank"):
        prepare(blank(kind))


def test_files_that_are_no_pictures(picture: Image.Image, tmp_path: Path) -> None:
    content = io.BytesIO()
    picture.save(content, "PNG")
    whole = content.getvalue()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped").write_bytes(whole[:-30] + bytes([whole[-30] ^ 255]) + whole[-29:])
    (tmp_path / "folder").mkdir()
    for name, message in {
        "empty": "no picture",
        "text": "no picture",
        "cut": "damaged",
        "flipped": "damaged",
        "folder": "directory",
        "missing": "No such file",
    }.items():
        with pytest.raises(ImageError, match=message):
            read_image(tmp_path / name)


def test_a_picture_that_would_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (200, 200)).save(tmp_path / "bomb.png")
    for limit in (30_000, 3_000):  # Pillow warns of the first, and refuses the second itself.
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match=f"more than {limit} pixels"):
            read_image(tmp_path / "bomb.png")


def test_a_thing_fills_the_frame_in_its_shades() -> None:
    """Fashion-MNIST: the longer side is 28, the middle in the middle, white becomes black."""
    values = np.full((300, 500), 255, np.uint8)
    values[100:220, 50:190] = 155
    values[100:220, 190:330] = 55
    pixels = object_pixels(Image.fromarray(values))[..., 0]
    rows, columns = (np.flatnonzero((pixels > 40).any(axis)) for axis in (1, 0))
    assert (columns[0], columns[-1]) == (0, 27)
    assert (rows[0], rows[-1]) == (8, 19)
    np.testing.assert_allclose(pixels[12, [5, 22]], [100, 200], rtol=0.02)
    assert pixels[:7].max() == pixels[21:].max() == 0
