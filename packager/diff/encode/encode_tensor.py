"""Encodes a tensor job into frames, as `choose` says.

Rules:
1. Parameters come before the blocks that they are for, and are cleared first.
2. Blocks are cut so that the decoder holds one at a time.
3. What has no base and repeats is packed as bytes too, and the smaller is kept: tables of sines, masks and codebooks
   repeat what lies far apart, which no coder of numbers sees.
4. Wider elements of which single bytes were edited are coded as bytes too where these edits, as if they were made by
   chance, would take less, and the smaller is kept: to a coder of numbers a changed upper byte is a change of them all.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np

from bundle.patch.coders import zigzag
from bundle.patch.container import Op, frame_bytes
from bundle.patch.elements import ordered
from bundle.patch.numbers import signed_varint, varint
from bundle.patch.parameters import ONE, Factor, ParameterKind
from bundle.patch.sections import write_section
from bundle.patch.single_thread import single_threaded
from bundle.patch.typed import Coder, Flag, Predictor
from packager.diff.encode.codec_search import Plan, choose, in_force, predict_block
from packager.diff.encode.encode_stream import lzma_frames, stream_frames, window_log_for
from packager.diff.encode.entropy import (
    Effort,
    keyed_flags,
    residual_of,
    write_keyed,
    write_numbers,
    write_part,
    write_planes,
)
from packager.diff.encode.tensor_job import Tensor, TensorJob, block_elements

LEFT_BYTES: Final = 1 << 19  # of a LEFT frame in the decoder
SAMPLED_WORDS: Final = 1 << 18
DISTINCT_SHARE: Final = 0.7  # of words of 32 bits; of trained weights nine tenths and more are, of any type
LZMA_BYTES: Final = 16 << 20  # it takes a second and a half for each MiB


@dataclass(frozen=True, slots=True)
class Encoded:
    """Frames of a job, in order.

    Attributes:
        frames: (frame, target bytes that it makes).
        predictor, coder: for the report.
        features: of the decoder.
        dtype: of the elements that the frames are of.
        parameter_bytes: most parameter bytes in force in the decoder.
        window_log: of a stream; 0 where there is none.
    """

    frames: tuple[bytes, ...]
    predictor: str
    coder: str
    features: frozenset[str]
    dtype: str
    parameter_bytes: int = 0
    window_log: int = 0


def encode_job(job: TensorJob) -> Encoded:
    """Frames that make the job's segments; runs in any process."""
    with single_threaded():
        tensor = Tensor(job)
        plan = choose(tensor)
        frames = list(_parameter_free_frames(tensor, plan) if plan.fit is None else _fitted_frames(tensor, plan))
    if plan.predictor is Predictor.NONE:
        repeating = _as_bytes(tensor, sum(map(len, frames)))
        if repeating is not None:
            return repeating
    edited = _as_edits(tensor, sum(map(len, frames)))
    if edited is not None:
        return edited
    held = 0
    if plan.fit is not None:
        fit = plan.fit
        held += 8 * len(fit.gain.factors) if fit.gain is not None else 0
        if fit.left is not None and fit.right is not None:
            held += 8 * fit.right.values.size + max(LEFT_BYTES, 8 * fit.left.values.shape[0])
    features = frozenset({"typed", "pcodec"} if job.effort.with_pcodec else {"typed"})
    return Encoded(tuple(frames), plan.name, _coder_name(plan, job.effort), features, job.dtype, held)


