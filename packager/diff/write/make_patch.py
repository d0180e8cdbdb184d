"""Make a patch: the files of one bundle from those of another, or without a base.

Rules:
1. The same inputs and library versions give the same bytes, with any executor.
2. The limits in the header are the largest needs of the frames, so `peak_memory` is true.
3. Frames are written to a temporary file first, because the header precedes them and depends on them.
4. The codec "auto" is the typed codec unless a generic one is smaller. If a quick estimate shows that one might be, the
   generic codecs run too and the smallest patch is kept. One of them, zstd with the base as dictionary, has no name of
   its own, since the typed codec makes the same frames for files without arrays. It is skipped if target and base share
   no runs of bytes.
5. The finished patch is applied once before it is returned (check_patch). A worker does not: the process that gets its
   patch applies it (make_patches), since a worker is not trusted to say that it did.
"""

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import ExitStack
from typing import BinaryIO, Final

from bundle.errors import Invalid
from bundle.files import BundleDirectory
from bundle.patch.container import Header, Op, encode_frame, encode_header
from packager.diff.encode.encode_delta import MAX_DELTA_BYTES
from packager.diff.encode.entropy import EncoderOptions
from packager.diff.encode.size_estimate import can_skip_generic_codecs, shares_byte_runs
from packager.diff.write.check_patch import JoinedReader, check_patch
from packager.diff.write.frame_writer import PatchFrameWriter
from packager.diff.write.generic_codecs import write_delta, write_dictionary, write_stream
from packager.diff.write.patch_report import PatchReport
from packager.diff.write.typed_codec import write_typed

CODECS: Final = ("auto", "typed", "unfitted", "planes", "bsdiff4", "zstd")
_DICTIONARY: Final = "dictionary"  # rule 4
_CHUNK_BYTES: Final = 1 << 20

Progress = Callable[[int, int], None]


def make_patch(
    base: BundleDirectory | None,
    target: BundleDirectory,
    out: BinaryIO,
    *,
    codec: str = "auto",
    executor: Executor | None = None,
    progress: Progress | None = None,
    is_checked: bool = True,
) -> PatchReport:
    """Write the patch from `base` to `target` into `out`.

    Args:
        base: None for a full download.
        target: the bundle that the patch makes.
        out: receives the patch.
        codec: "auto"; "typed"; "unfitted", which is "typed" without predictor parameters; "planes", which is "typed"
            for devices without pcodec; "bsdiff4"; "zstd".
        executor: runs the jobs on tensors and files; None runs them in this thread.
        progress: called with (target bytes done, target bytes in all).
        is_checked: apply the patch before it is written; False if the caller does.

    Raises:
        Invalid: an unknown codec, or "bsdiff4" without a base.
        PatchCheckFailed: the patch does not make the target's files; nothing is written into `out`.
    """
    if codec not in CODECS:
        raise Invalid(f"codec {codec!r} is not one of {', '.join(CODECS)}")
    if codec == "bsdiff4" and base is None:
        raise Invalid("codec 'bsdiff4' needs a base", hint="omit the codec, or give a base")
    with ExitStack() as stack:
        options = EncoderOptions(has_pcodec=codec != "planes", has_fitting=codec != "unfitted")
        codec_name = codec if codec in ("bsdiff4", "zstd") else "typed"
        writer = _write_frames(stack, codec_name, base, target, options, executor, progress)
        if codec == "auto" and not (
            writer.is_within_default_limits() and can_skip_generic_codecs(writer.size, base, target)
        ):
            for other in _choose_generic_codecs(base, target):
                other_writer = _write_frames(stack, other, base, target, options, executor, None)
                if other_writer.size < writer.size or not writer.is_within_default_limits():
                    codec_name, writer = "typed" if other == _DICTIONARY else other, other_writer
        base = None if codec_name == "zstd" else base
        return _write_patch(writer, codec_name, base, target, out, is_checked=is_checked)


def _choose_generic_codecs(base: BundleDirectory | None, target: BundleDirectory) -> tuple[str, ...]:
    sizes = [file.size for side in (base, target) if side is not None for file in side.files]
    if base is None or max(sizes, default=0) > MAX_DELTA_BYTES:
        return ("zstd",)
    return ("zstd", "bsdiff4", _DICTIONARY) if shares_byte_runs(base, target) else ("zstd", "bsdiff4")


def _write_frames(
    stack: ExitStack,
    codec: str,
    base: BundleDirectory | None,
    target: BundleDirectory,
    options: EncoderOptions,
    executor: Executor | None,
    progress: Progress | None,
) -> PatchFrameWriter:
    writer = PatchFrameWriter(stack.enter_context(tempfile.TemporaryFile()))  # noqa: SIM115 - the caller's stack closes it
    if codec == "zstd":
        write_stream(target, writer, progress)
    elif codec == "bsdiff4" and base is not None:
        write_delta(base, target, writer, progress)
    elif codec == _DICTIONARY and base is not None:
        write_dictionary(base, target, writer, progress)
    else:
        write_typed(base, target, writer, options, executor, progress)
    writer.write_frame(encode_frame(Op.END, b""))
    return writer


def _write_patch(
    writer: PatchFrameWriter,
    codec: str,
    base: BundleDirectory | None,
    target: BundleDirectory,
    out: BinaryIO,
    *,
    is_checked: bool,
) -> PatchReport:
    limits = writer.declared_limits()
    features = tuple(sorted(writer.features))
    head = encode_header(Header(base.files if base else (), target.files, features, limits))
    if is_checked:
        writer.file.seek(0)
        check_patch(JoinedReader(head, writer.file), base, target, limits)
    writer.file.seek(0)
    out.write(head)
    shutil.copyfileobj(writer.file, out, _CHUNK_BYTES)
    total = sum(file.size for file in target.files)
    size = len(head) + writer.size
    return PatchReport(codec, features, size, limits.memory_bound_bytes(), total, tuple(writer.rows))


__all__ = ["CODECS", "make_patch"]
