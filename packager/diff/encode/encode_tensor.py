"""Encode a tensor job as frames, by the plan that `choose_coding` returns.

Rules:
1. The PARAM frames of a tensor precede its TYPED blocks. The first one clears older parameters.
2. A tensor is cut into blocks, of which the decoder decodes one at a time.
3. A tensor without a base whose content repeats is compressed as bytes too, and the smaller result is kept: tables of
   sines, masks and codebooks repeat over long distances, which no coder of numbers uses.
4. Wider elements in which single bytes were edited are coded as bytes too if the entropy of randomly edited bytes is
   below the size so far, and the smaller result is kept: to a coder of numbers, a changed upper byte changes the whole
   element.
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

MAX_LEFT_FRAME_BYTES: Final = 1 << 19  # decoded size of a LEFT frame
SAMPLED_WORDS: Final = 1 << 18
DISTINCT_SHARE: Final = 0.7  # of 32-bit words; in trained weights of any type at least nine tenths are distinct
LZMA_BYTES: Final = 16 << 20  # LZMA takes a second and a half per MiB


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """The frames of a tensor job.

    Attributes:
        frames: encoded frames, in order.
        predictor: name for the report.
        coder: name for the report.
        features: decoder features that the frames need.
        dtype: type of the elements in the frames.
        parameter_bytes: maximum size of the parameters in force in the decoder, in bytes.
        window_log: base-two logarithm of a stream's window; 0 without a stream.
    """

    frames: tuple[bytes, ...]
    predictor: str
    coder: str
    features: frozenset[str]
    dtype: str
    parameter_bytes: int = 0
    window_log: int = 0


def encode_tensor_job(job: TensorJob) -> EncodedTensor:
    """Encode the frames that make the job's segments; runs in any process."""
    with use_single_thread():
        tensor = Tensor(job)
        plan = choose_coding(tensor)
        frames = list(
            _encode_without_parameters(tensor, plan) if plan.fit is None else _encode_with_parameters(tensor, plan)
        )
    if plan.predictor is Predictor.NONE:
        as_bytes = _encode_as_bytes(tensor, sum(map(len, frames)))
        if as_bytes is not None:
            return as_bytes
    as_edits = _encode_as_edits(tensor, sum(map(len, frames)))
    if as_edits is not None:
        return as_edits
    parameter_bytes = 0
    if plan.fit is not None:
        fit = plan.fit
        parameter_bytes += 8 * len(fit.gain.factors) if fit.gain is not None else 0
        if fit.left is not None and fit.right is not None:
            parameter_bytes += 8 * fit.right.values.size + max(MAX_LEFT_FRAME_BYTES, 8 * fit.left.values.shape[0])
    features = frozenset({"typed", "pcodec"} if job.options.has_pcodec else {"typed"})
    return EncodedTensor(tuple(frames), plan.name, _coder_name(plan, job.options), features, job.dtype, parameter_bytes)


def _encode_as_bytes(tensor: Tensor, size: int) -> EncodedTensor | None:
    """Encode the tensor as a stream (rule 3).

    Returns None if that is not smaller than `size` bytes, if the content does not repeat, or if the tensor has several
    segments.
    """
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
    """Encode the tensor as bytes (rule 4); return None if that is not smaller than `size` bytes."""
    if tensor.base is None or tensor.job.is_transposed or tensor.kind.size == 1:
        return None
    share = np.count_nonzero(tensor.target.view(np.uint8) != tensor.base.view(np.uint8)) / tensor.job.size
    if not 0 < share < 1:
        return None
    bits_of_a_byte = 8 * share - share * math.log2(share) - (1 - share) * math.log2(1 - share)
    if bits_of_a_byte * tensor.job.size >= 8 * size:
        return None
    encoded = encode_tensor_job(replace(tensor.job, dtype="u8", shape=(), can_fit=False))
    if sum(map(len, encoded.frames)) >= size:
        return None
    return replace(encoded, coder=f"edits, {encoded.coder}")


def _encode_without_parameters(tensor: Tensor, plan: CodingPlan) -> Iterator[bytes]:
    for start, end in _split_into_blocks(tensor, 0, tensor.count, tensor.row_elements or 1):
        yield _encode_block(tensor, plan, start, end)


