"""What a quantized group of weights costs in bits: labelled sizes, on the host in float64.

Three sizes are kept apart. `fixed_bits` (log2 K per weight) and `entropy_bits` (the empirical
order-0 entropy of the assignments) are estimates: the entropy of one network's own assignments is
no code length. `description_bits` is one: the length of a prefix code that was fixed before the
data were seen, tables and codebook included, so that a bound on the generalization error may use
it. What the code does not contain, both ends know: the architecture (shapes, hence N) and the
dtype. Biases and other leaves that stay as they are have to be added by the caller.

Axes: `...` groups, `K` clusters; N is the number of weights in a group.

Source: enumerative coding, Cover, IEEE Trans. Inf. Theory 19 (1973); Elias, IEEE Trans. Inf.
Theory 21 (1975), for the integers.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import gammaln

from jaxcomp.numerics.units import LN2

_SizeArray = Float[np.ndarray, "..."]


class CodeSize(NamedTuple):
    """Sizes of whole groups in bits, float64, one entry per group.

    Attributes:
        fixed_bits: every weight at the same length, without its codebook.
        entropy_bits: N times the empirical entropy of the symbols, without the codebook.
        codebook_bits: the codebook (the scales, for rounding).
        description_bits: a decodable prefix code with everything in it.
    """

    fixed_bits: _SizeArray
    entropy_bits: _SizeArray
    codebook_bits: _SizeArray
    description_bits: _SizeArray


def empirical_entropy_bits(counts: Int[Any, "... clusters"]) -> _SizeArray:
    """Return the order-0 entropy of symbols that occurred `counts` times, in bits per symbol.

    Args:
        counts: (..., K) integers >= 0. Symbols that never occurred do not matter.

    Returns:
        (...) float64 in [0, log2 K]; 0 where nothing occurred at all.

    Raises:
        TypeError: if the counts are not integers.
        ValueError: if a count is negative.
    """
    counts = _checked_counts(counts)
    total = counts.sum(axis=-1, keepdims=True)
    share = counts / np.maximum(total, 1)
    return np.sum(share * -np.log2(np.where(share > 0, share, 1.0)), axis=-1)


def compression_ratio(original_bits: float, size_bits: float) -> float:
    """Return how many times smaller; infinity if nothing is left, 1 if there was nothing before."""
    if size_bits > 0:
        return original_bits / size_bits
    return math.inf if original_bits > 0 else 1.0


def code_size(
    counts: Int[Any, "... clusters"],
    *,
    num_clusters: Int[Any, "..."] | int,
    centroid_bits: int = 32,
) -> CodeSize:
    """Return the sizes of groups quantized with a codebook.

    `description_bits` is the length of this code of a group of N weights: the number U of clusters
    with points (Elias gamma), the U centroids, one flag, then what the flag says: either every
    assignment in ceil(log2 U) bits, or the table of counts (one of C(N - 1, U - 1)) together with
    the sequence (one of N! / (n_1! ... n_U!)) as one index.

    Args:
        counts: (..., K) points of each cluster, integers.
        num_clusters: nominal number of clusters, for `fixed_bits`; broadcast against (...).
        centroid_bits: bits of one stored centroid.

    Returns:
        `fixed_bits` N log2 `num_clusters`; `entropy_bits`; `codebook_bits` for the clusters with
        points; `description_bits`. All are 0 for a group without points.

    Raises:
        TypeError: if the counts are not integers.
        ValueError: if a count is negative, `num_clusters < 1`, or more than `num_clusters`
            clusters have points.
    """
    counts = _checked_counts(counts)
    clusters = np.asarray(num_clusters)
    total = counts.sum(axis=-1)
    used = np.count_nonzero(counts, axis=-1)
    if np.any(clusters < 1):
        raise ValueError(f"num_clusters must be at least 1, got {clusters.min()}.")
    if np.any(used > clusters):
        excess = np.broadcast_to(clusters, np.broadcast_shapes(used.shape, clusters.shape))
        raise ValueError(
            f"num_clusters must be at least the number of clusters with points, got "
            f"{excess[used > clusters].max()} for {used[used > excess].max()}."
        )
    codebook = float(centroid_bits) * used
    tables = _log2_binomial(total - 1, used - 1)
    assignments = np.minimum(
        total * _ceil_log2(used), _round_up(tables + _log2_multinomial(counts), total)
    )
    description = _elias_gamma_bits(used) + codebook + 1 + assignments
    return CodeSize(
        fixed_bits=total * np.log2(clusters.astype(np.float64)),
        entropy_bits=total * empirical_entropy_bits(counts),
        codebook_bits=codebook,
        description_bits=np.where(total > 0, description, 0.0),
    )


def with_scales(size: CodeSize, num_scales: int, *, scale_bits: int = 32) -> CodeSize:
    """Add scales that are stored beside a codebook.

    Args:
        size: of groups.
        num_scales: of each group.
        scale_bits: bits of one.
    """
    extra = float(scale_bits * num_scales)
    return size._replace(
        codebook_bits=size.codebook_bits + extra, description_bits=size.description_bits + extra
    )


def rounded_size(
    counts: Int[Any, "... codes"],
    *,
    num_bits: int,
    num_scales: Int[Any, "..."] | int,
    scale_bits: int = 32,
) -> CodeSize:
    """Return the sizes of groups rounded to integers of `num_bits` bits, with stored scales.

    The description code: 3 bits for `num_bits` - 1, the scales, one flag, then either every code
    in `num_bits` bits, or the table of counts (one of C(N + A - 1, A - 1), A codes) together with
    the sequence as one index.

    Args:
        counts: (..., A) how often each code occurred, A <= 2^`num_bits`.
        num_bits: bits of one code, 1 to 8.
        num_scales: scales stored with the group; broadcast against (...).
        scale_bits: bits of one stored scale.

    Returns:
        The sizes; `codebook_bits` is that of the scales.

    Raises:
        TypeError: if the counts are not integers.
        ValueError: if a count is negative, or A or `num_bits` is out of range.
    """
    counts = _checked_counts(counts)
    num_codes = counts.shape[-1]
    if not 1 <= num_bits <= 8:
        raise ValueError(f"num_bits must be 1 to 8, got {num_bits}.")
    if num_codes > 2**num_bits:
        raise ValueError(
            f"counts must have at most 2^num_bits = {2**num_bits} entries, got {num_codes}."
        )
    total = counts.sum(axis=-1)
    scales = float(scale_bits) * np.asarray(num_scales) * np.ones(total.shape)
    fixed = total * float(num_bits)
    tables = _log2_binomial(total + num_codes - 1, num_codes - 1)
    codes = np.minimum(fixed, _round_up(tables + _log2_multinomial(counts), total))
    return CodeSize(
        fixed_bits=fixed,
        entropy_bits=total * empirical_entropy_bits(counts),
        codebook_bits=scales,
        description_bits=np.where(total > 0, 3 + scales + 1 + codes, 0.0),
    )


def trellis_size(
    counts: Int[Any, "... symbols"], *, num_scales: Int[Any, "..."] | int, scale_bits: int = 32
) -> CodeSize:
    """Return the sizes of groups of integers of which a trellis tells the parity of the next one.

    A weight costs the entropy of its integer given the parity. The description code: the largest
    magnitude (Elias gamma), the scales, how many integers are even (one of N + 1), and for each
    parity the table of counts (one of C(N + A - 1, A - 1), A integers) together with the sequence
    as one index.

    Args:
        counts: (..., 2 M + 1) of 0, 1, -1, 2, -2, ..., -M.
        num_scales: stored with the group; broadcast against (...).
        scale_bits: bits of one.

    Returns:
        The sizes; `codebook_bits` is that of the scales and of both tables.

    Raises:
        TypeError: if the counts are not integers.
        ValueError: if a count is negative.
    """
    counts = _checked_counts(counts)
    magnitude = (np.arange(counts.shape[-1]) + 1) // 2
    total, is_odd = counts.sum(axis=-1), magnitude & 1 == 1
    most = np.max(np.where(counts > 0, magnitude, 0), axis=-1)
    scales = float(scale_bits) * np.asarray(num_scales) * np.ones(total.shape)
    entropy, tables, sequences = (np.zeros(total.shape) for _ in range(3))
    for part, size in (
        (counts[..., ~is_odd], 2 * (most // 2) + 1),
        (counts[..., is_odd], 2 * ((most + 1) // 2)),
    ):
        number, used = part.sum(axis=-1), np.count_nonzero(part, axis=-1)
        entropy = entropy + number * empirical_entropy_bits(part)
        tables = tables + _log2_binomial(number + used - 1, used - 1)
        table = _log2_binomial(number + size - 1, size - 1)
        sequences = sequences + _round_up(table + _log2_multinomial(part), number)
    description = _elias_gamma_bits(most + 1) + scales + sequences
    return CodeSize(
        fixed_bits=total * _ceil_log2(2 * most + 1),
        entropy_bits=entropy,
        codebook_bits=scales + tables,
        description_bits=np.where(total > 0, description + _ceil_log2(total + 1), 0.0),
    )


def pruned_size(
    num_weights: Int[Any, "..."] | int, num_kept: Int[Any, "..."] | int, *, value_bits: int = 32
) -> CodeSize:
    """Return the sizes of groups of which only some weights are not 0.

    The description code: the number of kept weights (one of N + 1), their places (one of
    C(N, kept)), their values.

    Args:
        num_weights: N of each group.
        num_kept: weights that are not 0, broadcast against `num_weights`.
        value_bits: bits of one kept value.

    Returns:
        `fixed_bits`: a bitmap and the values; `entropy_bits`: N times the entropy of "kept or not"
        and the values; no codebook; `description_bits`.

    Raises:
        ValueError: unless 0 <= `num_kept` <= `num_weights`.
    """
    total, kept = np.broadcast_arrays(np.asarray(num_weights), np.asarray(num_kept))
    if np.any((kept < 0) | (kept > total)):
        bad = (kept < 0) | (kept > total)
        raise ValueError(
            f"num_kept must lie between 0 and num_weights, got {kept[bad][0]} of {total[bad][0]}."
        )
    values = float(value_bits) * kept
    counts = np.stack([kept, total - kept], axis=-1)
    places = _round_up(_log2_binomial(total, kept), total)
    return CodeSize(
        fixed_bits=total + values,
        entropy_bits=total * empirical_entropy_bits(counts) + values,
        codebook_bits=np.zeros(total.shape),
        description_bits=_ceil_log2(total + 1) + places + values,
    )


def _checked_counts(counts: Int[Any, "... clusters"]) -> Int[np.ndarray, "... clusters"]:
    counts = np.asarray(counts)
    if not np.issubdtype(counts.dtype, np.integer):
        raise TypeError(f"counts must be integers, got {counts.dtype}.")
    if np.any(counts < 0):
        raise ValueError(f"counts must be at least 0, got {counts.min()}.")
    return counts.astype(np.int64)


def _log2_binomial(n: Int[np.ndarray, "..."], k: Int[np.ndarray, "..."] | int) -> _SizeArray:
    """Return log2 C(n, k), 0 outside 0 <= k <= n."""
    n, k = np.asarray(n, np.float64), np.asarray(k, np.float64)
    inside = (k >= 0) & (k <= n)
    n, k = np.where(inside, n, 0.0), np.where(inside, k, 0.0)
    return (gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)) / LN2


def _log2_multinomial(counts: Int[np.ndarray, "... clusters"]) -> _SizeArray:
    total = counts.sum(axis=-1)
    return (gammaln(total + 1.0) - gammaln(counts + 1.0).sum(axis=-1)) / LN2


def _round_up(bits: _SizeArray, total: Int[np.ndarray, "..."]) -> _SizeArray:
    """Round up to whole bits, never below the true logarithm.

    The logarithms of factorials are as large as log2 N!, and their differences inherit the
    rounding error of that: a bit may be lost by the slack, none is invented.
    """
    slack = 1e-9 + 1e-14 * gammaln(np.asarray(total, np.float64) + 1.0) / LN2
    return np.ceil(bits + slack)


def _ceil_log2(number: Int[np.ndarray, "..."]) -> _SizeArray:
    """Return ceil(log2 number) exactly, 0 for numbers below 2."""
    mantissa, exponent = np.frexp(np.maximum(number, 1).astype(np.float64))
    return np.where(mantissa == 0.5, exponent - 1.0, exponent.astype(np.float64))


def _elias_gamma_bits(number: Int[np.ndarray, "..."]) -> _SizeArray:
    """Return 2 floor(log2 n) + 1, the length of Elias' gamma code of n >= 1."""
    _, exponent = np.frexp(np.maximum(number, 1).astype(np.float64))
    return 2.0 * (exponent - 1) + 1.0
