"""What is wrong with the files of a prepared data set, and what to do about it."""

import os

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from trainer.datasets import prepare
from trainer.errors import RunError

# Records read at a time while looking for the damaged one.
_BLOCK = 1024


def explain(
    dataset: str,
    folder: str,
    split: tfds.core.splits.SplitInfo | None,
    error: Exception | str,
    made_here: bool,
) -> RunError:
    """Returns the error for prepared data that cannot be read, or are not what was written.

    Args:
      dataset: as the user gave it.
      folder: of the prepared data set.
      split: the one that was read, or None if already the description is damaged.
      error: what reading it raised, or what is wrong with it.
      made_here: whether the trainer prepared it, and so can do it again.
    """
    reason = error if isinstance(error, str) else prepare.plain(error)
    found = _find_damage(split) if split is not None else None
    where, what = found or (folder, f"is damaged: {reason}")
    if "Permission denied" in what:
        return RunError(f"--dataset={dataset}: {where} {what}")
    if made_here:
        return prepare.damaged(folder, f"{os.path.basename(where)} {what}" if found else reason)
    return RunError(
        f"--dataset={dataset}: {where} {what}; restore the file from a copy, or prepare the data "
        "set again as it was made"
    )


def _find_damage(split: tfds.core.splits.SplitInfo) -> tuple[str, str] | None:
    """Returns the first file of a split that cannot be read whole, and what is wrong with it."""
    for part in split.file_instructions:
        path = str(part.filename)
        try:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
            reader = array_record_module.ArrayRecordReader(path)
            num_records = reader.num_records()
            if not num_records:
                return path, f"is damaged: no whole array_record file ({size} bytes)"
            if num_records != part.examples_in_shard:
                return path, f"is damaged: {num_records} records, not {part.examples_in_shard}"
            for start in range(0, num_records, _BLOCK):
                reader.read(range(start, min(start + _BLOCK, num_records)))
        except FileNotFoundError:
            return path, "is missing"
        except OSError as error:
            return path, f"cannot be read: {prepare.plain(error)}"
        # array_record says RuntimeError, ValueError and IndexError of damaged files.
        except Exception as error:
            return path, f"is damaged: {prepare.plain(error)}"
    return None
