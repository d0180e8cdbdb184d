"""Encodes one tensor, or a handful of small ones: tries predictors on a sample, keeps the cheapest, codes all of it.

Rules:
1. A job reads what it needs from the files by itself, so that jobs can run in other processes.
2. Choices are made on a sample of the tensor; what is chosen is then coded in blocks of `BLOCK_ELEMENTS`.
3. A tensor of more than `SLICE_ELEMENTS` elements is encoded slice by slice, so that memory does not follow its size.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from bundle.patch.coders import zigzag
from bundle.patch.container import Op, frame_bytes
from bundle.patch.elements import BY_NAME, Bits, Doubles, ElementType, Signed, ordered
from bundle.patch.numbers import signed_varint, varint
from bundle.patch.parameters import ONE, Factor, ParameterKind, Parameters
from bundle.patch.predict import Prediction, parameter_prediction
from bundle.patch.sections import write_section
from bundle.patch.single_thread import single_threaded
from bundle.patch.typed import Coder, Flag, Predictor
from packager.diff.fit import (
    MIN_ELEMENTS,
    Fit,
    exact_low_rank,
    gains,
    is_usable,
    low_rank,
    matrix_rows,
    robust,
    rounding_variance,
    spectrum,
    values_of,
)
from packager.diff.pack import (
    ONE_CLASS,
    Effort,
    Period,
    keyed_flags,
    residual_of,
    write_keyed,
    write_numbers,
    write_part,
    write_planes,
)

BLOCK_ELEMENTS: Final = 1 << 17  # the decoder holds some 40 bytes an element
NARROW_BLOCK_ELEMENTS: Final = 1 << 18  # of elements of one or two bytes
SLICE_ELEMENTS: Final = 1 << 22
SAMPLE_PIECES: Final = 4
SAMPLE_PIECE: Final = 4096
NARROW_SAMPLE_PIECE: Final = 8192  # of elements of one or two bytes: they take few bits, so that a sample needs more
LEFT_BYTES: Final = 1 << 19  # of a LEFT frame in the decoder
MAX_PERIOD: Final = 1 << 13
SUB_LOGS: Final = (6, 8, 11, ONE_CLASS)
NEAR_BELOW_BITS: Final = 6.0  # where residuals are longer, how a prediction was rounded says nothing about them
FITTED: Final = ("f32", "f16", "bf16", "f64", "i8", "u8", "i16", "u16")


@dataclass(frozen=True, slots=True)
class Place:
    """A run of bytes.

    Attributes:
        file: the plain file.
        offset: where in the file.
        address: where in the bundle's line of bytes.
    """

    file: Path
    offset: int
    address: int


@dataclass(frozen=True, slots=True)
class Segment:
    """One array, or a part of it.

    Attributes:
        target: where it goes.
        base: what it is predicted from; None for nothing.
        size: bytes.
    """

    target: Place
    base: Place | None
    size: int


@dataclass(frozen=True, slots=True)
class TensorJob:
    """What one call of `encode_job` does.

    Attributes:
        dtype: name of the element type.
        segments: in target order, all with a base or all without.
        shape: of the elements of all segments together; () where several tensors share the job.
        is_transposed: the single segment's base holds the tensor with rows and columns exchanged.
        can_fit: try predictor parameters.
        effort: how hard to pack.
    """

    dtype: str
    segments: tuple[Segment, ...]
    shape: tuple[int, ...]
    is_transposed: bool
    can_fit: bool
    effort: Effort

    @property
    def size(self) -> int:
        """Bytes of the target."""
        return sum(segment.size for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Frames of a job, in order.

    Attributes:
        frames: (frame, target bytes that it makes).
        predictor, coder: for the report.
        parameter_bytes: most parameter bytes in force in the decoder.
    """

    frames: tuple[bytes, ...]
    predictor: str
    coder: str
    parameter_bytes: int


