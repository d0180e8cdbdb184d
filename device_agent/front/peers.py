"""Find the user of this machine who is at the other end of a connection.

A Unix socket says so itself (SO_PEERCRED). For a TCP connection over loopback, the kernel's socket diagnosis does
(sock_diag(7)); its netlink socket is opened before the jail closes. An address would not identify a client, because
every program can use all 2^24 addresses of 127.0.0.0/8.
"""

import contextlib
import socket
import struct
from typing import Final

UNKNOWN_PEER: Final = -1
NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
NLM_F_REQUEST: Final = 1
MAX_REPLY_BYTES: Final = 8192
# linux/inet_diag.h: inet_diag_req_v2 before its socket id, the id, and the id's offset and uid's in the reply
_REQUEST: Final = struct.Struct("=BBBxI")
_SOCKET_ID: Final = struct.Struct("!HH16s16s")
_NETLINK_HEAD: Final = struct.Struct("=IHHII")
_STATE_OFFSET: Final = _NETLINK_HEAD.size + 1
_TIME_WAIT: Final = 6  # the client has closed its socket, and the kernel no longer knows whose it was
_NO_COOKIE: Final = b"\xff" * 8
_UID_OFFSET: Final = _NETLINK_HEAD.size + 4 + 48 + 12


class PeerFinder:
    """Finds the user id of clients. Create it before the jail closes."""

    def __init__(self) -> None:
        self._diagnosis: socket.socket | None = None
        self._sequence = 0
        with contextlib.suppress(OSError):  # a kernel without CONFIG_INET_DIAG: all TCP clients are one peer
            self._diagnosis = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_SOCK_DIAG
            )

    def find(self, connection: socket.socket) -> int:
        """Return the user id of the client, or UNKNOWN_PEER."""
        try:
            if connection.family == socket.AF_UNIX:
                return int(struct.unpack("=iIi", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])
            return self._find_tcp(connection)
        except (OSError, struct.error):
            return UNKNOWN_PEER

    def _find_tcp(self, connection: socket.socket) -> int:
        if self._diagnosis is None:
            return UNKNOWN_PEER
        (own_host, own_port), (host, port) = connection.getsockname()[:2], connection.getpeername()[:2]
        hosts = [socket.inet_pton(connection.family, text).ljust(16, b"\0") for text in (host, own_host)]
        # the client's socket has our peer's address as its source
        identity = _SOCKET_ID.pack(port, own_port, *hosts) + bytes(4) + _NO_COOKIE  # any interface
        body = _REQUEST.pack(connection.family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF) + identity
        size = _NETLINK_HEAD.size + len(body)
        self._sequence = (self._sequence + 1) % 2**32
        head = _NETLINK_HEAD.pack(size, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, self._sequence, 0)
        self._diagnosis.send(head + body)
        reply = self._diagnosis.recv(MAX_REPLY_BYTES)
        _, kind, _, sequence, _ = _NETLINK_HEAD.unpack_from(reply)
        if kind != SOCK_DIAG_BY_FAMILY or sequence != self._sequence or reply[_STATE_OFFSET] == _TIME_WAIT:
            return UNKNOWN_PEER
        return int(struct.unpack_from("=I", reply, _UID_OFFSET)[0])
