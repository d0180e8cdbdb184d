"""Finds predictor parameters: what is known about a tensor's update before a bit of it is coded.

Rules:
1. A fit is a proposal: the caller codes a sample with it and keeps it only where it pays for its parameters.
2. Everything is computed with one thread and in a fixed order of operations, so that it is the same on every run.
3. Factors are rounded to multiples of powers of two, finer for larger components: the noise that rounding adds to the
   prediction is then spread evenly, and is chosen so that one more bit in a factor would cost what it saves.

Where the gain comes from: gradients of a layer are sums of outer products of few directions, so an update is nearly of
low rank, even in a full fine-tune; a merged adapter is exactly that. An exporter folds normalization into weights, so
that a moved statistic rescales whole channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bundle.patch.elements import Bits, Doubles, ElementType, exponent_fields, to_doubles
from bundle.patch.parameters import Factor, Gain, is_exact

Floats = npt.NDArray[np.float32]

MAX_RANK: Final = 72
OVERSAMPLED_COMPONENTS: Final = 8
MIN_MATRIX_SIDE: Final = 48
MIN_ELEMENTS: Final = 16_384
MAX_FACTOR_NUMBERS: Final = 1 << 17  # of the right side: one MiB in the decoder
REWEIGHTING_ROUNDS: Final = 3
REFINEMENT_ROUNDS: Final = 5
MAX_FINER_SHIFT: Final = 255  # a byte
FLOAT32_ROUNDING: Final = 2.0**-24
EXACT_STEPS: Final = (0.1, 0.2, 0.4, 1.2)  # of the rounding of a typical element
UNIT_GAUSSIAN_ENTROPY_BITS: Final = 2.05  # bits, log2(sqrt(2 pi e))


@dataclass(frozen=True, slots=True)
class Fit:
    """Parameters for `base * gain + left · right`.

    Attributes:
        gain, left, right: as the decoder will see them; None where unused. Factors as [rank, length].
        name: for the report.
        cost_bits: about what the parameters take.
    """

    gain: Gain | None
    left: Factor | None
    right: Factor | None
    name: str
    cost_bits: float

    @property
    def rank(self) -> int:
        """Of the low-rank product; 0 where there is none."""
        return 0 if self.left is None else len(self.left.shifts)


def propose_gains(base: Doubles, target: Doubles, shape: tuple[int, ...]) -> Iterator[Fit]:
    """Gains for each channel along the axes that a channel may lie on, and one for the whole tensor.

    Args:
        base, target: float64 [elements].
    """
    for axis_name, count, inner in _channel_axes(shape):
        with np.errstate(all="ignore"):
            x, y = base.reshape(-1, count, inner), target.reshape(-1, count, inner)
            factors = (x * y).sum(axis=(0, 2)) / (x * x).sum(axis=(0, 2))
        factors[~np.isfinite(factors)] = 1.0
        with np.errstate(over="ignore"):
            rounded = factors.astype(np.float32)
        if np.isfinite(rounded).all() and (rounded != 1).any():
            gain = Gain(rounded.astype(np.float64), inner)
            yield Fit(gain, None, None, f"gain by {axis_name}", 64 + 24.0 * count)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The leading components of an update.

    Attributes:
        matrix: the update over `scale`, float64 [rows, columns].
        left: float32 [rows, rank]; values: float32 [rank], falling; right: float32 [rank, columns].
        scale: root mean square of the update.
    """

    matrix: Doubles
    left: Floats
    values: Floats
    right: Floats
    scale: float


