"""Tells systemd what the daemon is doing (sd_notify(3)), where it was started by systemd.

Rules:
1. `READY=1` once what is held serves, `STOPPING=1` when the end begins, `STATUS=` for people.
2. `WATCHDOG=1` twice an interval, and only while the model answers: an agent whose model hangs is started again.
3. Without NOTIFY_SOCKET nothing happens; without WATCHDOG_USEC no thread is started.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Final

logger = logging.getLogger(__name__)

MICROSECONDS_PER_S: Final = 1_000_000


class SystemdNotifier:
    """Sends to the socket that systemd named.

    Args:
        environment: of the process.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        is_for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environment.get("WATCHDOG_USEC", "") if is_for_us else ""
        self._interval_s = int(usec) / MICROSECONDS_PER_S / 2 if usec.isdecimal() and int(usec) else None
        self._stop_event = threading.Event()

    def send(self, *assignments: str) -> None:
        """One message of words such as "READY=1"; a systemd that does not listen is no failure of ours."""
        if not self._address:
            return
        # a leading @ names an abstract socket
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto("\n".join(assignments).encode(), address)
        except OSError as error:
            logger.warning("systemd does not listen: %s", error)

    def start_watchdog(self, is_answering: Callable[[], bool]) -> None:
        """Start to say that all is well, for as long as `answers` says so (rule 2)."""
        if self._interval_s is not None and self._address:
            threading.Thread(target=self._send_keepalives, args=(is_answering,), name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Rule 1; no further watchdog messages."""
        self._stop_event.set()
        self.send("STOPPING=1")

    def _send_keepalives(self, is_answering: Callable[[], bool]) -> None:
        while not self._stop_event.wait(self._interval_s):
            if is_answering():
                self.send("WATCHDOG=1")
            else:
                logger.error("the model does not answer: no watchdog message")