@dataclass(frozen=True, slots=True)
class _Plan:
    predictor: Predictor
    fit: Fit | None
    coder: Coder
    sub_log: int
    is_near: bool
    name: str
    period: Period | None = None


class _Tensor:
    """The elements of a job."""

    def __init__(self, job: TensorJob) -> None:
        self.job = job
        self.kind: ElementType = BY_NAME[job.dtype]
        self.target: Bits = np.frombuffer(_read(job.segments, is_base=False), self.kind.bits)
        self.base: Bits | None = None
        if job.segments[0].base is not None:
            self.base = np.frombuffer(_read(job.segments, is_base=True), self.kind.bits)
            if job.is_transposed:
                rows, columns = job.shape
                self.base = np.ascontiguousarray(self.base.reshape(columns, rows).T).reshape(-1)
        self.count = len(self.target)

    def sample(self) -> list[slice]:
        """Pieces of the tensor, which joined keep the phase of every period that `periods` proposes."""
        piece = SAMPLE_PIECE if self.kind.size > 2 else NARROW_SAMPLE_PIECE
        if self.count <= SAMPLE_PIECES * piece:
            return [slice(0, self.count)]
        step = (self.count - piece) // (SAMPLE_PIECES - 1)
        length = max((period.inner * period.count for period in self.periods()), default=1)
        starts = [i * step - (i * step - i * piece) % length for i in range(SAMPLE_PIECES)]
        return [slice(start, start + piece) for start in starts]

    def periods(self) -> list[Period]:
        """Places that may matter: those of a kernel, input channels, columns."""
        shape = self.job.shape
        row = math.prod(shape[1:])
        if len(shape) < 2 or shape[0] < 2 or row > MAX_PERIOD or row < 2 or self.count < 4 * row:
            return []
        kernel = math.prod(shape[2:])
        if kernel == 1:
            return [Period(1, row)]
        return [period for period in (Period(1, kernel), Period(kernel, shape[1])) if period.count > 1]


def block_elements(dtype: str) -> int:
    """Elements of a block."""
    return NARROW_BLOCK_ELEMENTS if BY_NAME[dtype].size <= 2 else BLOCK_ELEMENTS


def encode_job(job: TensorJob) -> Encoded:
    """Frames that make the job's segments; runs in any process."""
    with single_threaded():
        tensor = _Tensor(job)
        plan = _choose(tensor)
        frames = list(_parameter_free_frames(tensor, plan) if plan.fit is None else _fitted_frames(tensor, plan))
    held = 0
    if plan.fit is not None:
        fit = plan.fit
        held += 8 * len(fit.gain.factors) if fit.gain is not None else 0
        if fit.left is not None and fit.right is not None:
            held += 8 * fit.right.values.size + max(LEFT_BYTES, 8 * fit.left.values.shape[0])
    return Encoded(tuple(frames), plan.name, _coder_name(plan, job.effort), held)


