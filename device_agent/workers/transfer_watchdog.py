"""The watchdog of a transfer: it cuts a connection that brings too few bytes of a body.

Rules:
1. The first byte of the body has to arrive within `first_byte_s`: resolving, connecting, TLS, redirects, interim
   responses and header fields included. After it, each window of `window_s` has to bring `min_rate` bytes per second,
   at least one byte.
2. Only time spent waiting for the network counts (`waiting`). A slow disk or the limit of the rate is not the server's
   fault.
3. To cut is to shut the socket down from the watchdog's thread: every blocking call on it then returns, also inside of
   TLS or a parser. The reader calls `check` after each error and at the end of the body.
"""

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from device_agent.errors import ServerTooSlow

MAX_TICK_S: Final = 0.5


class TransferWatchdog:
    """The watchdog of all transfers of a process, which run one after the other.

    Args:
        first_byte_s: seconds from the request to the first byte of the body.
        window_s: length of the window over which the rate is measured, in seconds.
    """

    def __init__(self, first_byte_s: float, window_s: float) -> None:
        self._first_byte_s, self._window_s = first_byte_s, window_s
        self._tick_s = min(MAX_TICK_S, first_byte_s / 10, window_s / 10)
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_active = self._is_waiting = False
        self._min_rate = 0
        self._waited_s, self._received = 0.0, 0
        self._samples: deque[tuple[float, int]] = deque()  # (seconds waited, bytes received) of the last window
        self._socket: socket.socket | None = None
        self._problem = ""

    @contextmanager
    def watch(self, min_rate: int) -> Iterator[None]:
        """Watch one transfer during a `with` block.

        Args:
            min_rate: bytes of the body per second.
        """
        with self._condition:
            self._min_rate, self._waited_s, self._received, self._problem = min_rate, 0.0, 0, ""
            self._samples.clear()
            self._is_active = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                self._thread.start()
            self._condition.notify()
        try:
            yield
        finally:
            with self._condition:
                self._is_active = False
                self._drop_socket()

    @contextmanager
    def waiting(self, url: str) -> Iterator[None]:
        """Count the time of a `with` block, in which the network is waited for.

        Args:
            url: the URL for messages.

        Raises:
            ServerTooSlow: the transfer was cut, before or in the block.
        """
        self.check(url)
        with self._condition:
            self._is_waiting = True
        try:
            yield
        finally:
            with self._condition:
                self._is_waiting = False
            self.check(url)

    def use(self, connection: socket.socket) -> None:
        """Set the socket that is shut down to cut the transfer, until another is set or the transfer ends.

        A duplicate is kept: TLS takes the descriptor of a socket over, and http.client closes sockets early.
        """
        kind = connection.family, connection.type, connection.proto
        duplicate = socket.socket(*kind, fileno=os.dup(connection.fileno()))
        with self._condition:
            self._drop_socket()
            self._socket = duplicate
            if self._problem:
                self._cut()

    def close(self) -> None:
        """End the thread; the next transfer starts a new one."""
        with self._condition:
            self._thread = None
            self._condition.notify()

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _cut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def record_body(self, count: int) -> None:
        """Count received bytes of the body."""
        with self._condition:
            if not self._received:
                self._samples.append((self._waited_s, 0))
            self._received += count

    def check(self, url: str) -> None:
        """Check whether the transfer was cut.

        Args:
            url: the URL for messages.

        Raises:
            ServerTooSlow: it was cut.
        """
        if self._problem:
            raise ServerTooSlow(f"{url}: {self._problem}")

    def _run(self) -> None:
        with self._condition:
            last = time.monotonic()
            while self._thread is threading.current_thread():
                if not self._is_active:
                    self._condition.wait()
                    last = time.monotonic()
                    continue
                self._condition.wait(self._tick_s)
                now = time.monotonic()
                if self._is_active and self._is_waiting and not self._problem:
                    # no more than two ticks: this process may have been starved, and not by the server
                    self._waited_s += min(now - last, 2 * self._tick_s)
                    self._problem = self._judge()
                    if self._problem:
                        self._cut()
                last = now

    def _judge(self) -> str:
        if not self._samples:
            if self._waited_s < self._first_byte_s:
                return ""
            return f"no byte of the body in {self._first_byte_s:g} s"
        self._samples.append((self._waited_s, self._received))
        while len(self._samples) > 1 and self._samples[1][0] <= self._waited_s - self._window_s:
            self._samples.popleft()
        started_s, before = self._samples[0]
        elapsed_s, received = self._waited_s - started_s, self._received - before
        if elapsed_s < self._window_s or received >= max(1, self._min_rate * self._window_s):
            return ""
        return f"{received} bytes in {elapsed_s:.0f} s, less than {self._min_rate} bytes per second"
