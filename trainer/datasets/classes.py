"""Slices of a data set that is sorted by class, which would test on classes of their own."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.errors import UsageError

if TYPE_CHECKING:
    from trainer.datasets.prepared import DatasetSource

logger = logging.getLogger(__name__)

# Slices of shuffled examples miss a rare class now and then; those of sorted ones miss many.
_SORTED_FRACTION = 0.1


def check_classes(
    source: "DatasetSource", train_counts: Sequence[int], test_counts: Sequence[int]
) -> None:
    """Refuses slices that leave classes to the test alone; of a rare one it only warns.

    Args:
      source: the data set.
      train_counts: examples of each class in the training split.
      test_counts: examples of each class in the test split.

    Raises:
      UsageError: a tenth of the test or more is of classes that the training does not have.
    """
    pairs = enumerate(zip(train_counts, test_counts, strict=True))
    unknown = {label: tested for label, (known, tested) in pairs if tested and not known}
    if not unknown or "[" not in source.train_split + source.test_split:
        return
    names, count = source.class_names or range(source.num_classes), sum(unknown.values())
    said = (
        f"{count} of the {source.num_test} examples of --test_split={source.test_split} are of "
        f"classes that --train_split={source.train_split} does not have, such as "
        f"{names[next(iter(unknown))]}"
    )
    if count >= _SORTED_FRACTION * source.num_test:
        raise UsageError(
            f"{said}: the examples of --dataset={source.name} seem to be sorted by class; "
            "shuffle them before you store them, or use other slices"
        )
    logger.warning(said)
