"""The open connections and their bytes: at a limit, choose what gives way. No I/O.

Rules:
1. A connection is new until its first request head is complete, busy until the response is, then idle until the next
   head is complete. Above `max_connections`, the oldest new ones are closed, but `reserved` stay: a burst of
   connections closes none whose request is on the way, and a request for `/v2/health` finds a connection in any case.
2. If no more than these are new, the oldest of two gives way: the idle connection whose last response is the longest
   ago, or the body that made no progress for the longest time. If there is neither, requests other than those for
   `/v2/health` get a 503 until others are complete.
3. A body is counted as its bytes arrive, not as they are announced. The first FREE_BYTES of each are not counted, so
   that large bodies never keep small requests out.
4. Above `max_bytes`, the bytes with the largest product of size and time without progress give way: a body that is
   incomplete, or a response that its client does not read. A complete body is never given up.
5. In each of these cases, the peer with the most connections or bytes is chosen first. A peer is a user of this
   machine (device_agent.front.peers).
"""

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

MAX_RESERVED_CONNECTIONS: Final = 64  # a head arrives while at most three times ACCEPTED_AT_ONCE others are accepted
MIN_RESERVED_CONNECTIONS: Final = 4
FREE_BYTES: Final = 64 * 1024
PROGRESS_BYTES: Final = 64 * 1024  # fewer bytes do not count as progress, so that single bytes do not keep a body alive


class Connection(Protocol):
    """A client's connection; device_agent.front.protocol implements it."""

    @property
    def peer(self) -> int:
        """User id of the client, or UNKNOWN_PEER."""
        ...

    def give_way(self) -> None:
        """Close the connection; a request whose body is incomplete gets an error first."""
        ...


