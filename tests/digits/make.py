"""Makes the pictures beside it: ten digits of the test split, transformed, and five drawn ones.

    python -m tests.digits.make [--data_dir=...]

The digit is the first character of a name.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trainer.datasets import load

# The digits of the test split are the first of their class from here on.
_FIRST = 1000

# As a hand with a mouse would draw them, in a square of 100.
_THREE = [(24, 20), (52, 11), (70, 25), (66, 40), (44, 47), (72, 60), (70, 80), (48, 90), (22, 80)]
_FIVE = [(74, 14), (34, 13), (31, 44), (56, 41), (75, 58), (66, 80), (44, 88), (24, 82)]
_SIX = [(62, 9), (38, 38), (27, 68), (40, 88), (64, 82), (68, 62), (50, 54), (30, 68)]


def main() -> None:
    """Write the 15 files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data_dir", default="", help="folder of the prepared data sets")
    dataset = load("mnist", parser.parse_args().data_dir)
    images, labels = dataset.test_images[_FIRST:, ..., 0], dataset.test_labels[_FIRST:]
    digits = [images[np.argmax(labels == digit)] for digit in range(10)]
    folder = Path(__file__).parent
    for name, image in (transformed(digits) | drawn()).items():
        image.save(folder / f"{name}.png", optimize=True)


def transformed(digits: list[np.ndarray]) -> dict[str, Image.Image]:
    """Return the ten digits in other sizes, inks and backgrounds."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:1:160j, 0:1:200j]
    slope, lamp = 0.35 * x + 0.15 * y, -0.5 * ((x - 0.3) ** 2 + (y - 0.4) ** 2)
    noise = rng.normal(0, 0.1, (60, 75))
    palette = paint(digits[9], 90, (200, 160), (50, 30), (0.9, 0.8, 0.2), (0.3, 0.1, 0.4))
    cutout = Image.new("RGBA", (120, 120), (250, 250, 250, 0))
    cutout.putalpha(Image.fromarray(digits[6]).resize((120, 120)))
    deep = Image.fromarray(np.asarray(Image.fromarray(digits[7]).resize((70, 70)), np.uint16) * 200)
    return {
        "0_blue_on_slope": paint(
            digits[0], 110, (200, 160), (80, 40), (0.1, 0.1, 0.5), (0.6, 0.55, 0.5), slope
        ),
        "1_as_it_is": Image.fromarray(digits[1]),
        "2_red_on_green": paint(digits[2], 50, (64, 64), (4, 12), (0.8, 0.1, 0.1), (0.3, 0.7, 0.3)),
        "3_in_noise": paint(
            digits[3], 45, (75, 60), (12, 8), (0.9, 0.9, 0.9), (0.4, 0.4, 0.4), noise
        ).convert("L"),
        "4_black_and_white": Image.fromarray(255 - digits[4]).resize((60, 60)).convert("1"),
        "5_jpeg": jpeg(paint(digits[5], 90, (200, 160), (100, 60), (0, 0, 0), (0.8, 0.8, 0.8)), 15),
        "6_cut_out": cutout,
        "7_16_bit": deep,
        "8_in_a_corner": paint(
            digits[8], 44, (200, 160), (156, 116), (0.9, 0.9, 0.7), (0.4, 0.5, 0.6), lamp
        ),
        "9_palette": palette.convert("P", palette=Image.Palette.ADAPTIVE, colors=16),
    }


def drawn() -> dict[str, Image.Image]:
    """Return three digits drawn with lines, and two of a font."""
    return {
        "3_thin_line": stroke(_THREE, (400, 300), (120, 40), 2.2, 1, "black", "white"),
        "5_thick_line": stroke(_FIVE, (120, 120), (10, 10), 1.0, 15, "navy", "lightyellow"),
        "6_chalk": stroke(_SIX, (240, 300), (30, 60), 1.6, 9, "white", "darkgreen"),
        "4_printed": printed("4", 140, 90, "white", "maroon"),
        "8_small_print": printed("8", 24, 18, "dimgray", "white"),
    }


def paint(
    digit: np.ndarray,
    side: int,
    size: tuple[int, int],
    corner: tuple[int, int],
    ink: tuple[float, float, float],
    background: tuple[float, float, float],
    light: np.ndarray | None = None,
) -> Image.Image:
    """Return a digit, `side` pixels large, in colours from 0 to 1 on an uneven background."""
    large = Image.new("L", size)
    square = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    large.paste(square, corner)
    part = np.asarray(large)[..., None] / 255
    colours = np.array(background) * (1 - part) + np.array(ink) * part
    if light is not None:
        colours += light[..., None]
    return Image.fromarray(np.uint8(255 * colours.clip(0, 1)))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Return what is left of a picture in a JPEG file."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content)


def stroke(
    points: list[tuple[int, int]],
    size: tuple[int, int],
    corner: tuple[int, int],
    scale: float,
    width: int,
    ink: str,
    background: str,
) -> Image.Image:
    """Return one line through the points."""
    image = Image.new("RGB", size, background)
    line = [(corner[0] + scale * x, corner[1] + scale * y) for x, y in points]
    ImageDraw.Draw(image).line(line, fill=ink, width=width, joint="curve")
    return image


def printed(text: str, side: int, size: int, ink: str, background: str) -> Image.Image:
    """Return a digit of the font that Pillow brings."""
    image = Image.new("RGB", (side, side), background)
    middle = (side // 2, side // 2)
    font = ImageFont.load_default(size)
    ImageDraw.Draw(image).text(middle, text, fill=ink, font=font, anchor="mm")
    return image


if __name__ == "__main__":
    main()
