"""Optimal scalar quantizers within a reported gap, for every number of clusters from one solve.

The best clusters of scalars are intervals, and the cost of an interval is Monge, so that a dynamic
programme over the bins of a histogram of moments finds the best K intervals for K = 1, 2, ... one
after the other. Bins go whole to one cluster; a second dynamic programme over costs that no
partition of the points themselves can undercut *proves* how far the optimum may be below.

Distortion convention: `sum h_i (w_i - c_{a(i)})^2`.

**The bound.** Take the best partition of the points. A bin it cuts has points of two clusters, A
below and B above, with centres outside the bin or at its edge: moving a point to the edge nearest
its cluster lowers its cost, and then the total is linear in how the bin's mass is shared between A
and B, hence least when all of it is on one side. So the optimum is at least the least cost of a
partition in whole bins in which the first bin of each cluster lies at its own upper edge and the
last at its lower edge, and clusters of a single bin are free. (If a centre lies inside the bin it
cuts, cost 0 is charged there, and moving the centre to the edge costs nothing more.) These costs
are Monge too. The bound falls short by about 12 (K / B)^2 of the optimum.

Axes: `...` groups, `N` points, `B` bins, `K` clusters.

Sources: Wu, J. Algorithms 12 (1991), 663-673; Gronlund et al., arXiv:1701.07204.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxcomp.numerics import across
from jaxcomp.numerics.checks import check_count, check_points
from jaxcomp.numerics.precision import (
    can_be_on_host,
    computed_on_host,
    in_float64,
    lacks_float64,
)
from jaxcomp.numerics.scaling import restore, restore_as, split
from jaxcomp.numerics.sums import (
    middle_bin,
    pairwise_sum,
    running_maximum,
)
from jaxcomp.numerics.transformations import always_compiled, vectorized, without_derivative
from jaxcomp.quantizers import placed
from jaxcomp.quantizers.assignment import nearest_thresholds
from jaxcomp.quantizers.histograms import (
    MOMENTS_SIGNATURE,
    BinEdges,
    Moments,
    histogram_with_edges,
    whole_up_to,
)
from jaxcomp.quantizers.padding import bucketed
from jaxcomp.quantizers.scalar.interval_search import (
    BinCosts,
    Cuts,
    cheapest_cuts,
    follow_cuts,
    num_levels,
    padded_length,
    roundings_of_cost,
)
from jaxcomp.quantizers.scalar.runs import Runs, read_runs, run_table
from jaxcomp.quantizers.solution import Codebook, OfBucket

# Relative error, in roundings, of the masses of a histogram; what sums of 10^7 points show is a
# tenth of it.
_MASS_ERROR = 16
# Share of its root by which a distortion may be off where bins lie far from all others.
_FAR_SHARE = 2.0**-40
# Bins solved together when there are many groups: bounds the memory.
_BINS_AT_ONCE = 1 << 15


class OptimalCodebooks(NamedTuple):
    """The best codebooks of one group (or of many, with leading axes), for every K.

    Attributes:
        distortion: (..., max_clusters + 1), entry K: `sum h (w - c)^2` with at most K clusters,
            bins taken whole, centres not yet rounded. Entry 0 is infinite.
        gap_bound: (..., max_clusters + 1): no quantizer of the points with K centres has a
            distortion below `distortion - gap_bound`; rounding included. Entry 0 is infinite.
        centroid_table: (..., max_clusters + 1, max_clusters), row K holds the K centres, ascending,
            in the dtype they are stored in, the last one repeated; row 0 equals row 1.
    """

    distortion: Float[Array, "... clusters_plus_1"]
    gap_bound: Float[Array, "... clusters_plus_1"]
    centroid_table: Float[Array, "... clusters_plus_1 clusters"]

    @property
    def max_clusters(self) -> int:
        """The largest K that was solved for."""
        return self.centroid_table.shape[-1]

    @always_compiled
    def centroids(self, num_clusters: int) -> Float[Array, "... clusters"]:
        """Return the (..., K) centres of the best K clusters, ascending.

        Where fewer distinct values than K have weight, centres repeat.

        Raises:
            ValueError: if K is not between 1 and `max_clusters`.
        """
        _check_one_of(num_clusters, self.max_clusters)
        return self.centroid_table[..., num_clusters, :num_clusters]

    @always_compiled
    def codebook(self, num_clusters: Int[Array, "..."] | int) -> Codebook:
        """Return the codebook of K clusters, padded to `max_clusters`.

        Args:
            num_clusters: K, traced; broadcast against the leading axes. Clipped to
                1..`max_clusters`.
        """
        largest = self.max_clusters
        batch = self.distortion.shape[:-1]
        num_clusters = jnp.asarray(num_clusters).astype(jnp.int32)
        row = jnp.broadcast_to(
            jnp.clip(num_clusters, 1, largest), np.broadcast_shapes(num_clusters.shape, batch)
        )
        table = jnp.broadcast_to(self.centroid_table, (*row.shape, *self.centroid_table.shape[-2:]))
        centroids = jnp.take_along_axis(table, row[..., None, None], axis=-2)[..., 0, :]
        exact = centroids.astype(self.distortion.dtype)
        thresholds = vectorized(nearest_thresholds, signature="(k)->(j)")(exact)
        return Codebook(centroids, thresholds, row)


def _check_one_of(num_clusters: int, max_clusters: int) -> None:
    if not isinstance(num_clusters, int | np.integer):
        raise TypeError(
            f"num_clusters must be a Python integer, got {type(num_clusters).__name__}; "
            "`codebook` takes traced numbers and arrays."
        )
    if not 1 <= num_clusters <= max_clusters:
        raise ValueError(
            f"num_clusters must be between 1 and max_clusters = {max_clusters}, got {num_clusters}."
        )


def solve_optimal(
    moments: Moments,
    edges: BinEdges | None = None,
    *,
    max_clusters: int,
    centroid_dtype: jnp.dtype | None = None,
    has_one_value_per_bin: bool = False,
) -> OptimalCodebooks:
    """Find the best codebooks on moments, for every K up to `max_clusters`.

    O(K B log B) for each group; many groups are solved in batches, so that memory is bounded. In
    float64: where the hardware has none (TPUs), moments that are known are solved on the host.

    Args:
        moments: of (...) groups, their bins disjoint and in order.
        edges: lowest and highest point of every bin. Without them the bins next to each bound it,
            which makes `gap_bound` several times larger.
        max_clusters: largest K, static.
        centroid_dtype: dtype the centroids are stored in; by default that of the moments.
        has_one_value_per_bin: promise that all points of a bin are equal, static. Then partitions
            in whole bins are all there are, the second dynamic programme is left out and
            `gap_bound` covers rounding only.

    Returns:
        Distortions, bounds and centres of every K.

    Raises:
        ValueError: while tracing, if `max_clusters < 1`.
    """
    solve = partial(
        _solve_optimal,
        max_clusters=max_clusters,
        centroid_dtype=centroid_dtype,
        has_one_value_per_bin=has_one_value_per_bin,
    )
    if lacks_float64() and can_be_on_host((moments, edges)):
        return computed_on_host(solve, moments, edges)
    return solve(moments, edges)


@partial(jax.jit, static_argnames=("max_clusters", "centroid_dtype", "has_one_value_per_bin"))
@without_derivative
def _solve_optimal(
    moments: Moments,
    edges: BinEdges | None,
    *,
    max_clusters: int,
    centroid_dtype: jnp.dtype | None,
    has_one_value_per_bin: bool,
) -> OptimalCodebooks:
    check_count("max_clusters", max_clusters)
    if edges is None:
        edges = _edges_from_neighbours(moments)
    dtype = moments.position.dtype
    batch_shape = moments.position.shape[:-1]
    (costs, exponents), table = _solve_groups(
        *(
            leaf.reshape(-1, *leaf.shape[len(batch_shape) :])
            for leaf in (
                moments.position,
                moments.mass,
                moments.deviation,
                moments.minimum,
                moments.maximum,
                *edges,
            )
        ),
        max_clusters=max_clusters,
        dtype=dtype,
        has_one_value_per_bin=has_one_value_per_bin,
    )
    unit = (moments.mass_exponent + 2 * moments.exponent)[..., None]

    def batched(values):
        return values.reshape(*batch_shape, values.shape[-1])

    distortion, gap = restore(
        jnp.stack([batched(cost) for cost in costs]),
        jnp.stack([batched(exponent) + unit for exponent in exponents]),
        axis=(),
    )
    table = restore_as(
        table.reshape(*batch_shape, *table.shape[1:]).astype(dtype),
        moments.exponent[..., None],
        jnp.dtype(centroid_dtype or dtype),
    )
    return OptimalCodebooks(distortion=distortion, gap_bound=gap, centroid_table=table)


def _edges_from_neighbours(moments: Moments) -> BinEdges:
    """Bound the points of every bin by the bins around it; a bin without spread is its mean."""

    def of_group(position, num_points, mass, deviation, minimum, maximum, *_):
        signed = jnp.stack([position, -position[::-1]], axis=-1)
        is_occupied = num_points > 0
        is_occupied = jnp.stack([is_occupied, is_occupied[::-1]], axis=-1)
        limit = running_maximum(jnp.where(is_occupied, signed, -jnp.inf))
        below = jnp.concatenate([minimum[None], limit[:-1, 0]])
        above = jnp.concatenate([-limit[:-1, 1][::-1], maximum[None]])
        is_one = (mass > 0) & (deviation == 0)
        lowest = jnp.where(is_one, position, jnp.maximum(below, minimum))
        highest = jnp.where(is_one, position, jnp.minimum(above, maximum))
        return jnp.minimum(lowest, position), jnp.maximum(highest, position)

    signature = f"{MOMENTS_SIGNATURE}->(b),(b)"
    return BinEdges(*vectorized(of_group, signature=signature)(*moments))


class _Group(NamedTuple):
    """The moments, without counts, and the edges of one group (or of many)."""

    position: Float[Array, "... bins"]
    mass: Float[Array, "... bins"]
    deviation: Float[Array, "... bins"]
    minimum: Float[Array, "..."]
    maximum: Float[Array, "..."]
    lowest: Float[Array, "... bins"]
    highest: Float[Array, "... bins"]


class _Centred(NamedTuple):
    """Bins of one group about its median: only what lies near the others keeps many digits there.

    Attributes:
        bins: padded to a length the search takes, by bins without mass.
        lowest: (B,) lower edges, highest: (B,) upper edges.
        error: norm of what rounding may have moved the points by, `sqrt(sum h delta^2)`.
        rounding: relative error of the masses and of what is returned.
        second_error: what all second moments of the bins may be off by together.
        centre: what 0 stands for.
    """

    bins: Runs
    lowest: Float[Array, " bins"]
    highest: Float[Array, " bins"]
    error: Float[Array, ""]
    rounding: float
    second_error: Float[Array, ""]
    centre: Float[Array, ""]


def _centred(group: _Group, *, stored_eps: float, has_one_value_per_bin: bool) -> _Centred:
    position, mass = group.position, group.mass
    centre = position[jnp.minimum(middle_bin(mass), position.shape[0] - 1)]
    offset = position - centre
    # A mean moves by eps of itself whenever runs are merged, and did when it was stored, except
    # that of a bin of equal points.
    num_bins = padded_length(position.shape[0])
    eps = jnp.finfo(position.dtype).eps
    moved = (4 + num_bins.bit_length()) * eps * jnp.abs(offset)
    width = jnp.zeros_like(position)
    is_one = group.lowest == group.highest
    if not has_one_value_per_bin:
        width = group.highest - group.lowest
        moved = moved + jnp.where(is_one, 0, stored_eps * jnp.abs(position))
    # Means move only in runs of several bins. One value far from all others costs so much in such
    # a run that what moves it is a small part of that.
    moved = jnp.where(is_one & _is_far(group, moved), 0, moved)
    extra = num_bins - position.shape[0]
    last = group.maximum - centre

    def pad(values, filler):
        return jnp.concatenate([values, jnp.full((extra,), filler, values.dtype)])

    return _Centred(
        bins=Runs(
            mass=pad(mass, 0),
            mean=pad(offset, last),
            spread=pad(mass * group.deviation * group.deviation, 0),
        ),
        lowest=pad(group.lowest - centre, last),
        highest=pad(group.highest - centre, last),
        error=jnp.sqrt(pairwise_sum(mass * moved * moved)),
        rounding=(_MASS_ERROR + 4) * stored_eps,
        second_error=2 * stored_eps * pairwise_sum(mass * width * width),
        centre=centre,
    )


def _is_far(group: _Group, moved: Float[Array, " bins"]) -> Bool[Array, " bins"]:
    """Return which bins move by at most `_FAR_SHARE` of the root of what joining them costs.

    A run that holds bin i holds a neighbour of it as well, and costs at least the spread of the
    two; of all such pairs in a run, a third at least are disjoint, and their spreads add up.
    """
    num_bins = moved.shape[0]
    place = jnp.arange(num_bins, dtype=jnp.int32)
    has_mass = group.mass > 0

    def spread(mass, lowest, highest):
        """Return the spread of each bin, over its mass, with the one before that has mass."""
        last = running_maximum(jnp.where(mass > 0, place, -1))
        last = jnp.pad(last[:-1], (1, 0), constant_values=-1)
        other = jnp.maximum(last, 0)
        gap = jnp.maximum(lowest - highest[other], 0)
        share = mass[other] / jnp.where(mass + mass[other] > 0, mass + mass[other], 1)
        return jnp.where(last >= 0, share * gap * gap, jnp.inf)

    below = spread(group.mass, group.lowest, group.highest)
    above = spread(group.mass[::-1], -group.highest[::-1], -group.lowest[::-1])[::-1]
    cost = jnp.minimum(below, above)
    return has_mass & (moved * moved <= _FAR_SHARE * _FAR_SHARE * cost)


@in_float64("max_clusters", "dtype", "has_one_value_per_bin")
def _solve_groups(
    *arrays: Float[Array, "groups ..."],
    max_clusters: int,
    dtype: jnp.dtype,
    has_one_value_per_bin: bool,
) -> tuple[tuple[Array, Array], Array]:
    """Solve many groups, a few at a time; distortions as numbers and their exponents.

    In float64: the costs of one programme span as many orders of magnitude as the points do, and
    the bound is worth what rounding leaves of it.
    """
    solve = partial(
        _solve_group,
        max_clusters=max_clusters,
        stored_eps=float(jnp.finfo(dtype).eps),
        has_one_value_per_bin=has_one_value_per_bin,
    )
    groups = _Group(*arrays)
    if groups.position.shape[0] == 1:
        found = solve(jax.tree.map(lambda leaf: leaf[0], groups))
        found = jax.tree.map(lambda leaf: leaf[None], found)
    else:
        num_bins = padded_length(groups.position.shape[-1])
        found = lax.map(solve, groups, batch_size=max(1, _BINS_AT_ONCE // num_bins))
    distortion, gap, table = found
    return split(jnp.stack([distortion, gap]), dtype), table


def _solve_group(
    group: _Group,
    *,
    max_clusters: int,
    stored_eps: float,
    has_one_value_per_bin: bool,
) -> tuple[Array, Array, Array]:
    scaled = _centred(group, stored_eps=stored_eps, has_one_value_per_bin=has_one_value_per_bin)
    bins = scaled.bins
    table = run_table(bins)
    whole = BinCosts(bins, bins, bins, bins.spread)
    search = partial(cheapest_cuts, table=table, max_clusters=max_clusters)
    if has_one_value_per_bin:
        cuts = search(whole)
        least = cuts.cost[:, -1]
    else:
        zero = jnp.zeros_like(bins.spread)
        moved = BinCosts(
            inner=bins,
            first=bins._replace(mean=scaled.highest, spread=zero),
            last=bins._replace(mean=scaled.lowest, spread=zero),
            single=zero,
        )
        # One after the other in a loop: compiled once. The cuts of the second, which nobody
        # follows, are overwritten.
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), moved, whole)
        shape = (max_clusters, bins.mass.shape[0])
        none = Cuts(jnp.zeros(shape, bins.mass.dtype), jnp.zeros(shape, jnp.int32))

        def solve(_, costs):
            cuts = search(costs)
            return cuts, cuts.cost[:, -1]

        cuts, ends = lax.scan(solve, none, both)
        least = ends[0]
    begins = follow_cuts(cuts, whole, table)
    runs = read_runs(table, begins[:, :-1], begins[:, 1:])
    distortion = pairwise_sum(runs.spread)
    distortion, gap = _distortion_and_gap(scaled, distortion, least)
    return (
        _with_entry_0(distortion),
        _with_entry_0(gap),
        _centroids(scaled, runs, begins, group),
    )


def _with_entry_0(values: Float[Array, " clusters"]) -> Float[Array, " clusters_plus_1"]:
    return jnp.concatenate([jnp.full((1,), jnp.inf, values.dtype), values])


def _distortion_and_gap(scaled, distortion, least):
    """Return the distortion and the bound on the gap.

    One cost is off by at most `roundings_of_cost` of itself. A row can miss its best cut where a
    row below it that it trusted took a cut that was as good but for rounding, by the tie and twice
    the rounding of both costs on every level, and each of the K rows that a partition ends on may.
    Points that rounding moved by delta change the root of any distortion by at most the norm of
    delta; second moments were taken about another point of the bin than its mean. Bins far from
    all others add a share of the root to that norm: see `_is_far`.
    """
    num_bins, num_clusters = scaled.bins.mass.shape[0], distortion.shape[0]
    eps = jnp.finfo(distortion.dtype).eps / 2
    k = jnp.arange(1, num_clusters + 1, dtype=jnp.int32).astype(distortion.dtype)
    of_cost = roundings_of_cost(num_bins)
    slack = k * (4 * num_levels(num_bins) + 3) * (of_cost + 8) * eps
    root = jnp.sqrt(jnp.maximum(least * (1 - slack), 0)) * (1 - 2 * _FAR_SHARE) - scaled.error
    bound = jnp.where(root > 0, root * root, 0) * (1 - scaled.rounding)
    gap = jnp.maximum(distortion - bound, 0) + scaled.rounding * distortion + scaled.second_error
    return distortion, gap


def _centroids(
    scaled: _Centred,
    runs: Runs,
    begins: Int[Array, "clusters clusters_plus_1"],
    group: _Group,
) -> Float[Array, "clusters_plus_1 clusters"]:
    """Return the means of the runs; those without mass repeat a neighbour."""
    has_mass = runs.mass > 0
    mean = runs.mean + scaled.centre
    # Rounding must not push a mean out of its own points: a run of equal points is met exactly.
    signed = jnp.stack([group.highest, -group.lowest[::-1]], axis=-1)
    is_heavy = jnp.stack([group.mass > 0, group.mass[::-1] > 0], axis=-1)
    limit = running_maximum(jnp.where(is_heavy, signed, -jnp.inf))
    num_bins = group.mass.shape[0]
    # Below a bin, and from a bin on; padding has no mass.
    highest = limit[jnp.clip(begins[:, 1:], 1, num_bins) - 1, 0]
    lowest = -limit[::-1, 1][jnp.minimum(begins[:, :-1], num_bins - 1)]
    mean = jnp.clip(mean, lowest, jnp.maximum(lowest, highest))
    # A run without mass repeats the last one before it that has some, else the first of all. All
    # are read from one place: computed apart, a compiler may round them differently.
    place = jnp.arange(has_mass.shape[-1], dtype=jnp.int32).reshape(1, -1)
    source = lax.cummax(jnp.where(has_mass, place, -1), axis=1)
    first = jnp.min(jnp.where(has_mass, place, place.size), axis=-1, keepdims=True)
    source = jnp.where(source < 0, first, source)
    has_any = jnp.any(has_mass, axis=-1, keepdims=True)
    mean = jnp.where(has_any, jnp.take_along_axis(mean, source, axis=-1), group.minimum)
    mean = running_maximum(mean.T).T
    return jnp.concatenate([mean[:1], mean])


@always_compiled
@without_derivative
def optimal_kmeans(
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None = None,
    *,
    max_clusters: int,
    num_bins: int = 4096,
) -> OptimalCodebooks:
    """Find the best K centres of every group of points, for every K up to `max_clusters`.

    float16 and bfloat16 points, and groups of at most `num_bins` points, are solved exactly. Larger
    groups of float32 or float64 points are cut into `num_bins` bins that go whole to a cluster;
    `gap_bound` proves how little that can cost. `polish_kmeans` refines a codebook on the points
    themselves and assigns them. All results are constants under differentiation.

    Args:
        points: (..., N) floating, finite.
        importance: h >= 0, broadcastable to `points`; None means 1. Every group needs some.
        max_clusters: largest K, static.
        num_bins: bins of the histogram for N > `num_bins`, static. Time grows a little faster
            than they do, the gap falls with their square.

    Returns:
        Distortions and bounds indexed by K, and centres by `centroids(K)`. Float16 and bfloat16
        centres are rounded to the dtype of the points, which the distortion does not include.

    Raises:
        TypeError: if the points are not floating or `max_clusters` is not an integer.
        ValueError: as `kmeans`, on unusable points or weights, `max_clusters < 1`,
            `num_bins < 1`. Values are checked only outside `jit` and `vmap`.
    """
    points, importance = check_points(points, importance)
    if not isinstance(max_clusters, int | np.integer):
        raise TypeError(
            f"max_clusters must be a Python integer, got {type(max_clusters).__name__}."
        )
    options = {"max_clusters": int(max_clusters), "num_bins": num_bins}
    if placed.spread_of(points) is None:
        bucket = bucketed(points, importance, num_bins=num_bins)
        # In two programs where only the histogram can be made on the device.
        is_apart = lacks_float64() and can_be_on_host(bucket)
        solve = _optimum_of_bucket if is_apart else _optimal_kmeans
        return solve(bucket, **options)
    whole = whole_up_to(num_bins=num_bins, by_value=points.dtype.itemsize == 2)
    solve = placed.over_groups(OfBucket(_optimal_kmeans), points, whole_up_to=whole)
    return solve(points, importance, **options)


def _optimum_of_bucket(bucket, *, max_clusters, num_bins):
    points = bucket.points
    is_short = points.dtype.itemsize == 2
    moments, edges = histogram_with_edges(
        points,
        bucket.weights(),
        num_bins=num_bins,
        by_value=is_short,
        num_padding=bucket.num_padding,
    )
    return solve_optimal(
        moments,
        edges,
        max_clusters=max_clusters,
        centroid_dtype=points.dtype,
        has_one_value_per_bin=is_short or across.number_of_points(points.shape[-1]) <= num_bins,
    )


_optimal_kmeans = jax.jit(_optimum_of_bucket, static_argnames=("max_clusters", "num_bins"))
