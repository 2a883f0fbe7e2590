"""What is wrong with the files of a prepared data set, and what to do about it."""

import errno
import os
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from trainer.datasets import prepare
from trainer.errors import RunError

# Records read at a time while looking for the damaged one.
_BLOCK = 1024

# What a file system says that is not there for a while: a server that restarts, a lost connection.
_PASSING = (
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ENOTCONN, errno.EHOSTDOWN),
    *(errno.ECONNRESET, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH),
)


def explain(
    dataset: str,
    folder: str,
    split: tfds.core.splits.SplitInfo | None,
    error: Exception | str,
    made_here: bool,
    places: Sequence[int] | np.ndarray | None = None,
) -> RunError:
    """Returns the error for prepared data that cannot be read, or are not what was written.

    Args:
      dataset: as the user gave it.
      folder: of the prepared data set.
      split: the one that was read, or None if already the description is damaged.
      error: what reading it raised, or what is wrong with it.
      made_here: whether the trainer prepared it, and so can do it again.
      places: the examples of the split that were read; None for all of them.
    """
    reason = error if isinstance(error, str) else prepare.plain(error)
    found = _find_damage(split, places) if split is not None else None
    where, what = found or (folder, f"is damaged: {reason}")
    if "Permission denied" in what:
        return RunError(f"--dataset={dataset}: {where} {what}")
    if made_here:
        return prepare.damaged(folder, f"{os.path.basename(where)} {what}" if found else reason)
    return RunError(
        f"--dataset={dataset}: {where} {what}; restore the file from a copy, or prepare the data "
        "set again as it was made"
    )


def is_passing(error: Exception) -> bool:
    """Returns whether an error is one that a shared file system gives, and gets over by itself."""
    number = getattr(error, "errno", None)
    # array_record passes on the words, but not the number.
    return number in _PASSING or any(os.strerror(each) in str(error) for each in _PASSING)


def _find_damage(
    split: tfds.core.splits.SplitInfo, places: Sequence[int] | np.ndarray | None
) -> tuple[str, str] | None:
    """Returns the first file of a split that cannot be read, and what is wrong with it.

    Of each file the number of records is looked at; read are those that are asked for.
    """
    wanted, begin = None if places is None else np.unique(places), 0
    for part in split.file_instructions:
        path, record = str(part.filename), None
        end = begin + part.take
        try:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
            reader = array_record_module.ArrayRecordReader(path)
            num_records = reader.num_records()
            if not num_records:
                return path, f"is damaged: no whole array_record file ({size} bytes)"
            if num_records != part.examples_in_shard:
                return path, f"is damaged: {num_records} records, not {part.examples_in_shard}"
            if wanted is None:
                for start in range(0, num_records, _BLOCK):
                    reader.read(range(start, min(start + _BLOCK, num_records)))
            else:
                here = wanted[(wanted >= begin) & (wanted < end)] - begin + part.skip
                for record in here.tolist():
                    reader.read([record])
        except FileNotFoundError:
            return path, "is missing"
        except OSError as error:
            return path, f"cannot be read: {prepare.plain(error)}"
        # array_record says RuntimeError, ValueError and IndexError of damaged files.
        except Exception as error:
            where = "" if record is None else f" (record {record})"
            return path, f"is damaged: {prepare.plain(error)}{where}"
        begin = end
    return None
