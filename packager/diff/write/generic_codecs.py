"""The codecs that know nothing of tensors: one zstd stream from nothing, and bsdiff or zstd from a base."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from bundle.files import BundleDirectory
from bundle.patch.container import Op, frame_bytes
from bundle.patch.ranges import Copied, write_copied_ranges
from bundle.patch.sections import write_section
from bundle.patch.stream import most_triples
from packager.diff.bundle_folder import path_of
from packager.diff.encode.encode_delta import delta_content, delta_frames, find_pieces
from packager.diff.encode.encode_stream import delta_stream_frames, stream_frames, window_log_for
from packager.diff.encode.encode_untyped import Piece, RawJob, with_dictionary
from packager.diff.encode.entropy import Effort
from packager.diff.match.match_files import addresses, counterpart
from packager.diff.write.frame_writer import Spool
from packager.diff.write.patch_report import PatchRow

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
    _write_files(base, target, spool, progress, "bsdiff", _write_file_delta)


def write_dictionary(base: BundleDirectory, target: BundleDirectory, spool: Spool, progress: Progress | None) -> None:
    """Each file by zstd with its counterpart as dictionary; equal ones are copied."""
    _write_files(base, target, spool, progress, "base", _write_file_with_dictionary)


def _write_files(
    base: BundleDirectory,
    target: BundleDirectory,
    spool: Spool,
    progress: Progress | None,
    predictor: str,
    write_file: Callable[[Piece | None, Piece, Spool], tuple[int, str]],
) -> None:
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
            old = Piece(path_of(base, like), 0, starts[like.path], like.size) if like is not None else None
            stored, coder = write_file(old, Piece(path_of(target, file), 0, done, file.size), spool)
            row = PatchRow(file.path, "whole file", "", (), file.size, stored, predictor, coder)
        spool.rows.append(row)
        done += file.size
        if progress is not None:
            progress(done, total)


def _write_file_with_dictionary(base: Piece | None, target: Piece, spool: Spool) -> tuple[int, str]:
    """Bytes written, and the coder."""
    alike = (base,) if base is not None and base.size else ()
    job = RawJob((target,), alike, True, Effort())
    encoded = with_dictionary(job, target.file.read_bytes(), base.file.read_bytes() if base is not None else b"")
    spool.need(pending_bytes=encoded.largest_frame, dictionary_bytes=encoded.dictionary_bytes)
    return sum(spool.write(frame) for frame in encoded.frames), encoded.coder


def _write_file_delta(base: Piece | None, target: Piece, spool: Spool) -> tuple[int, str]:
    """Bytes written, and the coder: frames of sections, or one LZMA stream where that is smaller."""
    new = target.file.read_bytes()
    found = find_pieces(base.file.read_bytes() if base is not None else b"", new)
    start = base.address if base is not None else 0
    frames = delta_frames(found, new, start, target.address)
    content = delta_content(found)
    stream = list(delta_stream_frames(content, start + found.pieces[0].position, target.address, len(new)))
    is_taken = len(found.pieces) <= most_triples(len(new))
    if is_taken and sum(map(len, stream)) < sum(len(frame.frame) for frame in frames):
        spool.features |= {"lzma", "stream"}
        spool.need(window_log=window_log_for(len(content)))
        return sum(spool.write(frame) for frame in stream), "LZMA"
    spool.features |= {"delta", "lzma"} if any(frame.has_lzma for frame in frames) else {"delta"}
    spool.need(pending_bytes=max(frame.made for frame in frames))
    return sum(spool.write(frame.frame) for frame in frames), "bzip2, zstd, LZMA"


def copy_frame(ranges: Sequence[Copied]) -> bytes:
    """A COPY frame; target addresses ascend."""
    plain = write_copied_ranges(ranges)
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
