"""Opens a data set of the MNIST family; prepares it first where that was not done yet."""

import contextlib
import errno
import io
import logging
import os
import pathlib
import re
import stat
import tempfile
from collections.abc import Callable

import tensorflow_datasets as tfds

from trainer.datasets.mnist_idx import MnistIdx
from trainer.errors import RunError, UsageError
from trainer.paths import expand

logger = logging.getLogger(__name__)

_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_NO_FOLDER = {errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG}


def root_dir(data_dir: str) -> str:
    """Returns the root folder of TFDS data sets: `data_dir`, or the default one if it is "".

    Without a home folder the default one is a private temporary folder, with a warning.

    Raises:
      UsageError: `data_dir` is in a home folder that is not there, or is not UTF-8.
    """
    if data_dir:
        return expand("data_dir", data_dir)
    default = os.path.expanduser(str(tfds.core.constants.DATA_DIR))
    if not default.startswith("~"):
        return default
    scratch = _scratch_dir()
    logger.warning("there is no home folder here (HOME is not set): data sets are in %s", scratch)
    return scratch


def open_in_data_dir(
    dataset: str, data_dir: str, open_in: Callable[[str], tfds.core.DatasetBuilder]
) -> tfds.core.DatasetBuilder:
    """Opens a data set below `data_dir`, or below a private temporary folder, with a warning.

    Args:
      dataset: as the user gave it, for messages.
      data_dir: root folder of TFDS data sets, see `root_dir`.
      open_in: opens the data set below a root folder, and prepares it there if needed. An OSError
        means that the folder cannot be written to.

    Raises:
      UsageError: no data set can lie below `data_dir`, or what `open_in` raises.
      RunError: writing failed, or what `open_in` raises.
    """
    try:
        return open_in(data_dir)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise _explained(error, data_dir) from error
        reason = error.strerror
    scratch = _scratch_dir()
    logger.warning(
        "cannot write to %s (%s): the data set %s is in %s", data_dir, reason, dataset, scratch
    )
    try:
        return open_in(scratch)
    except OSError as error:
        raise _explained(error, scratch) from error


def open_prepared(config: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Opens one of our own data sets, and prepares it if needed: once for each `data_dir`.

    Several processes may do so together. A `data_dir` that cannot be written to is replaced by a
    private temporary folder, with a warning.

    Args:
      config: "mnist", "fashion_mnist" or "kmnist".
      data_dir: root folder of TFDS data sets, see `root_dir`.

    Returns:
      A builder whose data are prepared.

    Raises:
      UsageError: no data set can lie below `data_dir`, or archives are missing.
      RunError: an archive or the prepared data set is damaged, or writing failed.
    """
    manual_dir = pathlib.Path(data_dir) / "downloads" / "manual"
    builder = open_in_data_dir(config, data_dir, lambda root: _prepared(config, root, manual_dir))
    if not {"train", "test"} <= set(builder.info.splits):
        raise damaged(str(builder.data_dir), "its description is incomplete")
    return builder


def damaged(folder: str, reason: str) -> RunError:
    """Returns the error for prepared data that are not what was written.

    The remedy is always the same: what they were made of is still there, so prepare again.
    """
    return RunError(
        f"the prepared data set in {folder} is damaged ({reason}): "
        f"delete the folder {folder} and run the same command again"
    )


def _open(config: str, root: str) -> MnistIdx:
    """Makes the builder, which reads the description of a data set that is already there."""
    try:
        return MnistIdx(config=config, data_dir=root)
    except OSError:
        raise
    # A damaged description makes TFDS raise anything: the JSON parser's errors, KeyError, ...
    except Exception as error:
        folder = os.path.join(root, MnistIdx.name, config, str(MnistIdx.VERSION))
        raise damaged(folder, f"{type(error).__name__}: {error}") from error


def _prepared(config: str, root: str, manual_dir: pathlib.Path) -> MnistIdx:
    """Prepares the data set unless it is there, without a word on stdout."""
    builder = _open(config, root)
    if builder.data_path.exists():
        return builder
    logger.info("preparing %s in %s (once)", config, builder.data_dir)
    tfds.disable_progress_bar()
    download_config = tfds.download.DownloadConfig(
        # None is `downloads/manual` below `root`.
        manual_dir=manual_dir if manual_dir.is_dir() else None,
        # Nothing to be found there, and looking for it costs a network time-out.
        try_download_gcs=False,
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=download_config)
    except RunError:
        raise
    # The writer of array_record reports a full disk this way.
    except RuntimeError as error:
        raise _failed(root, error) from error
    except OSError:
        # Another process was faster: its finished data set appeared in one rename.
        if not builder.data_path.exists():
            raise
    # Opened anew: a builder that lost the race describes the data it could not put there.
    return _open(config, root)


def _explained(error: OSError, root: str) -> UsageError | RunError:
    """Turns a failure to write into a message that names folder and remedy."""
    if error.errno in _NO_FOLDER:
        return UsageError(
            f"--data_dir={root}: not a folder that data sets can be put into ({error}); "
            "give a folder that exists or can be made"
        )
    return _failed(root, error)


def _failed(root: str, error: Exception) -> RunError:
    """The error for anything that stops the writing of a data set."""
    reason = plain(error)
    return RunError(
        f"preparing the data set in {root} failed: {reason}; make room there, or use another "
        "--data_dir"
    )


def plain(error: Exception) -> str:
    """Returns the first line of an error, without what array_record adds to it for its authors."""
    if isinstance(error, OSError) and error.strerror:
        text, name = error.strerror, ""
    else:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        name = "" if isinstance(error, RuntimeError | OSError) else f"{type(error).__name__}: "
    return name + re.sub(r"; (reading|writing|opening|at) .*", "", text)


def _scratch_dir() -> str:
    """Returns a temporary folder that is the same in every run and belongs to this user alone."""
    path = pathlib.Path(tempfile.gettempdir()) / f"cyclic-trainer-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    # In a folder that everyone writes to, somebody else may have made it, or a link, before us.
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    if not ours or status.st_mode & 0o077:
        return tempfile.mkdtemp(prefix="cyclic-trainer-")
    return str(path)
