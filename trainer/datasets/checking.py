"""The pictures of the user's own, one after the other: all are usable, or the run is refused."""

import collections
import dataclasses
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from trainer.datasets.folders import PictureFolder
from trainer.datasets.pictures import PictureError, read_pixels, resize
from trainer.errors import UsageError

# Bytes of pixels that are held at a time, and pictures: so many are decoded in threads.
_BLOCK_BYTES = 2**25
_BLOCK = 256
# Files that a message names.
_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture: where it stands, what it shows, and its pixels or what is wrong with it."""

    split: str
    label: int
    name: str
    pixels: np.ndarray | PictureError


def pictures_of_folder(
    folder: PictureFolder, image_size: tuple[int, int] | None
) -> Iterator[Picture]:
    """Yields the pictures of a folder, split by split, decoded in threads.

    Args:
      folder: its files.
      image_size: (H, W) to resize them to, or None.
    """

    def read(split: str, name: str, label: int) -> Picture:
        try:
            pixels = read_pixels(folder.path / name)
        except PictureError as error:
            return Picture(split, label, name, error)
        return Picture(split, label, name, resize(pixels, image_size) if image_size else pixels)

    files = [(split, *pair) for split, pairs in folder.splits.items() for pair in pairs]
    first = read(*files[0])
    size = first.pixels.nbytes if isinstance(first.pixels, np.ndarray) else 2**20
    block = max(os.cpu_count() or 1, min(_BLOCK, _BLOCK_BYTES // size))
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), block):
            yield from pool.map(lambda file: read(*file), files[start : start + block])


def pictures_of_arrays(
    splits: Mapping[str, tuple[np.ndarray, np.ndarray]], image_size: tuple[int, int] | None
) -> Iterator[Picture]:
    """Yields the pictures of arrays, split by split, in their order.

    Args:
      splits: split -> images uint8[N, H, W, C], labels int[N].
      image_size: (H, W) to resize them to, or None.
    """
    for split, (images, labels) in splits.items():
        for index, (pixels, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            if image_size:
                pixels = resize(pixels, image_size)
            yield Picture(split, label, f"x_{split}[{index}]", pixels)


def checked(dataset: str, pictures: Iterator[Picture], total: int) -> Iterator[Picture]:
    """Yields pictures that are all good and of one shape, and shows the progress on a terminal.

    From the first bad one on it only looks for others, to name them together.

    Args:
      dataset: as the user gave it, for messages.
      pictures: at least one.
      total: how many.

    Raises:
      UsageError: some cannot be used, or have another shape; in the end, when all are known.
    """
    bad, shapes = _Group(), collections.defaultdict[tuple[int, ...], _Group](_Group)
    # With `disable=None` there is a bar on a terminal only.
    bar = tqdm(pictures, "preparing", total, unit=" images", disable=None, leave=False)
    for picture in bar:
        if isinstance(picture.pixels, PictureError):
            bad.add(f"{picture.name}: {picture.pixels}")
            continue
        shapes[picture.pixels.shape].add(picture.name)
        if not bad.count and len(shapes) == 1:
            yield picture
    if bad.count:
        problem = f"{bad.count} of {total} pictures cannot be used: {bad.describe('; ')}"
    elif len(shapes) > 1:
        problem = _describe_shapes(shapes)
    else:
        return
    raise UsageError(f"--dataset={dataset}: {problem}")


@dataclasses.dataclass
class _Group:
    """Pictures that have something in common: how many, and the names of the first ones."""

    count: int = 0
    first: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str) -> None:
        """Adds a picture."""
        self.count += 1
        if len(self.first) < _NAMED:
            self.first.append(name)

    def describe(self, separator: str = ", ") -> str:
        """Returns the names, and how many others there are."""
        more = self.count - len(self.first)
        return separator.join(self.first) + (f"{separator}and {more} more" if more else "")


def _describe_shapes(shapes: Mapping[tuple[int, ...], _Group]) -> str:
    """Names pictures that differ from most of the others in colours or size."""
    groups = sorted(shapes.items(), key=lambda pair: -pair[1].count)
    kinds: dict[str, _Group] = collections.defaultdict(_Group)
    for shape, group in groups:
        kind = kinds["grey" if shape[2] == 1 else "in colours"]
        kind.count += group.count
        kind.first = (kind.first + group.first)[:_NAMED]
    if len(kinds) > 1:
        (usual, many), (odd, few) = sorted(kinds.items(), key=lambda pair: -pair[1].count)
        return (
            f"{few.count} of the pictures are {odd} ({few.describe()}) and {many.count} are "
            f"{usual}; save them all as one kind"
        )
    sizes = ", ".join(
        f"{height}x{width} ({group.count}, such as {group.first[0]})"
        for (height, width, _), group in groups[:_NAMED]
    )
    more = f" and {len(groups) - _NAMED} other sizes" if len(groups) > _NAMED else ""
    height, width, _ = groups[0][0]
    return (
        f"the pictures have different sizes (height x width): {sizes}{more}; "
        f"--image_size={height}x{width} resizes them all"
    )
