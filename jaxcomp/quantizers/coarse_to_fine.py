"""Near-optimal intervals of one group of bins for one number of clusters, coarse to fine.

The best cuts are found on a coarse grid of places first, by the full dynamic programme. Then every
cut may move by a few steps, all cuts at once, by a dynamic programme over those windows, and the
step is halved until it is one bin. O(G^2 K) for the grid and O(K R^2 log B) for the windows of
R places: a fraction of the programme over all bins. Nothing is proved, but the optimum on the
same bins is what it finds on nearly every distribution (`benchmarks/README.md` has the figures):
moving all cuts together crosses the valleys in which Lloyd's iteration stays.

In float64 inside: costs come from differences of prefix sums.

Axes: `B` bins, `K` clusters, `G` places of the grid, `R` places of a window.

Sources: Wu, J. Algorithms 12 (1991), 663-673 (the programme); Panter and Dite, Proc. IRE 39
(1951) (the density of a grid that serves a fine quantizer).
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxcomp.precision import first_least, in_float64
from jaxcomp.quantizers.moments import count_below, pairwise_sum, running_maximum, running_sum
from jaxcomp.transformations import counted_loop

# Places of the coarse grid: for each cluster, at least and at most.
_GRID_PER_CLUSTER = 8
_SMALLEST_GRID = 128
_LARGEST_GRID = 512
# Steps that a cut may move to either side at once.
_REACH = 8


@in_float64("max_clusters")
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
        one, and centres repeat where fewer bins than K have mass.
    """
    num_bins = position.shape[0]
    num_clusters = num_clusters.astype(jnp.int32)
    # A mass and a range of about 1: squares neither over- nor underflow.
    span = position[-1] * 0.5 - position[0] * 0.5
    unit = jnp.where(span > 0, span, 1)
    largest = jnp.max(mass)
    mass = mass / jnp.where(largest > 0, largest, 1)
    offset = (position * 0.5 - position[0] * 0.5) / unit
    total = pairwise_sum(mass)
    centre = pairwise_sum(mass * offset) / jnp.where(total > 0, total, 1)
    offset = offset - centre
    columns = jnp.stack([mass, mass * offset, mass * offset * offset], axis=-1)
    sums = jnp.pad(running_sum(columns), [(1, 0), (0, 0)])

    num_places = min(max(_GRID_PER_CLUSTER * max_clusters, _SMALLEST_GRID), _LARGEST_GRID)
    grid = _grid(offset, mass, max(1, min(num_places, num_bins) // 2))
    cuts = grid[_best_places(sums[grid], num_clusters, max_clusters)]
    is_inner = jnp.arange(max_clusters + 1, dtype=jnp.int32) < num_clusters
    first_step = max(1, 2 * num_bins // num_places)

    def refine(level, cuts):
        return _move(sums, cuts, jnp.maximum(first_step >> level, 1), is_inner)

    levels = jnp.int32(first_step.bit_length())
    cuts = counted_loop(jnp.int32(0), levels, refine, cuts)
    of_run = sums[cuts[1:]] - sums[cuts[:-1]]
    has_mass = of_run[:, 0] > 0
    mean = centre + of_run[:, 1] / jnp.where(has_mass, of_run[:, 0], 1)
    mean = position[0] + 2 * unit * mean
    mean = running_maximum(jnp.where(has_mass, mean, position[0]))
    mean = jnp.clip(mean, position[0], position[-1])
    # Differences of prefix sums do not see neighbours one rounding apart: where there are clusters
    # for all bins each has its own.
    is_heavy = mass > 0
    rank = running_sum(is_heavy.astype(jnp.int32))
    slot = jnp.where(is_heavy & (rank <= max_clusters), rank - 1, max_clusters)
    each = jnp.full_like(mean, -jnp.inf).at[slot].set(position, mode="drop")
    return jnp.where(rank[-1] <= num_clusters, running_maximum(each), mean)


def _cost(start: Float[Array, "*runs 3"], stop: Float[Array, "*runs 3"]) -> Float[Array, "*runs"]:
    """Return the spread of the runs between two entries of the prefix sums."""
    run = stop - start
    mass = run[..., 0]
    spread = run[..., 2] - run[..., 1] * run[..., 1] / jnp.where(mass > 0, mass, 1)
    return jnp.where(mass > 0, jnp.maximum(spread, 0), 0)


def _grid(
    position: Float[Array, " bins"], mass: Float[Array, " bins"], half: int
) -> Int[Array, " places"]:
    """Return where to cut on the coarse grid: half as the density asks for, half evenly."""
    num_bins = position.shape[0]
    gap = jnp.pad(position[1:] - position[:-1], 1)
    width = gap[1:] + gap[:-1]
    share = running_sum(jnp.cbrt(mass * width * width))
    steps = jnp.arange(half + 1, dtype=jnp.int32)
    by_density = count_below(share, share[-1] * (steps.astype(share.dtype) / half))
    # Not (steps * B) // half, which may overflow.
    evenly = steps * (num_bins // half) + (steps * (num_bins % half)) // half
    ends = jnp.array([0, num_bins], jnp.int32)
    return jnp.sort(jnp.concatenate([ends, by_density, evenly]))


def _best_places(
    sums: Float[Array, "places 3"], num_clusters: Int[Array, ""], max_clusters: int
) -> Int[Array, " clusters_plus_1"]:
    """Cut the grid into at most K runs, the best way; entry k is where run k begins."""
    num_places = sums.shape[0]
    index = jnp.arange(num_places, dtype=jnp.int32)
    # From place i (the second axis) to place j. float32 is enough to choose by.
    cost = _cost(sums[None, :], sums[:, None])
    cost = jnp.where(index[None, :] <= index[:, None], cost, jnp.inf).astype(jnp.float32)
    none = jnp.where(index == 0, 0, jnp.inf).astype(jnp.float32)

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
    sums: Float[Array, "bins_plus_1 3"],
    cuts: Int[Array, " clusters_plus_1"],
    step: Int[Array, ""],
    is_inner: Bool[Array, " clusters_plus_1"],
) -> Int[Array, " clusters_plus_1"]:
    """Move all cuts together to the best places within `_REACH` steps of where they are."""
    num_bins = sums.shape[0] - 1
    offset = jnp.arange(-_REACH, _REACH + 1, dtype=jnp.int32) * step
    is_inner = is_inner & (jnp.arange(cuts.shape[0], dtype=jnp.int32) > 0)
    places = jnp.clip(cuts[:, None] + jnp.where(is_inner[:, None], offset[None, :], 0), 0, num_bins)
    at = sums[places]
    # Of the run from the first to the second of its axes.
    cost = _cost(at[:-1, :, None], at[1:, None, :])
    cost = jnp.where(places[:-1, :, None] <= places[1:, None, :], cost, jnp.inf)

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
