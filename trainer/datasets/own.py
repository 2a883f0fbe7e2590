"""Pictures of the user's own, prepared once: from their files to a TFDS data set."""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from trainer.datasets import prepare
from trainer.datasets.checking import Picture, checked, pictures_of_arrays, pictures_of_folder
from trainer.datasets.folders import PictureFolder, list_pictures
from trainer.datasets.mnist_idx import NAMES
from trainer.datasets.npz import read_npz
from trainer.datasets.pictures import strict_warnings
from trainer.datasets.writing import write_dataset
from trainer.errors import UsageError
from trainer.paths import expand

logger = logging.getLogger(__name__)

# The folder of all of them below the data_dir, and the version of how they are written.
NAME = "own_pictures"
_VERSION = "1.0.0"


def find_path(dataset: str, data_dir: str) -> Path | None:
    """Returns the folder or file of the user's own that is meant, or None for a name of TFDS.

    What begins with ".", "/" or "~", or ends in ".npz", is a path. Another name is a folder here
    if there is one, unless TFDS has prepared a data set of that name.

    Raises:
      UsageError: it is a path, and nothing that can be used lies there.
    """
    is_path = dataset.startswith((".", "/", "~")) or dataset.endswith(".npz")
    if dataset in NAMES or not dataset:
        return None
    path, prepared = Path(expand("dataset", dataset)), Path(data_dir) / dataset.split(":")[0]
    if not is_path and not (path.exists() and not _is_prepared(prepared)):
        return None
    what = f"--dataset={dataset}"
    if not path.exists():
        raise UsageError(
            f"{what}: there is no {path.absolute()}; use a folder of pictures, an .npz file, a "
            f"data set that TFDS has prepared, or {', '.join(NAMES)}"
        )
    if path.is_file() and path.suffix != ".npz":
        raise UsageError(f"{what} is neither a folder of pictures nor an .npz file")
    if (path / "dataset_info.json").exists():
        raise UsageError(
            f"{what} was prepared by TFDS; give its name, and --data_dir the folder above"
        )
    return path


def _is_prepared(folder: Path) -> bool:
    """Returns whether a folder is NAME of NAME/VERSION or NAME/CONFIG/VERSION, as TFDS makes it."""
    return any(any(folder.glob(f"{below}dataset_info.json")) for below in ("", "*/", "*/*/"))


def open_own(
    dataset: str, path: Path, data_dir: str, image_size: tuple[int, int] | None
) -> tfds.core.DatasetBuilder:
    """Opens pictures of the user's own, and prepares them where that was not done yet.

    They are prepared again when a file is added, removed or written to: the folder below
    `data_dir` is named after a digest of all names, sizes and times.

    Args:
      dataset: as the user gave it, for messages.
      path: a folder or an .npz file.
      data_dir: root folder of TFDS data sets, see `prepare.root_dir`.
      image_size: (H, W) to resize them to, or None if all have one size.

    Returns:
      A builder whose data are prepared.

    Raises:
      UsageError: some of the files cannot be used; the message names them.
      RunError: writing failed.
    """
    if "://" in data_dir:
        raise UsageError(
            f"--data_dir={data_dir} is no local folder, and --dataset={dataset} must be prepared "
            "in one; use a local --data_dir"
        )
    folder = list_pictures(dataset, path) if path.is_dir() else None
    try:
        key = _fingerprint(path, folder, image_size)
    except OSError as error:
        raise UsageError(f"--dataset={dataset}: {error.filename}: {error.strerror}") from error

    def open_in(root: str) -> tfds.core.DatasetBuilder:
        target = Path(root) / NAME / key / _VERSION
        if not target.exists():
            logger.info("preparing %s in %s (once)", dataset, target)
            pictures, class_names = _pictures(dataset, path, folder, image_size)
            try:
                with strict_warnings():
                    write_dataset(target, pictures, class_names, f"From {path.absolute()}")
            except OSError:
                # Another process was faster: its finished data set appeared in one rename.
                if not target.exists():
                    raise
        return _open(target)

    return prepare.open_in_data_dir(dataset, data_dir, open_in)


def _pictures(
    dataset: str, path: Path, folder: PictureFolder | None, image_size: tuple[int, int] | None
) -> tuple[Iterator[Picture], Sequence[str]]:
    """Returns the pictures of a folder or file, and the names of their classes."""
    if folder:
        total = sum(len(files) for files in folder.splits.values())
        pictures, class_names = pictures_of_folder(folder, image_size), folder.class_names
    else:
        splits = read_npz(dataset, path)
        total = sum(len(labels) for _, labels in splits.values())
        num_classes = 1 + max(int(labels.max()) for _, labels in splits.values())
        class_names = tuple(str(label) for label in range(num_classes))
        pictures = pictures_of_arrays(splits, image_size)
    return checked(dataset, pictures, total), class_names


def _open(folder: Path) -> tfds.core.DatasetBuilder:
    """Opens a data set that was prepared here."""
    try:
        return tfds.builder_from_directory(folder)
    except PermissionError:
        raise
    # A damaged description makes TFDS raise anything: the JSON parser's errors, KeyError, ...
    except Exception as error:
        raise prepare.damaged(str(folder), f"{type(error).__name__}: {error}") from error


def _fingerprint(
    path: Path, folder: PictureFolder | None, image_size: tuple[int, int] | None
) -> str:
    """Returns a digest of names, sizes and times of all files, 16 hex digits."""
    digest = hashlib.sha256(repr((_VERSION, image_size)).encode())
    files = {"": [""]}
    if folder:
        files = {split: sorted(name for name, _ in pairs) for split, pairs in folder.splits.items()}
    for split, names in files.items():
        for name in names:
            status = os.stat(path / name)
            # Copying over a file or setting its time changes at least the last of these.
            facts = (split, name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            digest.update(repr(facts).encode())
    return digest.hexdigest()[:16]
