"""The address spaces of base and target: random reads from the base, forward writes to the target.

An address is an offset into the concatenated files of a table, in table order. A range needs no file name, and it may
cross files (docs/format.md section 9.1). With the feature `repeat`, byte t of the target also has the base address
b + 1 + t, for a base of b bytes: no range crosses from one to the other.

Rules:
1. The target is written forward only. Bytes that are decoded ahead of the cursor wait: at most `pending_bytes` of them,
   in at most `max_items` ranges. A copied range waits as a range with its edits; its bytes are read from the base when
   the cursor reaches it.
2. A range lies inside its table. No two target ranges overlap, and together they leave no hole.
3. A range of the target that is read has been written: it ends at the cursor at most, or, in a copied range, at the
   target range that it fills.
4. A file ends only after its SHA-256 has been compared with the table's.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Protocol

from bundle.errors import PatchLimitExceeded, PatchRangeInvalid, PatchTargetMismatch
from bundle.files import BundleFile
from bundle.patch.limits import IO_CHUNK_BYTES

Range = tuple[int, int]  # start (address), length (bytes)


class FileReader(Protocol):
    """Random access to the files of a bundle."""

    def pread(self, index: int, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes of one file; raise an error if the file ends earlier.

        Args:
            index: the file's index in `files`.
            offset: bytes from the start of the file.
            length: number of bytes.
        """
        ...


class Base(FileReader, Protocol):
    """Random access to the files of the base bundle."""

    @property
    def files(self) -> tuple[BundleFile, ...]:
        """The base's file table, sorted by path."""
        ...


class Target(FileReader, Protocol):
    """Takes the files of the new bundle in table order, each from its first byte to its last.

    What was written can be read again; `pread` gets ranges that were written only.
    """

    def begin_file(self, file: BundleFile) -> None:
        """Begin a file; the bytes of the following `write` calls belong to it."""
        ...

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the file. The caller reuses the buffer, so copy what must be kept."""
        ...

    def end_file(self) -> None:
        """End the file. Its size and SHA-256 equal those of the table."""
        ...


class RangeEdits(Protocol):
    """The elements of a copied range that differ from the base."""

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the edits count against `pending_bytes` while they wait."""
        ...

    def apply_to(self, data: bytes, offset: int) -> bytes | memoryview:
        """Return a piece of the base's range with the edits applied.

        Args:
            data: the base's bytes.
            offset: bytes from the start of the range to the piece; a multiple of 8.
        """
        ...


@dataclass(frozen=True, slots=True)
class _PendingCopy:
    base_start: int
    edits: RangeEdits | None


class BaseBytes:
    """The base's files as one address space; it is empty if the patch has no base.

    Args:
        base: the base bundle; None if the patch has none.
        files: the file table of the patch's header.

    Attributes:
        size: bytes of the base.
        target: the target, if the patch has the feature `repeat`, else None.
    """

    def __init__(self, base: FileReader | None, files: tuple[BundleFile, ...]) -> None:
        self._base = base
        self.target: TargetBytes | None = None
        self._ends = list(accumulate(file.size for file in files))
        self.size = self._ends[-1] if files else 0

    def check_range(self, start: int, length: int, where: str, fills: int | None = None) -> None:
        """Refuse a range that lies neither in the base nor, with the feature `repeat`, in the written target.

        Args:
            start: address of the range.
            length: number of bytes.
            where: name of the frame in the error.
            fills: target address of the range that it fills later; None if it is read now.

        Raises:
            PatchRangeInvalid: the range is not inside the base, or not written.
        """
        if self.target is not None and start > self.size:
            end, limit = start - self.size - 1 + length, self.target.cursor if fills is None else fills
            if length < 0 or end > limit:
                raise PatchRangeInvalid(f"{where}: range up to byte {end} of the target, only {limit} are written")
            return
        if start < 0 or length < 0 or start + length > self.size:
            raise PatchRangeInvalid(
                f"{where}: base range [{start}, {start + length}) is not in the base's {self.size} bytes"
            )

    def read(self, start: int, length: int) -> bytes:
        """Return the bytes of a range that has been checked.

        Args:
            start: address of the range.
            length: number of bytes.
        """
        if self.target is not None and start > self.size:
            return self.target.read(start - self.size - 1, length)
        index = bisect_right(self._ends, start)
        if self._base is not None and length and start + length <= self._ends[index]:
            return self._base.pread(index, start - self._file_start(index), length)
        return b"".join(self._read_parts(index, start, length))

    def read_ranges(self, ranges: Sequence[Range]) -> bytes:
        """Return the joined bytes of several ranges."""
        if len(ranges) == 1:
            return self.read(*ranges[0])
        return b"".join(self.read(start, length) for start, length in ranges)

    def _file_start(self, index: int) -> int:
        return self._ends[index - 1] if index else 0

    def _read_parts(self, index: int, start: int, length: int) -> list[bytes]:
        out = []
        while length and self._base is not None:
            piece = min(length, self._ends[index] - start)
            if piece:
                out.append(self._base.pread(index, start - self._file_start(index), piece))
            start, length, index = start + piece, length - piece, index + 1
        return out


