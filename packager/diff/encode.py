"""Makes a patch: the files of one bundle from those of another, or from nothing.

Rules:
1. Same inputs and same versions of the libraries give the same bytes, whatever the executor.
2. What a codec announces in the header follows from what its frames need, so that `peak_memory` is honest.
3. Frames go to a temporary file first: the header stands before them and is known after them.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import IO, BinaryIO, Final

from bundle.errors import Invalid
from bundle.files import BundleDirectory, BundleFile
from bundle.patch.container import Header, Op, frame_bytes, header_bytes
from bundle.patch.limits import Announced
from bundle.patch.numbers import signed_varint, varint
from bundle.patch.sections import write_section
from packager.diff.delta import FRAME_BYTES, delta_frames
from packager.diff.directory import path_of
from packager.diff.report import PatchReport, PatchRow
from packager.diff.stream import PIECE_BYTES, stream_frames, window_log_for

CODECS: Final = ("auto", "bsdiff4", "zstd")
_CHUNK_BYTES: Final = 1 << 20

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class _Patch:
    """What has been written so far."""

    spool: IO[bytes]
    features: set[str] = field(default_factory=set)
    window_log: int = 0
    payload_bytes: int = PIECE_BYTES
    pending_bytes: int = 0
    rows: list[PatchRow] = field(default_factory=list)

    def write(self, frame: bytes) -> int:
        self.payload_bytes = max(self.payload_bytes, len(frame))
        return self.spool.write(frame)


def make_patch(
    base: BundleDirectory | None,
    target: BundleDirectory,
    out: BinaryIO,
    *,
    codec: str = "auto",
    executor: Executor | None = None,  # noqa: ARG001 - part of the interface; the typed codec uses it
    progress: Progress | None = None,
) -> PatchReport:
    """Write the patch from `base` to `target` into `out`.

    Args:
        base: None for a patch from nothing.
        codec: "auto", or one of the others where a particular one is wanted.
        executor: runs the work on single tensors and files; None runs it here.
        progress: called with (target bytes done, target bytes in all).

    Raises:
        Invalid: an unknown codec, or "bsdiff4" without a base.
    """
    if codec not in CODECS:
        raise Invalid(f"codec {codec!r} is not one of {', '.join(CODECS)}")
    if codec == "bsdiff4" and base is None:
        raise Invalid(
            "codec 'bsdiff4' needs a base", remedy="leave the codec out: a patch from nothing uses another one"
        )
    used = codec if codec != "auto" else "zstd" if base is None else "bsdiff4"
    with tempfile.TemporaryFile() as spool:
        patch = _Patch(spool)
        if base is None or used == "zstd":
            base = None
            _write_stream(target, patch, progress)
        else:
            _write_delta(base, target, patch, progress)
        patch.write(frame_bytes(Op.END, b""))
        announced = Announced(
            payload_bytes=patch.payload_bytes,
            pending_bytes=patch.pending_bytes,
            dictionary_bytes=0,
            parameter_bytes=0,
            block_elements=0,
            window_log=patch.window_log,
        )
        features = tuple(sorted(patch.features))
        head = header_bytes(Header(base.files if base else (), target.files, features, announced))
        out.write(head)
        size = len(head) + spool.tell()
        spool.seek(0)
        shutil.copyfileobj(spool, out, _CHUNK_BYTES)
    total = sum(file.size for file in target.files)
    return PatchReport(used, features, size, announced.memory_bound(), total, tuple(patch.rows))


def _write_stream(target: BundleDirectory, patch: _Patch, progress: Progress | None) -> None:
    total = sum(file.size for file in target.files)
    if total == 0:
        return
    patch.features.add("stream")
    patch.window_log = window_log_for(total)
    stored = sum(patch.write(frame) for frame in stream_frames(_content(target, total, progress), 0, total))
    patch.rows.append(PatchRow("", "all files", "", (), total, stored, "none", "zstd"))


def _content(target: BundleDirectory, total: int, progress: Progress | None) -> Iterator[bytes]:
    done = 0
    for file in target.files:
        with path_of(target, file).open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
                done += len(chunk)
                if progress is not None:
                    progress(done, total)


def _write_delta(base: BundleDirectory, target: BundleDirectory, patch: _Patch, progress: Progress | None) -> None:
    starts = _starts(base.files)
    total = sum(file.size for file in target.files)
    done = 0
    for file in target.files:
        like = counterpart(file, base.files)
        if file.size == 0:
            continue
        if like is not None and (like.size, like.sha256) == (file.size, file.sha256):
            table = varint(1) + varint(done) + signed_varint(starts[like.path]) + varint(file.size)
            stored = patch.write(frame_bytes(Op.COPY, write_section(table), table))
            row = PatchRow(file.path, "whole file", "", (), file.size, stored, "copy", "copy")
        else:
            old = path_of(base, like).read_bytes() if like is not None else b""
            start = starts[like.path] if like is not None else 0
            stored = 0
            for made, frame in delta_frames(old, path_of(target, file).read_bytes(), start, done):
                stored += patch.write(frame)
                patch.pending_bytes = max(patch.pending_bytes, made)
            patch.features.add("delta")
            row = PatchRow(file.path, "whole file", "", (), file.size, stored, "bsdiff", "bzip2, zstd")
        patch.rows.append(row)
        done += file.size
        if progress is not None:
            progress(done, total)


def counterpart(file: BundleFile, base: tuple[BundleFile, ...]) -> BundleFile | None:
    """The base file that `file` most likely comes from: same content, same path, else same role and nearest size."""
    same = [other for other in base if (other.size, other.sha256) == (file.size, file.sha256)]
    same += [other for other in base if other.path == file.path]
    alike = [other for other in base if other.role == file.role and other.size]
    return (same + sorted(alike, key=lambda other: (abs(other.size - file.size), other.path)) + [None])[0]


def _starts(files: tuple[BundleFile, ...]) -> dict[str, int]:
    out, end = {}, 0
    for file in files:
        out[file.path] = end
        end += file.size
    return out


__all__ = ["CODECS", "FRAME_BYTES", "make_patch"]
