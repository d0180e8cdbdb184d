"""Which connection, body or waiting request gives way: the decisions, without I/O."""

from device_agent.front.connections import FREE_BYTES, PROGRESS_BYTES, ByteLedger, ConnectionTable
from device_agent.front.fair_queue import FairQueue

MIB = 1024 * 1024


class Client:
    """A connection that records whether it had to give way."""

    def __init__(self, peer: int = 0) -> None:
        self.peer = peer
        self.gave_way = False

    def give_way(self) -> None:
        self.gave_way = True


class Bench:
    """A ConnectionTable and a ByteLedger with a clock of their own."""

    def __init__(self, max_connections: int, max_bytes: int = 10 * MIB) -> None:
        self.now = 0.0
        self.ledger = ByteLedger(max_bytes, lambda: self.now)
        self.table = ConnectionTable(max_connections, self.ledger, lambda: self.now)

    def open(self, count: int, *, peer: int = 0, is_used: bool = False) -> list[Client]:
        """Open connections; with `is_used`, complete a request on each."""
        clients = [Client(peer) for _ in range(count)]
        for client in clients:
            self.now += 0.001
            self.table.open(client)
            if is_used:
                self.table.start_request(client)
                self.table.end_request(client)
        return clients


def gave_way(clients: list[Client]) -> list[int]:
    """Return the numbers of the clients that gave way."""
    return [number for number, client in enumerate(clients) if client.gave_way]


def test_the_oldest_new_connections_give_way_and_a_busy_one_never_does() -> None:
    bench = Bench(40)
    clients = bench.open(40)
    bench.table.start_request(clients[0])
    clients += bench.open(30)
    assert gave_way(clients) == list(range(1, 31))
    assert len(bench.table) == 40


def test_connections_that_had_a_response_outlive_those_that_never_had_one() -> None:
    bench = Bench(40)
    [used] = bench.open(1, is_used=True)
    new = bench.open(100)
    assert not used.gave_way
    assert gave_way(new) == list(range(61))


def test_new_connections_are_not_kept_out_by_those_that_had_a_response() -> None:
    bench = Bench(40)
    old = bench.open(60, is_used=True)
    assert gave_way(old) == list(range(20))
    new = bench.open(bench.table.reserved)
    assert gave_way(new) == []
    assert gave_way(old) == list(range(20 + bench.table.reserved))


def test_a_few_new_connections_stay_beyond_the_limit() -> None:
    bench = Bench(2)
    table, busy = bench.table, bench.open(2)
    for client in busy:
        table.start_request(client)
    new = bench.open(table.reserved)
    states = [table.is_full]
    new += bench.open(1)
    assert gave_way(new) == [0]
    table.start_request(new[1])
    states.append(table.is_full)
    table.close(busy[0])
    table.close(busy[0])
    assert [*states, table.is_full] == [False, True, False]


def test_the_user_with_the_most_connections_gives_way_first() -> None:
    bench = Bench(40)
    [one] = bench.open(1, peer=1)
    many = bench.open(60, peer=2)
    assert not one.gave_way
    assert len(gave_way(many)) == 21


def test_of_idle_connections_and_bodies_the_one_without_progress_for_longest_gives_way() -> None:
    bench = Bench(6)
    first, second, third = bench.open(3, is_used=True)
    for client in (first, third):
        bench.table.start_request(client)
        bench.ledger.hold(client)
    new = bench.open(bench.table.reserved)
    assert gave_way([first, second, third]) == [1]
    bench.table.start_request(new[0])
    bench.open(1)
    assert gave_way([first, second, third]) == [0, 1]


class Ledger:
    """A ByteLedger with a clock of its own."""

    def __init__(self, max_bytes: int) -> None:
        self.now = 0.0
        self.ledger = ByteLedger(max_bytes, lambda: self.now)


def test_the_body_that_holds_the_most_for_the_longest_gives_way() -> None:
    bench = Ledger(10 * MIB)
    clients = [Client() for _ in range(3)]
    held = [bench.ledger.hold(client) for client in clients]
    assert bench.ledger.grow(held[0], 4 * MIB)
    assert bench.ledger.grow(held[1], 4 * MIB)
    bench.now = 5.0
    assert bench.ledger.grow(held[1], PROGRESS_BYTES)
    bench.now = 6.0
    assert bench.ledger.grow(held[2], 4 * MIB)
    assert [client.gave_way for client in clients] == [True, False, False]


def test_single_bytes_are_no_progress() -> None:
    bench = Ledger(10 * MIB)
    slow, fast = Client(), Client()
    held = [bench.ledger.hold(slow), bench.ledger.hold(fast)]
    for one in held:
        bench.ledger.grow(one, 4 * MIB)
    for second in range(10):
        bench.now = float(second)
        bench.ledger.grow(held[0], 1)
        bench.ledger.grow(held[1], PROGRESS_BYTES)
    assert bench.ledger.take_stalled() is slow
    assert bench.ledger.take_stalled() is fast
    assert bench.ledger.take_stalled() is None


def test_a_body_gives_way_to_a_connection_once() -> None:
    bench = Bench(3)
    clients = []
    for _ in range(9):
        clients += bench.open(1)
        bench.table.start_request(clients[-1])
        bench.ledger.hold(clients[-1])
    assert gave_way(clients) == list(range(6))
    assert len(bench.table) == 3


def test_complete_bodies_stay_and_small_ones_are_always_accepted() -> None:
    bench = Ledger(4 * MIB)
    waiting = Client()
    held = bench.ledger.hold(waiting)
    assert bench.ledger.grow(held, 4 * MIB + FREE_BYTES)
    held.can_give_way = False
    newcomer = bench.ledger.hold(Client())
    assert bench.ledger.grow(newcomer, FREE_BYTES)
    assert not bench.ledger.grow(newcomer, 1)
    assert not waiting.gave_way
    bench.ledger.release(newcomer)
    bench.ledger.release(held)
    bench.ledger.release(held)
    assert bench.ledger.counted_bytes == 0


def test_peers_take_turns_and_returned_items_come_first() -> None:
    queue: FairQueue[Client] = FairQueue()
    many, one = [Client(peer=1) for _ in range(3)], Client(peer=2)
    for client in (*many, one):
        queue.append(client)
    assert [queue.popleft() for _ in range(2)] == [many[0], one]
    queue.appendleft(one)
    assert queue.popleft() is one
    assert list(queue) == many[1:]
    assert queue.remove_all(lambda client: client is many[1]) == [many[1]]
    assert (queue.popleft(), len(queue), queue.popleft()) == (many[2], 0, None)


def test_an_item_that_does_not_fit_is_passed_over() -> None:
    queue: FairQueue[Client] = FairQueue()
    large, small, other = Client(peer=1), Client(peer=1), Client(peer=2)
    for client in (large, small, other):
        queue.append(client)
    assert queue.popleft(lambda client: client is not large) is small
    assert queue.popleft(lambda client: client is not large) is other
    assert queue.popleft(lambda client: client is not large) is None
    assert queue.popleft() is large


def test_the_newest_item_of_the_largest_peer_makes_room() -> None:
    queue: FairQueue[Client] = FairQueue()
    many = [Client(peer=1) for _ in range(3)]
    for client in many:
        queue.append(client)
    assert queue.pop_newest_of_largest(1) is None
    assert queue.pop_newest_of_largest(2) is many[2]
    queue.append(Client(peer=2))
    assert queue.pop_newest_of_largest(2) is None
