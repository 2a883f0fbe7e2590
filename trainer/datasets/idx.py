"""The IDX file format of the MNIST family: a magic number, the dimensions, then unsigned bytes."""

import gzip
import math
import struct
import zlib

import numpy as np

# Third byte of the magic number: the type of one value. The MNIST family uses this one only.
_UNSIGNED_BYTE = 0x08


def parse_idx(data: bytes, name: str, ndim: int) -> np.ndarray:
    """Parses one IDX file of unsigned bytes.

    Args:
      data: the whole file, uncompressed.
      name: what error messages call the file.
      ndim: number of dimensions the file must have: 3 for images, 1 for labels.

    Returns:
      Array uint8[dim_0, ..., dim_{ndim-1}], read-only, sharing memory with `data`.

    Raises:
      ValueError: wrong magic number, type or number of dimensions; truncated; trailing bytes.
    """
    header_size = 4 + 4 * ndim
    if len(data) < header_size:
        raise ValueError(f"{name}: truncated IDX header, {len(data)} of {header_size} bytes")
    magic = bytes([0, 0, _UNSIGNED_BYTE, ndim])
    if data[:4] != magic:
        raise ValueError(f"{name}: IDX magic number 0x{data[:4].hex()}, expected 0x{magic.hex()}")
    shape = struct.unpack(f">{ndim}I", data[4:header_size])
    size, expected = len(data) - header_size, math.prod(shape)
    if size != expected:
        problem = "truncated" if size < expected else "trailing bytes"
        raise ValueError(f"{name}: {problem}, {size} data bytes for shape {shape} ({expected})")
    return np.frombuffer(data, np.uint8, offset=header_size).reshape(shape)


def parse_split(
    image_archive: bytes, label_archive: bytes, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Parses the two gzip-compressed IDX archives of one split.

    Args:
      image_archive: gzip of an IDX file with three dimensions.
      label_archive: gzip of an IDX file with one dimension.
      name: what error messages call the split.

    Returns:
      images uint8[N, H, W, 1] and labels uint8[N].

    Raises:
      ValueError: damaged gzip or IDX data, or different numbers of images and labels.
    """
    images = parse_idx(_decompress(image_archive, f"{name} images"), f"{name} images", ndim=3)
    labels = parse_idx(_decompress(label_archive, f"{name} labels"), f"{name} labels", ndim=1)
    if len(images) != len(labels):
        raise ValueError(f"{name}: {len(images)} images but {len(labels)} labels")
    return images[..., np.newaxis], labels


def _decompress(archive: bytes, name: str) -> bytes:
    """Decompresses gzip data; all its kinds of damage become ValueError."""
    try:
        return gzip.decompress(archive)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name}: damaged gzip data ({error})") from error
