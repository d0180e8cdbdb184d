"""Parallel work returns results in order, with bounded lookahead, and raises errors at the right item."""

import threading
from collections.abc import Iterator

import pytest

from packager.models.ordered_map import MAX_ITEMS_AHEAD, WORKER_THREADS, ordered_map, prefetch


def test_results_keep_the_order_of_their_items_whoever_is_done_first() -> None:
    gates = [threading.Event() for _ in range(20)]

    def wait_for_the_next(number: int) -> int:
        # an odd number opens the gate of the even one before it: that one is done later
        if number % 2:
            gates[number - 1].set()
        else:
            assert gates[number].wait(60)
        return number * number

    assert list(ordered_map(wait_for_the_next, range(20))) == [number * number for number in range(20)]


def test_no_more_is_drawn_than_a_few_items_ahead() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    for count, found in enumerate(ordered_map(lambda number: number, items()), start=1):
        assert found == count - 1
        assert len(drawn) <= count + MAX_ITEMS_AHEAD
    assert len(drawn) == 100


def test_failure_of_an_item_is_raised_in_its_turn() -> None:
    found = ordered_map(lambda number: 12 // number, [3, 2, 0, 1])
    assert [next(found), next(found)] == [4, 6]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_what_is_drawn_ahead_is_drawn_by_one_thread_and_ends() -> None:
    threads: set[int] = set()

    def items() -> Iterator[int]:
        for number in range(30):
            threads.add(threading.get_ident())
            yield number

    assert list(prefetch(items())) == list(range(30))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_whoever_stops_asking_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    found = ordered_map(lambda number: number, range(1000))
    assert next(found) == 0
    assert threading.active_count() <= before + WORKER_THREADS
    found.close()
    assert threading.active_count() == before
