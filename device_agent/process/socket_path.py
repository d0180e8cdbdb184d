"""Names of Unix sockets whose path is longer than a socket's address."""

import os
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
