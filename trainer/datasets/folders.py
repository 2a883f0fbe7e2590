"""A folder of pictures by class: which files are in it, and which class each belongs to."""

import dataclasses
import hashlib
import os
import unicodedata
from pathlib import Path

from trainer.errors import UsageError

# What a folder of a split may be called -> what TFDS calls that split.
_SPLITS = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}
# Windows puts these into every folder of pictures; other systems' begin with a dot.
_NO_PICTURES = {"thumbs.db", "desktop.ini"}


@dataclasses.dataclass(frozen=True)
class PictureFolder:
    """The files of a folder of pictures.

    Attributes:
      path: the folder.
      class_names: the names of the class folders, sorted; a label is a place in this list.
      splits: split -> (path below the folder, label) of its pictures, in an order that is as
        good as random, but depends on nothing but their names.
    """

    path: Path
    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]


def list_pictures(dataset: str, path: Path) -> PictureFolder:
    """Returns the files in a folder of pictures, without looking into them.

    Args:
      dataset: as the user gave it, for messages.
      path: a folder of the form train/CLASS/*.png and test/CLASS/*.png (or validation), or
        CLASS/*.png, which is one split called "train".

    Raises:
      UsageError: it has another form; the message names what does not fit.
    """
    try:
        return _list_pictures(path)
    except OSError as error:
        raise UsageError(f"--dataset={dataset}: {error.filename}: {error.strerror}") from error
    except _LayoutError as error:
        raise UsageError(
            f"--dataset={dataset}: {error}; a folder of pictures has the form train/CLASS/*.png "
            "and test/CLASS/*.png, or CLASS/*.png"
        ) from None


class _LayoutError(Exception):
    """What does not fit in a folder."""


def _list_pictures(path: Path) -> PictureFolder:
    """Returns the files in a folder of pictures."""
    folders = _folders(path)
    is_split = "train" in folders and bool(_folders(path / "train"))
    if not is_split and (split := next((name for name in _SPLITS if name in folders), None)):
        flat = split == "train" and len(folders.keys() & _SPLITS.keys()) == 1
        if not flat:
            problem = "no class folders in train/" if "train" in folders else "no folder train/"
            raise _LayoutError(f"there is a folder {split}/, but {problem}")
    by_class: dict[str, dict[str, list[str]]] = {}
    for name, split in _SPLITS.items() if is_split else [("", "train")]:
        if is_split and name not in folders:
            continue
        if split in by_class:
            raise _LayoutError("there is a folder val/ and a folder validation/")
        by_class[split] = _classes(path, name)
    class_names = tuple(sorted(by_class["train"]))
    if len(class_names) < 2:
        found = f"the only class is {class_names[0]!r}" if class_names else "there are no classes"
        raise _LayoutError(f"{found}, and two are needed")
    for split, classes in by_class.items():
        if unknown := sorted(classes.keys() - set(class_names)):
            raise _LayoutError(f"class {unknown[0]!r} is in {split}/, but not in train/")
    labels = {name: label for label, name in enumerate(class_names)}
    return PictureFolder(
        path=path,
        class_names=class_names,
        splits={
            split: sorted(
                ((file, labels[name]) for name, files in classes.items() for file in files),
                key=lambda pair: _shuffled("/".join(pair[0].split("/")[-2:])),
            )
            for split, classes in by_class.items()
        },
    )


def _folders(path: Path) -> dict[str, Path]:
    """Returns the folders in a folder, hidden ones left out, links followed: name -> path."""
    with os.scandir(path) as entries:
        return {e.name: Path(e.path) for e in entries if e.is_dir() and not e.name.startswith(".")}


def _classes(path: Path, split: str) -> dict[str, list[str]]:
    """Returns the pictures of a split by class, as paths below `path`."""
    classes: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for folder in _folders(path / split).values():
        where = folder.relative_to(path).as_posix()
        # The same name may be composed of other characters on another system.
        name = unicodedata.normalize("NFC", folder.name).strip()
        if not name or not name.isprintable():
            raise _LayoutError(f"the name of the class folder {where!r} cannot be printed")
        files = _files(folder, where)
        if not files:
            raise _LayoutError(f"the class folder {where}/ holds no pictures")
        if name in names:
            raise _LayoutError(
                f"the class folders {names[name]!r} and {where!r} have one name, but for spaces "
                "at its ends or how its accents are stored; rename one, or put their pictures "
                "into one"
            )
        names[name], classes[name] = where, files
    with os.scandir(path / split) as entries:
        for entry in entries:
            suffix = Path(entry.name).suffix.lower()
            if entry.is_file() and suffix in (".png", ".jpg", ".jpeg"):
                where = os.path.join(split, entry.name)
                raise _LayoutError(f"{where} lies beside the class folders, not in one of them")
    return classes


def _files(folder: Path, where: str) -> list[str]:
    """Returns the files of one class; what else lies there is refused."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _NO_PICTURES:
                continue
            if not entry.is_file():
                kind = "is a folder" if entry.is_dir() else "is no file that can be read"
                raise _LayoutError(f"{where}/{entry.name} {kind}, where only pictures are expected")
            names.append(f"{where}/{entry.name}")
    return names


def _shuffled(file: str) -> bytes:
    """Returns a key to sort pictures by, from CLASS/FILE alone: as good as random."""
    name = unicodedata.normalize("NFC", file).encode("utf-8", "surrogateescape")
    return hashlib.sha256(name).digest()
