"""Memory limits of the decoder, and the memory that a patch needs (docs/format.md section 9.2).

Rules:
1. A patch's header announces its own limits. The decoder refuses an announcement above its `PatchLimits`, then anything
   in the patch above the announcement. So the memory is known before the first frame is read.
2. The limits depend on elements and bytes of one frame, never on the size of the model.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class PatchLimits:
    """Limits on the memory that the decoder may use at one time.

    Attributes:
        payload_bytes: one frame as stored, and each of its sections decompressed, except for target bytes.
        pending_bytes: target bytes of one frame, and target bytes that wait ahead of the cursor.
        dictionary_bytes: base bytes that one frame may use as a dictionary.
        parameter_bytes: predictor parameters in force, at eight bytes per number.
        block_elements: elements of one TYPED frame; edits of one EDIT frame.
        items: ranges that wait ahead of the cursor, and ranges of one frame.
        window_log: base-two logarithm of the window of a stream.
        files: entries of a file table.
        target_bytes: all target files together.
        memory_bytes: `DeclaredLimits.memory_bound_bytes` of the header's limits; a device sets the figure that the
            manifest signs, so a patch cannot need more than the planner reserved.
    """

    payload_bytes: int = 8 << 20
    pending_bytes: int = 4 << 20
    dictionary_bytes: int = 8 << 20
    parameter_bytes: int = 4 << 20
    block_elements: int = 1 << 18
    items: int = 1 << 14
    window_log: int = 23
    files: int = 1024
    target_bytes: int = 1 << 50
    memory_bytes: int = 1 << 50


DEFAULT_LIMITS: Final = PatchLimits()

MAX_HEADER_BYTES: Final = 1 << 20  # 1,024 files in two tables at 250 bytes of JSON an entry are half of this
IO_CHUNK_BYTES: Final = 1 << 17  # small enough to stay in the second-level cache between reading, hashing and writing


@dataclass(frozen=True, slots=True)
class DeclaredLimits:
    """The limits that a patch's header announces; fields as in `PatchLimits`, zero if unused."""

    payload_bytes: int
    pending_bytes: int
    dictionary_bytes: int
    parameter_bytes: int
    block_elements: int
    window_log: int

    def memory_bound_bytes(self) -> int:
        """Return the maximum memory, in bytes, that applying takes above an idle decoder (`peak_memory`).

        For each element, a TYPED frame needs base, prediction, residual and sorted residual (8 bytes each at most), the
        sort order (8) and three small arrays; an EDIT frame needs as much for each edit while it is decoded. Parameters
        may be stored as singles too. A stream needs its window, a bzip2 section 3.7 MB.
        """
        block = self.block_elements * 48
        stream = (1 << self.window_log) + (1 << 20) if self.window_log else 0
        buffers = self.payload_bytes + 2 * self.pending_bytes + 2 * self.dictionary_bytes + (4 << 20)
        return max(block, stream, buffers) + self.payload_bytes + self.pending_bytes + self.parameter_bytes * 3 // 2
