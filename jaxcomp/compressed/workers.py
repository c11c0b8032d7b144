"""Leaves visited several at a time, by threads that share the memory of one.

Kernels of JAX, NumPy and the coder let go of Python's lock while they compute, so that threads
suffice. What one leaf becomes depends on no other: results do not depend on how many work.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from jaxcomp.numerics.threads import options_of_this_thread
from jaxcomp.numerics.transformations import all_transfers, always_compiled

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# More leaves at a time than this wait for memory, not for processors.
_MOST = 8


class Workers:
    """Some threads, and how much they hold.

    Args:
        number: of threads.
        held: together the leaves that are visited, or whose results nobody has taken yet, are at
            most so many times as large as the largest one.
    """

    def __init__(self, number: int = 1, held: int = 1) -> None:
        self.number, self._held = number, held

    def each(
        self, function: Callable[[_Item], _Result], items: Sequence[_Item], sizes: Sequence[int]
    ) -> Iterator[_Result]:
        """Yield what a function makes of every item, in the order of the items.

        Args:
            function: is called in any order, on several threads.
            items: to visit.
            sizes: of each.
        """
        if self.number == 1 or len(items) < 2:
            yield from map(function, items)
            return
        options = options_of_this_thread()
        limit = self._held * max(sizes)

        @always_compiled
        @all_transfers
        def visit(item: _Item) -> _Result:
            with options():
                return function(item)

        found: deque[tuple[Future, int]] = deque()  # what is finished is held until it is taken
        with ThreadPoolExecutor(self.number) as pool:
            try:
                for item, size in zip(items, sizes, strict=True):
                    while found and (found[0][0].done() or _total(found) + size > limit):
                        yield found.popleft()[0].result()
                    found.append((pool.submit(copy_context().run, visit, item), size))
                while found:
                    yield found.popleft()[0].result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _total(found: Iterable[tuple[Future, int]]) -> int:
    return sum(size for _, size in found)


ALONE = Workers()


def usual_number() -> int:
    """Return how many work where nobody says it: as many as this process has processors."""
    has_affinity = hasattr(os, "sched_getaffinity")
    number = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return min(number, _MOST)
