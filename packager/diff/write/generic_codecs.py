"""Codecs that know nothing of arrays: one zstd stream, or bsdiff or zstd for each file with a base."""

from collections.abc import Callable, Iterator
from typing import Final

from bundle.files import BundleDirectory, BundleFile
from bundle.patch.stream import max_triples
from packager.diff.bundle_folder import file_path
from packager.diff.byte_range import ByteRange
from packager.diff.encode.copy_job import encode_copy_frame
from packager.diff.encode.encode_delta import encode_delta_content, encode_delta_frames, find_matches
from packager.diff.encode.encode_stream import choose_window_log, encode_delta_stream_frames, encode_stream_frames
from packager.diff.encode.encode_untyped import UntypedJob, encode_with_dictionary
from packager.diff.encode.entropy import EncoderOptions
from packager.diff.match.match_files import file_addresses, matching_file
from packager.diff.sources import Source, remember_source
from packager.diff.write.frame_writer import PatchFrameWriter
from packager.diff.write.patch_report import PatchRow

_CHUNK_BYTES: Final = 1 << 20

Progress = Callable[[int, int], None]


def write_stream(target: BundleDirectory, writer: PatchFrameWriter, progress: Progress | None) -> None:
    """Write all files as one zstd stream.

    Args:
        target: the bundle that the patch makes.
        writer: receives the frames.
        progress: called with (target bytes done, target bytes in all).
    """
    total = sum(file.size for file in target.files)
    if total == 0:
        return
    writer.features.add("stream")
    writer.raise_limits(window_log=choose_window_log(total))
    stored = sum(
        writer.write_frame(frame) for frame in encode_stream_frames(_read_content(target, total, progress), 0, total)
    )
    writer.rows.append(PatchRow("", "all files", "", (), total, stored, "none", "zstd"))


def write_delta(
    base: BundleDirectory, target: BundleDirectory, writer: PatchFrameWriter, progress: Progress | None
) -> None:
    """Write each file by bsdiff from its counterpart; equal files are copied.

    Args:
        base: the base bundle.
        target: the bundle that the patch makes.
        writer: receives the frames.
        progress: called with (target bytes done, target bytes in all).
    """
    _write_files(base, target, writer, progress, "bsdiff", _write_file_delta)


def write_dictionary(
    base: BundleDirectory, target: BundleDirectory, writer: PatchFrameWriter, progress: Progress | None
) -> None:
    """Write each file by zstd with its counterpart as dictionary; equal files are copied.

    Args:
        base: the base bundle.
        target: the bundle that the patch makes.
        writer: receives the frames.
        progress: called with (target bytes done, target bytes in all).
    """
    _write_files(base, target, writer, progress, "base", _write_file_with_dictionary)


def _write_files(
    base: BundleDirectory,
    target: BundleDirectory,
    writer: PatchFrameWriter,
    progress: Progress | None,
    predictor: str,
    write_file: Callable[[ByteRange | None, ByteRange, PatchFrameWriter], tuple[int, str]],
) -> None:
    starts = file_addresses(base.files)
    total = sum(file.size for file in target.files)
    done = 0
    for file in target.files:
        counterpart = matching_file(file, base.files)
        if file.size == 0:
            continue
        if counterpart is not None and (counterpart.size, counterpart.sha256) == (file.size, file.sha256):
            stored = writer.write_frame(encode_copy_frame([(done, starts[counterpart.path], file.size)]))
            row = PatchRow(file.path, "whole file", "", (), file.size, stored, "copy", "copy")
        else:
            old = (
                ByteRange(_source_of(base, counterpart), 0, starts[counterpart.path], counterpart.size)
                if counterpart is not None
                else None
            )
            stored, coder = write_file(old, ByteRange(_source_of(target, file), 0, done, file.size), writer)
            row = PatchRow(file.path, "whole file", "", (), file.size, stored, predictor, coder)
        writer.rows.append(row)
        done += file.size
        if progress is not None:
            progress(done, total)


def _write_file_with_dictionary(base: ByteRange | None, target: ByteRange, writer: PatchFrameWriter) -> tuple[int, str]:
    """Return the bytes written, and the coder's name."""
    base_ranges = (base,) if base is not None and base.size else ()
    job = UntypedJob((target,), base_ranges, True, EncoderOptions())
    encoded = encode_with_dictionary(job, _read(target), b"" if base is None else _read(base))
    writer.raise_limits(pending_bytes=encoded.largest_frame_bytes, dictionary_bytes=encoded.dictionary_bytes)
    return sum(writer.write_frame(frame) for frame in encoded.frames), encoded.coder


def _write_file_delta(base: ByteRange | None, target: ByteRange, writer: PatchFrameWriter) -> tuple[int, str]:
    """Return the bytes written, and the coder's name: DELTA frames, or one LZMA stream if that is smaller."""
    new = _read(target)
    matches = find_matches(b"" if base is None else _read(base), new)
    start = base.address if base is not None else 0
    frames = encode_delta_frames(matches, new, start, target.address)
    content = encode_delta_content(matches)
    stream = list(encode_delta_stream_frames(content, start + matches.triples[0].position, target.address, len(new)))
    is_taken = len(matches.triples) <= max_triples(len(new))
    if is_taken and sum(map(len, stream)) < sum(len(frame.frame) for frame in frames):
        writer.features |= {"lzma", "stream"}
        writer.raise_limits(window_log=choose_window_log(len(content)))
        return sum(writer.write_frame(frame) for frame in stream), "LZMA"
    writer.features |= {"delta", "lzma"} if any(frame.has_lzma for frame in frames) else {"delta"}
    writer.raise_limits(pending_bytes=max(frame.target_bytes for frame in frames))
    return sum(writer.write_frame(frame.frame) for frame in frames), "bzip2, zstd, LZMA"


def _read(whole: ByteRange) -> bytes:
    return whole.position.read(whole.size)


def _source_of(directory: BundleDirectory, file: BundleFile) -> Source:
    source = Source(file.sha256, file.size)
    remember_source(source, file_path(directory, file))
    return source


def _read_content(target: BundleDirectory, total: int, progress: Progress | None) -> Iterator[bytes]:
    done = 0
    for file in target.files:
        with file_path(target, file).open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