def _choose(tensor: _Tensor) -> _Plan:
    effort, kind, count = tensor.job.effort, tensor.kind, tensor.count
    pieces = tensor.sample()
    sampled = sum(piece.stop - piece.start for piece in pieces)
    goal = np.concatenate([ordered(tensor.target[piece], kind) for piece in pieces])
    packer = _Sampler(tensor, pieces, goal, effort)

    best = _Plan(Predictor.NONE, None, Coder.KEYED, 8, False, "none")
    cost = float("inf")
    if tensor.base is not None:
        best = replace(best, predictor=Predictor.BASE, name="transposed base" if tensor.job.is_transposed else "base")
        cost = packer.keyed(None, 8, is_near=False)
        if tensor.job.can_fit and effort.with_fits and kind.name in FITTED and count >= 256:
            for fit in _fits(tensor, packer, cost):
                trial = packer.keyed(fit, 8, is_near=False) + fit.cost_bits * sampled / count
                is_near = False
                if trial < NEAR_BELOW_BITS * sampled and kind.name != "f64":
                    near = packer.keyed(fit, 8, is_near=True) + fit.cost_bits * sampled / count
                    is_near, trial = near < trial, min(near, trial)
                if trial < cost * 0.995:
                    best = replace(best, predictor=Predictor.PARAM, fit=fit, is_near=is_near, name=fit.name)
                    cost = trial
        fit_bits = best.fit.cost_bits * sampled / count if best.fit is not None else 0.0
        for sub_log in SUB_LOGS:
            trial = packer.keyed(best.fit, sub_log, is_near=best.is_near) + fit_bits
            if trial < cost:
                best, cost = replace(best, sub_log=sub_log), trial
        for period in tensor.periods():
            for sub_log in sorted({best.sub_log, ONE_CLASS}):
                trial = packer.keyed(best.fit, sub_log, is_near=best.is_near, period=period) + fit_bits
                if trial < cost * 0.99:
                    best, cost = replace(best, sub_log=sub_log, period=period), trial
        trial = packer.planes(best.fit, is_near=best.is_near) + fit_bits
        if trial < cost * 0.98:
            best, cost = replace(best, coder=Coder.PLANES), trial
    if tensor.base is None or cost > 0.5 * 8 * kind.size * sampled:
        for coder, sub_log in ((Coder.KEYED, 6), (Coder.KEYED, 8), (Coder.PLAIN, 0), (Coder.PLANES, 0)):
            trial = packer.without_base(coder, sub_log)
            if trial < cost:
                best, cost = _Plan(Predictor.NONE, None, coder, sub_log, False, "none"), trial
    return best


class _Sampler:
    """What plans cost on the sample, in bits."""

    def __init__(self, tensor: _Tensor, pieces: list[slice], goal: Signed, effort: Effort) -> None:
        self.tensor, self.pieces, self.goal, self.effort = tensor, pieces, goal, effort

    def prediction(self, fit: Fit | None, *, is_near: bool) -> Prediction:
        tensor = self.tensor
        assert tensor.base is not None
        parts = [_predict(tensor.base[piece], tensor.kind, fit, piece.start, is_near=is_near) for piece in self.pieces]
        bits = np.concatenate([part.bits for part in parts])
        if not is_near:
            return Prediction(bits, None, None)
        nearness = np.concatenate([part.nearness for part in parts if part.nearness is not None])
        above = np.concatenate([part.is_above for part in parts if part.is_above is not None])
        return Prediction(bits, nearness, above)

    def keyed(self, fit: Fit | None, sub_log: int, *, is_near: bool, period: Period | None = None) -> float:
        prediction = self.prediction(fit, is_near=is_near)
        residual = residual_of(self.goal, prediction, self.tensor.kind)
        tables, parts = write_keyed(residual, prediction, self.tensor.kind, sub_log, self.effort, period)
        # A period's table does not grow with the block, unlike the classes of sub-blocks.
        block = min(block_elements(self.tensor.kind.name), self.tensor.count)
        share = len(self.goal) / block if period is not None and sub_log == ONE_CLASS else 1.0
        return 8.0 * (len(tables) * share + len(parts))

    def planes(self, fit: Fit | None, *, is_near: bool) -> float:
        residual = residual_of(self.goal, self.prediction(fit, is_near=is_near), self.tensor.kind)
        return 8.0 * len(write_planes(zigzag(residual), self.effort))

    def without_base(self, coder: Coder, sub_log: int) -> float:
        kind = self.tensor.kind
        if coder is Coder.KEYED:
            return 8.0 * sum(map(len, write_keyed(self.goal, None, kind, sub_log, self.effort)))
        if coder is Coder.PLAIN:
            return 8.0 * len(write_part(self.goal, self.effort))
        bits = np.concatenate([self.tensor.target[piece] for piece in self.pieces])
        return 8.0 * len(write_planes(bits, self.effort))


