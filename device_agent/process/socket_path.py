"""Unix sockets at a path: listening, and names of paths that are longer than a socket's address."""

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

MAX_SOCKET_PATH_BYTES: Final = 107  # sizeof(sun_path) - 1 (unix(7))


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
