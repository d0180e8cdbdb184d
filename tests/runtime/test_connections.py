"""Which connection, body or waiting request gives way: the decisions, without I/O."""

from device_agent.front.connections import FREE_BYTES, PROGRESS_BYTES, RESERVED_CONNECTIONS, ByteLedger, ConnectionTable
from device_agent.front.fair_queue import FairQueue

MIB = 1024 * 1024


class Client:
    """A connection that records whether it had to give way."""

    def __init__(self, peer: int = 0) -> None:
        self.peer = peer
        self.gave_way = False

    def give_way(self) -> None:
        self.gave_way = True


def test_the_oldest_idle_connection_gives_way_and_a_busy_one_never_does() -> None:
    table = ConnectionTable(30)
    clients = [Client() for _ in range(31)]
    for client in clients[:30]:
        table.open(client)
    table.start_request(clients[0])
    table.start_request(clients[1])
    table.end_request(clients[1])
    table.open(clients[30])
    assert [client.gave_way for client in clients] == [number == 2 for number in range(31)]
    assert len(table) == 30


def test_a_few_idle_connections_stay_beyond_the_limit() -> None:
    table = ConnectionTable(2)
    busy = [Client() for _ in range(2)]
    idle = [Client() for _ in range(RESERVED_CONNECTIONS)]
    for client in busy:
        table.open(client)
        table.start_request(client)
    for client in idle:
        table.open(client)
    states = [table.is_full]
    table.open(Client())
    assert [client.gave_way for client in idle] == [True] + [False] * (RESERVED_CONNECTIONS - 1)
    table.start_request(idle[1])
    states.append(table.is_full)
    table.close(busy[0])
    table.close(busy[0])
    assert [*states, table.is_full] == [False, True, False]


def test_the_user_with_the_most_connections_gives_way_first() -> None:
    table = ConnectionTable(40)
    one = Client(peer=1)
    table.open(one)
    many = [Client(peer=2) for _ in range(60)]
    for client in many:
        table.open(client)
    assert not one.gave_way
    assert sum(client.gave_way for client in many) == 21


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
    assert bench.ledger.find_stalled() is slow


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
    assert (queue.popleft(), len(queue)) == (many[2], 0)


def test_the_newest_item_of_the_largest_peer_makes_room() -> None:
    queue: FairQueue[Client] = FairQueue()
    many = [Client(peer=1) for _ in range(3)]
    for client in many:
        queue.append(client)
    assert queue.pop_newest_of_largest(1) is None
    assert queue.pop_newest_of_largest(2) is many[2]
    queue.append(Client(peer=2))
    assert queue.pop_newest_of_largest(2) is None
