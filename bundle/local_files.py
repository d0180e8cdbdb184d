"""Read files that a person names.

Rules:
- Only regular files are read: reading a FIFO can wait forever, and reading a device has effects or no end.
- A size is checked before the bytes are read, so memory is bounded by the limit of what the file should be.
- Text is UTF-8. A byte order mark at its start and Windows line ends are accepted; UTF-16 is refused by name.
"""

import codecs
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

from bundle.errors import FileNotRegular, TextEncodingUnsupported, TooLarge

UTF16_MARKS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
KINDS: Final = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)


def check_regular_file(path: Path) -> None:
    """Check that a path is a regular file, or a link to one, without opening it.

    Raises:
        FileNotRegular: it is a FIFO, a device or a socket.
        OSError: it does not exist, is a folder, or cannot be reached.
    """
    _check_kind(path, path.stat().st_mode)


def open_local_file(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        FileNotRegular: it is a FIFO, a device or a socket.
        OSError: it does not exist, is a folder, or cannot be opened.
    """
    check_regular_file(path)  # before `open`, which has effects on some devices
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check_kind(path, os.fstat(descriptor).st_mode)
        return open(descriptor, "rb")  # the caller closes it
    except BaseException:
        os.close(descriptor)
        raise


def read_local_file(path: Path, max_bytes: int) -> bytes:
    """Read a regular file.

    Args:
        path: the file.
        max_bytes: largest accepted size.

    Raises:
        FileNotRegular: it is a FIFO, a device or a socket.
        TooLarge: it is larger than `max_bytes`.
        OSError: it does not exist, is a folder, or cannot be read.
    """
    with open_local_file(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        data = stream.read(max_bytes + 1) if size <= max_bytes else b""
    if size > max_bytes or len(data) > max_bytes:
        raise TooLarge(f"{path}: found {max(size, len(data)):,} bytes, expected at most {max_bytes:,}")
    return data


def missing_file_hint(path: Path) -> str:
    """Return a hint for a path that does not exist: the missing folder, or the file with the nearest name."""
    folder = path.absolute().parent
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.name != path.name]
    except OSError:
        return f"check the path: there is no folder {folder}"
    from bundle.suggestion import suggest  # only for an error: difflib would stay in the daemon's memory

    return f"check the path{suggest(path.name, names)}"


def decode_text(data: bytes, *, where: str) -> str:
    """Decode UTF-8 text, without a byte order mark and with `\\n` as line end.

    Args:
        data: bytes of the text.
        where: name of the file, for messages.

    Raises:
        TextEncodingUnsupported: the text is UTF-16.
        UnicodeDecodeError: the bytes are not UTF-8.
    """
    return normalize_text(data, where=where).decode()


def normalize_text(data: bytes, *, where: str) -> bytes:
    """Return the bytes of a text without a byte order mark, and with `\\n` as line end.

    Args:
        data: bytes of the text.
        where: name of the file, for messages.

    Raises:
        TextEncodingUnsupported: the text is UTF-16.
    """
    if data.startswith(UTF16_MARKS):
        raise TextEncodingUnsupported(f"{where}: found UTF-16 text, expected UTF-8", hint="save the file as UTF-8")
    return data.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")


def _check_kind(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    for is_kind, name in KINDS:
        if is_kind(mode):
            raise FileNotRegular(f"{path}: found {name}, expected a regular file")
