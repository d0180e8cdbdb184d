"""The frames of a patch while it is written, and the limits that they require of the decoder."""

from dataclasses import dataclass, field, fields
from typing import BinaryIO, Final

from bundle.patch.limits import DEFAULT_LIMITS, DeclaredLimits
from packager.diff.write.patch_report import PatchRow

RANGE_TABLE_BYTES: Final = 1 << 18  # uncompressed tables of ranges may be longer than any compressed frame


@dataclass(slots=True)
class PatchFrameWriter:
    """The frames written so far, and the largest need of any of them.

    Attributes:
        file: takes the frames.
        size: bytes written.
        features: decoder features that the frames need.
        rows: one row of the report for each job.
        payload_bytes, pending_bytes, dictionary_bytes, parameter_bytes, block_elements, window_log: as in
            `DeclaredLimits`.
    """

    file: BinaryIO
    size: int = 0
    features: set[str] = field(default_factory=set)
    rows: list[PatchRow] = field(default_factory=list)
    payload_bytes: int = 0
    pending_bytes: int = 0
    dictionary_bytes: int = 0
    parameter_bytes: int = 0
    block_elements: int = 0
    window_log: int = 0

    def write_frame(self, frame: bytes) -> int:
        """Write a frame; return its length in bytes."""
        self.payload_bytes = max(self.payload_bytes, len(frame))
        self.size += len(frame)
        return self.file.write(frame)

    def raise_limits(
        self,
        *,
        pending_bytes: int = 0,
        dictionary_bytes: int = 0,
        parameter_bytes: int = 0,
        block_elements: int = 0,
        window_log: int = 0,
    ) -> None:
        """Raise the limits that the header will declare to at least these.

        Args:
            pending_bytes, dictionary_bytes, parameter_bytes, block_elements, window_log: as in `DeclaredLimits`.
        """
        self.pending_bytes = max(self.pending_bytes, pending_bytes)
        self.dictionary_bytes = max(self.dictionary_bytes, dictionary_bytes)
        self.parameter_bytes = max(self.parameter_bytes, parameter_bytes)
        self.block_elements = max(self.block_elements, block_elements)
        self.window_log = max(self.window_log, window_log)

    def is_within_default_limits(self) -> bool:
        """Return whether a decoder with the default limits would accept the patch."""
        declared = self.declared_limits()
        return all(getattr(declared, limit.name) <= getattr(DEFAULT_LIMITS, limit.name) for limit in fields(declared))

    def declared_limits(self) -> DeclaredLimits:
        """Return the limits for the header."""
        return DeclaredLimits(
            payload_bytes=max(self.payload_bytes, RANGE_TABLE_BYTES) if self.size else 0,
            pending_bytes=self.pending_bytes,
            dictionary_bytes=self.dictionary_bytes,
            parameter_bytes=self.parameter_bytes,
            block_elements=self.block_elements,
            window_log=self.window_log,
        )
