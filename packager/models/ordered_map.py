"""Does the same for one item after another, a few of them at a time: what comes out, and in which order, is what one
thread would give. For work that leaves the interpreter: runs of a model, linear algebra, files."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat, takewhile
from typing import Final, TypeVar

WORKER_THREADS: Final = 2
MAX_ITEMS_AHEAD: Final = 4  # results that wait

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int = WORKER_THREADS
) -> Generator[Result]:
    """`function` of each item. `items` are drawn by the caller's thread, at most AHEAD before their results are."""
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
    """`items`, drawn by a thread of their own, at most AHEAD before they are asked for."""
    source, end = iter(items), object()
    found = ordered_map(lambda _: next(source, end), repeat(None), workers=1)
    yield from takewhile(lambda item: item is not end, found)
