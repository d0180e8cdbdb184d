"""A tensor, or several small ones, as a job: where its bytes are, and how it is sampled.

A job has no content: the process that runs it reads the files, so a job can be sent to another process.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from bundle.patch.elements import ELEMENT_TYPE_BY_NAME, Bits, ElementType
from packager.diff.byte_range import BytePosition
from packager.diff.encode.entropy import EncoderOptions, Period, is_sparse

BLOCK_ELEMENTS: Final = 1 << 17  # the decoder needs some 40 bytes per element
NARROW_BLOCK_ELEMENTS: Final = 1 << 18  # for elements of one or two bytes
SLICE_ELEMENTS: Final = 1 << 21
SAMPLE_PIECES: Final = 4
SAMPLE_PIECE_ELEMENTS: Final = 4096
NARROW_SAMPLE_PIECE_ELEMENTS: Final = (
    8192  # for elements of one or two bytes: they take few bits, so a sample needs more of them
)
MAX_PERIOD_ELEMENTS: Final = 1 << 13
MIN_ROW_ELEMENTS: Final = 32


@dataclass(frozen=True, slots=True)
class Segment:
    """An array or a part of one.

    Attributes:
        target: position in the target.
        base: position in the base of the elements that it is predicted from; None for no prediction.
        size: size in bytes.
    """

    target: BytePosition
    base: BytePosition | None
    size: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """The form of a base whose rows and columns are exchanged.

    Attributes:
        rows: columns of the base matrix, which are rows of the exchanged one.
        columns: rows of the base matrix.
        first: element of the exchanged matrix that the job begins with.
    """

    rows: int
    columns: int
    first: int = 0


@dataclass(frozen=True, slots=True)
class TensorJob:
    """The input of one call of `encode_tensor_job`.

    Attributes:
        dtype: name of the element type.
        segments: arrays or parts in target order, all with a base or all without.
        shape: shape of all segments together; () if several tensors share the job.
        exchange: the base of the first segment is a matrix with rows and columns exchanged, and the other segments
            follow in it; None if every segment has a base of its own.
        can_fit: try predictor parameters.
        options: encoder settings, such as the zstd level.
    """

    dtype: str
    segments: tuple[Segment, ...]
    shape: tuple[int, ...]
    exchange: Exchange | None
    can_fit: bool
    options: EncoderOptions

    @property
    def size(self) -> int:
        """Bytes of the target."""
        return sum(segment.size for segment in self.segments)

    @property
    def is_transposed(self) -> bool:
        """True if the base has rows and columns exchanged."""
        return self.exchange is not None


class Tensor:
    """The elements of a job, read from the files.

    Attributes:
        kind: the element type.
        target: bits [count].
        base: bits [count], in target order even if the base is transposed; None without a base.
        count: number of elements.
    """

    def __init__(self, job: TensorJob) -> None:
        self.job = job
        self.kind: ElementType = ELEMENT_TYPE_BY_NAME[job.dtype]
        self.target: Bits = np.frombuffer(_read_segments(job.segments, is_base=False), self.kind.bits)
        self.count = len(self.target)
        self.base: Bits | None = None
        base = job.segments[0].base
        if job.exchange is not None and base is not None:
            self.base = self._read_exchanged(base, job.exchange)
        elif base is not None:
            self.base = np.frombuffer(_read_segments(job.segments, is_base=True), self.kind.bits)

    def _read_exchanged(self, base: BytePosition, exchange: Exchange) -> Bits:
        rows, columns = exchange.rows, exchange.columns
        matrix = np.frombuffer(base.read(rows * columns * self.kind.size), self.kind.bits).reshape(columns, rows)
        row = exchange.first // columns
        end = -(-(exchange.first + self.count) // columns)
        skipped = exchange.first - row * columns
        return np.ascontiguousarray(matrix[:, row:end].T).reshape(-1)[skipped : skipped + self.count]

    def sample_slices(self) -> list[slice]:
        """Return the slices of the sample; joined, they keep the phase of every period of `propose_periods`."""
        piece = SAMPLE_PIECE_ELEMENTS if self.kind.size > 2 else NARROW_SAMPLE_PIECE_ELEMENTS
        if self.is_sparse:
            piece = block_elements(self.kind.name) // SAMPLE_PIECES
        if self.count <= SAMPLE_PIECES * piece:
            return [slice(0, self.count)]
        step = (self.count - piece) // (SAMPLE_PIECES - 1)
        length = max((period.inner * period.count for period in self.propose_periods()), default=1)
        starts = [i * step - (i * step - i * piece) % length for i in range(SAMPLE_PIECES)]
        return [slice(start, start + piece) for start in starts]

    @property
    def is_sparse(self) -> bool:
        """True if few integers differ from the base's, so that a small sample would contain hardly any change."""
        return self.base is not None and not self.kind.is_float and is_sparse(self.base != self.target)

    @property
    def row_elements(self) -> int:
        """Elements of a row; 0 without rows, or if rows are too short for classes of their own."""
        row = math.prod(self.job.shape[1:]) if len(self.job.shape) > 1 else 0
        return row if row >= MIN_ROW_ELEMENTS else 0

    def propose_periods(self) -> list[Period]:
        """Return the periods that may matter: positions of a kernel, input channels, columns."""
        shape = self.job.shape
        row = math.prod(shape[1:])
        if len(shape) < 2 or shape[0] < 2 or row > MAX_PERIOD_ELEMENTS or row < 2 or self.count < 4 * row:
            return []
        kernel = math.prod(shape[2:])
        if kernel == 1:
            return [Period(1, row)]
        found = [period for period in (Period(1, kernel), Period(kernel, shape[1])) if period.count > 1]
        return [*found, Period(1, row)] if len(found) > 1 else found


def block_elements(dtype: str) -> int:
    """Return the maximum number of elements in a block, by the name of their type."""
    return NARROW_BLOCK_ELEMENTS if ELEMENT_TYPE_BY_NAME[dtype].size <= 2 else BLOCK_ELEMENTS


def _read_segments(segments: tuple[Segment, ...], *, is_base: bool) -> bytes:
    parts = []
    for segment in segments:
        position = segment.base if is_base else segment.target
        assert position is not None
        parts.append(position.read(segment.size))
    return parts[0] if len(parts) == 1 else b"".join(parts)
