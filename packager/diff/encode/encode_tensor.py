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
from bundle.patch.container import Op, encode_frame
from bundle.patch.elements import to_ordered
from bundle.patch.numbers import encode_signed_varint, encode_varint
from bundle.patch.parameters import FLOAT32_ONE_BITS, Factor, ParameterKind
from bundle.patch.sections import write_section
from bundle.patch.single_thread import use_single_thread
from bundle.patch.typed import Coder, Flag, Predictor
from packager.diff.encode.codec_search import choose_coding
from packager.diff.encode.coding_plan import CodingPlan, as_decoded, predict_block
from packager.diff.encode.encode_stream import choose_window_log, encode_lzma_frames, encode_stream_frames
from packager.diff.encode.entropy import (
    EncoderOptions,
    compute_residual,
    keyed_flags,
    write_keyed,
    write_numbers,
    write_part,
    write_planes,
)
from packager.diff.encode.tensor_job import Tensor, TensorJob, block_elements

MAX_LEFT_FRAME_BYTES: Final = 1 << 19  # of a LEFT frame in the decoder
SAMPLED_WORDS: Final = 1 << 18
DISTINCT_SHARE: Final = 0.7  # of words of 32 bits; of trained weights nine tenths and more are, of any type
LZMA_BYTES: Final = 16 << 20  # it takes a second and a half for each MiB


@dataclass(frozen=True, slots=True)
class EncodedTensor:
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


def encode_tensor_job(job: TensorJob) -> EncodedTensor:
    """Frames that make the job's segments; runs in any process."""
    with use_single_thread():
        tensor = Tensor(job)
        plan = choose_coding(tensor)
        frames = list(
            _encode_without_parameters(tensor, plan) if plan.fit is None else _encode_with_parameters(tensor, plan)
        )
    if plan.predictor is Predictor.NONE:
        repeating = _encode_as_bytes(tensor, sum(map(len, frames)))
        if repeating is not None:
            return repeating
    edited = _encode_as_edits(tensor, sum(map(len, frames)))
    if edited is not None:
        return edited
    held = 0
    if plan.fit is not None:
        fit = plan.fit
        held += 8 * len(fit.gain.factors) if fit.gain is not None else 0
        if fit.left is not None and fit.right is not None:
            held += 8 * fit.right.values.size + max(MAX_LEFT_FRAME_BYTES, 8 * fit.left.values.shape[0])
    features = frozenset({"typed", "pcodec"} if job.options.has_pcodec else {"typed"})
    return EncodedTensor(tuple(frames), plan.name, _coder_name(plan, job.options), features, job.dtype, held)


