"""Histograms of moments: what a scalar quantizer has to know of a group of weights.

A group of N weighted points is reduced once to B bins sorted by value. From then on K-means, its
diameter forms and uniform quantization work on (groups, B) arrays, whatever N was.

Every bin stores sums about its *own* representative, so that nothing cancels: the number of
points, their mass `sum h`, their weighted mean, and the root of their weighted variance. All of it
is in units of powers of two near the largest point and the largest importance of the group
(`scaling`), so that nothing depends on the scale of either.

Bins follow the data; `binning` says how.

Axes: `...` groups, `N` points, `B` bins.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxcomp.numerics import across
from jaxcomp.numerics.scaling import group_exponent, is_zero, normalise
from jaxcomp.numerics.sums import pairwise_sum, running_maximum, running_sum
from jaxcomp.numerics.transformations import always_compiled, without_derivative
from jaxcomp.quantizers.binning import bins_by_density, bins_of_points
from jaxcomp.quantizers.bins import BinSums, PointBins
from jaxcomp.quantizers.one_pass import (
    is_one_large_group,
    moments_in_one_pass,
    quickly_on_cpus,
)
from jaxcomp.quantizers.padding import without_copies
from jaxcomp.quantizers.placed import over_devices

# Bit patterns of 16-bit dtypes.
_NUM_SHORT = 1 << 16
# The largest point of a group is 2^64 to 2^65 units: room above for sums, and below for weights
# 1e57 times smaller.
LOG2_LARGEST = 64
# Bins for each cluster that is asked for: a boundary between clusters is an edge of a bin, and
# costs about a quarter of the square of the inverse of this.
_BINS_PER_CLUSTER = 16


class Moments(NamedTuple):
    """Histogram of moments of one group of points (or of many, with leading axes).

    Points are in units of `2^exponent`, importances in units of `2^mass_exponent`: `restore` brings
    both back, `restore(moments.position, moments.exponent)`.

    Attributes:
        position: (..., B), non-decreasing: the weighted mean of the bin's points. A bin without
            mass holds its lowest point or the mean of its points, one without points the position
            of the one below.
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


# What `vectorized` calls the axes of the fields.
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


def whole_up_to(*, num_bins: int = 4096, by_value: bool = False) -> int:
    """Return up to how many points a group is sorted, which one device does for all of it."""
    return _NUM_SHORT if by_value else num_bins


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype sums over points of `dtype` are kept in: float32, or float64 if given."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


@over_devices(whole_up_to)
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

    def generally(points: Array, importance: Array | None, num_padding: Array | None) -> Moments:
        found = histogram_with_edges(points, importance, num_bins=num_bins, num_padding=num_padding)
        return found[0]

    points = jnp.asarray(points)
    importance = None if importance is None else jnp.asarray(importance)

    if not is_one_large_group(points, importance, num_bins):
        return generally(points, importance, num_padding)
    quickly = partial(_in_one_pass, num_bins)
    return quickly_on_cpus(quickly, generally, points, importance, num_padding)


def _in_one_pass(
    num_bins: int,
    points: Float[Array, "... points"],
    weights: Float[Array, "... points"] | None,
    num_padding: Int[Array, ""] | None,
) -> tuple[Moments, Bool[Array, ""]]:
    """Return what one pass finds, and whether that is enough."""
    size = points.shape[-1]
    *fields, is_sound = moments_in_one_pass(
        points.reshape(1, size),
        None if weights is None else weights.reshape(1, size),
        num_padding,
        num_bins=num_bins,
        log2_largest=LOG2_LARGEST,
    )
    shape = points.shape[:-1]
    return Moments(*(field.reshape(*shape, *field.shape[1:]) for field in fields)), is_sound


@over_devices(whole_up_to)
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
    num_points = across.number_of_points(points.shape[-1])
    if by_value and num_points > _NUM_SHORT:
        moments, edges = _moments_by_value(groups, weights, num_padding)
    else:
        scaled, exponent = points_in_units(groups)
        if by_value or num_points <= num_bins:
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
    exponent = across.exponent_of_all(points) - LOG2_LARGEST
    return normalised_once(points, exponent), exponent


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
    exponent = across.exponent_of_all(groups)
    scaled = normalised_once(groups, exponent).astype(dtype)
    is_nothing = across.everywhere(jnp.all(is_zero(groups), axis=-1, keepdims=True))
    scaled = jnp.where(is_nothing, jnp.ones((), dtype), scaled)
    return jnp.broadcast_to(scaled, points.shape), exponent


