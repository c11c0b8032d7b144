"""Histograms of moments: what a scalar quantizer has to know of a group of weights.

A group of N weighted points is reduced once to B bins sorted by value. From then on K-means, its
diameter forms and uniform quantization work on (groups, B) arrays, whatever N was.

Every bin stores sums about its *own* representative, so that nothing cancels: the number of
points, their mass `sum h`, their weighted mean, and the root of their weighted variance. All of it
is in units of powers of two near the largest point and the largest importance of the group
(`scaling`), so that nothing depends on the scale of either.

**Which bins.** Bins follow the data in rounds. The first histogram, of equal cells, gives the
density; its cube root says how many bins a region needs (Panter and Dite, Proc. IRE 39, 1951).
Where values lie on very different scales (one weight of 1e30 among weights of 1) a single bin
holds nearly all the variance then: it is cut again, by the same rule, between its own extremes,
until no region has more of the variance than its share. Ordinary layers need no such round.

Axes: `...` groups, `N` points, `B` bins.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxcomp.numerics.scaling import group_exponent, is_zero, normalise, restore
from jaxcomp.numerics.sums import pairwise_sum, running_maximum, running_sum
from jaxcomp.numerics.transformations import always_compiled, counted_loop, without_derivative
from jaxcomp.quantizers.padding import without_copies

# Share of the bins that is spread evenly over the range, whatever the density.
_EQUAL_SHARE = 0.1
# At least this many points, and points per bin, give the density that bins follow.
_DENSITY_POINTS = 1 << 17
_DENSITY_PER_BIN = 8
# At most every so manieth point.
_MOST_STRIDE = 8
# Points that give centre and spread of the first cells.
_FEW = 64
_BITS_OF_ONE = 127 << 23
# Places of a linear scale.
_LOG2_PLACES = 30
# Bit patterns of 16-bit dtypes.
_NUM_SHORT = 1 << 16
# The largest point of a group is 2^64 to 2^65 units: room above for sums, and below for weights
# 1e57 times smaller.
_LOG2_LARGEST = 64
# Neighbouring bins whose variance is compared with that of the others, and by what factor the
# whole may be above what the best bins would leave.
_BLOCK = 16
_MOST_EXCESS = 4.0
# With at most this share of the bins in use every distinct value gets one.
_SPARSE_SHARE = 0.25
_MOST_ROUNDS = 40
# Bins for each cluster that is asked for: a boundary between clusters is an edge of a bin, and
# costs about a quarter of the square of the inverse of this.
_BINS_PER_CLUSTER = 16
# Points whose sums advance together on CPU: what is computed of them stays in the cache.
_CHUNK = 1 << 13
# Points per matrix product where histograms are made of those.
_PRODUCT_BLOCK = 1 << 14


class Moments(NamedTuple):
    """Histogram of moments of one group of points (or of many, with leading axes).

    Points are in units of `2^exponent`, importances in units of `2^mass_exponent`: `restore` brings
    both back, `restore(moments.position, moments.exponent)`.

    Attributes:
        position: (..., B), non-decreasing: the weighted mean of the bin's points. A bin without
            mass holds its lowest point, a bin without points the position of the one below.
        num_points: (..., B) int32, points in the bin.
        mass: (..., B), sum of the points' weights h.
        deviation: (..., B), root of the weighted mean of `(w - position)^2` over the bin's points;
            0 without mass.
        minimum: (...), the smallest point of the group.
        maximum: (...), the largest point of the group.
        exponent: (...) int32.
        mass_exponent: (...) int32.
    """

    position: Float[Array, "... bins"]
    num_points: Int[Array, "... bins"]
    mass: Float[Array, "... bins"]
    deviation: Float[Array, "... bins"]
    minimum: Float[Array, "..."]
    maximum: Float[Array, "..."]
    exponent: Int[Array, "..."]
    mass_exponent: Int[Array, "..."]


# What `jnp.vectorize` calls the axes of the fields.
MOMENTS_SIGNATURE = "(b),(b),(b),(b),(),(),(),()"


class BinEdges(NamedTuple):
    """Between which values the points of every bin lie, in the units of their moments.

    Attributes:
        lowest: (..., B), the smallest point of the bin.
        highest: (..., B), the largest one; both the largest point below if the bin has none.
    """

    lowest: Float[Array, "... bins"]
    highest: Float[Array, "... bins"]


def bins_for(num_bins: int, max_clusters: int) -> int:
    """Return how many bins a codebook of so many clusters needs, at least `num_bins`."""
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}.")
    return max(num_bins, _BINS_PER_CLUSTER * max_clusters)


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype sums over points of `dtype` are kept in: float32, or float64 if given."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


@partial(jax.jit, static_argnames=("num_bins",))
@without_derivative
def histogram_moments(
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None = None,
    *,
    num_bins: int = 4096,
    num_padding: Int[Array, ""] | None = None,
) -> Moments:
    """Reduce every group of points to a histogram of moments.

    A group of N <= `num_bins` points is kept exactly: one bin per distinct value (the bins left
    over are empty and sit at the largest point), so whatever is solved on these moments is solved
    on the points. Otherwise the range of the group is cut into `num_bins` bins, narrow where the
    mass is.

    Args:
        points: (..., N), floating. Finite. What is 1e57 times smaller than the largest point of its
            group counts as 0.
        importance: importances h >= 0, broadcastable to `points`; None means 1. A group whose
            importances are all 0 (which is refused where values are known, outside `jit`) counts as
            if all were 1. What is 1e-37 of the largest of the group counts as 0.
        num_bins: most bins of the result, static. B = min(N, num_bins).
        num_padding: how many of the last points are copies of the first one that do not count;
            where weights are given theirs are 0. None for none. Traced.

    Returns:
        The moments, float32 (float64 for float64 points).

    Raises:
        ValueError: while tracing, if there are no points or `num_bins < 1`.
        TypeError: while tracing, if the points are not floating.
    """
    return histogram_with_edges(points, importance, num_bins=num_bins, num_padding=num_padding)[0]


@partial(jax.jit, static_argnames=("num_bins", "by_value"))
@without_derivative
def histogram_with_edges(
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None = None,
    *,
    num_bins: int = 4096,
    by_value: bool = False,
    num_padding: Int[Array, ""] | None = None,
) -> tuple[Moments, BinEdges]:
    """Reduce every group of points to a histogram of moments; return the edges of its bins too.

    Args:
        points: (..., N), floating. Finite.
        importance: importances h >= 0, broadcastable to `points`; None means 1.
        num_bins: as in `histogram_moments`.
        by_value: one bin for every distinct value, whatever `num_bins`; for dtypes of 16 bits,
            static. B = min(N, 65536).
        num_padding: as in `histogram_moments`.

    Returns:
        The moments, as `histogram_moments` returns them, and the edges.

    Raises:
        ValueError, TypeError: as `histogram_moments`; also if `by_value` is asked for of a longer
            dtype.
    """
    points = jnp.asarray(points)
    if not jnp.issubdtype(points.dtype, jnp.floating):
        raise TypeError(
            f"points must be floating, got {points.dtype}; convert them or leave them unquantized."
        )
    if points.ndim == 0 or points.shape[-1] == 0:
        raise ValueError(
            f"points must have at least one point along the last axis, got shape {points.shape}."
        )
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}.")
    if by_value and points.dtype.itemsize != 2:
        raise TypeError(f"by_value needs points of a 16-bit dtype, got {points.dtype}.")
    groups = points.reshape(-1, points.shape[-1])
    weights = mass_exponent = None
    if importance is not None:
        weights, mass_exponent = importance_in_units(importance, points)
        weights = weights.reshape(groups.shape)
        mass_exponent = mass_exponent.ravel()
    if by_value and points.shape[-1] > _NUM_SHORT:
        moments, edges = _moments_by_value(groups, weights, num_padding)
    else:
        scaled, exponent = points_in_units(groups)
        if by_value or points.shape[-1] <= num_bins:
            moments, edges = _exact_moments(scaled, weights, num_padding)
        else:
            moments, edges = _binned_moments(scaled, weights, num_bins, num_padding)
        moments = moments._replace(exponent=exponent)
    if mass_exponent is not None:
        moments = moments._replace(mass_exponent=mass_exponent)
    batch_shape = points.shape[:-1]
    return jax.tree.map(lambda leaf: leaf.reshape(*batch_shape, *leaf.shape[1:]), (moments, edges))


def points_in_units(
    points: Float[Array, "... points"],
) -> tuple[Float[Array, "... points"], Int[Array, "..."]]:
    """Return points in the units of their moments, and the exponent of these.

    Args:
        points: (..., N) floating.

    Returns:
        (..., N) float32, or float64 if given; (...) int32.
    """
    points = points.astype(accumulation_dtype(points.dtype))
    exponent = group_exponent(points) - _LOG2_LARGEST
    return _normalised_once(points, exponent), exponent


def importance_in_units(
    importance: Shaped[Array, "..."], points: Float[Array, "... points"]
) -> tuple[Float[Array, "... points"], Int[Array, "..."]]:
    """Return importances with the largest of each group in [1, 2), and the exponent of the unit.

    Args:
        importance: h >= 0, broadcastable to `points`; any real dtype. 0 throughout a group means
            1 throughout.
        points: (..., N).

    Returns:
        (..., N) float32, or float64 if the points are; (...) int32.
    """
    importance = jnp.asarray(importance)
    dtype = accumulation_dtype(points.dtype)
    if importance.dtype == bool:
        # What marks padding, and nothing else.
        marks = jnp.broadcast_to(importance, points.shape).astype(dtype)
        return marks, jnp.zeros(points.shape[:-1], jnp.int32)
    if importance.dtype != jnp.float64:
        importance = importance.astype(jnp.float32)
    # Before they are spread out and rounded to another dtype, which may have a shorter range.
    groups = jnp.broadcast_to(importance, (*points.shape[:-1], *(importance.shape[-1:] or (1,))))
    exponent = group_exponent(groups)
    scaled = _normalised_once(groups, exponent).astype(dtype)
    is_nothing = jnp.all(is_zero(groups), axis=-1, keepdims=True)
    scaled = jnp.where(is_nothing, jnp.ones((), dtype), scaled)
    return jnp.broadcast_to(scaled, points.shape), exponent


def _normalised_once(
    values: Float[Array, "... points"], exponent: Int[Array, "..."]
) -> Float[Array, "... points"]:
    """As `normalise`, but computed once.

    What XLA can fuse it computes again for each reader, and on CPU an optimization barrier does not
    keep it from that; a branch does.
    """
    return lax.cond(jnp.all(exponent == 0), lambda values, _: values, normalise, values, exponent)


def sum_of_squares(
    mass: Float[Array, "... points"] | None, *deviations: Float[Array, "... points"]
) -> tuple[Float[Array, "..."], Int[Array, "..."]]:
    """Return `sum h (d_1^2 + d_2^2 + ...)` over the last axis, out of the range of floats too.

    Args:
        mass: (..., N) h of moderate size; None for 1.
        deviations: (..., N) each, of any size.

    Returns:
        (...) m and (...) int32 e: the sum is `m * 2^e`.
    """
    exponent = group_exponent(
        jnp.stack([jnp.max(jnp.abs(d), axis=-1) for d in deviations], axis=-1)
    )
    first, *others = (jnp.square(normalise(d, exponent)) for d in deviations)
    squares = sum(others, start=first)
    return pairwise_sum(squares if mass is None else mass * squares), 2 * exponent


def about_one(moments: Moments) -> Moments:
    """Return the same moments with the largest point in [1, 2): squares stay in range in float32.

    What is 1e-19 of the largest point has a square of 0 then.
    """
    scale = jnp.asarray(2.0**-_LOG2_LARGEST, moments.position.dtype)
    return moments._replace(
        position=moments.position * scale,
        deviation=moments.deviation * scale,
        minimum=moments.minimum * scale,
        maximum=moments.maximum * scale,
        exponent=moments.exponent + _LOG2_LARGEST,
    )


@always_compiled
def pad_bins(moments: Moments, num_bins: int) -> Moments:
    """Append empty bins at the largest point, so that moments of short groups can be stacked.

    Args:
        moments: moments with B <= `num_bins` bins.
        num_bins: bins of the result.

    Returns:
        The same moments with `num_bins` bins.

    Raises:
        ValueError: if there are more bins already.
    """
    extra = num_bins - moments.position.shape[-1]
    if extra < 0:
        raise ValueError(
            f"num_bins must be at least the {moments.position.shape[-1]} bins there are, "
            f"got {num_bins}."
        )
    widths = [(0, 0)] * (moments.position.ndim - 1) + [(0, extra)]
    filler = jnp.broadcast_to(moments.maximum[..., None], (*moments.maximum.shape, extra))
    return moments._replace(
        position=jnp.concatenate([moments.position, filler], axis=-1),
        num_points=jnp.pad(moments.num_points, widths),
        mass=jnp.pad(moments.mass, widths),
        deviation=jnp.pad(moments.deviation, widths),
    )


def _exact_moments(
    points: Float[Array, "groups points"],
    weights: Float[Array, "groups points"] | None,
    num_padding: Int[Array, ""] | None,
) -> tuple[Moments, BinEdges]:
    """One bin per distinct value, in order; N is small here, so that sorting is cheap."""
    num_groups, num_points = points.shape
    first = points[:, :1]
    if weights is None:
        points = jnp.sort(points, axis=-1)
    else:
        points, weights = lax.sort((points, weights), dimension=1, num_keys=1)
    is_new = jnp.concatenate(
        [
            jnp.zeros((num_groups, 1), jnp.int32),
            (points[:, 1:] != points[:, :-1]).astype(jnp.int32),
        ],
        axis=-1,
    )
    bins = PointBins.of(running_sum(is_new.T).T, num_points)
    # Bins without points, all at the end, have minimum +inf.
    position = jnp.minimum(bins.minimum(points), points[:, -1:])
    place = jnp.sum(position < first, axis=-1, dtype=jnp.int32)
    count = without_copies(bins.count(), place, num_padding)
    moments = Moments(
        position=position,
        num_points=count,
        mass=count.astype(points.dtype) if weights is None else bins.sum(weights),
        deviation=jnp.zeros_like(points),
        minimum=points[:, 0],
        maximum=points[:, -1],
        exponent=jnp.zeros((num_groups,), jnp.int32),
        mass_exponent=jnp.zeros((num_groups,), jnp.int32),
    )
    return moments, BinEdges(position, position)


def _moments_by_value(
    points: Float[Array, "groups points"],
    weights: Float[Array, "groups points"] | None,
    num_padding: Int[Array, ""] | None,
) -> tuple[Moments, BinEdges]:
    """One bin per bit pattern of a 16-bit dtype, in the order of values."""
    dtype = points.dtype
    bits = lax.bitcast_convert_type(points, jnp.uint16).astype(jnp.int32)
    half = _NUM_SHORT // 2
    # Negative values: the larger the pattern the lower. Each half of the bins is one sign; -0 is
    # +0.
    index = jnp.where(bits > half, _NUM_SHORT - 1 - bits, jnp.where(bits == half, 0, bits) + half)
    bins = PointBins.of(index, _NUM_SHORT)
    order = jnp.arange(_NUM_SHORT, dtype=jnp.int32)
    pattern = jnp.where(order >= half, order - half, _NUM_SHORT - 1 - order).astype(jnp.uint16)
    values = lax.bitcast_convert_type(pattern, dtype).astype(jnp.float32)
    first, last = jnp.min(index, axis=-1), jnp.max(index, axis=-1)
    exponent = group_exponent(jnp.stack([values[first], values[last]], axis=-1)) - _LOG2_LARGEST
    # The patterns of NaN and infinity are at both ends.
    values = values[jnp.clip(order[None, :], first[:, None], last[:, None])]
    position = normalise(values, exponent)
    count = without_copies(bins.count(), index[:, 0], num_padding)
    mass = count.astype(jnp.float32) if weights is None else bins.mass(weights, count)
    moments = Moments(
        position=position,
        num_points=count,
        mass=mass,
        deviation=jnp.zeros_like(position),
        minimum=position[:, 0],
        maximum=position[:, -1],
        exponent=exponent,
        mass_exponent=jnp.zeros_like(exponent),
    )
    return moments, BinEdges(position, position)


def _binned_moments(
    points: Float[Array, "groups points"],
    weights: Float[Array, "groups points"] | None,
    num_bins: int,
    num_padding: Int[Array, ""] | None,
) -> tuple[Moments, BinEdges]:
    """Bins between the extremes, as fine as the mass asks for."""
    minimum, maximum = jnp.min(points, axis=-1), jnp.max(points, axis=-1)
    index = _bins_by_density(points, weights, minimum, maximum, num_bins, num_padding)
    index, sums = bins_of_points(points, weights, index, num_bins=num_bins, num_padding=num_padding)
    is_occupied = sums.num_points > 0
    # Rounding must not push a mean beyond the next bin's points.
    next_lowest = -running_maximum(-sums.lowest.T[::-1])[::-1].T
    above = jnp.concatenate([next_lowest[:, 1:], maximum[:, None]], axis=-1)
    position = jnp.minimum(sums.lowest + sums.mean, jnp.minimum(above, maximum[:, None]))
    # An empty bin sits with the occupied one below.
    position = running_maximum(jnp.where(is_occupied, position, minimum[:, None]).T).T
    none = jnp.zeros(minimum.shape, jnp.int32)
    moments = Moments(
        position=position,
        num_points=sums.num_points,
        mass=sums.mass,
        deviation=sums.deviation,
        minimum=minimum,
        maximum=maximum,
        exponent=none,
        mass_exponent=none,
    )
    # A pass that is left out where nobody asks for the edges.
    bins = PointBins.of(index, num_bins)
    highest = jnp.where(is_occupied, bins.maximum(points), minimum[:, None])
    highest = running_maximum(highest.T).T
    return moments, BinEdges(jnp.where(is_occupied, sums.lowest, highest), highest)


class BinSums(NamedTuple):
    """Sums over the points of every bin.

    Attributes:
        num_points: (groups, B) int32, points in the bin, without copies.
        mass: (groups, B), `sum h`.
        lowest: (groups, B), the smallest point; +inf without points.
        mean: (groups, B), weighted mean of `w - lowest`; 0 without mass.
        deviation: (groups, B), root of the weighted variance; 0 without mass.
    """

    num_points: Int[Array, "groups bins"]
    mass: Float[Array, "groups bins"]
    lowest: Float[Array, "groups bins"]
    mean: Float[Array, "groups bins"]
    deviation: Float[Array, "groups bins"]


class _Round(NamedTuple):
    """What the bins of one round are, and whether a group needs another."""

    bin_of: Int[Array, "groups points"]
    sums: BinSums
    is_pending: Bool[Array, " groups"]
    root: Float[Array, " groups"]
    number: Int[Array, ""]


def bins_of_points(
    points: Float[Array, "groups points"],
    weights: Float[Array, "groups points"] | None,
    index: Int[Array, "groups points"],
    *,
    num_bins: int,
    num_padding: Int[Array, ""] | None = None,
    most_excess: float = _MOST_EXCESS,
) -> tuple[Int[Array, "groups points"], BinSums]:
    """Cut bins again where the data are on another scale than the bins, in rounds.

    Every histogram of many points is made of these bins. Where there are at most `num_bins / 4`
    distinct values each has a bin of its own.

    Args:
        points: (groups, N) in units.
        weights: (groups, N) in units, or None.
        index: (groups, N), a first bin of every point, which never falls as the point rises.
        num_bins: B, static.
        num_padding: as in `histogram_moments`.
        most_excess: by what factor the variance within bins may be above the least possible.

    Returns:
        (groups, N) bins, and the sums over them.
    """

    def measured(index: Array, before: _Round | None) -> _Round:
        sums = sums_of_bins(points, weights, PointBins.of(index, num_bins), num_padding)
        excess, root, occupied = _unevenness(sums)
        is_sparse = _is_sparse(occupied, num_bins)
        if before is None:
            is_pending = (excess > most_excess) | (is_sparse & (root > 0))
            return _Round(index, sums, is_pending, root, jnp.int32(1))
        is_better = root < 0.9 * before.root
        is_pending = ((excess > most_excess) & is_better) | (is_sparse & (root > 0))
        return _Round(index, sums, is_pending & before.is_pending, root, before.number + 1)

    def cut(state: _Round) -> _Round:
        # Groups that need no further round keep their bins.
        new = _cut_again(points, state.sums, PointBins.of(state.bin_of, num_bins))
        return measured(jnp.where(state.is_pending[:, None], new, state.bin_of), state)

    # The first round is outside: in the loop the same sums take twice the time.
    found = lax.while_loop(
        lambda state: jnp.any(state.is_pending) & (state.number < _MOST_ROUNDS),
        cut,
        measured(index, None),
    )
    return found.bin_of, found.sums


def _is_sparse(num_occupied: Int[Array, "..."], num_bins: int) -> Bool[Array, "..."]:
    """Return whether every bin in use can be cut in two, and lie apart."""
    return num_occupied <= int(_SPARSE_SHARE * num_bins)


def _unevenness(
    sums: BinSums,
) -> tuple[Float[Array, " groups"], Float[Array, " groups"], Int[Array, " groups"]]:
    """Return the inner variance over what the best bins would leave, its root, bins in use.

    The best bins all have the same share of the variance: `(sum of cube roots)^3 / B^2` is what
    they leave. Taken over blocks of bins, since single bins of few points scatter.
    """
    # The root is the cube root of the variance: the variance itself may be out of range.
    root = jnp.cbrt(sums.mass) * jnp.square(jnp.cbrt(sums.deviation))
    largest = jnp.max(root, axis=-1)
    unit = jnp.where(largest > 0, largest, 1)
    share = root / unit[:, None]
    num_bins = share.shape[-1]
    block = min(_BLOCK, num_bins)
    share = jnp.pad(share, [(0, 0), (0, -num_bins % block)]).reshape(share.shape[0], -1, block)
    of_block = jnp.sum(share * share * share, axis=-1)
    variance = jnp.sum(of_block, axis=-1)
    best = jnp.sum(jnp.cbrt(of_block), axis=-1)
    excess = variance * (of_block.shape[-1] ** 2) / jnp.where(best > 0, best * best * best, 1)
    num_occupied = jnp.sum(sums.num_points > 0, axis=-1, dtype=jnp.int32)
    return excess, jnp.cbrt(variance) * largest, num_occupied


def _cut_again(
    points: Float[Array, "groups points"], sums: BinSums, bins: "PointBins"
) -> Int[Array, "groups points"]:
    """Return new bins: in every old one as many as its variance asks for, evenly.

    A bin that lies far from the one below begins a new one, whatever its share; neighbours that
    are close may be joined. While few bins are in use none are joined, and each of two values or
    more is cut.
    """
    num_bins = bins.num_bins
    is_occupied = sums.num_points > 0
    is_sparse = _is_sparse(jnp.sum(is_occupied, axis=-1, keepdims=True), num_bins)
    lowest = jnp.where(is_occupied, sums.lowest, -jnp.inf)
    highest = jnp.where(is_occupied, bins.maximum(points), -jnp.inf)
    width = jnp.where(is_occupied, highest - lowest, 0)
    before = running_maximum(jnp.pad(highest[:, :-1], [(0, 0), (1, 0)], constant_values=-jnp.inf).T)
    # Of the occupied bin below, the width; 0 for none.
    place = jnp.arange(num_bins, dtype=jnp.int32)[None, :]
    last = running_maximum(jnp.where(is_occupied, place, -1).T).T
    last = jnp.pad(last[:, :-1], [(0, 0), (1, 0)], constant_values=-1)
    width_before = jnp.take_along_axis(width, jnp.maximum(last, 0), axis=-1)
    gap = lowest - before.T
    is_apart = is_occupied & (last >= 0)
    is_apart = is_apart & (is_sparse | (gap > 4 * jnp.maximum(width, width_before)))
    least = jnp.where(is_sparse & (width > 0), 1.5, jnp.zeros((), points.dtype))
    taken = pairwise_sum(is_apart.astype(points.dtype) + least)[:, None]
    need = jnp.cbrt(sums.mass) * jnp.square(jnp.cbrt(width))
    unit = jnp.max(need, axis=-1, keepdims=True)
    need = need / jnp.where(unit > 0, unit, 1)
    total = pairwise_sum(need)[:, None]
    length = least + need * ((num_bins - 1 - taken) / jnp.where(total > 0, total, 1))
    ends = running_sum((length + is_apart.astype(length.dtype)).T)
    # Sums in a tree: rounding may let one fall.
    ends = running_maximum(ends).T
    begins = jnp.pad(ends[:, :-1], [(0, 0), (1, 0)]) + is_apart.astype(ends.dtype)
    slope = length / jnp.where(width > 0, width, 1)
    slope = jnp.where(jnp.isfinite(slope), slope, 0)
    begin, end = bins.look_up(begins), bins.look_up(jnp.maximum(ends, begins))
    # Not beyond the end of the bin, where the next one begins: bins must not overlap.
    inside = (points - bins.look_up(lowest)) * bins.look_up(slope)
    return jnp.clip(jnp.minimum(begin + inside, end).astype(jnp.int32), 0, num_bins - 1)


def sums_of_bins(
    points: Float[Array, "groups points"],
    weights: Float[Array, "groups points"] | None,
    bins: "PointBins",
    num_padding: Int[Array, ""] | None = None,
) -> BinSums:
    """Return the sums over every bin; points and weights in units."""
    lowest = bins.minimum(points)
    count, mass, mean, deviation = lax.platform_dependent(
        points,
        weights,
        lowest,
        num_padding,
        cpu=bins.moments_by_scatter,
        default=bins.moments_by_products,
    )
    return BinSums(count, mass, lowest, mean, deviation)


def _bins_by_density(
    points: Float[Array, "groups points"],
    weights: Float[Array, "groups points"] | None,
    minimum: Float[Array, " groups"],
    maximum: Float[Array, " groups"],
    num_bins: int,
    num_padding: Int[Array, ""] | None,
) -> Int[Array, "groups points"]:
    """Return the bin of every point, which never falls as the point rises.

    A first histogram gives the density of mass; the bins follow its cube root, as the cells of the
    best fine quantizer do. Of large groups every n-th point is enough for it, and its cells are
    even around the median and wider in proportion further out: of equal ones ten million Student-t
    weights (3 degrees of freedom) would fill a few, and the variance within the bins would be 3 to
    5 times as large.
    """
    num_points = points.shape[-1]
    least = max(_DENSITY_POINTS, _DENSITY_PER_BIN * num_bins)
    stride = min(_MOST_STRIDE, max(1, num_points // least))
    # Of small groups the bins are the same in whatever order the points come.
    scale = _Logarithmic.of(points) if stride > 1 else _Linear.of(minimum, maximum)
    low, high = scale.place(minimum[:, None]), scale.place(maximum[:, None])
    # A power of two of places is a cell; there are enough for at least `num_bins` to be in use.
    log2_cells = (num_bins - 1).bit_length() + (stride > 1)
    num_cells = 1 << log2_cells
    shift = jnp.maximum(32 - log2_cells - lax.clz(high - low), 0)

    def cell_of(some):
        place = scale.place(some) - low
        return lax.shift_right_logical(place, jnp.broadcast_to(shift, place.shape)), place

    some = points[:, ::stride]
    sample = PointBins.of(cell_of(some)[0], num_cells)
    if weights is not None:
        mass = sample.sum(weights[:, ::stride]).astype(jnp.float32)
    elif num_padding is not None:
        mass = sample.sum(_counts(some, (num_points - num_padding + stride - 1) // stride))
    else:
        mass = sample.count().astype(jnp.float32)
    largest = jnp.max(mass, axis=-1, keepdims=True)
    mass = mass / jnp.where(largest > 0, largest, 1)
    if stride > 1:
        # Half of it spread over neighbours: in a tail most cells have no point of the sample.
        blocks = mass.reshape(mass.shape[0], -1, min(2 * _BLOCK, num_cells))
        even = jnp.broadcast_to(jnp.mean(blocks, axis=-1, keepdims=True), blocks.shape)
        mass = 0.5 * mass + 0.5 * even.reshape(mass.shape)
    length = (high - low).astype(jnp.float32)
    one = lax.shift_left(jnp.ones_like(shift), shift).astype(jnp.float32)
    begins = jnp.arange(num_cells + 1, dtype=jnp.float32)[None, :] * one
    border = scale.value(low.astype(jnp.float32) + jnp.minimum(begins, length))
    need = jnp.cbrt(mass) * jnp.square(jnp.cbrt(border[:, 1:] - border[:, :-1]))
    total = pairwise_sum(need)[:, None]
    is_inside = (begins[:, :-1] <= length).astype(jnp.float32)
    # A small part stays equal, for regions that matter little but are many.
    share = (1 - _EQUAL_SHARE) * need / jnp.where(total > 0, total, 1)
    share = share + _EQUAL_SHARE * is_inside / pairwise_sum(is_inside)[:, None]
    edge = running_sum(share.T).T
    edge = edge * (num_bins / edge[:, -1:])
    # Sums in a tree: rounding may let one fall.
    edge = running_maximum(edge.T).T
    start = jnp.pad(edge[:, :-1], [(0, 0), (1, 0)])

    def spread_out(points: Array) -> Array:
        cell, place = cell_of(points)
        cells = PointBins.of(cell, num_cells)
        begin, end = cells.look_up(start), cells.look_up(edge)
        inside = (place & (lax.shift_left(jnp.ones_like(shift), shift) - 1)).astype(jnp.float32)
        # Not beyond the end of the cell, where the next one begins: bins must not overlap.
        index = jnp.minimum(begin + inside * (1 / one) * (end - begin), end)
        return jnp.minimum(index, num_bins - 1).astype(jnp.int32)

    # A branch, so that it is computed once (see `_normalised_once`).
    return lax.cond(
        jnp.all(high == low), lambda points: jnp.zeros(points.shape, jnp.int32), spread_out, points
    )


class _Linear(NamedTuple):
    """A scale that is even between the extremes.

    Attributes:
        minimum: (groups, 1).
        per_unit: (groups, 1), places per unit; 0 without a range.
    """

    minimum: Float[Array, "groups 1"]
    per_unit: Float[Array, "groups 1"]

    @classmethod
    def of(cls, minimum: Float[Array, " groups"], maximum: Float[Array, " groups"]) -> "_Linear":
        """Take the range of every group."""
        per_unit = 2.0**_LOG2_PLACES / (maximum - minimum)
        per_unit = jnp.where(jnp.isfinite(per_unit), per_unit, 0)
        return cls(minimum[:, None], per_unit[:, None])

    def place(self, points: Float[Array, "groups points"]) -> Int[Array, "groups points"]:
        """Return int32 from 0 to 2^30 - 1 that never falls as the point rises."""
        place = ((points - self.minimum) * self.per_unit).astype(jnp.int32)
        return jnp.minimum(place, (1 << _LOG2_PLACES) - 1)

    def value(self, place: Float[Array, "groups places"]) -> Float[Array, "groups places"]:
        """Return the distance from the minimum at a place, in places."""
        return place


class _Logarithmic(NamedTuple):
    """A scale that is even near a centre and nearly logarithmic further out, to both sides.

    With y the distance in units of the spread, the place is the logarithm of 1 + y, linear between
    powers of two: the bits of that float32, read as an integer, which is the quickest way to it.

    Attributes:
        centre: (groups, 1).
        per_unit: (groups, 1), the inverse of the spread, a power of two: no product is rounded,
            whether or not the sum is fused with it.
    """

    centre: Float[Array, "groups 1"]
    per_unit: Float[Array, "groups 1"]

    @classmethod
    def of(cls, points: Float[Array, "groups points"]) -> "_Logarithmic":
        """Take median and median distance from a few points; both matter up to a factor of 2."""
        few = jnp.sort(points[:, :: max(1, points.shape[-1] // _FEW)], axis=-1)
        centre = few[:, few.shape[-1] // 2][:, None]
        distance = jnp.abs(few - centre)
        is_apart = distance > 0
        distance = jnp.sort(jnp.where(is_apart, distance, jnp.inf), axis=-1)
        middle = jnp.sum(is_apart, axis=-1, keepdims=True, dtype=jnp.int32) // 2
        spread = jnp.take_along_axis(distance, jnp.maximum(middle - 1, 0), axis=-1)
        spread = jnp.where(jnp.isfinite(spread), spread, 1)
        # No distance, 2^66 at most, gets out of range.
        exponent = jnp.maximum(group_exponent(spread), -60)
        return cls(centre, restore(jnp.ones_like(centre), -exponent))

    def place(self, points: Float[Array, "groups points"]) -> Int[Array, "groups points"]:
        """Return int32 that never falls as the point rises, 0 at the centre."""
        distance = ((points - self.centre) * self.per_unit).astype(jnp.float32)
        bits = lax.bitcast_convert_type(1 + jnp.abs(distance), jnp.int32) - _BITS_OF_ONE
        return jnp.where(distance < 0, -bits, bits)

    def value(self, place: Float[Array, "groups places"]) -> Float[Array, "groups places"]:
        """Return the distance from the centre at a place, signed, in units of the spread."""
        bits = jnp.abs(place).astype(jnp.int32) + _BITS_OF_ONE
        return jnp.copysign(lax.bitcast_convert_type(bits, jnp.float32) - 1, place)


@dataclass(frozen=True)
class PointBins:
    """Which bin every point is in; bins of all groups are numbered through, for flat scatters.

    Attributes:
        flat: (groups * points,), bin among all bins of all groups.
    """

    flat: Int[Array, " all_points"]
    num_groups: int
    num_bins: int

    @classmethod
    def of(cls, index: Int[Array, "groups points"], num_bins: int) -> "PointBins":
        """Take the bin of every point within its group."""
        num_groups = index.shape[0]
        group = jnp.arange(num_groups, dtype=jnp.int32)[:, None]
        return cls((group * num_bins + index).ravel(), num_groups, num_bins)

    def count(self) -> Int[Array, "groups bins"]:
        """Count the points of every bin."""

        def by_scatter(flat: Array) -> Array:
            return self.add_up(lambda one: (one,), 1)[0].astype(jnp.int32)

        def at_once(flat: Array) -> Array:
            return self._reduce(jax.ops.segment_sum, jnp.ones_like(flat))

        return lax.platform_dependent(self.flat, cpu=by_scatter, default=at_once)

    def minimum(self, values: Float[Array, "groups points"]) -> Float[Array, "groups bins"]:
        """Return the minimum of every bin; infinite where there are no points."""
        return self._reduce(jax.ops.segment_min, values)

    def maximum(self, values: Float[Array, "groups points"]) -> Float[Array, "groups bins"]:
        """Return the maximum of every bin; infinite where there are no points."""
        return self._reduce(jax.ops.segment_max, values)

    def mass(
        self, weights: Float[Array, "groups points"], count: Int[Array, "groups bins"]
    ) -> Float[Array, "groups bins"]:
        """Sum weights h >= 0 within each bin, without the drift of a sum of many equal numbers."""
        return lax.platform_dependent(
            weights,
            count,
            cpu=lambda weights, count: self.sum_by_scatter(weights),
            default=self._mass_by_products,
        )

    def moments_by_scatter(
        self,
        points: Float[Array, "groups points"],
        weights: Float[Array, "groups points"] | None,
        lowest: Float[Array, "groups bins"],
        num_padding: Int[Array, ""] | None = None,
    ) -> tuple[Array, Array, Array, Array]:
        """As `moments_by_products`, on CPU only: in one pass, and in float64.

        No square is out of range there. Equal points have offset 0, so that their mean is exact.
        """
        dtype = points.dtype

        def terms(one, offset, *weight):
            mass = one * weight[0] if weight else one
            first = mass * offset
            return (one, first, first * offset, *(mass for _ in weight))

        values = (points,) if weights is None else (points, weights)
        with jax.enable_x64(True):
            totals = self.add_up(
                terms, 2 + len(values), *values, base=lowest, num_padding=num_padding
            )
            count, first, second, mass = totals if len(totals) == 4 else (*totals, totals[0])
            mean, deviation = _mean_and_deviation(first, second, mass)
            return (
                count.astype(jnp.int32),
                mass.astype(dtype),
                mean.astype(dtype),
                deviation.astype(dtype),
            )

    def moments_by_products(
        self,
        points: Float[Array, "groups points"],
        weights: Float[Array, "groups points"] | None,
        lowest: Float[Array, "groups bins"],
        num_padding: Int[Array, ""] | None = None,
    ) -> tuple[Array, Array, Array, Array]:
        """Return number, mass, weighted mean of `w - lowest` and deviation of every bin's points.

        About the lowest point and then about the mean: what that loses is an eps of the width of
        the bin, and a pass over the points with the mean looked up is saved.
        """
        first = self.flat.reshape(points.shape)[:, 0] % self.num_bins
        count = without_copies(self.count(), first, num_padding)
        mass = count.astype(points.dtype)
        if weights is None and num_padding is not None:
            weights = _counts(points, points.shape[-1] - num_padding)
        elif weights is not None:
            mass = self._mass_by_products(weights, count)
        offset = points - self.look_up(lowest)
        width = jnp.maximum(self.maximum(offset), 0)
        share = offset * self.look_up(jnp.where(width > 0, 1 / width, 0))
        weighted = share if weights is None else share * weights
        first, second = self.sum_by_products(weighted), self.sum_by_products(weighted * share)
        mean, deviation = _mean_and_deviation(first, second, mass)
        return count, mass, width * mean, width * deviation

    def sum(self, values: Float[Array, "groups points"]) -> Float[Array, "groups bins"]:
        """Sum within each bin: a float32 total of 2e7 ones would stop at 2^24.

        In the same order on every call and every backend.
        """
        return lax.platform_dependent(values, cpu=self.sum_by_scatter, default=self.sum_by_products)

    def sum_by_scatter(self, values: Float[Array, "groups points"]) -> Float[Array, "groups bins"]:
        """Add the points one after the other, in float64: fast, and in order, on CPU only."""
        with jax.enable_x64(True):
            (total,) = self.add_up(lambda one, value: (one * value,), 1, values)
            return lax.convert_element_type(total, values.dtype)

    def sum_by_products(self, values: Float[Array, "groups points"]) -> Float[Array, "groups bins"]:
        """Add the points by matrix products, where scatters would be atomic, in any order.

        A bin is a pair (row, column); the points of a block are a product of two matrices of
        zeros and ones, one of them times the values.
        """
        num_points = values.shape[-1]
        num_columns = 1 << (max(self.num_bins - 1, 1).bit_length() + 1) // 2
        num_rows = -(-self.num_bins // num_columns)
        group = jnp.arange(self.num_groups, dtype=jnp.int32)[:, None] * self.num_bins
        index = self.flat.reshape(values.shape) - group
        block = min(_PRODUCT_BLOCK, num_points)
        extra = -num_points % block

        def blocks(array):
            padded = jnp.pad(array, [(0, 0), (0, extra)])
            return jnp.moveaxis(padded.reshape(self.num_groups, -1, block), 1, 0)

        def add(total, part):
            value, place = part
            row = jax.nn.one_hot(place // num_columns, num_rows, dtype=value.dtype)
            column = jax.nn.one_hot(place % num_columns, num_columns, dtype=value.dtype)
            product = jnp.einsum(
                "gnr,gnc->grc", row * value[..., None], column, precision=lax.Precision.HIGHEST
            )
            return total + product, None

        start = jnp.zeros((self.num_groups, num_rows, num_columns), values.dtype)
        total, _ = lax.scan(add, start, (blocks(values), blocks(index)))
        return total.reshape(self.num_groups, -1)[:, : self.num_bins]

    def look_up(self, table: Float[Array, "groups bins"]) -> Float[Array, "groups points"]:
        """Return the entry of every point's bin."""
        return _entries(table.ravel(), self.flat).reshape(self.num_groups, -1)

    def add_up(
        self,
        terms: Callable[..., tuple[Array, ...]],
        num_terms: int,
        *values: Float[Array, "groups points"],
        base: Float[Array, "groups bins"] | None = None,
        num_padding: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "groups bins"], ...]:
        """Add terms of every point to those of its bin, in float64: in order, on CPU only.

        In chunks, so that no array as long as the points is written: to touch new memory costs
        more than the sums.

        Args:
            terms: `(one, *values) -> terms` of a chunk of points; `one` is 0 for a point that is
                not to be added, and a factor of every term.
            num_terms: how many terms.
            values: of the points.
            base: subtracted from the first of the values, by bin.
            num_padding: as in `histogram_moments`.
        """
        length = self.flat.shape[0]
        chunk = min(_CHUNK, length)
        arrays = [self.flat, *(part.ravel() for part in values)]

        def added(totals, place, one, *parts):
            parts = [part.astype(jnp.float64) for part in (one, *parts)]
            if base is not None:
                parts[1] = parts[1] - _entries(base.ravel(), place).astype(jnp.float64)
            return tuple(
                total.at[place].add(term, mode="promise_in_bounds", wrap_negative_indices=False)
                for total, term in zip(totals, terms(*parts), strict=True)
            )

        def add(number: Array, totals: tuple[Array, ...]) -> tuple[Array, ...]:
            # The last chunk begins early, so that it is whole.
            start = jnp.minimum(number * chunk, length - chunk)
            place, *parts = (lax.dynamic_slice(array, (start,), (chunk,)) for array in arrays)
            one = jnp.arange(chunk, dtype=jnp.int32) + start >= number * chunk
            return added(totals, place, one, *parts)

        with jax.enable_x64(True):
            zero = jnp.zeros((self.num_groups * self.num_bins,), jnp.float64)
            num_chunks = jnp.int32(-(-length // chunk))
            totals = counted_loop(jnp.int32(0), num_chunks, add, (zero,) * num_terms)
            if num_padding is not None:
                # All copies are like the last one.
                last = [array.reshape(self.num_groups, -1)[:, -1] for array in arrays]
                totals = added(
                    totals, last[0], jnp.broadcast_to(-num_padding, last[0].shape), *last[1:]
                )
            return tuple(total.reshape(self.num_groups, -1) for total in totals)

    def _mass_by_products(self, weights, count):
        number = jnp.maximum(count, 1).astype(weights.dtype)
        rough = self.sum_by_products(weights) / number
        # Signed deviations from the rough mean.
        mass = rough * number + self.sum_by_products(weights - self.look_up(rough))
        return jnp.where((count > 0) & (rough > 0), jnp.maximum(mass, 0), 0)

    def _reduce(self, reduce, values):
        size = self.num_groups * self.num_bins
        reduced = reduce(values.ravel(), self.flat, size, mode="promise_in_bounds")
        return reduced.reshape(self.num_groups, self.num_bins)


def _entries(table: Shaped[Array, " all_bins"], places: Int[Array, "..."]) -> Shaped[Array, "..."]:
    """Return entries of a table at places that are known to be inside."""
    return table.at[places].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _counts(
    points: Float[Array, "groups points"], number: Int[Array, ""]
) -> Float[Array, "groups points"]:
    """Return 1 for the first so many points of every group, 0 for the others."""
    is_point = jnp.arange(points.shape[-1], dtype=jnp.int32) < number
    return jnp.broadcast_to(is_point.astype(points.dtype), points.shape)


def _mean_and_deviation(
    first: Float[Array, "groups bins"],
    second: Float[Array, "groups bins"],
    mass: Float[Array, "groups bins"],
) -> tuple[Float[Array, "groups bins"], Float[Array, "groups bins"]]:
    """Return mean and root of the variance of sums of offsets and of their squares."""
    inverse = jnp.where(mass > 0, 1 / jnp.where(mass > 0, mass, 1), 0)
    mean = first * inverse
    return mean, jnp.sqrt(jnp.maximum(second * inverse - mean * mean, 0))
