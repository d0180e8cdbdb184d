"""The operations of a store: a flat set of files by path, with conditional writes.

Rules:
- A file appears whole or not at all, never half-written.
- `create` never replaces a file. `swap` replaces the bytes that `read` returned, and no others.
- An answer can be lost. So a caller whose `create` or `swap` returns False compares the bytes: they may be its own.
- Sizes and times come from listings; a version, such as an ETag, is compared but never taken for a digest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# header fields that caches obey: what is named by its version or digest never changes
IMMUTABLE = "public, max-age=31536000, immutable"
SHORT_LIVED = "public, max-age=60, must-revalidate"
PRIVATE = "private, no-store"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as a listing shows it.

    Attributes:
        path: path below the store's URL.
        size: its bytes.
        modified_s: when it was written, by the store's clock, in Unix seconds.
    """

    path: str
    size: int
    modified_s: float


@dataclass(frozen=True, slots=True)
class StoredContent:
    """The content of a file.

    Attributes:
        data: its bytes.
        version: names this content of this path, for `swap`.
    """

    data: bytes
    version: str


class ReadableStore(Protocol):
    """A place that has published files.

    Attributes:
        url: the URL, without credentials, for messages.
    """

    url: str

    def list_files(self) -> Mapping[str, StoredFile]:
        """Return path → file, for every file below the URL."""

    def read(self, path: str) -> StoredContent | None:
        """Return a file's content, or None if there is no such file."""

    def download(self, path: str, target: Path) -> None:
        """Write a file's content to a local file.

        Args:
            path: path below the URL.
            target: the local file to write.

        Raises:
            RepositoryDamaged: there is no such file.
        """


class Store(ReadableStore, Protocol):
    """A place for published files."""

    def put(self, path: str, source: bytes | Path, cache_control: str) -> None:
        """Write a file, whether it exists or not.

        Args:
            path: path below the URL.
            source: the bytes, or the file with them.
            cache_control: value of `Cache-Control` that the store sends with it.
        """

    def create(self, path: str, source: bytes | Path, cache_control: str) -> bool:
        """Write a file unless it exists; return whether it was written.

        Args:
            path: path below the URL.
            source: the bytes, or the file with them.
            cache_control: value of `Cache-Control` that the store sends with it.
        """

    def swap(self, path: str, data: bytes, expected: str | None, cache_control: str) -> bool:
        """Replace a file if it still has a version; return whether it was replaced.

        Args:
            path: path below the URL.
            data: the new bytes.
            expected: the version that `read` returned; None if there must be no such file.
            cache_control: value of `Cache-Control` that the store sends with it.
        """

    def delete(self, paths: list[str]) -> None:
        """Delete files; those that do not exist are ignored."""

    def check_conditional_puts(self) -> None:
        """Check that `create` and `swap` really compare.

        Raises:
            ConditionalPutsMissing: the store replaces a file that it must not.
        """
