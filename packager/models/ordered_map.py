"""Does the same for one item after another, a few of them at a time: what comes out, and in which order, is what one
thread would give. For work that leaves the interpreter: runs of a model, linear algebra, files."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat, takewhile
from typing import Final, TypeVar

WORKERS: Final = 2
AHEAD: Final = 4  # results that wait

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int = WORKERS) -> Generator[Result]:
    """`function` of each item. `items` are drawn by the caller's thread, at most AHEAD before their results are."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def drawn_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """`items`, drawn by a thread of their own, at most AHEAD before they are asked for."""
    source, end = iter(items), object()
    found = in_order(lambda _: next(source, end), repeat(None), workers=1)
    yield from takewhile(lambda item: item is not end, found)
