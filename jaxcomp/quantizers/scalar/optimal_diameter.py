"""K-means with a penalty on the diameter of the codebook, solved within a reported gap.

The objective is `sum h (w - c)^2 + beta (max c - min c)^2`, bins of the histogram taken whole. With
the outer centres a < b fixed the penalty is a constant: the first cluster takes the points up to
a and some beyond, the last those from b on and some below, and a dynamic programme gives the
interior its best intervals, whose means lie between a and b by themselves. That is done for all
a and b on a grid and for every K; a penalty then costs a minimum over the grid, and the exact
update of all centres from there (`penalty_form="monotone"`), which can only improve.

**The bound.** For every multiplier lam >= 0 and diameter d, `beta d^2 >= lam d - lam^2 / (4 beta)`,
so the optimum is at least `G_K(lam) - lam^2 / (4 beta)`, `G_K(lam)` being the least of
`sum h (w - c)^2 + lam (c_K - c_1)`. There the outer centres are free of each other: a first cluster
of mass S and mean m costs its spread and what the best a saves, `a = m + lam / (2 S)`, but not
beyond the next point, since in an optimum with distinct centres the first of them lies below the
points of the second cluster. So the same dynamic programme solves `G_K` exactly, on a grid of
multipliers, in the same solve. What the grids lose is of second order in their spacing, on both
sides; the difference between what was found and the largest bound is reported for every K and
penalty. It can stay large where few points leave the least distortion of a given diameter far
from convex: the bound is weak there, not the solution.

Axes: `...` groups, `N` points, `B` bins, `K` clusters, `A` outer centres.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from jaxcomp.numerics.checks import check_count, check_penalty, check_points
from jaxcomp.numerics.scaling import normalise, restore
from jaxcomp.numerics.segments import segment_sum
from jaxcomp.numerics.sums import (
    middle_bin,
    pairwise_sum,
    running_sum,
)
from jaxcomp.numerics.transformations import always_compiled, counted_loop, without_derivative
from jaxcomp.quantizers.histograms import (
    Moments,
    about_one,
)
from jaxcomp.quantizers.padding import bucketed
from jaxcomp.quantizers.scalar.coarse_to_fine import coarse_to_fine_centroids
from jaxcomp.quantizers.scalar.lloyd import (
    PENALTY_SCALES,
    PenaltyScale,
    quantile_start,
    solve_kmeans,
)
from jaxcomp.quantizers.scalar.runs import Runs, read_runs, run_table
from jaxcomp.quantizers.solution import Solution, bucket_moments

# Entries of the grid that are refined for each penalty, the best ones.
_NUM_STARTS = 8
# Cuts taken together in one pass.
_UNROLL = 8


class DiameterSolution(NamedTuple):
    """The best codebook found for one K and penalty (or many, with leading axes).

    Attributes:
        solution: codebook and costs of the histogram, bins taken whole.
        gap_bound: (...) no quantizer of the bins has an objective below
            `solution.objective - gap_bound`, with these numbers as they are.
    """

    solution: Solution
    gap_bound: Float[Array, "..."]


class DiameterSolver(NamedTuple):
    """What one solve knows of a group (or many): any K up to `max_clusters`, any penalty.

    All costs and positions are in the units of `moments`; what `solve` returns is not.

    Attributes:
        moments: the histogram that was solved on, its largest point in [1, 2).
        outer: (..., A) the grid of outer centres.
        outer_cost: (..., max_clusters + 1, A, A) the least distortion of at most K clusters whose
            outer centres are a (rows) and b (columns); +inf where there is none.
        single_cost: (...) the least distortion of one cluster.
        multiplier: (..., 2 A) lam.
        dual_cost: (..., max_clusters + 1, 2 A) `G_K(lam)` with at least two clusters; +inf for
            K < 2.
        before: (..., max_clusters, A, B + 1) the least distortion of the first i bins in 1..K
            clusters, the first of them centred at a.
        run_cost: (..., B + 1, B + 1) the spread of the bins from i on and below j.
    """

    moments: Moments
    outer: Float[Array, "... outer"]
    outer_cost: Float[Array, "... clusters_plus_1 outer outer"]
    single_cost: Float[Array, "..."]
    multiplier: Float[Array, "... multipliers"]
    dual_cost: Float[Array, "... clusters_plus_1 multipliers"]
    before: Float[Array, "... clusters outer bins_plus_1"]
    run_cost: Float[Array, "... bins_plus_1 bins_plus_1"]

    @always_compiled
    @without_derivative
    def solve(
        self,
        num_clusters: Int[Array, "..."] | int,
        diameter_penalty: Float[Array, "..."] | float,
        *,
        penalty_scale: PenaltyScale = "relative",
        num_iterations: Int[Array, ""] | int = 100,
    ) -> DiameterSolution:
        """Return the best codebook for a number of clusters and a penalty.

        Args:
            num_clusters: K >= 1, traced; broadcasts against the leading axes of the groups.
            diameter_penalty: beta >= 0, traced, likewise.
            penalty_scale: "relative" multiplies beta by `sum h`, "absolute" takes it as it is.
            num_iterations: most updates of all centres after the search, traced.

        Returns:
            The solution and the bound on what is left.

        Raises:
            TypeError: if `num_clusters` is not an integer.
            ValueError: on a number of clusters or penalty out of range, where they are known, or an
                unknown `penalty_scale`.
        """
        if penalty_scale not in PENALTY_SCALES:
            raise ValueError(
                f"penalty_scale must be one of {PENALTY_SCALES}, got {penalty_scale!r}."
            )
        check_penalty(diameter_penalty)
        max_clusters = self.outer_cost.shape[-3] - 1
        if not jnp.issubdtype(jnp.result_type(num_clusters), jnp.integer):
            raise TypeError(
                f"num_clusters must be an integer, got {jnp.result_type(num_clusters)}."
            )
        if isinstance(num_clusters, int | np.integer) and not 1 <= num_clusters <= max_clusters:
            raise ValueError(
                f"num_clusters must be between 1 and max_clusters = {max_clusters}, "
                f"got {num_clusters}."
            )
        return _solve(
            self,
            jnp.asarray(num_clusters, jnp.int32),
            jnp.asarray(diameter_penalty, self.outer.dtype),
            jnp.asarray(num_iterations, jnp.int32),
            penalty_scale=penalty_scale,
        )


@always_compiled
@without_derivative
def optimal_diameter_kmeans(
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None = None,
    *,
    max_clusters: int,
    num_bins: int = 512,
    num_outer: int = 64,
) -> DiameterSolver:
    """Prepare K-means with a squared penalty on the diameter, solved within a reported gap.

    One solve serves every K up to `max_clusters` and every penalty; ask its method `solve`. Use the
    centroids as `initial_centroids` of `kmeans` to refine them on the points. O(A K B^2). All
    results are constants under differentiation.

    Args:
        points: (..., N) floating, finite.
        importance: h >= 0, broadcastable to `points`; None means 1. Every group needs some.
        max_clusters: largest K, static.
        num_bins: bins of the histogram for N > `num_bins`, static.
        num_outer: A, values of either outer centre; the bound uses 2 A multipliers. Static.

    Returns:
        The solver.

    Raises:
        TypeError, ValueError: as `kmeans`, on unusable points or weights; ValueError if
            `max_clusters`, `num_bins` or `num_outer` is below 1.
    """
    points, importance = check_points(points, importance)
    return _optimal_diameter_kmeans(
        bucketed(points, importance, num_bins=num_bins),
        max_clusters=max_clusters,
        num_bins=num_bins,
        num_outer=num_outer,
    )


@partial(jax.jit, static_argnames=("max_clusters", "num_bins", "num_outer"))
def _optimal_diameter_kmeans(bucket, *, max_clusters, num_bins, num_outer):
    moments = bucket_moments(bucket, num_bins=num_bins)
    return solve_optimal_diameter(moments, max_clusters=max_clusters, num_outer=num_outer)


@partial(jax.jit, static_argnames=("max_clusters", "num_outer"))
@without_derivative
def solve_optimal_diameter(
    moments: Moments, *, max_clusters: int, num_outer: int = 64
) -> DiameterSolver:
    """Prepare the solution on moments; see `optimal_diameter_kmeans`.

    Args:
        moments: of (...) groups, solved one after the other.
        max_clusters: largest K, static.
        num_outer: A, static.

    Returns:
        The solver.

    Raises:
        ValueError: while tracing, if `max_clusters` or `num_outer` is below 1.
    """
    check_count("max_clusters", max_clusters)
    check_count("num_outer", num_outer)
    solve = partial(_prepare_group, max_clusters=max_clusters, num_outer=num_outer)
    batch_shape = moments.position.shape[:-1]
    if not batch_shape:
        return solve(moments)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(batch_shape) :]), moments)
    found = lax.map(solve, flat)
    return jax.tree.map(lambda leaf: leaf.reshape(*batch_shape, *leaf.shape[1:]), found)


def _prepare_group(moments: Moments, *, max_clusters: int, num_outer: int) -> DiameterSolver:
    moments = about_one(moments)
    position, mass = moments.position, moments.mass
    num_bins = position.shape[0]
    dtype = position.dtype
    second = mass * moments.deviation * moments.deviation
    run_cost = _run_costs(Runs(mass, position, second))
    # Bins follow the cube root of the density, as the centres do: equally many between two values.
    place = (2 * jnp.arange(num_outer, dtype=jnp.int32) + 1) * num_bins // (2 * num_outer)
    outer = position[place]
    deviation = position[None, :] - outer[:, None]
    costs = mass[None, :] * deviation * deviation + second[None, :]
    upto = jnp.pad(running_sum(costs.T).T, [(0, 0), (1, 0)])
    from_there = jnp.pad(running_sum(costs[:, ::-1].T).T[:, ::-1], [(0, 0), (0, 1)])
    count = jnp.arange(num_bins + 1, dtype=jnp.int32)[None, :]
    is_below = (position[None, :] <= outer[:, None]) & (mass > 0)[None, :]
    is_above = (position[None, :] >= outer[:, None]) & (mass > 0)[None, :]
    # All points up to a belong to the first cluster, all from b on to the last.
    number = jnp.arange(1, num_bins + 1, dtype=jnp.int32)[None, :]
    last_below = jnp.max(jnp.where(is_below, number, 0), axis=-1)
    first_above = jnp.min(jnp.where(is_above, number - 1, num_bins), axis=-1)
    first = jnp.where(count >= last_below[:, None], upto, jnp.inf)
    last = jnp.where(count <= first_above[:, None], from_there, jnp.inf)

    centre = position[middle_bin(mass)]
    largest = pairwise_sum(mass * jnp.abs(position - centre))
    # Light outer clusters move at small multipliers: more of those.
    fraction = jnp.arange(2 * num_outer, dtype=jnp.int32).astype(dtype) / (2 * num_outer - 1)
    multiplier = largest * fraction * fraction * fraction
    dual_first, dual_last = _dual_ends(moments, centre, multiplier)

    def layer(previous, _):
        grid = _least_sums(previous[:num_outer], last.T)
        dual = jnp.min(previous[num_outer:] + dual_last, axis=-1)
        return _least_sums(previous, run_cost), (grid, dual, previous[:num_outer])

    start = jnp.concatenate([first, dual_first])
    _, (grid, dual, before) = lax.scan(layer, start, None, length=max_clusters)
    # What k clusters and a last one make is for K = k + 1.
    is_ordered = outer[:, None] <= outer[None, :]
    none = jnp.full_like(grid[:1], jnp.inf)
    grid = jnp.where(is_ordered[None], grid, jnp.inf)
    no_dual = jnp.full_like(dual[:1], jnp.inf)
    return DiameterSolver(
        moments=moments,
        outer=outer,
        outer_cost=jnp.concatenate([none, none, grid[:-1]]),
        single_cost=run_cost[0, num_bins],
        multiplier=multiplier,
        dual_cost=jnp.concatenate([no_dual, no_dual, dual[:-1]]),
        before=before,
        run_cost=run_cost,
    )


def _pad_to_power_of_two(bins: Runs) -> Runs:
    extra = (1 << (bins.mass.shape[0] - 1).bit_length()) - bins.mass.shape[0]
    return Runs(*(jnp.pad(part, (0, extra)) for part in bins))


def _run_costs(bins: Runs) -> Float[Array, "bins_plus_1 bins_plus_1"]:
    """Return the spread of every run: rows where it begins, columns where it ends."""
    size = jnp.arange(bins.mass.shape[0] + 1, dtype=jnp.int32)
    begin, end = jnp.broadcast_arrays(size[:, None], size[None, :])
    spread = read_runs(run_table(_pad_to_power_of_two(bins)), begin, end).spread
    return jnp.where(begin <= end, spread, jnp.inf)


def _dual_ends(moments: Moments, centre: Array, multiplier: Array) -> tuple[Array, Array]:
    """Return what the first i bins cost as the first cluster, less `lam a`; the last likewise.

    Weights are measured from the median, which cancels in `lam (b - a)`.
    """
    offset = moments.position - centre
    bins = Runs(moments.mass, offset, moments.mass * moments.deviation * moments.deviation)
    below = _prefix_runs(bins)
    # The last cluster is the first one of the mirrored weights.
    mirrored = Runs(bins.mass[::-1], -offset[::-1], bins.spread[::-1])
    above = _prefix_runs(mirrored)

    def ends(runs, positions):
        # The next point above each prefix; none after all of them.
        limit = jnp.concatenate([positions, positions[-1:]])
        has_mass = runs.mass > 0
        share = multiplier[:, None] / (2 * jnp.where(has_mass, runs.mass, 1))[None, :]
        moved = jnp.minimum(share, jnp.maximum(limit - runs.mean, 0)[None, :])
        value = (
            runs.spread[None, :]
            + runs.mass[None, :] * moved * moved
            - multiplier[:, None] * (runs.mean[None, :] + moved)
        )
        return jnp.where(has_mass[None, :], value, jnp.inf)

    return ends(below, offset), ends(above, mirrored.mean)[:, ::-1]


def _prefix_runs(bins: Runs) -> Runs:
    """Return the runs of the first 0..B bins."""
    stop = jnp.arange(bins.mass.shape[0] + 1, dtype=jnp.int32)
    return read_runs(run_table(_pad_to_power_of_two(bins)), jnp.zeros_like(stop), stop)


def _least_sums(
    rows: Float[Array, "rows inner"], columns: Float[Array, "inner columns"]
) -> Float[Array, "rows columns"]:
    """Return `min over i of rows[r, i] + columns[i, c]`, a few i in every pass."""
    extra = -rows.shape[1] % _UNROLL
    rows = jnp.pad(rows, [(0, 0), (0, extra)], constant_values=jnp.inf).T
    columns = jnp.pad(columns, [(0, extra), (0, 0)], constant_values=jnp.inf)
    parts = (
        rows.reshape(-1, _UNROLL, rows.shape[1]),
        columns.reshape(-1, _UNROLL, columns.shape[1]),
    )

    def step(least, part):
        row, column = part
        for i in range(_UNROLL):
            least = jnp.minimum(least, row[i][:, None] + column[i][None, :])
        return least, None

    start = jnp.full((rows.shape[1], columns.shape[1]), jnp.inf, rows.dtype)
    return lax.scan(step, start, parts)[0]


@partial(jax.jit, static_argnames=("penalty_scale",))
def _solve(solver, num_clusters, diameter_penalty, num_iterations, *, penalty_scale):
    batch_shape = solver.single_cost.shape
    shape = np.broadcast_shapes(batch_shape, num_clusters.shape, diameter_penalty.shape)
    total = pairwise_sum(solver.moments.mass)
    beta = jnp.broadcast_to(diameter_penalty, shape)
    if penalty_scale == "relative":
        beta = beta * jnp.broadcast_to(total, shape)
    else:
        of_mass = jnp.broadcast_to(solver.moments.mass_exponent, shape)
        largest = jnp.finfo(beta.dtype).max / 2**40
        beta = jnp.minimum(normalise(beta, of_mass, axis=()), largest)
    # Groups by number, so that the tables are read where they are.
    groups = jnp.arange(max(solver.single_cost.size, 1), dtype=jnp.int32).reshape(batch_shape)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(batch_shape) :]), solver)

    def solve_one(arguments):
        group, k, penalty = arguments
        one = jax.tree.map(lambda leaf: leaf[group], flat)
        return _solve_one(one, k, penalty, num_iterations)

    found = lax.map(
        solve_one,
        (
            jnp.broadcast_to(groups, shape).ravel(),
            jnp.broadcast_to(num_clusters, shape).ravel(),
            beta.ravel(),
        ),
    )
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), found)


def _solve_one(solver, num_clusters, beta, num_iterations) -> DiameterSolution:
    num_outer = solver.outer.shape[0]
    max_clusters = solver.outer_cost.shape[0] - 1
    k = jnp.clip(num_clusters, 1, max_clusters)
    diameter = solver.outer[None, :] - solver.outer[:, None]
    total = solver.outer_cost[k] + beta * diameter * diameter
    _, entries = lax.top_k(-total.ravel(), min(_NUM_STARTS, num_outer**2))
    starts = jax.vmap(partial(_centroids_of_entry, solver, k))(entries)
    # Never above Lloyd from the quantiles or from nearly the best codebook without a penalty, nor
    # above one cluster.
    moments = solver.moments
    unit, of_mass = moments.exponent, moments.mass_exponent
    # In its own units, where no number that decides is out of range.
    moments = moments._replace(exponent=jnp.zeros_like(unit), mass_exponent=jnp.zeros_like(unit))
    quantiles = quantile_start(moments, k, max_clusters)
    plain = coarse_to_fine_centroids(
        moments.position, moments.mass, k, max_clusters=max_clusters
    ).astype(quantiles.dtype)
    total_mass = pairwise_sum(moments.mass)
    mean = pairwise_sum(moments.mass * (moments.position - moments.minimum))
    mean = moments.minimum + mean / jnp.where(total_mass > 0, total_mass, 1)
    others = jnp.stack([quantiles, plain, jnp.full_like(quantiles, mean)])
    starts = jnp.concatenate([starts, others])
    descend = partial(
        solve_kmeans,
        moments,
        k,
        beta,
        max_clusters=max_clusters,
        penalty_scale="absolute",
        num_iterations=num_iterations,
    )
    found = jax.vmap(lambda start: descend(initial_centroids=start))(starts)
    best = jnp.argmin(found.objective)
    found = jax.tree.map(lambda leaf: leaf[best], found)
    bound = _lower_bound(solver, k, beta)

    def restored(cost):
        return restore(cost, 2 * unit + of_mass, axis=())

    codebook = found.codebook._replace(
        centroids=restore(found.codebook.centroids, unit),
        thresholds=restore(found.codebook.thresholds, unit, rounds_down=True),
    )
    solution = found._replace(
        codebook=codebook,
        distortion=restored(found.distortion),
        objective=restored(found.objective),
    )
    return DiameterSolution(solution, _raised(restored(jnp.maximum(found.objective - bound, 0))))


def _raised(gap: Float[Array, ""]) -> Float[Array, ""]:
    """Return the next number above a positive gap: the difference that it is was rounded.

    So were both of its ends, where their unit leads below 1e-38.
    """
    above = jnp.nextafter(gap, jnp.full((), jnp.inf, gap.dtype))
    return jnp.where(gap > 0, above, gap)


def _lower_bound(solver, k, beta):
    """Return the largest of the bounds, less what rounding may have added."""
    lam, dtype = solver.multiplier, solver.multiplier.dtype
    max_clusters, num_bins = solver.outer_cost.shape[0] - 1, solver.moments.mass.shape[0]
    price = jnp.where(lam > 0, lam * lam / (4 * jnp.where(beta > 0, beta, 1)), 0)
    price = jnp.where((beta > 0) | (lam == 0), price, jnp.inf)
    span = solver.moments.maximum - solver.moments.minimum
    dual = solver.dual_cost[k]
    rounding = (3 * num_bins.bit_length() + 10 + 2 * max_clusters) * jnp.finfo(dtype).eps / 2
    # All partial sums of the dual lie within its value and twice what the diameter can cost.
    finite = jnp.where(jnp.isfinite(dual), jnp.abs(dual), 0)
    slack = rounding * (finite + 2 * lam * span) + 4 * jnp.finfo(dtype).eps * price
    several = jnp.max(jnp.where(jnp.isfinite(price), dual - price - slack, -jnp.inf))
    single = solver.single_cost * (1 - rounding)
    return jnp.maximum(jnp.where(k > 1, jnp.minimum(single, several), single), 0)


def _centroids_of_entry(solver, k, entry):
    """Follow the cuts of one entry of the grid and return its centres."""
    num_outer, num_bins = solver.outer.shape[0], solver.moments.mass.shape[0]
    max_clusters = solver.outer_cost.shape[0] - 1
    row, column = entry // num_outer, entry % num_outer
    a, b = solver.outer[row], solver.outer[column]
    position, mass = solver.moments.position, solver.moments.mass
    deviation = position - b
    costs = mass * (deviation * deviation + solver.moments.deviation * solver.moments.deviation)
    from_there = jnp.pad(running_sum(costs[::-1])[::-1], [(0, 1)])
    is_above = (position >= b) & (mass > 0)
    index = jnp.arange(num_bins + 1, dtype=jnp.int32)
    first_above = jnp.min(jnp.where(is_above, index[:-1], num_bins))
    last = jnp.where(index <= first_above, from_there, jnp.inf)

    def step(back, state):
        stop, cuts = state
        # Clusters k - 1, k - 2, ..., 2, numbered from 1: where does each begin?
        cluster = k - 1 - back
        earlier = solver.before[jnp.maximum(cluster - 2, 0), row]
        begin = jnp.argmin(earlier + solver.run_cost[:, stop]).astype(jnp.int32)
        is_one = cluster >= 2
        place = jnp.where(is_one, cluster - 1, max_clusters)
        return jnp.where(is_one, begin, stop), cuts.at[place].set(begin, mode="drop")

    stop = jnp.argmin(solver.before[jnp.maximum(k - 2, 0), row] + last).astype(jnp.int32)
    cuts = jnp.full((max_clusters,), num_bins, jnp.int32).at[k - 1].set(stop)
    _, cuts = counted_loop(jnp.int32(0), jnp.int32(max_clusters), step, (stop, cuts))
    # Entry 0 is where the first cluster begins.
    cuts = cuts.at[0].set(0)
    cluster = jnp.sum(index[:-1, None] >= cuts[None, :], axis=-1, dtype=jnp.int32) - 1
    sums = partial(segment_sum, index=cluster, number=max_clusters)
    weight = sums(mass)
    mean = a + sums(mass * (position - a)) / jnp.where(weight > 0, weight, 1)
    number = jnp.arange(max_clusters, dtype=jnp.int32)
    centres = jnp.where(number == 0, a, jnp.where(number == k - 1, b, jnp.clip(mean, a, b)))
    return jnp.where(k == 1, jnp.full_like(centres, a), centres)
