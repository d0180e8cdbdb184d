"""Unix stream sockets: long paths, credentials of a peer, a listener with a thread per connection."""

import logging
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

logger = logging.getLogger(__name__)

APPS_SOCKET_VARIABLE: Final = "AIRWEIGHTS_APPS_SOCKET"  # names the socket for applications to their clients
FAMILY_VARIABLE: Final = "AIRWEIGHTS_FAMILY"  # names the family to `device-agent files` and to a health command
MAX_SOCKET_PATH_BYTES: Final = 107  # sizeof(sun_path) - 1 (unix(7))
LISTEN_BACKLOG: Final = 16
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred (unix(7), SO_PEERCRED)


class PeerCredentials(NamedTuple):
    """The process that connected a Unix socket, as the kernel attests it.

    Attributes:
        pid: id of the process; 0 if it lives outside of this process's PID namespace.
        uid: its user.
        gid: its primary group.
    """

    pid: int
    uid: int
    gid: int


def peer_credentials(connection: socket.socket) -> PeerCredentials:
    """Return the credentials of the process that connected a Unix socket."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return PeerCredentials(*_CREDENTIALS.unpack(data))


def listen_unix(path: Path, *, mode: int, backlog: int) -> socket.socket:
    """Listen on a Unix socket. A socket that a crashed server left at the path is replaced.

    Args:
        path: path of the socket.
        mode: its permissions.
        backlog: connections that may wait to be accepted.

    Raises:
        FileExistsError: another server uses the path.
        OSError: the operating system refuses, for example because a file lies at the path.
    """
    with ShortSocketPath(path) as name:
        with suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
            if stat.S_ISSOCK(path.stat().st_mode):
                probe.setblocking(False)  # a server whose backlog is full is one, too
                try:
                    probe.connect(name)
                except ConnectionRefusedError:
                    path.unlink()  # left over: no server listens there
                else:
                    raise FileExistsError("another server uses it")
        listener = socket.socket(socket.AF_UNIX)
        try:
            mask = os.umask(0o777 & ~mode)
            try:
                listener.bind(name)
            finally:
                os.umask(mask)
            listener.listen(backlog)
        except BaseException:
            listener.close()
            raise
    return listener


class UnixListener:
    """A listening Unix socket: one thread accepts, and each admitted connection has a thread of its own.

    Args:
        path: path of the socket; a socket that a crashed daemon left is replaced.
        mode: permission bits of the socket.
        serve: called in a connection's thread; it closes the connection.
        name: name of the accepting thread.
        admit: called in the accepting thread; False closes the connection.

    Raises:
        FileExistsError: another server uses the path.
        OSError: the operating system refuses, for example because a file lies at the path.
    """

    def __init__(
        self,
        path: Path,
        mode: int,
        serve: Callable[[socket.socket], None],
        *,
        name: str,
        admit: Callable[[socket.socket], bool] = lambda _: True,
    ) -> None:
        self._path, self._serve, self._name, self._admit = path, serve, name, admit
        self._socket = listen_unix(path, mode=mode, backlog=LISTEN_BACKLOG)
        threading.Thread(target=self._accept_connections, name=name, daemon=True).start()

    def close(self) -> None:
        """Remove the socket and stop listening. Open connections end with the process."""
        self._path.unlink(missing_ok=True)
        self._socket.close()

    def _accept_connections(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            try:
                is_admitted = self._admit(connection)
            except Exception:  # a client that cannot be examined must not end the listener
                logger.exception("%s: a connection failed", self._name)
                is_admitted = False
            if not is_admitted:
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), name=f"{self._name}-client", daemon=True).start()


class ShortSocketPath:
    """A socket name that fits into sun_path: the path, or one through /proc/self/fd if it is longer."""

    def __init__(self, path: Path) -> None:
        self._path, self._fd = path, -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= MAX_SOCKET_PATH_BYTES:
            return str(self._path)
        self._fd = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}/{self._path.name}"

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
