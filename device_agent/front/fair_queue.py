"""A queue that serves peers in turn, and the requests of each in order of arrival. No I/O.

This is a round robin: a peer with many waiting requests delays another one by at most one request per turn. Each
connection has at most one waiting request, so among the connections of one peer the order of arrival is fair too.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar


class HasPeer(Protocol):
    """An item that belongs to a peer."""

    @property
    def peer(self) -> int:
        """User id of the client (device_agent.front.peers)."""
        ...


Item = TypeVar("Item", bound=HasPeer)


class FairQueue(Generic[Item]):
    """A queue of items of several peers."""

    def __init__(self) -> None:
        self._returned: deque[Item] = deque()
        self._by_peer: OrderedDict[int, deque[Item]] = OrderedDict()  # the peer whose turn is next comes first

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._returned) + sum(len(items) for items in self._by_peer.values())

    def __iter__(self) -> Iterator[Item]:
        """Iterate over the items, in no particular order."""
        yield from self._returned
        for items in self._by_peer.values():
            yield from items

    def append(self, item: Item) -> None:
        """Add an item behind the others of its peer."""
        self._by_peer.setdefault(item.peer, deque()).append(item)

    def appendleft(self, item: Item) -> None:
        """Add an item before all others, because it had its turn already."""
        self._returned.appendleft(item)

    def popleft(self, fits: Callable[[Item], bool] = lambda _: True) -> Item | None:
        """Remove and return the next item for which `fits` is true; None if there is none."""
        found = next(filter(fits, self._returned), None)
        if found is not None:
            self._returned.remove(found)
            return found
        for peer, items in self._by_peer.items():
            found = next(filter(fits, items), None)
            if found is not None:
                items.remove(found)
                if items:
                    self._by_peer.move_to_end(peer)
                else:
                    del self._by_peer[peer]
                return found
        return None

    def pop_newest_of_largest(self, peer: int) -> Item | None:
        """Remove and return the newest item of the peer with the most, to make room for an item of `peer`.

        Returns None if that would leave `peer` with more items than the other one.
        """
        if not self._by_peer:
            return None
        largest, items = max(self._by_peer.items(), key=lambda pair: len(pair[1]))
        if len(self._by_peer.get(peer, ())) + 1 >= len(items):
            return None
        item = items.pop()
        if not items:
            del self._by_peer[largest]
        return item

    def remove_all(self, matches: Callable[[Item], bool]) -> list[Item]:
        """Remove and return the items for which `matches` is true."""
        removed = [item for item in self if matches(item)]
        if removed:
            gone = {id(item) for item in removed}
            self._returned = deque(item for item in self._returned if id(item) not in gone)
            for peer, items in list(self._by_peer.items()):
                left = deque(item for item in items if id(item) not in gone)
                if left:
                    self._by_peer[peer] = left
                else:
                    del self._by_peer[peer]
        return removed