def _encode_as_bytes(tensor: Tensor, size: int) -> EncodedTensor | None:
    """Rule 3; None where that is not below `size`, or the tensor's bytes are not one run."""
    if len(tensor.job.segments) > 1:
        return None
    data, start = tensor.target.tobytes(), tensor.job.segments[0].target.address
    words = np.frombuffer(data, np.uint32, min(len(data) // 4, SAMPLED_WORDS))
    if len(np.unique(words)) > DISTINCT_SHARE * len(words):
        return None
    packed = {"zstd": list(encode_stream_frames([data], start, len(data)))}
    if len(data) <= LZMA_BYTES:
        packed["LZMA"] = list(encode_lzma_frames(data, start))
    coder = min(packed, key=lambda name: sum(map(len, packed[name])))
    if sum(map(len, packed[coder])) >= size:
        return None
    features = frozenset({"stream", "lzma"} if coder == "LZMA" else {"stream"})
    return EncodedTensor(
        tuple(packed[coder]), "none", coder, features, tensor.job.dtype, window_log=choose_window_log(len(data))
    )


def _encode_as_edits(tensor: Tensor, size: int) -> EncodedTensor | None:
    """Rule 4; None where that is not below `size`."""
    if tensor.base is None or tensor.job.is_transposed or tensor.kind.size == 1:
        return None
    share = np.count_nonzero(tensor.target.view(np.uint8) != tensor.base.view(np.uint8)) / tensor.job.size
    if not 0 < share < 1:
        return None
    bits_of_a_byte = 8 * share - share * math.log2(share) - (1 - share) * math.log2(1 - share)
    if bits_of_a_byte * tensor.job.size >= 8 * size:
        return None
    made = encode_tensor_job(replace(tensor.job, dtype="u8", shape=(), can_fit=False))
    if sum(map(len, made.frames)) >= size:
        return None
    return replace(made, coder=f"edits, {made.coder}")


def _encode_without_parameters(tensor: Tensor, plan: CodingPlan) -> Iterator[bytes]:
    for start, end in _split_into_blocks(tensor, 0, tensor.count, tensor.row_elements or 1):
        yield _encode_block(tensor, plan, start, end)


def _split_into_blocks(tensor: Tensor, begin: int, end: int, row: int) -> Iterator[tuple[int, int]]:
    """The largest blocks of whole rows, where these are not too long: a row cut in two is multiplied twice."""
    limit = block_elements(tensor.kind.name)
    step = limit // row * row or limit
    return pairwise([*range(begin, end, step), end])


def _encode_with_parameters(tensor: Tensor, plan: CodingPlan) -> Iterator[bytes]:
    assert plan.fit is not None
    effort = tensor.job.options
    yield encode_frame(Op.PARAM, bytes([ParameterKind.CLEAR]))
    gain, left, right = plan.fit.gain, plan.fit.left, plan.fit.right
    if gain is not None:
        steps = gain.factors.astype(np.float32).view(np.int32) - np.int32(FLOAT32_ONE_BITS)
        head = bytes([ParameterKind.GAIN]) + encode_varint(len(steps)) + encode_varint(gain.inner)
        yield encode_frame(Op.PARAM, head + write_numbers(steps, effort))
    if left is None or right is None:
        yield from _encode_without_parameters(tensor, plan)
        return
    columns = right.values.shape[1]
    yield encode_frame(Op.PARAM, bytes([ParameterKind.RIGHT]) + _encode_factor(right, 0, columns, effort))
    rows_of_chunk = max(1, MAX_LEFT_FRAME_BYTES // (8 * len(left.shifts)))
    rows = left.values.shape[1]
    for row in range(0, rows, rows_of_chunk):
        end = min(rows, row + rows_of_chunk)
        yield encode_frame(
            Op.PARAM, bytes([ParameterKind.LEFT]) + encode_varint(row) + _encode_factor(left, row, end, effort)
        )
        for start, stop in _split_into_blocks(tensor, row * columns, end * columns, columns):
            yield _encode_block(tensor, plan, start, stop)


def _encode_factor(factor: Factor, begin: int, end: int, options: EncoderOptions) -> bytes:
    integers = np.rint(factor.values[:, begin:end] * np.ldexp(1.0, factor.shifts)[:, None]).astype(np.int32)
    lowest = min(factor.shifts)
    head = encode_varint(end - begin) + encode_varint(len(factor.shifts)) + encode_signed_varint(lowest)
    head += bytes(shift - lowest for shift in factor.shifts)
    return head + write_numbers(integers.reshape(-1), options)


def _encode_block(tensor: Tensor, plan: CodingPlan, start: int, end: int) -> bytes:
    kind, effort, coder = tensor.kind, tensor.job.options, plan.coder
    target = tensor.target[start:end]
    prediction = None
    if plan.predictor is not Predictor.NONE:
        assert tensor.base is not None
        prediction = predict_block(
            tensor.base[start:end], kind, as_decoded(plan.fit), start, has_rounding_class=plan.has_rounding_class
        )
    residual = compute_residual(to_ordered(target, kind), prediction, kind)
    flags = Flag.ROUNDING_CLASS if plan.has_rounding_class else Flag(0)
    if tensor.job.is_transposed and prediction is not None:
        flags |= Flag.TRANSPOSED
    if coder is Coder.KEYED:
        flags |= keyed_flags(prediction, kind, plan.period, has_units=plan.has_units)
        tables, parts = write_keyed(
            residual, prediction, kind, plan.sub_block, effort, plan.period, start, has_units=plan.has_units
        )
        data = tables + parts
    elif coder is Coder.SINGLE_PART:
        data = write_part(residual, effort)
    else:
        data = write_planes(target if prediction is None else zigzag(residual), effort)
    head = bytes([kind.code, plan.predictor, coder, flags])
    head += write_section(_encode_segments(tensor, start, end, has_base=prediction is not None))
    if plan.predictor is Predictor.PARAM or flags & Flag.TRANSPOSED:
        head += encode_varint(start)
    if flags & Flag.TRANSPOSED:
        head += encode_varint(tensor.job.shape[0]) + encode_varint(tensor.job.shape[1])
    return encode_frame(Op.TYPED, head + data, target.data.cast("B"))


def _encode_segments(tensor: Tensor, start: int, end: int, *, has_base: bool) -> bytes:
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
            rows.append(encode_varint(begin - target_end) + encode_varint(high - low))
            target_end = begin + length
            if has_base and segment.base is not None:
                source = segment.base.address + (0 if tensor.job.is_transposed else offset)
                rows[-1] += encode_signed_varint(source - base_end)
                base_end = source + length
        position += count
    return encode_varint(len(rows)) + b"".join(rows)


def _coder_name(plan: CodingPlan, options: EncoderOptions) -> str:
    if plan.coder is Coder.PLANES:
        return "planes"
    kind = "keyed" if plan.coder is Coder.KEYED else "plain"
    more = (", near" if plan.has_rounding_class else "") + (", by place" if plan.period is not None else "")
    more += ", in units" if plan.has_units else ""
    return f"{kind} {'pcodec' if options.has_pcodec else 'planes'}{more}"
