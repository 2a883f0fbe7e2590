"""Picture files as pixels."""

import numpy as np
from PIL import Image


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
