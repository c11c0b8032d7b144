"""Near-optimal intervals of one group of bins for one number of clusters, coarse to fine.

The best cuts are found on a coarse grid of places first, by the full dynamic programme. Then every
cut may move by a few steps, all cuts at once, by a dynamic programme over those windows, and the
step is halved until it is one bin. O(G^2 K) for the grid and O(K R^2 log B) for the windows of
R places: a fraction of the programme over all bins. Nothing is proved, but the optimum on the
same bins is what it finds on nearly every distribution (`benchmarks/README.md` has the figures):
moving all cuts together crosses the valleys in which Lloyd's iteration stays.

For more than 256 clusters a grid would have too few places for each. The windows begin at cuts that
share out the cube root of the density evenly then, as those of the best fine quantizer do, or at
equal cells, whichever costs less: no step from there raises the cost.

In float64 inside; where the hardware has none, sums and costs are pairs of float32, and a point
1e-19 of the largest is 0. Costs are differences of sums from the median outwards, so that one bin
far out leaves the others their digits.

Axes: `B` bins, `K` clusters, `G` places of the grid, `R` places of a window.

Sources: Wu, J. Algorithms 12 (1991), 663-673 (the programme); Panter and Dite, Proc. IRE 39
(1951) (the density of a grid that serves a fine quantizer).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxcomp.numerics.pairs import Pair, multiply, subtract
from jaxcomp.numerics.precision import first_least, in_float64, lacks_float64
from jaxcomp.numerics.scaling import group_exponent, normalise, restore
from jaxcomp.numerics.sums import (
    count_below,
    middle_bin,
    pairwise_sum,
    running_maximum,
    running_sum,
)
from jaxcomp.numerics.transformations import counted_loop
from jaxcomp.quantizers.scalar.moment_sums import anchored_moments, between

# Places of the coarse grid: for each cluster, at least and at most; and up to how many clusters.
_GRID_PER_CLUSTER = 8
_SMALLEST_GRID = 128
_LARGEST_GRID = 512
_GRID_UP_TO = 256
# Widest gaps between bins that are places too: two for each cluster, at most.
_MOST_GAPS = 64
# Steps that a cut may move to either side at once; the larger number where the grid has fewer
# places for each cluster than it should.
_REACH = 8
_FAR_REACH = 32


def coarse_to_fine_centroids(
    position: Float[Array, " bins"],
    mass: Float[Array, " bins"],
    num_clusters: Int[Array, ""],
    *,
    max_clusters: int,
) -> Float[Array, " clusters"]:
    """Return the centres of nearly the best intervals of bins.

    Args:
        position: (B,) non-decreasing.
        mass: (B,) non-negative.
        num_clusters: K >= 1, traced; at most `max_clusters`.
        max_clusters: size of the result, static.

    Returns:
        (max_clusters,) ascending, the default floating dtype; entries from K on repeat the last
        one. The centres are distinct unless fewer bins than K have mass.
    """
    if position.dtype == jnp.float64 or not lacks_float64():
        return _in_float64(position, mass, num_clusters, max_clusters=max_clusters)
    position = position.astype(jnp.float32)
    exponent = group_exponent(position)
    centroids = _centroids(
        normalise(position, exponent),
        mass.astype(jnp.float32),
        jnp.asarray(num_clusters),
        max_clusters=max_clusters,
    )
    return restore(centroids, exponent)


def _centroids(
    position: Float[Array, " bins"],
    mass: Float[Array, " bins"],
    num_clusters: Shaped[Array, ""],
    *,
    max_clusters: int,
) -> Float[Array, " clusters"]:
    """Return the centres, in the dtype of the positions: float64, or float32 about 1."""
    num_bins = position.shape[0]
    num_clusters = num_clusters.astype(jnp.int32)
    bins = _heavy_bins(position, mass)
    is_inner = jnp.arange(max_clusters + 1, dtype=jnp.int32) < num_clusters
    by_density = max_clusters > _GRID_UP_TO
    is_crowded = not by_density and _GRID_PER_CLUSTER * max_clusters > _LARGEST_GRID
    reach = _FAR_REACH if is_crowded else _REACH
    if by_density:
        first_step = max(1, num_bins // (2 * max_clusters))
        cuts = _cuts_by_density(bins, num_clusters, max_clusters)
    else:
        num_places = min(max(_GRID_PER_CLUSTER * max_clusters, _SMALLEST_GRID), _LARGEST_GRID)
        first_step = max(1, 2 * num_bins // num_places)
        num_gaps = min(2 * max_clusters, _MOST_GAPS, num_bins)
        grid = _grid(bins, max(1, min(num_places, num_bins) // 2), num_gaps)
        cuts = grid[_best_places(bins, grid, num_clusters, max_clusters)]
    evenly = _equal_cells(bins, num_clusters, max_clusters)
    cuts, evenly = (_distinct(c, bins.number, num_clusters) for c in (cuts, evenly))
    costs = [pairwise_sum(_cost(bins, c[:-1], c[1:])) for c in (cuts, evenly)]
    cuts = jnp.where(costs[1] < costs[0], evenly, cuts)

    levels = first_step.bit_length()

    def refine(level, cuts):
        # Where the grid was crowded the steps are halved twice over.
        step = first_step >> (level % levels if is_crowded else level)
        return _move(bins, cuts, jnp.maximum(step, 1), is_inner, reach=reach)

    # Once more where there was no grid.
    number = 2 * levels if is_crowded else levels + by_density
    cuts = counted_loop(jnp.int32(0), jnp.int32(number), refine, cuts)
    of_run = between(bins.sums, cuts[:-1], cuts[1:])
    of_run = of_run.high if isinstance(of_run, Pair) else of_run
    has_mass = of_run[:, 0] > 0
    mean = bins.centre + of_run[:, 1] / jnp.where(has_mass, of_run[:, 0], 1)
    # Rounding must not push a mean out of its own run.
    lowest = bins.position[jnp.minimum(cuts[:-1], num_bins - 1)]
    highest = bins.position[jnp.maximum(cuts[1:] - 1, 0)]
    mean = jnp.clip(mean, lowest, jnp.maximum(lowest, highest))
    mean = running_maximum(jnp.where(has_mass, mean, position[0]))
    # Where there are clusters for all bins each has its own.
    k = jnp.arange(max_clusters, dtype=jnp.int32)
    each = bins.position[jnp.minimum(k, jnp.maximum(bins.number - 1, 0))]
    return jnp.where(bins.number <= num_clusters, each, mean)


_in_float64 = in_float64("max_clusters")(_centroids)


class _Bins(NamedTuple):
    """The bins with mass first, in order; the others, at the last position, after them."""

    position: Float[Array, " bins"]
    mass: Float[Array, " bins"]
    number: Int[Array, ""]
    centre: Float[Array, ""]
    sums: Float[Array, "bins_plus_1 3"] | Pair  # of mass, first and second moment about the centre


def _heavy_bins(position: Float[Array, " bins"], mass: Float[Array, " bins"]) -> _Bins:
    num_bins = position.shape[0]
    is_heavy = mass > 0
    rank = running_sum(is_heavy.astype(jnp.int32))
    place = jnp.where(is_heavy, rank - 1, num_bins)
    last = jnp.max(jnp.where(is_heavy, position, position[0]))
    position = jnp.full_like(position, last).at[place].set(position, mode="drop")
    mass = jnp.zeros_like(mass).at[place].set(mass, mode="drop")
    largest = jnp.max(mass)
    mass = mass / jnp.where(largest > 0, largest, 1)
    middle = middle_bin(mass)
    centre = position[jnp.minimum(middle, num_bins - 1)]
    return _Bins(position, mass, rank[-1], centre, anchored_moments(position, mass, middle, 3))


def _distinct(
    cuts: Int[Array, " clusters_plus_1"], number: Int[Array, ""], num_clusters: Int[Array, ""]
) -> Int[Array, " clusters_plus_1"]:
    """Move cuts apart: every run gets a bin with mass, if there are enough."""
    k = jnp.arange(cuts.shape[0], dtype=jnp.int32)
    apart = running_maximum(cuts - k) + k
    apart = jnp.clip(apart, 0, jnp.maximum(number - num_clusters + k, 0))
    return jnp.where(k < num_clusters, jnp.where(k == 0, 0, apart), number)


def _density_below(bins: _Bins) -> Float[Array, " bins"]:
    """Return the sum of the cube roots of the density up to each bin, any scale."""
    gap = jnp.pad(bins.position[1:] - bins.position[:-1], 1)
    # A bin is as wide as the gap to its nearer neighbour: the void around a bin far out is no bin.
    width = jnp.minimum(gap[1:], gap[:-1])
    return running_sum(jnp.cbrt(bins.mass) * jnp.square(jnp.cbrt(width)))


def _cuts_by_density(
    bins: _Bins, num_clusters: Int[Array, ""], max_clusters: int
) -> Int[Array, " clusters_plus_1"]:
    share = _density_below(bins)
    k = jnp.arange(max_clusters + 1, dtype=jnp.int32).astype(share.dtype)
    return count_below(share, share[-1] * (k / num_clusters.astype(share.dtype)))


def _equal_cells(
    bins: _Bins, num_clusters: Int[Array, ""], max_clusters: int
) -> Int[Array, " clusters_plus_1"]:
    first, last = bins.position[0], bins.position[-1]
    k = jnp.arange(max_clusters + 1, dtype=jnp.int32).astype(first.dtype)
    return count_below(bins.position, first + (last - first) * (k / num_clusters.astype(k.dtype)))


def _cost(
    bins: _Bins, start: Int[Array, "*runs"], stop: Int[Array, "*runs"]
) -> Float[Array, "*runs"]:
    """Return the spread of the runs of bins `start <= i < stop`."""
    run = between(bins.sums, start, stop)
    if isinstance(run, Pair):
        mass, spread = run.high[..., 0], _spread_of_pairs(run)
    else:
        mass = run[..., 0]
        spread = run[..., 2] - run[..., 1] * run[..., 1] / jnp.where(mass > 0, mass, 1)
    # One bin costs nothing; far out the difference of its sums would be rounding, and that more
    # than all the others cost.
    return jnp.where((mass > 0) & (stop - start > 1), jnp.maximum(spread, 0), 0)


def _spread_of_pairs(run: Pair) -> Float[Array, "*runs"]:
    """Return `S2 - S1^2 / S0` of masses and moments, to float32.

    With q near the mean and `d = S1 - q S0` it is `S2 - q S1 - q d - d^2 / S0`: only products.
    """
    mass, first, second = (run[..., column] for column in range(3))
    inverse = 1 / jnp.where(mass.high > 0, mass.high, 1)
    mean = first.high * inverse
    rest = subtract(first, multiply(mass, mean)).high
    spread = subtract(second, multiply(first, mean))
    return (spread.high - mean * rest) + (spread.low - rest * rest * inverse)


def _grid(bins: _Bins, half: int, num_gaps: int) -> Int[Array, " places"]:
    """Return where to cut on the coarse grid: half as the density asks for, half evenly.

    And at the widest gaps: a cluster that holds one bin far out and others costs so much that no
    digit is left to choose the other cuts by.
    """
    share = _density_below(bins)
    steps = jnp.arange(half + 1, dtype=jnp.int32)
    by_density = count_below(share, share[-1] * (steps.astype(share.dtype) / half))
    # Not (steps * B) // half, which may overflow.
    evenly = steps * (bins.number // half) + (steps * (bins.number % half)) // half
    gap = jnp.pad(bins.position[1:] - bins.position[:-1], (1, 0)).astype(jnp.float32)
    _, at_gaps = lax.top_k(gap, num_gaps)
    ends = jnp.stack([jnp.zeros_like(bins.number), bins.number])
    places = jnp.concatenate([ends, by_density, evenly, at_gaps.astype(jnp.int32)])
    return jnp.sort(jnp.minimum(places, bins.number))


def _best_places(
    bins: _Bins,
    grid: Int[Array, " places"],
    num_clusters: Int[Array, ""],
    max_clusters: int,
) -> Int[Array, " clusters_plus_1"]:
    """Cut the grid into at most K runs, the best way; entry k is where run k begins."""
    num_places = grid.shape[0]
    index = jnp.arange(num_places, dtype=jnp.int32)
    # From place i (the second axis) to place j.
    cost = _cost(bins, grid[None, :], grid[:, None])
    cost = jnp.where(index[None, :] <= index[:, None], cost, jnp.inf)
    none = jnp.where(index == 0, 0.0, jnp.inf).astype(cost.dtype)

    def layer(best, _):
        return jnp.min(best[None, :] + cost, axis=1), best

    _, before = lax.scan(layer, none, None, length=max_clusters)

    def follow(back, state):
        stop, cuts = state
        run = num_clusters - 1 - back
        start = first_least(before[jnp.maximum(run, 0)] + cost[stop], axis=0)
        start = jnp.where(run > 0, start, 0)
        cuts = cuts.at[jnp.where(run >= 0, run, max_clusters + 1)].set(start, mode="drop")
        return jnp.where(run >= 0, start, stop), cuts

    last = jnp.int32(num_places - 1)
    cuts = jnp.full((max_clusters + 1,), num_places - 1, jnp.int32)
    return counted_loop(jnp.int32(0), jnp.int32(max_clusters), follow, (last, cuts))[1]


def _move(
    bins: _Bins,
    cuts: Int[Array, " clusters_plus_1"],
    step: Int[Array, ""],
    is_inner: Bool[Array, " clusters_plus_1"],
    *,
    reach: int,
) -> Int[Array, " clusters_plus_1"]:
    """Move all cuts together to the best places within `reach` steps of where they are."""
    offset = jnp.arange(-reach, reach + 1, dtype=jnp.int32) * step
    is_inner = is_inner & (jnp.arange(cuts.shape[0], dtype=jnp.int32) > 0)
    places = cuts[:, None] + jnp.where(is_inner[:, None], offset[None, :], 0)
    places = jnp.clip(places, 0, bins.number)
    # Of the run from the first to the second of its axes.
    cost = _cost(bins, places[:-1, :, None], places[1:, None, :])
    # No run is empty, if no run has to be.
    has_bins = places[:-1, :, None] < places[1:, None, :]
    was_empty = (cuts[:-1] >= cuts[1:])[:, None, None]
    may_be_empty = was_empty & (places[:-1, :, None] <= places[1:, None, :])
    cost = jnp.where(has_bins | may_be_empty, cost, jnp.inf)

    def forward(best, of_run):
        total = best[:, None] + of_run
        return jnp.min(total, axis=0), first_least(total, axis=0)

    start = jnp.zeros((offset.shape[0],), cost.dtype)
    best, origin = lax.scan(forward, start, cost)

    def backward(place, of_run):
        place = of_run[place]
        return place, place

    last = first_least(best, axis=0)
    _, chosen = lax.scan(backward, last, origin, reverse=True)
    index = jnp.concatenate([chosen, last[None]])
    return jnp.take_along_axis(places, index[:, None], axis=-1)[:, 0]
