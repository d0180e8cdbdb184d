"""Ports of loopback for servers that cannot choose one themselves.

The kernel gives ports of its local range to outgoing connections and to servers that ask for any. One of these could
take a port between the choice here and the start of the server; so the ports chosen here are outside of that range.
"""

import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

# SeaweedFS adds 10000 to some ports
_CHOICES: Final = range(10_000, 50_000)
_LOCAL_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Return so many different ports on which nobody listens."""
    first, last = map(int, _LOCAL_RANGE.read_text().split())
    choices = [port for port in _CHOICES if not first <= port <= last] or list(_CHOICES)
    found: list[int] = []
    while len(found) < count:
        port = secrets.choice(choices)  # not `random`: hypothesis seeds it alike in all processes
        if port not in found and _is_free(port):
            found.append(port)
    return found


def free_port() -> int:
    """Return a port on which nobody listens."""
    return free_ports(1)[0]


def _is_free(port: int) -> bool:
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False