def normalised_once(
    values: Float[Array, "... points"], exponent: Int[Array, "..."]
) -> Float[Array, "... points"]:
    """As `normalise`, but computed once.

    What XLA can fuse it computes again for each reader, and on CPU an optimization barrier does not
    keep it from that; a branch does.
    """
    return lax.cond(jnp.all(exponent == 0), lambda values, _: values, normalise, values, exponent)


def sum_of_squares(
    mass: Float[Array, "... points"] | None,
    *deviations: Float[Array, "... points"],
    is_of_points: bool = False,
) -> tuple[Float[Array, "..."], Int[Array, "..."]]:
    """Return `sum h (d_1^2 + d_2^2 + ...)` over the last axis, out of the range of floats too.

    Args:
        mass: (..., N) h of moderate size; None for 1.
        deviations: (..., N) each, of any size.
        is_of_points: whether they are of points, which several devices may share.

    Returns:
        (...) m and (...) int32 e: the sum is `m * 2^e`.
    """
    largest = jnp.stack([jnp.max(jnp.abs(d), axis=-1) for d in deviations], axis=-1)
    exponent = group_exponent(across.most(largest) if is_of_points else largest)
    first, *others = (jnp.square(normalise(d, exponent)) for d in deviations)
    squares = sum(others, start=first)
    found = pairwise_sum(squares if mass is None else mass * squares)
    return across.total(found) if is_of_points else found, 2 * exponent


def about_one(moments: Moments) -> Moments:
    """Return the same moments with the largest point in [1, 2): squares stay in range in float32.

    What is 1e-19 of the largest point has a square of 0 then.
    """
    scale = jnp.asarray(2.0**-LOG2_LARGEST, moments.position.dtype)
    return moments._replace(
        position=moments.position * scale,
        deviation=moments.deviation * scale,
        minimum=moments.minimum * scale,
        maximum=moments.maximum * scale,
        exponent=moments.exponent + LOG2_LARGEST,
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
    first = across.least(jnp.min(index, axis=-1))
    last = across.most(jnp.max(index, axis=-1))
    exponent = group_exponent(jnp.stack([values[first], values[last]], axis=-1)) - LOG2_LARGEST
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
    minimum = across.least(jnp.min(points, axis=-1))
    maximum = across.most(jnp.max(points, axis=-1))
    index = bins_by_density(points, weights, minimum, maximum, num_bins, num_padding)
    index, sums = bins_of_points(points, weights, index, num_bins=num_bins, num_padding=num_padding)
    moments = moments_of_sums(sums, minimum, maximum)
    # A pass that is left out where nobody asks for the edges.
    is_occupied = sums.num_points > 0
    bins = PointBins.of(index, num_bins)
    highest = jnp.where(is_occupied, bins.maximum(points), minimum[:, None])
    highest = running_maximum(highest.T).T
    return moments, BinEdges(jnp.where(is_occupied, sums.lowest, highest), highest)


def moments_of_sums(
    sums: BinSums, minimum: Float[Array, " groups"], maximum: Float[Array, " groups"]
) -> Moments:
    """Return the moments of points in units, by the sums over their bins.

    Args:
        sums: over bins in the order of their values.
        minimum: the smallest point of every group.
        maximum: the largest one.
    """
    is_occupied = sums.num_points > 0
    # Rounding must not push a mean beyond the next bin's points.
    next_lowest = -running_maximum(-sums.lowest.T[::-1])[::-1].T
    above = jnp.concatenate([next_lowest[:, 1:], maximum[:, None]], axis=-1)
    position = jnp.minimum(sums.lowest + sums.mean, jnp.minimum(above, maximum[:, None]))
    # An empty bin sits with the occupied one below.
    position = running_maximum(jnp.where(is_occupied, position, minimum[:, None]).T).T
    none = jnp.zeros(minimum.shape, jnp.int32)
    return Moments(
        position=position,
        num_points=sums.num_points,
        mass=sums.mass,
        deviation=sums.deviation,
        minimum=minimum,
        maximum=maximum,
        exponent=none,
        mass_exponent=none,
    )
