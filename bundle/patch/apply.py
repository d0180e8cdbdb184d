"""The entry point of the decoder: read a patch once, forward, and write the target's files.

Steps:
1. Read the header. The base's file table must be the one that the patch was made for.
2. Decode one frame at a time, within the limits that the header announced.
3. Compare each file's SHA-256 with the header's table before `Target.end_file`.
4. Return the table after the END frame. If an error is raised, the caller discards everything that its `Target` took,
   including complete files.

The returned table comes from the patch: the caller must compare its digest with the signed one.
"""

from collections.abc import Iterator
from typing import Final

from bundle.errors import PatchCorrupt, PatchFeatureUnsupported, PatchLimitExceeded, WrongBase
from bundle.files import BundleFile
from bundle.patch.address_space import Base, BaseBytes, Target, TargetBytes
from bundle.patch.byte_math import HAS_NUMPY
from bundle.patch.container import ForwardReader, Frame, Header, Op, read_frames, read_header
from bundle.patch.delta import decode_delta
from bundle.patch.limits import DEFAULT_LIMITS, PatchLimits
from bundle.patch.numbers import Cursor
from bundle.patch.ranges import read_base_ranges, read_copied_ranges, read_target_ranges
from bundle.patch.sections import read_section, unpack_zstd
from bundle.patch.single_thread import use_single_thread
from bundle.patch.steady_heap import retain_freed_memory
from bundle.patch.stream import decode_stream

if HAS_NUMPY:
    from bundle.patch.edits import decode_edits
    from bundle.patch.parameters import Parameters
    from bundle.patch.typed import decode_typed

TYPED_OPS: Final = (Op.EDIT, Op.PARAM, Op.TYPED)
__all__ = ["Base", "ForwardReader", "PatchLimits", "Target", "apply_patch"]


def apply_patch(
    patch: ForwardReader, base: Base | None, target: Target, limits: PatchLimits = DEFAULT_LIMITS
) -> tuple[BundleFile, ...]:
    """Apply a patch and return the target's file table.

    Args:
        patch: decrypted patch bytes; may be a reader that decrypts.
        base: the bundle that the patch starts from; ignored if the patch needs no base.
        target: receives the files.
        limits: limits on the memory that the decoder may use.

    Raises:
        PatchRefused: the patch cannot be applied; the subclass is the reason.
    """
    header = read_header(patch, limits)
    _check_base(header, base)
    with use_single_thread(), retain_freed_memory():
        _Applier(header, base, target, limits).run(read_frames(patch, header))
    return header.target


def _check_base(header: Header, base: Base | None) -> None:
    if not header.base:
        return
    if base is None:
        raise WrongBase("patch needs a base bundle, but no base was given", hint="use the full download")
    expected = [(file.path, file.size, file.sha256) for file in header.base]
    found = [(file.path, file.size, file.sha256) for file in base.files]
    if expected != found:
        differing = next(
            (f"{w[0]!r} {w[2][:16]}…" for w in expected if w not in found),
            f"{len(found)} files instead of {len(expected)}",
        )
        raise WrongBase(
            f"patch needs another base: it expects {differing}, which the given base does not have",
            hint="use the full download",
        )


class _Applier:
    def __init__(self, header: Header, base: Base | None, target: Target, limits: PatchLimits) -> None:
        self._declared_limits = header.declared_limits
        self._max_items = limits.items
        self._base = BaseBytes(base, header.base)
        if HAS_NUMPY:
            self._parameters = Parameters(header.declared_limits.parameter_bytes)
        self._target = TargetBytes(
            target,
            header.target,
            self._base,
            pending_bytes=header.declared_limits.pending_bytes,
            max_items=limits.items,
        )
        if "repeat" in header.features:
            self._base.target = self._target

    def run(self, frames: Iterator[Frame]) -> None:
        self._target.open_first_file()
        for frame in frames:
            self._decode(frame, frames)
            self._target.drain()
        self._target.finish()

    def _decode(self, frame: Frame, frames: Iterator[Frame]) -> None:
        if frame.op in TYPED_OPS and not HAS_NUMPY:
            raise PatchFeatureUnsupported("patch needs the decoder feature 'typed', for which numpy is not installed")
        match frame.op:
            case Op.COPY:
                self._copy_ranges(frame)
            case Op.EDIT:
                for (start, base_start, length), edits in decode_edits(frame, self._declared_limits, self._max_items):
                    self._target.copy_range(start, base_start, length, frame.where, edits)
            case Op.BYTES:
                self._decode_bytes(frame)
            case Op.DELTA:
                self._check_pending(frame)
                start, data = decode_delta(frame, self._base, self._declared_limits)
                frame.check_decoded(data)
                self._target.write_ranges([(start, len(data))], data, frame.where)
            case Op.TYPED:
                self._check_pending(frame)
                ranges, data = decode_typed(frame, self._base, self._parameters, self._declared_limits, self._max_items)
                frame.check_decoded(data)
                self._target.write_ranges(ranges, data, frame.where)
            case Op.PARAM:
                frame.check_decoded(b"")
                self._parameters.decode(frame.payload, frame.where)
            case Op.STREAM:
                decode_stream(frame, frames, self._base, self._target, self._declared_limits)
            case _:
                raise PatchCorrupt(f"{frame.where}: found outside a stream")

    def _copy_ranges(self, frame: Frame) -> None:
        payload = Cursor(frame.payload, frame.where)
        table = read_section(payload, self._declared_limits.payload_bytes, "copy table")
        payload.check_end()
        frame.check_decoded(table)
        for start, base_start, length in read_copied_ranges(Cursor(table, frame.where), self._max_items):
            self._target.copy_range(start, base_start, length, frame.where)

    def _decode_bytes(self, frame: Frame) -> None:
        self._check_pending(frame)
        cursor = Cursor(frame.payload, frame.where)
        table = Cursor(read_section(cursor, self._declared_limits.payload_bytes, "range table"), frame.where)
        ranges = read_target_ranges(table, self._max_items, frame.decoded_bytes)
        dictionary = read_base_ranges(table, self._base, self._max_items, self._declared_limits.dictionary_bytes)
        table.check_end()
        if sum(length for _, length in ranges) != frame.decoded_bytes:
            raise PatchCorrupt(
                f"{frame.where}: ranges of {sum(length for _, length in ranges)} bytes, expected {frame.decoded_bytes}"
            )
        data = unpack_zstd(cursor.take_rest(), frame.decoded_bytes, frame.where, self._base.read_ranges(dictionary))
        frame.check_decoded(data)
        self._target.write_ranges(ranges, data, frame.where)

    def _check_pending(self, frame: Frame) -> None:
        if frame.decoded_bytes > self._declared_limits.pending_bytes:
            raise PatchLimitExceeded(
                f"{frame.where}: {frame.decoded_bytes} target bytes, the header announced "
                f"{self._declared_limits.pending_bytes}"
            )
