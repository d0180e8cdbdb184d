"""The codecs that know nothing of tensors: one zstd stream from nothing, bsdiff from a base."""

from collections.abc import Callable, Iterator
from typing import Final

from bundle.files import BundleDirectory
from bundle.patch.container import Op, frame_bytes
from bundle.patch.numbers import signed_varint, varint
from bundle.patch.sections import write_section
from packager.diff.counterpart import addresses, counterpart
from packager.diff.delta import delta_frames
from packager.diff.directory import path_of
from packager.diff.report import PatchRow
from packager.diff.spool import Spool
from packager.diff.stream import stream_frames, window_log_for

_CHUNK_BYTES: Final = 1 << 20

Progress = Callable[[int, int], None]


def write_stream(target: BundleDirectory, spool: Spool, progress: Progress | None) -> None:
    """All files as one zstd stream."""
    total = sum(file.size for file in target.files)
    if total == 0:
        return
    spool.features.add("stream")
    spool.need(window_log=window_log_for(total))
    stored = sum(spool.write(frame) for frame in stream_frames(_content(target, total, progress), 0, total))
    spool.rows.append(PatchRow("", "all files", "", (), total, stored, "none", "zstd"))


def write_delta(base: BundleDirectory, target: BundleDirectory, spool: Spool, progress: Progress | None) -> None:
    """Each file by bsdiff from its counterpart; equal ones are copied."""
    starts = addresses(base.files)
    total = sum(file.size for file in target.files)
    done = 0
    for file in target.files:
        like = counterpart(file, base.files)
        if file.size == 0:
            continue
        if like is not None and (like.size, like.sha256) == (file.size, file.sha256):
            stored = spool.write(copy_frame([(done, starts[like.path], file.size)]))
            row = PatchRow(file.path, "whole file", "", (), file.size, stored, "copy", "copy")
        else:
            old = path_of(base, like).read_bytes() if like is not None else b""
            start = starts[like.path] if like is not None else 0
            stored = 0
            for made, frame in delta_frames(old, path_of(target, file).read_bytes(), start, done):
                stored += spool.write(frame)
                spool.need(pending_bytes=made)
            spool.features.add("delta")
            row = PatchRow(file.path, "whole file", "", (), file.size, stored, "bsdiff", "bzip2, zstd")
        spool.rows.append(row)
        done += file.size
        if progress is not None:
            progress(done, total)


def copy_frame(ranges: list[tuple[int, int, int]]) -> bytes:
    """A COPY frame of (target address, base address, bytes), ascending."""
    table = [varint(len(ranges))]
    end = base_end = 0
    for start, base, length in ranges:
        table += [varint(start - end), signed_varint(base - base_end), varint(length)]
        end, base_end = start + length, base + length
    plain = b"".join(table)
    return frame_bytes(Op.COPY, write_section(plain), plain)


def _content(target: BundleDirectory, total: int, progress: Progress | None) -> Iterator[bytes]:
    done = 0
    for file in target.files:
        with path_of(target, file).open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
