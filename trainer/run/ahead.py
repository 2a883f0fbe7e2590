"""Work for later steps, done in threads while the devices are busy with earlier ones."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Ahead(Generic[Item, Result]):
    """The results of a function for one item after the other, some of them made in advance.

    What the function raises is raised where its result would have come, and results before it come
    first: whoever reads data this way has used all that is good.

    Args:
      function: of one item; called in threads.
      items: looked at only as far as results are made.
      depth: results that are made in advance, at most.
      threads: that make them.
    """

    def __init__(
        self, function: Callable[[Item], Result], items: Iterable[Item], depth: int, threads: int
    ) -> None:
        self._function, self._items, self._depth = function, iter(items), depth
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="reading")
        self._pending: collections.deque[Future[Result]] = collections.deque()
        self._fill()

    def __iter__(self) -> Iterator[Result]:
        """Return itself."""
        return self

    def __next__(self) -> Result:
        """Return the next result, waiting for it if it is not there yet."""
        if not self._pending:
            self.close()
            raise StopIteration
        try:
            result = self._pending.popleft().result()
        except BaseException:
            self.close()
            raise
        self._fill()
        return result

    def close(self) -> None:
        """Make no further results; those that are being made are thrown away."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pending.clear()

    def _fill(self) -> None:
        """Give the threads as much to do as there may be results."""
        while len(self._pending) < self._depth:
            try:
                item = next(self._items)
            except StopIteration:
                return
            self._pending.append(self._pool.submit(self._function, item))


class Later(Generic[Result]):
    """What a thread of its own makes, from when it is begun; whoever needs it waits for it.

    Args:
      make: called once; what it raises is raised by `result`.
    """

    def __init__(self, make: Callable[[], Result]) -> None:
        self._make = make
        self._made: Future[Result] | None = None

    @property
    def is_pending(self) -> bool:
        """Whether `result` would wait."""
        return self._made is None or not self._made.done()

    def begin(self) -> None:
        """Let the thread begin, unless it has."""
        if self._made is None:
            pool = ThreadPoolExecutor(1, thread_name_prefix="later")
            self._made = pool.submit(self._make)
            pool.shutdown(wait=False)

    def result(self) -> Result:
        """Return what was made, waiting for it if it is not there yet."""
        self.begin()
        assert self._made is not None
        return self._made.result()
