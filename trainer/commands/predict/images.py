"""A picture in, the pixels that a network was trained on out; MNIST's digits were made this way.

MNIST (LeCun, Cortes and Burges, "The MNIST database of handwritten digits"): a black-and-white
digit was scaled, keeping its aspect ratio, to fit a box of 20x20 pixels, grey where its edge
crosses a pixel, and laid into 28x28 pixels with its centre of mass in the middle; light on black.
"""

import os

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from trainer.commands.predict.ink import ImageError, find_ink
from trainer.datasets.pictures import (
    PictureError,
    open_picture,
    read_pixels,
    resize,
    strict_warnings,
)

IMAGE_SHAPE = (28, 28, 1)

_FRAME = 28
_BOX = 20
# Where the digits of the training split have their centre of mass: the middle of pixel 14.
_CENTRE = 14.5
# Strokes of the training split are 2.5 pixels wide in the median; 9 of 10 lie in this range.
_STROKE_WIDTHS = (1.7, 4.0)

# The outline of a digit is drawn 6 times as large as the box, so that what is grey in the end
# depends on the outline only.
_GLYPH_SIZE = 6 * _BOX


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Return the picture in a file, turned the way its camera says.

    Args:
      path: of a file in any format that Pillow reads; of an animation the first picture.

    Raises:
      ImageError: it is missing, no picture, cut off, or larger than Pillow thinks safe.
    """
    try:
        with strict_warnings(), open_picture(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except PictureError as error:
        raise ImageError(str(error)) from error


def plain_pixels(
    path: str | os.PathLike[str], image_shape: tuple[int, int, int], resized: bool
) -> np.ndarray:
    """Return the pixels of a file as a picture of the user's own data set has them.

    Args:
      path: see `datasets.pictures.read_pixels`.
      image_shape: (H, W, C) of the data set.
      resized: whether its images were resized to that, as --image_size asks for.

    Returns:
      uint8[H, W, C].

    Raises:
      ImageError: it is no such picture, or of another size or in other colours.
    """
    try:
        with strict_warnings():
            pixels = read_pixels(path)
    except PictureError as error:
        raise ImageError(str(error)) from error
    if resized:
        pixels = resize(pixels, image_shape[:2])
    if pixels.shape[2] == 1 and image_shape[2] == 3:
        pixels = np.repeat(pixels, 3, axis=2)  # A grey picture, saved as such, in colours.
    if pixels.shape != image_shape:
        found, wanted = (
            f"{height}x{width} pixels {'in colours' if channels == 3 else 'of grey'}"
            for height, width, channels in (pixels.shape, image_shape)
        )
        raise ImageError(f"{found}, and the network has learned from {wanted}")
    return pixels


def digit_pixels(image: Image.Image) -> np.ndarray:
    """Return a drawn digit as MNIST would hold it.

    Only its outline counts: colours, polarity, size and place do not. Strokes thinner or thicker
    than nearly all of MNIST's are made as thick or thin as those.

    Args:
      image: one digit, darker or lighter than what is around it; any size and mode.

    Returns:
      uint8[28, 28, 1], ink 255 on 0.

    Raises:
      ImageError: nothing is drawn in it.
    """
    ink, mask, level = find_ink(image)
    rows, columns = _box(mask)
    ink = np.where(ndimage.binary_dilation(mask, iterations=2), ink, 0)[rows, columns]
    scale = _GLYPH_SIZE / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    large = np.asarray(Image.fromarray(ink).resize((width, height), Image.Resampling.BICUBIC))
    glyph = _normalise_strokes(np.pad(large > level / 2, _GLYPH_SIZE), _STROKE_WIDTHS)
    rows, columns = _box(glyph > 0.5)
    side = max(rows.stop - rows.start, columns.stop - columns.start) * _FRAME / _BOX
    middle = ndimage.center_of_mass(glyph)
    corner = [
        # The digit stays whole in the frame, however far its mass lies from its middle.
        np.clip(mass + 0.5 - _CENTRE / _FRAME * side, extent.stop - side, extent.start)
        for mass, extent in zip(middle, (rows, columns), strict=True)
    ]
    return _frame(glyph, corner, side)


def object_pixels(image: Image.Image) -> np.ndarray:
    """Return a picture of a thing as Fashion-MNIST would hold it, which fills the frame.

    Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, section 2): the edges that have the colour of the
    background are trimmed, the longer side is scaled to 28 pixels, the middle is laid on the
    middle, the white background becomes black; shades of grey are kept. KMNIST's characters fill
    the frame in the same way.

    Args:
      image: one thing before a plain background; any size and mode.

    Returns:
      uint8[28, 28, 1], the background 0.

    Raises:
      ImageError: there is nothing in it.
    """
    ink, mask, _ = find_ink(image)
    rows, columns = _box(mask)
    extents = [(extent.start, extent.stop) for extent in (rows, columns)]
    side = max(stop - start for start, stop in extents)
    corner = [(start + stop - side) / 2 + side for start, stop in extents]
    return _frame(np.pad(ink, side), corner, side)


def _frame(ink: np.ndarray, corner: list[float], side: float) -> np.ndarray:
    """Return the square of `ink` that begins at `corner` (y, x) as uint8[28, 28, 1]."""
    y, x = corner
    square = (x, y, x + side, y + side)
    frame = Image.fromarray(ink.astype(np.float32)).resize(
        (_FRAME, _FRAME), Image.Resampling.BILINEAR, box=square
    )
    return np.rint(np.clip(np.asarray(frame), 0, 1) * 255).astype(np.uint8)[..., None]


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """Return rows and columns of the smallest box around what is true."""
    return ndimage.find_objects(mask.astype(np.uint8))[0]


def _normalise_strokes(mask: np.ndarray, widths: tuple[float, float]) -> np.ndarray:
    """Return an outline with soft edges whose strokes are as wide as MNIST's, float[h, w]."""
    # To the middle of the nearest pixel on the other side; the edge is half a pixel nearer.
    inside = ndimage.distance_transform_edt(mask) - 0.5
    outside = ndimage.distance_transform_edt(~mask) - 0.5
    # Across a stroke, the distance to its edge is a quarter of its width on the average.
    width = 4 * inside[mask].mean()
    rows, columns = _box(mask)
    pixel = max(rows.stop - rows.start, columns.stop - columns.start) / _BOX
    wider = np.clip(width, *(each * pixel for each in widths)) - width
    return np.clip(np.where(mask, inside, -outside) + wider / 2 + 0.5, 0, 1)
