"""What is drawn in a picture, whatever its colours, its light and its file format."""

import numpy as np
from PIL import Image
from scipy import ndimage

# Ink is looked for in a picture of at most this size.
_WORK_SIZE = 256
# Differences are in units of the range from black to white.
_LEAST_CONTRAST = 0.05
# Standard deviations of the blur, in 128ths of the longer side, tried from the first one on.
_BLURS = (0.0, 0.5, 1.0, 2.0)
# Parts of the ink that are smaller than this part of its largest are dirt.
_LEAST_PART = 0.03


class ImageError(Exception):
    """A file is no picture, or there is nothing drawn in it."""


def find_ink(image: Image.Image) -> tuple[np.ndarray, np.ndarray, float]:
    """Return what is drawn in a picture.

    Args:
      image: of any size and mode; what is drawn is the smaller part, and seldom at the rim.

    Returns:
      float32[h, w], how far each pixel is from the background, 1 from black to white; bool[h, w],
      where there is ink, without specks; and how far ink is in the middle, half of which is the
      edge of a stroke. Large pictures come back smaller.

    Raises:
      ImageError: nothing is drawn in it.
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
