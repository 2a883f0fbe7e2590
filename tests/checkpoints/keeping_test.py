"""Which checkpoints stay."""

import pytest

from trainer.checkpoints import Keeping

STEPS = [0, 5, 7, 10, 14, 15, 20, 21, 25]


@pytest.mark.parametrize(
    ("keeping", "best", "kept"),
    [
        (Keeping(2), None, [21, 25]),
        (Keeping(100), None, STEPS),
        (Keeping(1), 10, [10, 25]),
        (Keeping(1), 25, [25]),
        (Keeping(1, cycle_ends=2, steps_per_cycle=7), None, [14, 21, 25]),
        (Keeping(3, cycle_ends=1, steps_per_cycle=7), 5, [5, 20, 21, 25]),
        # Step 0 ends no cycle.
        (Keeping(1, cycle_ends=9, steps_per_cycle=7), None, [7, 14, 21, 25]),
        (Keeping(1, cycle_ends=1, steps_per_cycle=100), 3, [25]),
    ],
)
def test_what_stays(keeping: Keeping, best: int | None, kept: list[int]) -> None:
    answers = keeping.kept(STEPS, best)
    assert [step for step, answer in zip(STEPS, answers, strict=True) if answer] == kept
