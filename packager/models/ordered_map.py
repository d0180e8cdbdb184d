"""Run a function on many items with a few threads; results come in the order of one thread.

For work outside the interpreter: runs of a model, linear algebra, files.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat, takewhile
from typing import Final, TypeVar

WORKER_THREADS: Final = 2
MAX_ITEMS_AHEAD: Final = 4  # results that wait; bounds the memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int = WORKER_THREADS
) -> Generator[Result]:
    """Yield `function` of each item, in the order of the items.

    Args:
        function: called by worker threads.
        items: drawn by the caller's thread, at most MAX_ITEMS_AHEAD before their results are.
        workers: number of threads.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > MAX_ITEMS_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def prefetch(items: Iterable[Item]) -> Iterator[Item]:
    """Yield `items`, drawn by a thread of its own, at most MAX_ITEMS_AHEAD before they are needed."""
    source, end = iter(items), object()
    found = ordered_map(lambda _: next(source, end), repeat(None), workers=1)
    yield from takewhile(lambda item: item is not end, found)
