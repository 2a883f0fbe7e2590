"""Work is done in advance, in order, as far as it was allowed to, and its errors are kept."""

import threading
import time
from collections.abc import Iterator

import pytest

from trainer.run.ahead import Ahead, Later


def test_results_come_in_order() -> None:
    """Also where later ones are made first."""

    def slow_for_even(item: int) -> int:
        time.sleep(0.01 * (item % 2 == 0))
        return item * item

    assert list(Ahead(slow_for_even, range(20), depth=4, threads=3)) == [i * i for i in range(20)]


def test_no_more_is_made_than_the_depth() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    ahead = Ahead(lambda item: item, items(), depth=3, threads=2)
    for result in range(5):
        assert len(taken) == result + 3
        assert next(ahead) == result
    ahead.close()


def test_what_is_good_comes_before_the_error() -> None:
    def fails_at_three(item: int) -> int:
        if item == 3:
            raise OSError("gone")
        return item

    ahead = Ahead(fails_at_three, range(10), depth=8, threads=2)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="gone"):
        next(ahead)


def test_closing_ends_the_threads() -> None:
    before = threading.active_count()
    ahead = Ahead(lambda _: time.sleep(0.05), range(100), depth=2, threads=2)
    next(ahead)
    ahead.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_later_is_made_once_it_is_begun() -> None:
    let_go, made = threading.Event(), []

    def make() -> int:
        let_go.wait(10)
        made.append(threading.current_thread().name)
        return 7

    later = Later(make)
    assert later.is_pending
    later.begin()
    later.begin()
    assert later.is_pending
    let_go.set()
    assert [later.result(), later.result()] == [7, 7]
    assert not later.is_pending
    assert [name.partition("_")[0] for name in made] == ["later"]


def test_later_keeps_the_error() -> None:
    later = Later(lambda: 1 // 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            later.result()
