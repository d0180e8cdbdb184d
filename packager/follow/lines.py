"""Lines of devices: from the collector's store, or from a file.

A file of lines has one JSON object on each line: `{"received_s": N, "line": "…"}`, where `line` is the signed line as
the device sent it. Files that end in `.gz` are compressed. The statement of an evidence file is skipped.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from bundle.local_files import open_local_file
from fleet.database import Database
from fleet.line import ReceivedLine
from fleet.queries import read_lines
from packager.errors import LinesMalformed

MAX_ROW_BYTES: Final = 128 * 1024 * 1024  # far more than a line of a device; the statement of evidence is the longest


class LineSource(Protocol):
    """Source of the lines of a family."""

    def read(self, family: str, since_s: int) -> Iterator[ReceivedLine]:
        """Iterate over the lines of a family that were received from a time on.

        Args:
            family: name of the family; a source may return lines of others, too.
            since_s: the time, Unix seconds.
        """
        ...


class StoreLines:
    """Lines of the collector's store.

    Args:
        url: URL of the store (fleet.database).
        repository_id: id of the repository, 64 hexadecimal digits.

    Raises:
        FleetStoreInvalid: the URL is not one, or the store is of another repository.
        FleetStoreUnavailable: the store cannot be opened.
    """

    def __init__(self, url: str, repository_id: str) -> None:
        self._database = Database(url, repository_id)

    def read(self, family: str, since_s: int) -> Iterator[ReceivedLine]:
        """Iterate over the lines of a family that were received from a time on.

        Args:
            family: name of the family.
            since_s: the time, Unix seconds.

        Raises:
            FleetStoreUnavailable: the store cannot be read.
        """
        return read_lines(self._database, family, since_s)


class FileLines:
    """Lines of a file.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, family: str, since_s: int) -> Iterator[ReceivedLine]:
        """Iterate over the lines of a family that were received from a time on.

        Args:
            family: name of the family.
            since_s: the time, Unix seconds.

        Raises:
            LinesMalformed: the file cannot be read, or a line has another form.
        """
        for number, row in enumerate(read_rows(self._path), 1):
            if "schema" in row:
                continue  # the statement of an evidence file
            received_s, line = row.get("received_s"), row.get("line")
            if set(row) != {"received_s", "line"} or type(received_s) is not int or not isinstance(line, str):
                raise LinesMalformed(f"{self._path} line {number}: expected an object of received_s and line")
            if received_s >= since_s and f'"family":"{family}"' in line:
                try:
                    data = line.encode()
                except UnicodeEncodeError as error:  # half of a surrogate pair
                    raise LinesMalformed(f"{self._path} line {number}: expected text") from error
                yield ReceivedLine(received_s, data)


@contextmanager
def open_lines(path: Path) -> Iterator[BinaryIO]:
    """Open a file of lines, compressed by gzip if its name ends in .gz, for a `with` block.

    Raises:
        FileNotRegular: it is a FIFO, a device or a socket.
        OSError: it cannot be opened.
    """
    with open_local_file(path) as stream:
        if path.suffix == ".gz":
            with gzip.open(stream) as unpacked:
                yield unpacked  # type: ignore[misc]  # has all methods of BinaryIO that are used
        else:
            yield stream


def read_rows(path: Path) -> Iterator[dict[str, object]]:
    """Iterate over the JSON objects of a file, one on each line.

    Raises:
        FileNotRegular: it is a FIFO, a device or a socket.
        LinesMalformed: the file cannot be read, or a line is longer than MAX_ROW_BYTES or not a JSON object.
    """
    number = 0
    try:
        with open_lines(path) as file:
            for data in iter(lambda: file.readline(MAX_ROW_BYTES), b""):
                number += 1
                row = json.loads(data)
                if not isinstance(row, dict):
                    raise LinesMalformed(f"{path} line {number}: found no JSON object")
                yield row
    except (OSError, EOFError, zlib.error) as error:
        raise LinesMalformed(f"{path}: cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise LinesMalformed(f"{path} line {number}: not JSON") from error


def is_utf8(data: bytes) -> bool:
    """Return whether bytes are UTF-8, as every signed line is."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