class ConnectionTable:
    """The open connections (rules 1 and 2).

    Args:
        max_connections: connections that may have a request.
        ledger: the bytes of their requests.
        clock: returns monotonic seconds.

    Attributes:
        reserved: new connections that stay above the limit.
        evictions: connections that had to give way.
        is_stopping: the server stops: each response is the last one of its connection.
    """

    def __init__(self, max_connections: int, ledger: "ByteLedger", clock: Callable[[], float] = time.monotonic) -> None:
        self.max_connections = max_connections
        self._ledger, self._clock = ledger, clock
        self.is_stopping = False
        self.reserved = max(min(MAX_RESERVED_CONNECTIONS, max_connections // 4), MIN_RESERVED_CONNECTIONS)
        self._new: dict[int, OrderedDict[Connection, float]] = {}
        self._idle: dict[int, OrderedDict[Connection, float]] = {}
        self._busy: set[Connection] = set()
        self._counts: Counter[int] = Counter()
        self.evictions = 0

    def __len__(self) -> int:
        """Return the number of open connections."""
        return self._counts.total()

    @property
    def is_full(self) -> bool:
        """True if more connections than `max_connections` have a request."""
        return len(self._busy) > self.max_connections

    @property
    def has_idle(self) -> bool:
        """True if a connection is open that has no request."""
        return len(self) > len(self._busy)

    def open(self, connection: Connection) -> None:
        """Add a new connection; others may have to give way."""
        self._counts[connection.peer] += 1
        self._new.setdefault(connection.peer, OrderedDict())[connection] = self._clock()
        while len(self) > self.max_connections:
            victim = self._choose_victim()
            if victim is None:
                return
            self.evictions += 1
            self.close(victim)
            victim.give_way()

    def start_request(self, connection: Connection) -> None:
        """Mark a connection as busy: its request head is complete."""
        if self._remove_idle(connection):
            self._busy.add(connection)

    def end_request(self, connection: Connection) -> None:
        """Mark a connection as idle: its response is complete."""
        if connection in self._busy:
            self._busy.remove(connection)
            self._idle.setdefault(connection.peer, OrderedDict())[connection] = self._clock()

    def close(self, connection: Connection) -> None:
        """Remove a connection; one that was removed before is ignored."""
        if not self._remove_idle(connection) and connection not in self._busy:
            return
        self._busy.discard(connection)
        self._counts[connection.peer] -= 1
        if not self._counts[connection.peer]:
            del self._counts[connection.peer]
            self._new.pop(connection.peer, None)
            self._idle.pop(connection.peer, None)

    def _remove_idle(self, connection: Connection) -> bool:
        for waiting in (self._new.get(connection.peer), self._idle.get(connection.peer)):
            if waiting is not None and connection in waiting:
                del waiting[connection]
                return True
        return False

    def _choose_victim(self) -> Connection | None:
        if sum(map(len, self._new.values())) > self.reserved:
            return self._oldest(self._new)[0]
        idle, since_s = self._oldest(self._idle)
        if idle is not None and since_s <= self._ledger.stalled_since_s:
            return idle
        return self._ledger.take_stalled()

    def _oldest(self, waiting: dict[int, OrderedDict[Connection, float]]) -> tuple[Connection | None, float]:
        """Return the oldest connection of the peer with the most, and since when it waits (rule 5)."""
        peers = [peer for peer, connections in waiting.items() if connections]
        if not peers:
            return None, math.inf
        return next(iter(waiting[max(peers, key=self._counts.__getitem__)].items()))


@dataclass(eq=False, slots=True)
class HeldBytes:
    """Bytes of one request or response that are in memory.

    Attributes:
        connection: the client's connection.
        size: number of bytes.
        marked_size, marked_s: size and time of the last progress.
        can_give_way: False once a request's body is complete.
    """

    connection: Connection
    marked_s: float
    size: int = 0
    marked_size: int = 0
    can_give_way: bool = True

    @property
    def counted(self) -> int:
        """The bytes that count (rule 3)."""
        return max(self.size - FREE_BYTES, 0)


class ByteLedger:
    """The bytes of all requests and unread responses in memory (rules 3 and 4).

    Args:
        max_bytes: limit of the counted bytes.
        clock: returns monotonic seconds.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: dict[HeldBytes, None] = {}
        self.counted_bytes = 0

    def hold(self, connection: Connection) -> HeldBytes:
        """Return an entry of 0 bytes for a connection; `release` it later."""
        held = HeldBytes(connection, self._clock())
        self._entries[held] = None
        return held

    def grow(self, held: HeldBytes, count: int) -> bool:
        """Count further bytes; others may have to give way.

        Args:
            held: an entry of `hold`.
            count: number of bytes.

        Returns:
            False if the limit is reached and nothing else can give way.
        """
        before = held.counted
        held.size += count
        if held.size - held.marked_size >= PROGRESS_BYTES:
            held.marked_size, held.marked_s = held.size, self._clock()
        if held in self._entries:
            self.counted_bytes += held.counted - before
        while self.counted_bytes > self._max_bytes:
            others = [one for one in self._entries if one is not held and one.can_give_way and one.counted]
            if not others:
                return held.counted == before
            victim = self._choose(others)
            self.release(victim)
            victim.connection.give_way()
        return True

    def release(self, held: HeldBytes) -> None:
        """Remove an entry; one that was removed before is ignored."""
        if held in self._entries:
            del self._entries[held]
            self.counted_bytes -= held.counted

    @property
    def stalled_since_s(self) -> float:
        """Time of the last progress of those bytes that made none for the longest time, or infinity."""
        return min((one.marked_s for one in self._entries if one.can_give_way), default=math.inf)

    def take_stalled(self) -> Connection | None:
        """Release the bytes that made no progress for the longest time; return their connection, or None."""
        stalled = [one for one in self._entries if one.can_give_way]
        if not stalled:
            return None
        victim = min(stalled, key=lambda one: one.marked_s)
        self.release(victim)
        return victim.connection

    def _choose(self, others: list[HeldBytes]) -> HeldBytes:
        totals: Counter[int] = Counter()
        for one in self._entries:
            totals[one.connection.peer] += one.counted
        now = self._clock()
        return max(others, key=lambda one: (totals[one.connection.peer], one.counted * (now - one.marked_s)))