def _predict(base: Bits, kind: ElementType, fit: Fit | None, first: int, *, is_near: bool) -> Prediction:
    if fit is None:
        return Prediction(base, None, None)
    return parameter_prediction(base, kind, _in_force(fit), first, is_near=is_near)


def _in_force(fit: Fit) -> Parameters:
    parameters = Parameters(1 << 40)
    parameters.gain, parameters.left, parameters.right = fit.gain, fit.left, fit.right
    return parameters


def _fits(tensor: _Tensor, packer: _Sampler, cost: float) -> Iterator[Fit]:
    """Proposals, the later ones built on the best of the earlier ones."""
    assert tensor.base is not None
    base, target = values_of(tensor.base, tensor.kind), values_of(tensor.target, tensor.kind)
    if base is None or target is None or (len(tensor.job.segments) > 1 and not tensor.job.shape):
        return
    sampled, count = len(packer.goal), tensor.count
    best_gain: Fit | None = None
    for fit in gains(base, target, tensor.job.shape):
        trial = packer.keyed(fit, 8, is_near=False) + fit.cost_bits * sampled / count
        if trial < cost * 0.99:
            best_gain, cost = fit, trial
    if best_gain is not None:
        refit = robust(best_gain, base, target)
        if refit is not None:
            trial = packer.keyed(refit, 8, is_near=False) + refit.cost_bits * sampled / count
            best_gain = refit if trial < cost else best_gain
        yield best_gain
    rows = matrix_rows(tensor.job.shape, count)
    if not rows or count < MIN_ELEMENTS:
        return
    difference = target - (base if best_gain is None else _gained(base, best_gain))
    variance = rounding_variance(tensor.target, tensor.kind)
    if tensor.kind.size < 4 or not tensor.kind.is_float:
        variance = variance + rounding_variance(tensor.base, tensor.kind)
    floor = float(variance.mean())
    found = spectrum(difference, rows)
    if found is None:
        return
    proposals = list(low_rank(found, floor))
    if tensor.kind.is_float:
        proposals += exact_low_rank(found, variance)
    for fit in proposals:
        if is_usable(fit):
            yield _with_gain(fit, best_gain)


def _gained(base: Doubles, fit: Fit) -> Doubles:
    assert fit.gain is not None
    factors = fit.gain.factors
    out: Doubles = (base.reshape(-1, len(factors), fit.gain.inner) * factors[None, :, None]).reshape(-1)
    return out


def _with_gain(fit: Fit, gain: Fit | None) -> Fit:
    if gain is None:
        return fit
    return replace(fit, gain=gain.gain, name=f"{gain.name}, {fit.name}", cost_bits=fit.cost_bits + gain.cost_bits)


def _parameter_free_frames(tensor: _Tensor, plan: _Plan) -> Iterator[bytes]:
    step = block_elements(tensor.kind.name)
    for start in range(0, tensor.count, step):
        yield _block(tensor, plan, start, min(tensor.count, start + step))


