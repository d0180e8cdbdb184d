"""Makes a patch: the files of one bundle from those of another, or from nothing.

Rules:
1. Same inputs and same versions of the libraries give the same bytes, whatever the executor.
2. What a codec announces in the header follows from what its frames need, so that `peak_memory` is honest.
3. Frames go to a temporary file first: the header stands before them and is known after them.
4. "auto" is the typed codec, unless a generic one is smaller: where quick generic packing shows that one might be, they
   are made and the smallest is kept. One of them, zstd with the base as dictionary, has no name of its own: its frames
   are those that the typed codec has for files without arrays. It is left out where nothing of the base is found again.
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
) -> PatchReport:
    """Write the patch from `base` to `target` into `out`.

    Args:
        base: None for a patch from nothing.
        codec: "auto"; "typed"; "unfitted", which is "typed" without predictor parameters; "planes", which is "typed"
            for devices without pcodec; "bsdiff4"; "zstd".
        executor: runs the work on single tensors and files; None runs it here.
        progress: called with (target bytes done, target bytes in all).

    Raises:
        Invalid: an unknown codec, or "bsdiff4" without a base.
    """
    if codec not in CODECS:
        raise Invalid(f"codec {codec!r} is not one of {', '.join(CODECS)}")
    if codec == "bsdiff4" and base is None:
        raise Invalid("codec 'bsdiff4' needs a base", hint="leave the codec out: a patch from nothing uses another one")
    with ExitStack() as stack:
        effort = EncoderOptions(has_pcodec=codec != "planes", has_fitting=codec != "unfitted")
        used = codec if codec in ("bsdiff4", "zstd") else "typed"
        spool = _write_frames(stack, used, base, target, effort, executor, progress)
        if codec == "auto" and not (
            spool.is_within_default_limits() and can_skip_generic_codecs(spool.size, base, target)
        ):
            for other in _choose_generic_codecs(base, target):
                trial = _write_frames(stack, other, base, target, effort, executor, None)
                if trial.size < spool.size or not spool.is_within_default_limits():
                    used, spool = "typed" if other == _DICTIONARY else other, trial
        return _write_patch(spool, used, None if used == "zstd" else base, target, out)


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
    spool = PatchFrameWriter(stack.enter_context(tempfile.TemporaryFile()))  # noqa: SIM115 - the caller's stack closes it
    if codec == "zstd":
        write_stream(target, spool, progress)
    elif codec == "bsdiff4" and base is not None:
        write_delta(base, target, spool, progress)
    elif codec == _DICTIONARY and base is not None:
        write_dictionary(base, target, spool, progress)
    else:
        write_typed(base, target, spool, options, executor, progress)
    spool.write_frame(encode_frame(Op.END, b""))
    return spool


def _write_patch(
    writer: PatchFrameWriter, codec: str, base: BundleDirectory | None, target: BundleDirectory, out: BinaryIO
) -> PatchReport:
    announced = writer.declared_limits()
    features = tuple(sorted(writer.features))
    head = encode_header(Header(base.files if base else (), target.files, features, announced))
    out.write(head)
    writer.file.seek(0)
    shutil.copyfileobj(writer.file, out, _CHUNK_BYTES)
    total = sum(file.size for file in target.files)
    size = len(head) + writer.size
    return PatchReport(codec, features, size, announced.memory_bound_bytes(), total, tuple(writer.rows))


__all__ = ["CODECS", "make_patch"]
