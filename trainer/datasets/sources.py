"""Where the four archives of a data set come from, and the proof that they are the right ones."""

import contextlib
import dataclasses
import hashlib
import importlib.resources
import pathlib
import urllib.error
import urllib.request
from importlib.resources.abc import Traversable

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from trainer.errors import RunError, UsageError

# The archives of MNIST itself, shipped with this package.
BUNDLED: Traversable = importlib.resources.files(__package__) / "archives"

# TFDS retries an unreachable host for more than a minute; one short request says it at once.
_PROBE_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Archive:
    """One archive as TFDS registers it: file name, URL, size in bytes, SHA-256 in hex."""

    name: str
    url: str
    size: int
    sha256: str


def registered_archives(config: str) -> list[Archive]:
    """Returns the archives that TFDS registers for `config`.

    Args:
      config: "mnist", "fashion_mnist" or "kmnist".

    Returns:
      Four archives: images and labels of the training and of the test split.
    """
    path = tfds.core.tfds_path() / "url_checksums" / f"{config}.txt"
    return [
        Archive(name=url.rsplit("/", 1)[1], url=url, size=int(info.size), sha256=info.checksum)
        for url, info in checksums.load_url_infos(path).items()
    ]


def read_archives(config: str, dl_manager: tfds.download.DownloadManager) -> dict[str, bytes]:
    """Reads the archives of one data set, each checked against its registered SHA-256.

    MNIST is bundled. The others are taken from the manual directory where all four lie, in a
    folder named like the data set or directly, and are downloaded otherwise.

    Args:
      config: "mnist", "fashion_mnist" or "kmnist".
      dl_manager: says where the manual directory is, and downloads.

    Returns:
      File name -> content, still compressed.

    Raises:
      UsageError: the archives are neither there nor can they be downloaded.
      RunError: an archive has another checksum than the registered one.
    """
    archives = registered_archives(config)
    if config == "mnist":
        return {
            archive.name: _read_checked(archive, BUNDLED / archive.name) for archive in archives
        }
    # `dl_manager.manual_dir` refuses to name a folder that is missing or empty.
    try:
        manual_dir = pathlib.Path(dl_manager.manual_dir)
    except AssertionError:
        manual_dir = pathlib.Path(dl_manager.download_dir) / "manual"
    # The sub-folder comes first: Fashion-MNIST and KMNIST use the same four file names.
    for folder in (manual_dir / config, manual_dir):
        if all((folder / archive.name).is_file() for archive in archives):
            return {
                archive.name: _read_checked(archive, folder / archive.name) for archive in archives
            }
    paths = _download(config, archives, dl_manager, manual_dir / config)
    return {archive.name: _read_checked(archive, paths[archive.name]) for archive in archives}


def _read_checked(archive: Archive, path: Traversable) -> bytes:
    """Reads one archive and compares its SHA-256 with the registered one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error})") from error
    found = hashlib.sha256(data).hexdigest()
    if found != archive.sha256:
        raise RunError(
            f"{path}: wrong checksum, the file is damaged or belongs to another data set: "
            f"expected sha256 {archive.sha256} ({archive.size} bytes), "
            f"found {found} ({len(data)} bytes). Replace it with the file from {archive.url}"
        )
    return data


def _download(
    config: str,
    archives: list[Archive],
    dl_manager: tfds.download.DownloadManager,
    folder: pathlib.Path,
) -> dict[str, pathlib.Path]:
    """Downloads the archives; where that fails, says which files to put into `folder`."""
    try:
        # The folder exists once something was downloaded; it may hold all that is needed.
        if not (pathlib.Path(dl_manager.download_dir) / "mnist_idx").is_dir():
            _assert_reachable(archives[0].url)
        paths = dl_manager.download({archive.name: archive.url for archive in archives})
    except (
        OSError,
        tfds.download.DownloadError,
        NonMatchingChecksumError,
    ) as error:
        files = "\n".join(
            f"  {archive.name}  {archive.size} bytes  sha256 {archive.sha256[:16]}...  "
            f"{archive.url}" + ("" if (folder / archive.name).is_file() else "  (missing)")
            for archive in archives
        )
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"--dataset={config}: its archives are not here and cannot be downloaded ({reason}). "
            f"Put these four files into {folder}:\n{files}"
        ) from error
    return {name: pathlib.Path(path) for name, path in paths.items()}


def _assert_reachable(url: str) -> None:
    """Raises OSError where the host of `url` does not answer at all."""
    request = urllib.request.Request(url, method="HEAD")
    # With an HTTP error it answers; whether it gives the file, the download will find out.
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=_PROBE_SECONDS).close()