def _split_into_blocks(tensor: Tensor, begin: int, end: int, row: int) -> Iterator[tuple[int, int]]:
    """Cut a range into blocks of whole rows, if a row fits: a row that is cut is multiplied twice."""
    limit = block_elements(tensor.kind.name)
    step = limit // row * row or limit
    return pairwise([*range(begin, end, step), end])


def _encode_with_parameters(tensor: Tensor, plan: CodingPlan) -> Iterator[bytes]:
    assert plan.fit is not None
    options = tensor.job.options
    yield encode_frame(Op.PARAM, bytes([ParameterKind.CLEAR]))
    gain, left, right = plan.fit.gain, plan.fit.left, plan.fit.right
    if gain is not None:
        steps = gain.factors.astype(np.float32).view(np.int32) - np.int32(FLOAT32_ONE_BITS)
        head = bytes([ParameterKind.GAIN]) + encode_varint(len(steps)) + encode_varint(gain.inner)
        yield encode_frame(Op.PARAM, head + write_numbers(steps, options))
    if left is None or right is None:
        yield from _encode_without_parameters(tensor, plan)
        return
    columns = right.values.shape[1]
    yield encode_frame(Op.PARAM, bytes([ParameterKind.RIGHT]) + _encode_factor(right, 0, columns, options))
    rows_of_chunk = max(1, MAX_LEFT_FRAME_BYTES // (8 * len(left.shifts)))
    rows = left.values.shape[1]
    for row in range(0, rows, rows_of_chunk):
        end = min(rows, row + rows_of_chunk)
        yield encode_frame(
            Op.PARAM, bytes([ParameterKind.LEFT]) + encode_varint(row) + _encode_factor(left, row, end, options)
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
    kind, options, coder = tensor.kind, tensor.job.options, plan.coder
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
        # a pattern has at most as many steps as its frame has elements, which decoders require
        period = plan.period if plan.period is not None and plan.period.count <= end - start else None
        flags |= keyed_flags(prediction, kind, period, has_units=plan.has_units)
        tables, parts = write_keyed(
            residual, prediction, kind, plan.sub_block, options, period, start, has_units=plan.has_units
        )
        data = tables + parts
    elif coder is Coder.SINGLE_PART:
        data = write_part(residual, options)
    else:
        data = write_planes(target if prediction is None else zigzag(residual), options)
    head = bytes([kind.code, plan.predictor, coder, flags])
    head += write_section(_encode_segments(tensor, start, end, has_base=prediction is not None))
    exchange = tensor.job.exchange if flags & Flag.TRANSPOSED else None
    if plan.predictor is Predictor.PARAM or exchange is not None:
        head += encode_varint(start + (exchange.first if exchange is not None else 0))
    if exchange is not None:
        head += encode_varint(exchange.rows) + encode_varint(exchange.columns)
    return encode_frame(Op.TYPED, head + data, target.data.cast("B"))


def _encode_segments(tensor: Tensor, start: int, end: int, *, has_base: bool) -> bytes:
    size, exchange = tensor.kind.size, tensor.job.exchange
    rows: list[bytes] = []
    position = target_end = base_end = 0
    for segment in tensor.job.segments:
        count = segment.size // size
        low, high = max(start, position), min(end, position + count)
        if low < high:
            offset = (low - position) * size
            length = (high - low) * size
            begin = segment.target.address + offset
            row = encode_varint(begin - target_end) + encode_varint(high - low)
            target_end = begin + length
            if has_base and exchange is not None:
                base = tensor.job.segments[0].base
                row += encode_signed_varint(base.address) if base is not None and not rows else b""
            elif has_base and segment.base is not None:
                source = segment.base.address + offset
                row += encode_signed_varint(source - base_end)
                base_end = source + length
            rows.append(row)
        position += count
    return encode_varint(len(rows)) + b"".join(rows)


def _coder_name(plan: CodingPlan, options: EncoderOptions) -> str:
    if plan.coder is Coder.PLANES:
        return "planes"
    name = f"{'keyed' if plan.coder is Coder.KEYED else 'single-part'} {'pcodec' if options.has_pcodec else 'planes'}"
    name += ", by rounding class" if plan.has_rounding_class else ""
    name += ", by position" if plan.period is not None else ""
    return name + (", in units" if plan.has_units else "")
