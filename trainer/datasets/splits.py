"""Which examples of a prepared data set are for training, and which for testing."""

import logging
from collections.abc import Sequence

import tensorflow_datasets as tfds

from trainer.errors import UsageError

logger = logging.getLogger(__name__)

TRAIN = "train"
# The first that is there.
_TEST_NAMES = ("test", "validation")
_SLICES_HINT = "--train_split='train[:90%]' --test_split='train[90%:]'"


def choose_splits(
    dataset: str, splits: tfds.core.splits.SplitDict, train_split: str, test_split: str
) -> tuple[str, str]:
    """Returns the splits to train and to test on, in the notation of TFDS.

    Args:
      dataset: as the user gave it, for messages.
      splits: those of the prepared data set.
      train_split: a split or slices of splits, such as "train[:90%]"; "" for "train".
      test_split: the same; "" for "test", or "validation" where there is no "test".

    Raises:
      UsageError: one is missing, not understood or empty.
    """
    there = ", ".join(f"{name} ({info.num_examples})" for name, info in splits.items())
    if not train_split and TRAIN not in splits:
        raise UsageError(
            f"--dataset={dataset} has the splits {there}, and none that is called 'train'; say "
            "which examples to use with --train_split and --test_split"
        )
    if not test_split:
        test_split = next((name for name in _TEST_NAMES if name in splits), "")
        if not test_split:
            raise UsageError(
                f"--dataset={dataset} has the splits {there}, and neither 'test' nor "
                f"'validation'; take a part of the training examples with {_SLICES_HINT}"
            )
    train_split = train_split or TRAIN
    for flag, split in (("train_split", train_split), ("test_split", test_split)):
        _check_split(dataset, splits, there, flag, split)
    shared = _count_shared(splits[train_split], splits[test_split])
    if shared:
        logger.warning(
            "--train_split=%s and --test_split=%s have %d examples in common: the accuracy on "
            "them says little about new images",
            train_split,
            test_split,
            shared,
        )
    return train_split, test_split


def _check_split(
    dataset: str, splits: tfds.core.splits.SplitDict, there: str, flag: str, split: str
) -> None:
    """Refuses a split that TFDS does not understand, or without examples."""
    try:
        num_examples = splits[split].num_examples
    # The parser of TFDS raises ValueError, KeyError and AssertionError.
    except Exception as error:
        raise UsageError(
            f"--{flag}={split} is no split of --dataset={dataset}, which has {there}; use one of "
            f"these or a slice, as in {_SLICES_HINT}"
        ) from error
    if not num_examples:
        raise UsageError(
            f"--{flag}={split} selects no examples of --dataset={dataset}, which has {there}"
        )


def _count_shared(one: tfds.core.splits.SplitInfo, other: tfds.core.splits.SplitInfo) -> int:
    """Returns how many examples two splits have in common."""
    return sum(
        max(0, min(stop, other_stop) - max(start, other_start))
        for path, start, stop in _ranges(one)
        for other_path, other_start, other_stop in _ranges(other)
        if path == other_path
    )


def _ranges(split: tfds.core.splits.SplitInfo) -> Sequence[tuple[str, int, int]]:
    """Returns the examples of a split as (file, first, one after the last)."""
    return [
        (str(part.filename), part.skip, part.skip + part.take) for part in split.file_instructions
    ]
