"""From thresholds to assignments: the only step of scalar quantization that touches raw points.

A point w belongs to cluster `#{t : w > t}`: clusters are intervals, a point on a threshold goes to
the lower one. Axes: `...` groups, `N` points, `K` clusters.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt

from jaxcomp.numerics.scaling import group_exponent, normalise, ordered, restore
from jaxcomp.numerics.sums import (
    running_maximum,
    two_sum,
)
from jaxcomp.numerics.transformations import vectorized
from jaxcomp.quantizers import placed

# The largest centroid, in the units of the thresholds: smaller ones keep their midpoints.
_LOG2_LARGEST = 64
# Thresholds that are selected from in one fused pass over the points: what is selected grows with
# their number, and for twice as many one pass takes less than two.
_CHUNK = 63
# From here on a binary search per point is faster than a pass per chunk.
_SEARCH_FROM = 512


def assignment_dtype(num_clusters: int) -> jnp.dtype:
    """Return the smallest unsigned dtype that can number `num_clusters` clusters."""
    for dtype in (jnp.uint8, jnp.uint16):
        if num_clusters <= jnp.iinfo(dtype).max + 1:
            return jnp.dtype(dtype)
    return jnp.dtype(jnp.uint32)


def midpoints(centroids: Float[Array, " clusters"]) -> Float[Array, " clusters-1"]:
    """Return the midpoints between neighbours, rounded downwards.

    So `w > t` holds in floating point if and only if w is nearer to the upper centroid.

    Args:
        centroids: (K,), non-decreasing.
    """
    # Halved before adding: the sum of two finite centroids can overflow.
    midpoint, error = two_sum(centroids[:-1] * 0.5, centroids[1:] * 0.5)
    below = jnp.nextafter(midpoint, jnp.full_like(midpoint, -jnp.inf))
    return jnp.where(error < 0, below, midpoint)


def nearest_thresholds(centroids: Float[Array, " clusters"]) -> Float[Array, " clusters-1"]:
    """Return the thresholds that send every point to its nearest centroid, exactly.

    Ties go to the lower centroid. Of coincident centroids the lowest gets all the points, the
    others none.

    Args:
        centroids: (K,), non-decreasing.

    Returns:
        (K - 1,), non-decreasing, +inf where no distinct centroid is left above.
    """
    exponent = group_exponent(centroids) - _LOG2_LARGEST
    centroids = normalise(centroids, exponent)
    is_distinct = centroids[1:] > centroids[:-1]
    between = restore(midpoints(centroids), exponent, rounds_down=True)
    thresholds = jnp.where(is_distinct, between, jnp.inf)
    # The minimum of each and all after it.
    return -running_maximum(-thresholds[::-1])[::-1]


def assign(
    points: Float[Array, "... points"], thresholds: Float[Array, "... clusters-1"]
) -> UInt[Array, "... points"]:
    """Number the cluster of every point: how many thresholds lie strictly below it.

    Memory is that of the points and their assignments, for any K.

    Args:
        points: (..., N), floating.
        thresholds: (..., K - 1), non-decreasing; leading axes broadcast against those of `points`.

    Returns:
        (..., N) in the smallest unsigned dtype that can hold K - 1.
    """
    spread = placed.spread_of(points)
    if spread is None:
        return _assign(points, None, thresholds)
    return placed.run(
        _assign, spread, points, None, (thresholds, 1), whole_up_to=0, result="points"
    )


@jax.jit
def _assign(
    points: Float[Array, "... points"],
    importance: None,
    thresholds: Float[Array, "... clusters-1"],
) -> UInt[Array, "... points"]:
    del importance  # the nearest cluster is that whatever the importance
    return vectorized(_assign_group, signature="(n),(k)->(n)")(points, thresholds)


def _assign_group(
    points: Float[Array, " points"], thresholds: Float[Array, " clusters-1"]
) -> UInt[Array, " points"]:
    num_thresholds = thresholds.shape[0]
    dtype = assignment_dtype(num_thresholds + 1)
    is_double = jnp.float64 in (points.dtype, thresholds.dtype)
    exact = jnp.float64 if is_double else jnp.float32
    points, thresholds = points.astype(exact), ordered(thresholds.astype(exact))
    if num_thresholds == 0:
        return jnp.zeros(points.shape, dtype)
    # They are in order already; a loop's result is not computed again for every point.
    thresholds = running_maximum(thresholds)
    if num_thresholds >= _SEARCH_FROM:
        return jnp.searchsorted(thresholds, ordered(points), side="left").astype(dtype)
    if num_thresholds <= 2 * _CHUNK + 1:
        return _count_below(points, thresholds).astype(dtype)
    extra = -num_thresholds % _CHUNK
    last = jnp.iinfo(thresholds.dtype).max
    chunks = jnp.pad(thresholds, (0, extra), constant_values=last).reshape(-1, _CHUNK)
    start = jnp.zeros(points.shape, dtype)

    def add(total, chunk):
        # Tied to the chunk: else a copy of all points in integers is kept beside them.
        some, chunk = lax.optimization_barrier((points, chunk))
        return total + _count_below(some, chunk).astype(dtype), None

    return lax.scan(add, start, chunks)[0]


def _count_below(
    points: Float[Array, " points"], thresholds: Int[Array, " clusters-1"]
) -> Int[Array, " points"]:
    """Count the thresholds (`ordered`, non-decreasing) below each point, by bisection.

    What a point is compared with is selected, and no memory is read at a place that depends on it:
    points advance in vector registers, with a comparison for each level, not for each threshold.
    """
    keys = ordered(points)
    num_levels = thresholds.shape[0].bit_length()
    extra = (1 << num_levels) - 1 - thresholds.shape[0]
    # No point is above what is filled up.
    table = jnp.pad(thresholds, (0, extra), constant_values=jnp.iinfo(thresholds.dtype).max)
    count, is_above = jnp.zeros(points.shape, jnp.int32), []
    for level in range(num_levels):
        half = 1 << (num_levels - 1 - level)
        # The middles of all intervals that are left, halved by what is known already.
        middles = [table[place] for place in range(half - 1, table.shape[0], 2 * half)]
        for known in is_above:
            middles = [
                jnp.where(known, upper, lower)
                for lower, upper in zip(
                    middles[: len(middles) // 2], middles[len(middles) // 2 :], strict=True
                )
            ]
        is_above.append(keys > middles[0])
        count = count + jnp.where(is_above[-1], jnp.int32(half), jnp.int32(0))
    return count