def _fitted_frames(tensor: _Tensor, plan: _Plan) -> Iterator[bytes]:
    assert plan.fit is not None
    effort = tensor.job.effort
    yield frame_bytes(Op.PARAM, bytes([ParameterKind.CLEAR]))
    gain, left, right = plan.fit.gain, plan.fit.left, plan.fit.right
    if gain is not None:
        steps = gain.factors.astype(np.float32).view(np.int32) - np.int32(ONE)
        head = bytes([ParameterKind.GAIN]) + varint(len(steps)) + varint(gain.inner)
        yield frame_bytes(Op.PARAM, head + write_numbers(steps, effort))
    if left is None or right is None:
        yield from _parameter_free_frames(tensor, plan)
        return
    columns = right.values.shape[1]
    yield frame_bytes(Op.PARAM, bytes([ParameterKind.RIGHT]) + _factor(right, 0, columns, effort))
    rows_of_chunk = max(1, LEFT_BYTES // (8 * len(left.shifts)))
    rows = left.values.shape[1]
    for row in range(0, rows, rows_of_chunk):
        end = min(rows, row + rows_of_chunk)
        yield frame_bytes(Op.PARAM, bytes([ParameterKind.LEFT]) + varint(row) + _factor(left, row, end, effort))
        step = block_elements(tensor.kind.name)
        for start in range(row * columns, end * columns, step):
            yield _block(tensor, plan, start, min(end * columns, start + step))


def _factor(factor: Factor, begin: int, end: int, effort: Effort) -> bytes:
    integers = np.rint(factor.values[:, begin:end] * np.ldexp(1.0, factor.shifts)[:, None]).astype(np.int32)
    head = varint(end - begin) + varint(len(factor.shifts)) + b"".join(signed_varint(s) for s in factor.shifts)
    return head + write_numbers(integers.reshape(-1), effort)


def _block(tensor: _Tensor, plan: _Plan, start: int, end: int) -> bytes:
    kind, effort, coder = tensor.kind, tensor.job.effort, plan.coder
    target = tensor.target[start:end]
    prediction = None
    if plan.predictor is not Predictor.NONE:
        assert tensor.base is not None
        prediction = _predict(tensor.base[start:end], kind, plan.fit, start, is_near=plan.is_near)
    residual = residual_of(ordered(target, kind), prediction, kind)
    flags = Flag.NEAR if plan.is_near else Flag(0)
    if tensor.job.is_transposed and prediction is not None:
        flags |= Flag.TRANSPOSED
    if coder is Coder.KEYED:
        flags |= keyed_flags(prediction, kind, plan.period)
        data = b"".join(write_keyed(residual, prediction, kind, plan.sub_log, effort, plan.period, start))
    elif coder is Coder.PLAIN:
        data = write_part(residual, effort)
    else:
        data = write_planes(target if prediction is None else zigzag(residual), effort)
    head = bytes([kind.code, plan.predictor, coder, flags])
    head += write_section(_segments(tensor, start, end, has_base=prediction is not None))
    if plan.predictor is Predictor.PARAM or flags & Flag.TRANSPOSED:
        head += varint(start)
    if flags & Flag.TRANSPOSED:
        head += varint(tensor.job.shape[0]) + varint(tensor.job.shape[1])
    return frame_bytes(Op.TYPED, head + data, target.data.cast("B"))


def _segments(tensor: _Tensor, start: int, end: int, *, has_base: bool) -> bytes:
    size = tensor.kind.size
    rows: list[bytes] = []
    position = target_end = base_end = 0
    for segment in tensor.job.segments:
        count = segment.size // size
        low, high = max(start, position), min(end, position + count)
        if low < high:
            offset = (low - position) * size
            length = (high - low) * size
            begin = segment.target.address + offset
            rows.append(varint(begin - target_end) + varint(high - low))
            target_end = begin + length
            if has_base and segment.base is not None:
                source = segment.base.address + (0 if tensor.job.is_transposed else offset)
                rows[-1] += signed_varint(source - base_end)
                base_end = source + length
        position += count
    return varint(len(rows)) + b"".join(rows)


def _read(segments: tuple[Segment, ...], *, is_base: bool) -> bytes:
    parts = []
    for segment in segments:
        place = segment.base if is_base else segment.target
        assert place is not None
        with place.file.open("rb") as stream:
            stream.seek(place.offset)
            parts.append(stream.read(segment.size))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _coder_name(plan: _Plan, effort: Effort) -> str:
    if plan.coder is Coder.PLANES:
        return "planes"
    kind = "keyed" if plan.coder is Coder.KEYED else "plain"
    near = (", near" if plan.is_near else "") + (", by place" if plan.period is not None else "")
    return f"{kind} {'pcodec' if effort.with_pcodec else 'planes'}{near}"


__all__ = [
    "BLOCK_ELEMENTS",
    "SLICE_ELEMENTS",
    "Encoded",
    "Place",
    "Segment",
    "TensorJob",
    "block_elements",
    "encode_job",
]