def _as_bytes(tensor: Tensor, size: int) -> Encoded | None:
    """Rule 3; None where that is not below `size`, or the tensor's bytes are not one run."""
    if len(tensor.job.segments) > 1:
        return None
    data, start = tensor.target.tobytes(), tensor.job.segments[0].target.address
    words = np.frombuffer(data, np.uint32, min(len(data) // 4, SAMPLED_WORDS))
    if len(np.unique(words)) > DISTINCT_SHARE * len(words):
        return None
    packed = {"zstd": list(stream_frames([data], start, len(data)))}
    if len(data) <= LZMA_BYTES:
        packed["LZMA"] = list(lzma_frames(data, start))
    coder = min(packed, key=lambda name: sum(map(len, packed[name])))
    if sum(map(len, packed[coder])) >= size:
        return None
    features = frozenset({"stream", "lzma"} if coder == "LZMA" else {"stream"})
    return Encoded(
        tuple(packed[coder]), "none", coder, features, tensor.job.dtype, window_log=window_log_for(len(data))
    )


def _as_edits(tensor: Tensor, size: int) -> Encoded | None:
    """Rule 4; None where that is not below `size`."""
    if tensor.base is None or tensor.job.is_transposed or tensor.kind.size == 1:
        return None
    share = np.count_nonzero(tensor.target.view(np.uint8) != tensor.base.view(np.uint8)) / tensor.job.size
    if not 0 < share < 1:
        return None
    bits_of_a_byte = 8 * share - share * math.log2(share) - (1 - share) * math.log2(1 - share)
    if bits_of_a_byte * tensor.job.size >= 8 * size:
        return None
    made = encode_job(replace(tensor.job, dtype="u8", shape=(), can_fit=False))
    if sum(map(len, made.frames)) >= size:
        return None
    return replace(made, coder=f"edits, {made.coder}")


def _parameter_free_frames(tensor: Tensor, plan: Plan) -> Iterator[bytes]:
    for start, end in _blocks(tensor, 0, tensor.count, tensor.row or 1):
        yield _block(tensor, plan, start, end)


def _blocks(tensor: Tensor, begin: int, end: int, row: int) -> Iterator[tuple[int, int]]:
    """The largest blocks of whole rows, where these are not too long: a row cut in two is multiplied twice."""
    limit = block_elements(tensor.kind.name)
    step = limit // row * row or limit
    return pairwise([*range(begin, end, step), end])


def _fitted_frames(tensor: Tensor, plan: Plan) -> Iterator[bytes]:
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
        for start, stop in _blocks(tensor, row * columns, end * columns, columns):
            yield _block(tensor, plan, start, stop)


def _factor(factor: Factor, begin: int, end: int, effort: Effort) -> bytes:
    integers = np.rint(factor.values[:, begin:end] * np.ldexp(1.0, factor.shifts)[:, None]).astype(np.int32)
    lowest = min(factor.shifts)
    head = varint(end - begin) + varint(len(factor.shifts)) + signed_varint(lowest)
    head += bytes(shift - lowest for shift in factor.shifts)
    return head + write_numbers(integers.reshape(-1), effort)


def _block(tensor: Tensor, plan: Plan, start: int, end: int) -> bytes:
    kind, effort, coder = tensor.kind, tensor.job.effort, plan.coder
    target = tensor.target[start:end]
    prediction = None
    if plan.predictor is not Predictor.NONE:
        assert tensor.base is not None
        prediction = predict_block(tensor.base[start:end], kind, in_force(plan.fit), start, is_near=plan.is_near)
    residual = residual_of(ordered(target, kind), prediction, kind)
    flags = Flag.NEAR if plan.is_near else Flag(0)
    if tensor.job.is_transposed and prediction is not None:
        flags |= Flag.TRANSPOSED
    if coder is Coder.KEYED:
        flags |= keyed_flags(prediction, kind, plan.period, has_units=plan.has_units)
        tables, parts = write_keyed(
            residual, prediction, kind, plan.sub_block, effort, plan.period, start, has_units=plan.has_units
        )
        data = tables + parts
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


def _segments(tensor: Tensor, start: int, end: int, *, has_base: bool) -> bytes:
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


def _coder_name(plan: Plan, effort: Effort) -> str:
    if plan.coder is Coder.PLANES:
        return "planes"
    kind = "keyed" if plan.coder is Coder.KEYED else "plain"
    more = (", near" if plan.is_near else "") + (", by place" if plan.period is not None else "")
    more += ", in units" if plan.has_units else ""
    return f"{kind} {'pcodec' if effort.with_pcodec else 'planes'}{more}"