class TargetBytes:
    """The target's files as one address space, written by a cursor that only moves forward.

    Args:
        target: receives the files.
        files: the file table of the patch's header.
        base: the source of copied ranges.
        pending_bytes: maximum number of bytes that may wait ahead of the cursor.
        max_items: maximum number of ranges that may wait ahead of the cursor.
    """

    def __init__(
        self, target: Target, files: tuple[BundleFile, ...], base: BaseBytes, *, pending_bytes: int, max_items: int
    ) -> None:
        self.size: Final = sum(file.size for file in files)
        self.cursor = 0
        self._target = target
        self._base = base
        self._files = list(reversed(files))
        self._written = BaseBytes(target, files)
        self._file_end = 0
        self._hash = hashlib.sha256()
        self._max_pending_bytes = pending_bytes
        self._max_items = max_items
        self._pending = 0
        # Sorted by start, descending, so that the next one is popped from the end.
        self._starts: list[int] = []
        self._waiting_items: list[tuple[int, bytes | _PendingCopy]] = []

    def open_first_file(self) -> None:
        """Begin the first file, after ending the empty files before it."""
        self._open_next_file()

    def write_ranges(self, ranges: Sequence[Range], data: bytes | memoryview, where: str) -> None:
        """Write the target bytes of one frame, or let them wait if they lie ahead of the cursor.

        Args:
            ranges: target ranges.
            data: the joined content of the ranges; exactly as long as they are together.
            where: name of the frame in errors.

        Raises:
            PatchRangeInvalid: a range is outside the target, or overlaps another one.
            PatchLimitExceeded: too many bytes or ranges wait.
        """
        view = memoryview(data)
        position = 0
        for start, length in ranges:
            piece = view[position : position + length]
            position += length
            if start == self.cursor and length:
                self._check_free(start, length, where)
                self._write(piece)
                self._drain()
            elif length:
                self._add_pending(length, where)
                self._insert(start, length, bytes(piece), where)

    def copy_range(self, start: int, base_start: int, length: int, where: str, edits: RangeEdits | None = None) -> None:
        """Add a target range that equals a base range except for its edits.

        Args:
            start: target address.
            base_start: base address.
            length: number of bytes.
            where: name of the frame in errors.
            edits: the elements that differ; None for an exact copy.

        Raises:
            PatchRangeInvalid: a range is outside its table, or overlaps another target range.
            PatchLimitExceeded: too many edits or ranges wait.
        """
        self._base.check_range(base_start, length, where, fills=start)
        if edits is not None:
            self._add_pending(edits.waiting_bytes, where)
        if length:
            self._insert(start, length, _PendingCopy(base_start, edits), where)

    def write_at_cursor(self, data: bytes | memoryview, where: str) -> None:
        """Write bytes of a stream at the cursor.

        Args:
            data: the next target bytes.
            where: name of the frame in errors.

        Raises:
            PatchRangeInvalid: the bytes overlap a waiting range, or the target ends before them.
        """
        self._check_free(self.cursor, len(data), where)
        self._write(data)

    def read(self, start: int, length: int) -> bytes:
        """Return bytes that were written.

        Args:
            start: target address.
            length: number of bytes.
        """
        return self._written.read(start, length)

    def drain(self) -> None:
        """Write the waiting ranges that the cursor has reached."""
        self._drain()

    def finish(self) -> None:
        """Check that the whole target has been written.

        Raises:
            PatchRangeInvalid: the target has a hole.
        """
        if self.cursor != self.size or self._waiting_items:
            raise PatchRangeInvalid(f"patch leaves a hole in the target: byte {self.cursor} of {self.size} is missing")

    def _add_pending(self, length: int, where: str) -> None:
        if self._pending + length > self._max_pending_bytes:
            raise PatchLimitExceeded(
                f"{where}: {self._pending + length} bytes wait ahead of the cursor, the header announced "
                f"{self._max_pending_bytes}"
            )
        self._pending += length

    def _insert(self, start: int, length: int, item: bytes | _PendingCopy, where: str) -> None:
        self._check_free(start, length, where)
        if len(self._waiting_items) >= self._max_items:
            raise PatchLimitExceeded(f"{where}: more than {self._max_items} ranges wait ahead of the cursor")
        at = self._find_index(start)
        self._starts.insert(at, -start)
        self._waiting_items.insert(at, (length, item))

    def _find_index(self, start: int) -> int:
        # _starts holds negated addresses, ascending: the largest address first.
        return bisect_right(self._starts, -start)

    def _check_free(self, start: int, length: int, where: str) -> None:
        if start < self.cursor or start + length > self.size:
            raise PatchRangeInvalid(
                f"{where}: target range [{start}, {start + length}) is not in [{self.cursor}, {self.size})"
            )
        at = self._find_index(start)
        if at > 0 and -self._starts[at - 1] < start + length:
            raise PatchRangeInvalid(f"{where}: target range [{start}, {start + length}) overlaps a later one")
        if at < len(self._starts) and -self._starts[at] + self._waiting_items[at][0] > start:
            raise PatchRangeInvalid(f"{where}: target range [{start}, {start + length}) overlaps an earlier one")

    def _drain(self) -> None:
        while self._starts and -self._starts[-1] == self.cursor:
            self._starts.pop()
            length, item = self._waiting_items.pop()
            if isinstance(item, bytes):
                self._pending -= length
                self._write(item)
                continue
            for offset in range(0, length, IO_CHUNK_BYTES):
                piece = self._base.read(item.base_start + offset, min(IO_CHUNK_BYTES, length - offset))
                self._write(piece if item.edits is None else item.edits.apply_to(piece, offset))
            if item.edits is not None:
                self._pending -= item.edits.waiting_bytes

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while len(view):
            piece = view[: min(self._file_end - self.cursor, IO_CHUNK_BYTES)]
            self._hash.update(piece)
            self._target.write(piece)
            self.cursor += len(piece)
            view = view[len(piece) :]
            if self.cursor == self._file_end:
                self._end_file()
                self._open_next_file()

    def _open_next_file(self) -> None:
        while self._files:
            self._target.begin_file(self._files[-1])
            self._hash = hashlib.sha256()
            self._file_end = self.cursor + self._files[-1].size
            if self._files[-1].size:
                return
            self._end_file()

    def _end_file(self) -> None:
        file = self._files.pop()
        if self._hash.hexdigest() != file.sha256:
            raise PatchTargetMismatch(
                f"target file {file.path!r}: rebuilt with SHA-256 {self._hash.hexdigest()}, expected {file.sha256}"
            )
        self._target.end_file()
