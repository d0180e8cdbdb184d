"""Find predictor parameters: gains and low-rank products that predict a tensor's update from the base.

Symbols, for a tensor seen as a matrix of R rows and C columns (n = R * C elements):

    B, T    float64 [R, C]   values of base and target
    g       float32 [count]  gains by channel
    D       float64 [R, C]   T - g * B, the update that gains leave
    U, V    float64 [R, k], [k, C]   factors of rank k; prediction = g * B + U V
    s       float32 [k]      singular values of D, falling
    v       float64 [R, C]   variance of each element's own rounding to its type

Where the gain comes from. Gradients of a layer are sums of outer products of few directions, so an update is nearly of
low rank, even in a full fine-tune (docs/benchmarks.md: 0.5 to 1 bit per weight at rank 40); a merged adapter is exactly
of low rank (92 % of a merged fp32 adapter's weights are predicted exactly). An exporter folds normalization into
weights, so a changed statistic rescales whole channels.

Theory of operation.
1. Gains: least squares per channel, g = sum(B T) / sum(B B), along each axis that a channel may lie on. The best one is
   refitted by iteratively reweighted least squares, which minimizes absolute residuals, so that few elements that moved
   far do not tilt it.
2. Spectrum: the leading singular triples of D by random projection.
3. Rank: with the residual variance q(k) after rank k, coding n Gaussians saves n/2 * log2(q(0) / q(k)) bits; the
   factors cost (R + C) integers per rank. The rank with the largest difference is proposed, and a half and a quarter of
   it.
4. Exact low rank: if the singular values drop sharply at rank k, U and V are refined by alternating least squares with
   the weights 1 / v: small weights of the model are rounded finely, so they determine the factors best.
5. Rounding: component j of the factors is rounded to multiples of step / sqrt(s[j]). Rounding both sides adds noise * k
   * (R + C) / (R * C) to each element's variance with step = sqrt(12 * noise): there one bit less in every factor costs
   as much in the residuals as it saves.

Rules:
1. A fit is only a proposal: the caller encodes a sample with it, and keeps it only if it pays for its parameters.
2. Everything is computed with one thread and in a fixed order of operations, so that every run gives the same fit.
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
MAX_FACTOR_NUMBERS: Final = 1 << 17  # numbers of the right factor: one MiB in the decoder
REWEIGHTING_ROUNDS: Final = 3
REFINEMENT_ROUNDS: Final = 5
MAX_FINER_SHIFT: Final = 255  # the format stores it in a byte
FLOAT32_ROUNDING: Final = 2.0**-24
EXACT_STEPS: Final = (0.1, 0.2, 0.4, 1.2)  # noise of the factors, relative to the rounding of a typical element
UNIT_GAUSSIAN_ENTROPY_BITS: Final = 2.05  # log2(sqrt(2 pi e))


@dataclass(frozen=True, slots=True)
class Fit:
    """Parameters for the prediction base * gain + left · right.

    Attributes:
        gain: factors as the decoder will use them; None for no gain.
        left: factor [rank, rows]; None for no product.
        right: factor [rank, columns]; None for no product.
        name: name of the fit in the report.
        cost_bits: estimated size of the parameters in a patch.
    """

    gain: Gain | None
    left: Factor | None
    right: Factor | None
    name: str
    cost_bits: float

    @property
    def rank(self) -> int:
        """Rank of the low-rank product; 0 without one."""
        return 0 if self.left is None else len(self.left.shifts)


def propose_gains(base: Doubles, target: Doubles, shape: tuple[int, ...]) -> Iterator[Fit]:
    """Propose one gain for the whole tensor, and gains by channel along the axes that channels may lie on.

    Args:
        base: float64 [n].
        target: float64 [n].
        shape: shape of the tensor.
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
        matrix: D / scale, float64 [R, C].
        left: float32 [R, rank].
        values: singular values of `matrix`, float32 [rank], falling.
        right: float32 [rank, C].
        scale: root mean square of D.
    """

    matrix: Doubles
    left: Floats
    values: Floats
    right: Floats
    scale: float


def compute_spectrum(difference: Doubles, rows: int) -> Spectrum | None:
    """Compute the leading components of an update; return None if it is too small or zero.

    Args:
        difference: D, float64 [R * C].
        rows: R.
    """
    columns = len(difference) // rows
    limit = min(MAX_RANK, min(rows, columns) // 3, MAX_FACTOR_NUMBERS // columns)
    scale = float(np.sqrt(np.mean(difference**2)))
    if limit < 1 or min(rows, columns) < MIN_MATRIX_SIDE or not np.isfinite(scale) or scale == 0:
        return None
    matrix = (difference / scale).reshape(rows, columns)
    left, values, right = _decompose(matrix.astype(np.float32), limit)
    return Spectrum(matrix, left, values, right, scale)


def refit_robustly(fit: Fit, base: Doubles, target: Doubles) -> Fit | None:
    """Refit gains so that a few elements that moved far count less; return None if a gain is not finite.

    Args:
        fit: a fit that has a gain.
        base: float64 [n].
        target: float64 [n].
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
    """Propose low-rank approximations of the most promising ranks.

    Args:
        update_spectrum: leading components of the update.
        floor: mean variance of the elements' own rounding, which no prediction removes.
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
    """Propose the factors of an update that is of low rank except for rounding.

    Args:
        update_spectrum: leading components of the update.
        variance: v, float64 [n].
    """
    rank = _sharp_rank(update_spectrum.values)
    if rank is None:
        return
    matrix, scale = update_spectrum.matrix, update_spectrum.scale
    rows, columns = matrix.shape
    # The update itself was computed in float32, so an element is no more precise than float32 rounding.
    weight = 1 / (variance.reshape(rows, columns) / scale**2 + FLOAT32_ROUNDING**2)
    weight /= weight.mean()
    roots = np.sqrt(update_spectrum.values[:rank].astype(np.float64))
    u = update_spectrum.left[:, :rank].astype(np.float64) * roots
    v = update_spectrum.right[:rank].astype(np.float64) * roots[:, None]
    for _ in range(REFINEMENT_ROUNDS):
        u = _solve_rows(matrix, weight, v)
        v = _solve_rows(matrix.T, weight.T, u.T).T
    # Return to balanced, orthogonal components: their sizes then determine how finely each is rounded.
    qu, ru = np.linalg.qr(u)
    qv, rv = np.linalg.qr(v.T)
    middle, sizes, other = np.linalg.svd(ru @ rv.T)
    u, v = qu @ middle * np.sqrt(sizes), (qv @ other.T * np.sqrt(sizes)).T
    typical = float(np.sqrt(np.median(variance))) / scale
    for share in EXACT_STEPS:
        step = np.sqrt(12 * (share * typical) ** 2 * rows * columns / (2.0 * rank * max(rows, columns)))
        yield _round_factors(u, v, sizes, float(step), scale, f"exact low rank {rank}")


def rounding_variance(bits: Bits, kind: ElementType) -> Doubles:
    """Return the variance of each element's rounding: 1/12 of the square of its last place, float64 [n].

    Args:
        bits: elements [n].
        kind: their type.
    """
    if not kind.is_float:
        return np.full(len(bits), 1 / 12)
    bias = kind.exponent_mask >> 1
    table = (
        np.ldexp(1.0, np.clip(2 * (np.arange(kind.exponent_mask + 1) - bias - kind.mantissa_bits), -1000, 1000)) / 12
    )
    out: Doubles = table[exponent_fields(bits, kind)]
    return out


def finite_values(bits: Bits, kind: ElementType) -> Doubles | None:
    """Return the float64 values of elements, or None if one is not finite, since nothing is fitted then.

    Args:
        bits: elements [n].
        kind: their type.
    """
    values = to_doubles(bits, kind)
    return values if np.isfinite(values).all() else None


def matrix_row_count(shape: tuple[int, ...], elements: int) -> int:
    """Return R for a tensor, the length of its first axis that is longer than one; 0 for vectors.

    Args:
        shape: shape of the tensor.
        elements: number of elements of the tensor.
    """
    longer = [dimension for dimension in shape if dimension > 1]
    if len(longer) < 2:
        return 0
    # A stack of matrices, such as experts or heads, is one tall matrix; a convolution has a row per output channel.
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
    """Return leading singular triples by random projection with one power iteration (Halko et al., 2011)."""
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
    # The Gram matrix is small and in doubles, so its eigenvectors are as precise as the singular vectors.
    gram = inner.astype(np.float64) @ inner.T.astype(np.float64)
    squares, vectors = np.linalg.eigh(gram)
    values = np.sqrt(np.maximum(squares[::-1][:rank], 1e-30))
    vectors = vectors[:, ::-1][:, :rank]
    right = (vectors / values).T.astype(np.float32) @ inner
    return basis @ vectors.astype(np.float32), values.astype(np.float32), right


def _ranks_to_try(values: Floats, left_over: Doubles, rows: int, columns: int) -> list[int]:
    """Return the rank that saves the most bits (step 3 of the theory), its half and its quarter."""
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
    """Return the rounding step of a component of size 1; that of size s is finer by the square root of s."""
    return float(np.sqrt(12 * noise))


def _round_factors(
    u: Floats | Doubles, v: Floats | Doubles, sizes: Doubles, step: float, scale: float, name: str
) -> Fit:
    """Round factors (step 5 of the theory).

    u: [R, rank], v: [rank, C], sizes: the singular value of each component [rank].
    """
    shifts = np.rint(np.log2(np.sqrt(np.maximum(sizes, 1e-30)) / step)).astype(np.int64)
    exponent = np.log2(scale) / 2
    root = np.float64(2.0) ** np.floor(exponent)
    left_scale, right_scale = root, scale / root
    # Split the scale over both sides and adapt the shifts, so that the integers stay as fine as `step` requires.
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
    """Estimate the bits of an integer of a Gaussian with standard deviation `sigma`."""
    return np.maximum(np.log2(np.maximum(sigma, 0.3)) + UNIT_GAUSSIAN_ENTROPY_BITS, 0.4)


def _sharp_rank(values: Floats) -> int | None:
    """Return the rank at which the singular values drop sharply, or None if they do not."""
    tail = float(values[-1])
    if tail <= 0 or len(values) < 2:
        return None
    falls = values[:-1] / np.maximum(values[1:], 1e-20)
    rank = int(np.argmax(falls)) + 1
    return rank if float(falls[rank - 1]) > 3 and rank <= len(values) * 3 // 4 else None


def _solve_rows(matrix: Doubles, weight: Doubles, v: Doubles) -> Doubles:
    """Solve for the u [R, k] that minimizes the weighted squared error of u · v, row by row."""
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
    """Return whether the decoder would accept the factors, whose sums must be exact."""
    return fit.left is None or fit.right is None or is_exact(fit.left, fit.right)
