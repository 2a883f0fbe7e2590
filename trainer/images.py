"""A picture in, the pixels that a network was trained on out; MNIST's digits were made this way.

MNIST (LeCun, Cortes and Burges, "The MNIST database of handwritten digits"): a black-and-white
digit was scaled, keeping its aspect ratio, to fit a box of 20x20 pixels, grey where its edge
crosses a pixel, and laid into 28x28 pixels with its centre of mass in the middle; light on black.
"""

import os
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

IMAGE_SHAPE = (28, 28, 1)

_FRAME = 28
_BOX = 20
# Where the digits of the training split have their centre of mass: the middle of pixel 14.
_CENTRE = 14.5
# Strokes of the training split are 2.5 pixels wide in the median; 9 of 10 lie in this range.
_STROKE_WIDTHS = (1.7, 4.0)

# Ink is looked for in a picture of at most this size; the outline of a digit is drawn 6 times as
# large as the box, so that what is grey in the end depends on the outline only.
_WORK_SIZE = 256
_GLYPH_SIZE = 6 * _BOX

# Differences are in units of the range from black to white.
_LEAST_CONTRAST = 0.05
# Standard deviations of the blur, in 128ths of the longer side, tried from the first one on.
_BLURS = (0.0, 0.5, 1.0, 2.0)
# Parts of the ink that are smaller than this part of its largest are dirt.
_LEAST_PART = 0.03


class ImageError(Exception):
    """A file is no picture, or there is nothing drawn in it."""


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Return the picture in a file, turned the way its camera says.

    Args:
      path: of a file in any format that Pillow reads; of an animation the first picture.

    Raises:
      ImageError: it is missing, no picture, cut off, or larger than Pillow thinks safe.
    """
    try:
        with warnings.catch_warnings():
            # It warns of a picture that would fill the memory; nobody would read that in time.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # And of metadata that it cannot make sense of, and passes over.
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(path) as image:
                image.load()
                return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise ImageError("no picture in a format that is known here") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageError(f"more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except OSError as error:
        raise ImageError(error.strerror or f"damaged: {error}") from error
    except Exception as error:  # Pillow's readers raise what they like on damaged files.
        raise ImageError(f"damaged: {error}") from error


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
    ink, mask, level = _find_ink(image)
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
    ink, mask, _ = _find_ink(image)
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


def _find_ink(image: Image.Image) -> tuple[np.ndarray, np.ndarray, float]:
    """Return how far each pixel is from the background, where there is ink, and how far ink is.

    The last is a typical distance: half of it is the edge of a stroke.
    """
    colours = _colours(image)
    difference = colours - _background(colours)
    for blur in _BLURS:
        sigma = blur * max(colours.shape[:2]) / 128
        smooth = ndimage.gaussian_filter(difference, (sigma, sigma, 0))
        ink = _along_ink(smooth)
        noise = np.median(_length(smooth)[_ring(ink.shape)])
        candidates = ink[ink > max(_LEAST_CONTRAST, 4 * noise)]
        if candidates.size:
            level = float((candidates**2).sum() / candidates.sum())
            if level > 6 * noise:
                return ink, _without_dirt(ink > level / 2), level
    raise ImageError("blank: nothing stands out from the background")


def _without_dirt(mask: np.ndarray) -> np.ndarray:
    """Return the mask without its small parts."""
    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return (sizes >= _LEAST_PART * sizes.max())[parts] & mask


def _along_ink(difference: np.ndarray) -> np.ndarray:
    """Return float32[h, w]: each pixel's way from the background towards the colour of the ink.

    The background is the larger part, so the ink is on the side on which the few and large
    differences are: darker, lighter, or of another colour.
    """
    flat = difference.reshape(-1, difference.shape[-1])
    _, axes = np.linalg.eigh(flat.T @ flat)
    along = flat @ axes[:, -1]
    sign = 1 if (along**3).sum() >= 0 else -1
    ink = sign * along / np.sqrt(difference.shape[-1])
    return np.clip(ink, 0, None).reshape(difference.shape[:-1]).astype(np.float32)


def _length(difference: np.ndarray) -> np.ndarray:
    """Return how far colours are apart, 1 from black to white."""
    return np.sqrt((difference**2).mean(-1))


def _background(colours: np.ndarray) -> np.ndarray:
    """Return the colour that each pixel would have without ink: smooth, whatever the light.

    A polynomial of the second degree in both coordinates, fitted so that the sum of the distances
    is least, which does not follow the ink as long as that is the smaller part. The rim of the
    picture, where there is seldom ink, weighs as much as all the rest.
    """
    height, width, _ = colours.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    ring = _ring((height, width))
    weights = np.where(ring, 1 / ring.sum(), 1 / max(1, (~ring).sum()))
    part = (slice(None, None, -(-height // 64)), slice(None, None, -(-width // 64)))
    a, b, base = (each[part].reshape(-1, *each.shape[2:]) for each in (terms, colours, weights))
    weight = base
    for _ in range(20):
        weighted = a * weight[:, None]
        # The least squares solution; in a picture of few pixels the smallest of many.
        coefficients = np.linalg.pinv(weighted.T @ a, rcond=1e-9, hermitian=True) @ (weighted.T @ b)
        weight = base / np.maximum(_length(a @ coefficients - b), 0.01)
    return terms @ coefficients


def _ring(shape: tuple[int, ...]) -> np.ndarray:
    """Return where the rim of a picture is, bool[h, w]."""
    ring = np.ones(shape, bool)
    margin = max(1, round(0.04 * min(shape)))
    ring[margin:-margin, margin:-margin] = False
    return ring


def _colours(image: Image.Image) -> np.ndarray:
    """Return a picture of any mode as float64[h, w, 1 or 3], 0 to 1, of a size to work with."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.nan_to_num(np.asarray(image, np.float64))
        # How much of their range is used, only the picture itself tells: 12 of 16 bits are common.
        low, high = min(0.0, values.min()), values.max()
        image = Image.fromarray(np.float32((values - low) / ((high - low) or 1.0)))
        return _shrink(image)[..., None]
    if image.has_transparency_data:
        return _flatten(_shrink(image.convert("RGBA").convert("RGBa")) / 255)
    return _shrink(image.convert("RGB")) / 255


def _flatten(layers: np.ndarray) -> np.ndarray:
    """Return what a picture with transparent parts shows, float64[h, w, 3] or [h, w, 1].

    Args:
      layers: colours times opacity, and opacity; float64[h, w, 4].
    """
    opacity = layers[..., 3:]
    seen = opacity[..., 0] > 0.5
    if not seen.any():
        raise ImageError("blank: all of it is transparent")
    own = layers[..., :3][seen] / opacity[seen]
    low, high = np.percentile(own.mean(-1), (5, 95))
    if high - low < 0.25 and opacity.min() < 0.5:
        # One colour on nothing, which may be white on nothing: the form is in the opacity.
        return opacity
    return layers[..., :3] + (1 - opacity) * np.median(own, axis=0)


def _shrink(image: Image.Image) -> np.ndarray:
    """Return the values of a picture, made smaller if it is large."""
    factor = _WORK_SIZE / max(image.size)
    if factor < 1:
        width, height = (max(1, round(side * factor)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BOX)
    return np.asarray(image, np.float64)
