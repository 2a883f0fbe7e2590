"""Picture files as pixels: what can be stored exactly is taken, everything else is refused."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Those that Pillow reads by itself; it would start other programs for some of the rest.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")


class PictureError(ValueError):
    """A picture cannot be used; the message says why, but not which file it is."""


@contextlib.contextmanager
def strict_warnings() -> Iterator[None]:
    """Makes Pillow refuse what it warns of. Not to be entered by several threads at once."""
    with warnings.catch_warnings():
        # A picture that would fill the memory; nobody would read the warning in time.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Metadata that make no sense are passed over.
        warnings.simplefilter("ignore", UserWarning)
        yield


@contextlib.contextmanager
def open_picture(
    path: str | os.PathLike[str], formats: tuple[str, ...] | None = None
) -> Iterator[Image.Image]:
    """Opens a picture file; what goes wrong inside the block is told in plain words.

    Args:
      path: of the file.
      formats: that it may have; None for all that Pillow reads.

    Raises:
      PictureError: it is missing, unreadable, no picture, damaged, or with `strict_warnings`
        larger than Pillow thinks safe.
    """
    # Of a pipe the reader would wait for ever.
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise PictureError("no regular file; save the picture in one")
    try:
        with Image.open(path, formats=formats) as image:
            yield image
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError("no picture in a format that is known here") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise PictureError(f"more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except OSError as error:
        raise PictureError(error.strerror or f"damaged: {error}") from error
    except Exception as error:  # Pillow's readers raise what they like on damaged files.
        raise PictureError(f"damaged: {error}") from error


def read_pixels(path: str | os.PathLike[str]) -> np.ndarray:
    """Returns the pixels of a picture file, turned the way its camera says.

    Args:
      path: of a PNG, JPEG, BMP, GIF, TIFF, WebP or PPM file with 8 bits a channel and nothing
        transparent in it. A palette of greys and black-and-white count as grey.

    Returns:
      uint8[H, W, 1] of a grey picture, uint8[H, W, 3] of one in colours.

    Raises:
      PictureError: it is missing, unreadable, no picture, damaged, or not as described above.
    """
    with open_picture(path, _FORMATS) as image:
        return _pixels(image)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns an image in another size, bilinear, and averaged where it becomes smaller.

    Args:
      image: uint8[H, W] or uint8[H, W, C].
      size: (H, W) to stretch it to; its aspect ratio is not kept.

    Returns:
      uint8 of that height and width, with the channels of `image`.
    """
    if image.shape[:2] == size:
        return image
    height, width = size
    planes = image.reshape(*image.shape[:2], -1)
    resized = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(planes[..., channel])).resize(
                (width, height), Image.Resampling.BILINEAR
            )
        )
        for channel in range(planes.shape[2])
    ]
    return np.stack(resized, axis=-1).reshape(height, width, *image.shape[2:])


def _pixels(image: Image.Image) -> np.ndarray:
    """Returns the pixels of an open picture."""
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1:
        raise PictureError(f"{num_frames} pictures in one file; save one of them")
    # How the file stores a pixel is known only before it is decoded.
    stored = [tile[3] for tile in getattr(image, "tile", [])]
    if any(_is_deep(each) for each in stored) or image.mode in ("I", "F"):
        raise PictureError("more than 8 bits a channel; save it with 8")
    for each in stored:
        # Pillow would stretch the values, which then are not those of the file.
        if image.format == "PPM" and isinstance(each, tuple) and each[1] != 255:
            top = each[1]
            problem = "more than 8 bits a channel" if top > 255 else f"its largest value is {top}"
            raise PictureError(f"{problem}; save it with 8 bits a channel (0 to 255)")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            raise PictureError("transparent pixels; save it without transparency")
        image = image.convert("L" if image.mode in ("L", "LA", "La") else "RGB")
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[..., np.newaxis]
    if image.mode == "P":
        pixels = np.asarray(image.convert("RGB"))
        grey = (pixels == pixels[..., :1]).all()
        return pixels[..., :1] if grey else pixels
    if image.mode == "RGB":
        return np.asarray(image)
    raise PictureError(f"the colour mode {image.mode}; save it as RGB or grey")


def _is_deep(stored: Any) -> bool:
    """Returns whether a pixel that is stored in this way has 16 bits a channel.

    Args:
      stored: the arguments of Pillow's decoder: its raw mode, such as "RGB;16B", alone or first;
        what follows are offsets and the like.
    """
    mode = str(stored[0]) if isinstance(stored, tuple) and stored else str(stored)
    return "16" in mode and mode != "BGR;16"  # Of a BMP: 16 bits a pixel.