def compute_spectrum(difference: Doubles, rows: int) -> Spectrum | None:
    """Components of a matrix given as float64 [rows * columns]; None where it is too small, or nothing but zeros."""
    columns = len(difference) // rows
    limit = min(MAX_RANK, min(rows, columns) // 3, MAX_FACTOR_NUMBERS // columns)
    scale = float(np.sqrt(np.mean(difference**2)))
    if limit < 1 or min(rows, columns) < MIN_MATRIX_SIDE or not np.isfinite(scale) or scale == 0:
        return None
    matrix = (difference / scale).reshape(rows, columns)
    left, values, right = _decompose(matrix.astype(np.float32), limit)
    return Spectrum(matrix, left, values, right, scale)


def refit_robustly(fit: Fit, base: Doubles, target: Doubles) -> Fit | None:
    """The same gains, found again with large residuals counted less: a few elements that really moved do not tilt them.

    Iteratively reweighted least squares, towards the least sum of absolute residuals.
    """
    assert fit.gain is not None
    count, inner = len(fit.gain.factors), fit.gain.inner
    x, y = base.reshape(-1, count, inner), target.reshape(-1, count, inner)
    factors = fit.gain.factors
    for _ in range(REWEIGHTING_ROUNDS):
        weights = np.abs(y - x * factors[None, :, None])
        weights += 0.05 * weights.mean(axis=(0, 2), keepdims=True) + 1e-300
        np.divide(x, weights, out=weights)
        with np.errstate(all="ignore"):
            found = (weights * y).sum(axis=(0, 2)) / (weights * x).sum(axis=(0, 2))
        factors = np.where(np.isfinite(found), found, factors)
    with np.errstate(over="ignore"):
        rounded = factors.astype(np.float32).astype(np.float64)
    if not np.isfinite(rounded).all():
        return None
    return Fit(Gain(rounded, inner), None, None, fit.name, fit.cost_bits)


def propose_low_rank(update_spectrum: Spectrum, floor: float) -> Iterator[Fit]:
    """Low-rank approximations of the most promising ranks.

    Args:
        floor: variance of the rounding that no prediction gets below.
    """
    rows, columns = update_spectrum.matrix.shape
    values, scale, total = update_spectrum.values, update_spectrum.scale, float(rows * columns)
    energy = np.maximum(total - np.cumsum(values.astype(np.float64) ** 2), 1e-6 * total)
    floor_energy = floor / scale**2 * total
    for rank in _ranks_to_try(values, energy + floor_energy, rows, columns):
        step = _factor_step(float((energy[rank - 1] + floor_energy) / total))
        roots = np.sqrt(values[:rank])
        u, v = update_spectrum.left[:, :rank] * roots, update_spectrum.right[:rank] * roots[:, None]
        yield _round_factors(u, v, np.asarray(values[:rank], np.float64), step, scale, f"low rank {rank}")


def propose_exact_low_rank(update_spectrum: Spectrum, variance: Doubles) -> Iterator[Fit]:
    """The factors of an update that is of low rank but for rounding, by weighted alternating least squares.

    Args:
        variance: float64 [elements], of each element's rounding. Small weights of the model are rounded finely, and
            tell more about the factors than the large ones.
    """
    rank = _sharp_rank(update_spectrum.values)
    if rank is None:
        return
    matrix, scale = update_spectrum.matrix, update_spectrum.scale
    rows, columns = matrix.shape
    # The update itself was computed in float32: below its own rounding an element tells nothing more.
    weight = 1 / (variance.reshape(rows, columns) / scale**2 + FLOAT32_ROUNDING**2)
    weight /= weight.mean()
    roots = np.sqrt(update_spectrum.values[:rank].astype(np.float64))
    u = update_spectrum.left[:, :rank].astype(np.float64) * roots
    v = update_spectrum.right[:rank].astype(np.float64) * roots[:, None]
    for _ in range(REFINEMENT_ROUNDS):
        u = _solve_rows(matrix, weight, v)
        v = _solve_rows(matrix.T, weight.T, u.T).T
    # Back to balanced, orthogonal components: the sizes of the factors then say how finely each has to be rounded.
    qu, ru = np.linalg.qr(u)
    qv, rv = np.linalg.qr(v.T)
    middle, sizes, other = np.linalg.svd(ru @ rv.T)
    u, v = qu @ middle * np.sqrt(sizes), (qv @ other.T * np.sqrt(sizes)).T
    typical = float(np.sqrt(np.median(variance))) / scale
    for share in EXACT_STEPS:
        step = np.sqrt(12 * (share * typical) ** 2 * rows * columns / (2.0 * rank * max(rows, columns)))
        yield _round_factors(u, v, sizes, float(step), scale, f"exact low rank {rank}")


def rounding_variance(bits: Bits, kind: ElementType) -> Doubles:
    """Variance of the rounding to the type, of each element: 1/12 of the square of its unit in the last place."""
    if not kind.is_float:
        return np.full(len(bits), 1 / 12)
    bias = kind.exponent_mask >> 1
    table = (
        np.ldexp(1.0, np.clip(2 * (np.arange(kind.exponent_mask + 1) - bias - kind.mantissa_bits), -1000, 1000)) / 12
    )
    out: Doubles = table[exponent_fields(bits, kind)]
    return out


def finite_values(bits: Bits, kind: ElementType) -> Doubles | None:
    """Float64 values, None where one is not finite: no parameters are fitted then."""
    values = to_doubles(bits, kind)
    return values if np.isfinite(values).all() else None


def matrix_row_count(shape: tuple[int, ...], elements: int) -> int:
    """Rows of the matrix that a tensor is seen as: its first axis that is longer than one; 0 where it has none."""
    longer = [dimension for dimension in shape if dimension > 1]
    if len(longer) < 2:
        return 0
    # A stack of matrices, such as experts or heads, is seen as one tall matrix; a convolution by its output channels.
    if len(longer) == 3 and longer[2] >= MIN_MATRIX_SIDE:
        return elements // longer[2]
    return longer[0]


def _channel_axes(shape: tuple[int, ...]) -> Iterator[tuple[str, int, int]]:
    longer = [dimension for dimension in shape if dimension > 1]
    total = int(np.prod(longer)) if longer else 1
    if total > 1:
        yield "tensor", 1, total
    if len(longer) < 2:
        return
    inner = total
    for name, position in (("output", 0), ("input", 1)):
        inner = total // int(np.prod(longer[: position + 1]))
        count = longer[position]
        if total // count >= 16 and count <= 1 << 15:
            yield name, count, inner


def _decompose(matrix: Floats, rank: int) -> tuple[Floats, Floats, Floats]:
    """Leading singular triples, by random projection with a round of power iteration (Halko et al., 2011)."""
    if matrix.shape[0] > matrix.shape[1]:
        right, values, left = _decompose(np.ascontiguousarray(matrix.T), rank)
        return left.T, values, right.T
    rows, columns = matrix.shape
    width = min(rank + OVERSAMPLED_COMPONENTS, rows)
    start = np.random.default_rng(0).standard_normal((columns, width), dtype=np.float32)
    image = matrix @ start
    image = matrix @ (matrix.T @ (image / np.float32(np.sqrt(rows * columns))))
    basis, _ = np.linalg.qr(image)
    inner = basis.T @ matrix
    # The Gram matrix is small and in doubles, so that its eigenvectors are as good as the singular vectors here.
    gram = inner.astype(np.float64) @ inner.T.astype(np.float64)
    squares, vectors = np.linalg.eigh(gram)
    values = np.sqrt(np.maximum(squares[::-1][:rank], 1e-30))
    vectors = vectors[:, ::-1][:, :rank]
    right = (vectors / values).T.astype(np.float32) @ inner
    return basis @ vectors.astype(np.float32), values.astype(np.float32), right


def _ranks_to_try(values: Floats, left_over: Doubles, rows: int, columns: int) -> list[int]:
    """Ranks to try: the one that the theory of coding Gaussians likes best, and fractions of it."""
    count = rows * columns
    noise = left_over / count
    saved = 0.5 * count * np.log2((1 + 1e-12) * (left_over[0] + float(values[0]) ** 2) / left_over)
    best, best_saving = 0, 0.0
    for rank in range(1, len(values) + 1):
        sigma = values[:rank] / np.sqrt(6 * noise[rank - 1] * (rows + columns))
        bits = _number_bits(sigma).sum() * (rows + columns)
        penalty = 0.5 * count * np.log2(1 + rank * (rows + columns) / count)
        saving = float(saved[rank - 1] - bits - penalty)
        if saving > best_saving:
            best, best_saving = rank, saving
    return sorted({rank for rank in (best, best // 2, best // 4) if rank > 0}, reverse=True)


def _factor_step(noise: float) -> float:
    """Rule 3: the step of a component of size one; that of size s is finer by the square root of s.

    Rounding both sides then adds noise * rank * (rows + columns) / (rows * columns) to each element's variance, which
    is where one bit less in every factor costs as much in the residual as it saves.
    """
    return float(np.sqrt(12 * noise))


def _round_factors(
    u: Floats | Doubles, v: Floats | Doubles, sizes: Doubles, step: float, scale: float, name: str
) -> Fit:
    """Rule 3. u: [rows, rank], v: [rank, columns], sizes: what each component adds in all."""
    shifts = np.rint(np.log2(np.sqrt(np.maximum(sizes, 1e-30)) / step)).astype(np.int64)
    exponent = np.log2(scale) / 2
    root = np.float64(2.0) ** np.floor(exponent)
    left_scale, right_scale = root, scale / root
    # The scale is split over both sides, and the shifts follow it, so that integers stay what `step` asks for.
    left = _to_integers(np.asarray(u, np.float64).T * left_scale, shifts - round(float(np.log2(left_scale))))
    right = _to_integers(np.asarray(v, np.float64) * right_scale, shifts - round(float(np.log2(right_scale))))
    fit_left = Factor(left[0], left[1], 0)
    fit_right = Factor(right[0], right[1], 0)
    bits = 0.0
    for values, used in (left, right):
        sigma = np.sqrt(np.mean((values * np.ldexp(1.0, np.array(used))[:, None]) ** 2, axis=1))
        bits += float(_number_bits(sigma).sum() * values.shape[1])
    return Fit(None, fit_left, fit_right, name, bits + 500)


def _to_integers(values: Doubles, shifts: npt.NDArray[np.int64]) -> tuple[Doubles, tuple[int, ...]]:
    limits = 30 - np.ceil(np.log2(np.maximum(np.abs(values).max(axis=1), 1e-300))).astype(np.int64)
    used = np.clip(np.minimum(shifts, limits), -200, 200)
    used = np.minimum(used, used.min() + MAX_FINER_SHIFT)
    scales = np.ldexp(1.0, used)[:, None]
    out: Doubles = np.rint(values * scales) / scales
    return out, tuple(int(shift) for shift in used)


def _number_bits(sigma: Doubles) -> Doubles:
    """About what an integer of that standard deviation takes."""
    return np.maximum(np.log2(np.maximum(sigma, 0.3)) + UNIT_GAUSSIAN_ENTROPY_BITS, 0.4)


def _sharp_rank(values: Floats) -> int | None:
    """Where the singular values fall off a cliff; None where there is none, or the matrix is not of low rank."""
    tail = float(values[-1])
    if tail <= 0 or len(values) < 2:
        return None
    falls = values[:-1] / np.maximum(values[1:], 1e-20)
    rank = int(np.argmax(falls)) + 1
    return rank if float(falls[rank - 1]) > 3 and rank <= len(values) * 3 // 4 else None


def _solve_rows(matrix: Doubles, weight: Doubles, v: Doubles) -> Doubles:
    """For every row the u that makes u · v nearest to it, each element counted by its weight."""
    rank, columns = v.shape
    out = np.empty((len(matrix), rank))
    products = (v[:, None, :] * v[None, :, :]).reshape(rank * rank, columns).T
    chunk = max(1, (1 << 22) // (rank * rank))
    for start in range(0, len(matrix), chunk):
        rows = slice(start, start + chunk)
        normal = (weight[rows] @ products).reshape(-1, rank, rank)
        normal += np.eye(rank) * (1e-12 * np.trace(normal, axis1=1, axis2=2) / rank + 1e-300)[:, None, None]
        moments = (weight[rows] * matrix[rows]) @ v.T
        out[rows] = np.linalg.solve(normal, moments[:, :, None])[:, :, 0]
    return out


def is_usable(fit: Fit) -> bool:
    """Would the decoder take it (exact sums)?"""
    return fit.left is None or fit.right is None or is_exact(fit.left, fit.right)
