"""The codecs that know nothing of tensors: one zstd stream from nothing, bsdiff from a base."""

from collections.abc import Callable, Iterator
from typing import Final

from bundle.files import BundleDirectory
from bundle.patch.container import Op, frame_bytes
from bundle.patch.numbers import signed_varint, varint
from bundle.patch.sections import write_section
from bundle.patch.stream import most_triples
from packager.diff.counterpart import addresses, counterpart
from packager.diff.delta import delta_content, delta_frames, find_pieces
from packager.diff.directory import path_of
from packager.diff.report import PatchRow
from packager.diff.spool import Spool
from packager.diff.stream import delta_stream_frames, stream_frames, window_log_for

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
            stored, coder = _write_file_delta(old, path_of(target, file).read_bytes(), start, done, spool)
            row = PatchRow(file.path, "whole file", "", (), file.size, stored, "bsdiff", coder)
        spool.rows.append(row)
        done += file.size
        if progress is not None:
            progress(done, total)


def _write_file_delta(old: bytes, new: bytes, start: int, done: int, spool: Spool) -> tuple[int, str]:
    """Bytes written, and the coder: frames of sections, or one LZMA stream where that is smaller."""
    found = find_pieces(old, new)
    frames = delta_frames(found, new, start, done)
    content = delta_content(found)
    stream = list(delta_stream_frames(content, start + found.pieces[0].position, done, len(new)))
    is_taken = len(found.pieces) <= most_triples(len(new))
    if is_taken and sum(map(len, stream)) < sum(len(frame.frame) for frame in frames):
        spool.features |= {"lzma", "stream"}
        spool.need(window_log=window_log_for(len(content)))
        return sum(spool.write(frame) for frame in stream), "LZMA"
    spool.features |= {"delta", "lzma"} if any(frame.has_lzma for frame in frames) else {"delta"}
    spool.need(pending_bytes=max(frame.made for frame in frames))
    return sum(spool.write(frame.frame) for frame in frames), "bzip2, zstd, LZMA"


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
