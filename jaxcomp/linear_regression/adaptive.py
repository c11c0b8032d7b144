"""The best codebooks of few points, for every number of clusters from one dynamic programme.

With some fifty points all runs of neighbours can be listed, and `f_K(j)`, the least cost of the
first j points in K clusters, costs d^2 for every K: far less than K-means from one start. Plain and
weighted K-means are solved exactly. With a penalty `beta (c_K - c_1)^2` on the diameter the cost of
a partition is

    sum of spreads + D^2 / (1/S_1 + 1/S_K + 1/beta),

S_1 and S_K the masses of the outer clusters and D the distance of their means: three springs in a
row, which pull the outer centres inwards by `force/S`. It couples the outer clusters; a multiplier
`lam (c_K - c_1)` in its place does not. The optimum has `lam = 2 force`, and the force grows with K
from that of two clusters to that of as many as there are points. The partitions that are best for
a few multipliers between these are found by the same programme and compared by the true cost.

Axes: `d` points, `R` codebooks, `K` clusters, `L` most clusters, `Q` rows (multipliers), `M` data
sets, last, where they fill vector registers.

Source: Wu, J. Algorithms 12 (1991), 663-673.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxcomp.numerics.precision import first_least

# Multipliers between the lowest and the highest force, in equal ratios.
_NUM_MULTIPLIERS = 4
# Steps of a loop taken in one pass, at most: numbers then stay in registers, which is five times
# as fast as one step after the other.
_UNROLL = 64


class Runs(NamedTuple):
    """Runs of neighbours `i <= place < j`, at `[i, j - 1]`; without meaning where `i >= j`.

    Attributes:
        mass: (d, d, M), sum of h.
        mean: (d, d, M), sum of h w over the mass.
        spread: (d, d, M), sum of h (w - mean)^2.
    """

    mass: Float[Array, "d d M"]
    mean: Float[Array, "d d M"]
    spread: Float[Array, "d d M"]


class Partitions(NamedTuple):
    """Sorted points in intervals.

    Attributes:
        cuts: (L + 1, R, M) int32, cluster k holds the points from cut k to below cut k + 1;
            clusters beyond K begin and end at d.
        centroids: (L, R, M), of the clusters that hold points.
    """

    cuts: Int[Array, "L+1 R M"]
    centroids: Float[Array, "L R M"]

    def values(self, num_points: int) -> Float[Array, "d R M"]:
        """The centroid of every point."""
        place = jnp.arange(num_points, dtype=jnp.int32)[:, None, None]

        def visit(values, cluster):
            start, centroid = cluster
            return jnp.where(place >= start, centroid, values), None

        empty = jnp.zeros((num_points, *self.cuts.shape[1:]), self.centroids.dtype)
        clusters = (self.cuts[:-1], self.centroids)
        return lax.scan(visit, empty, clusters, unroll=_UNROLL)[0]

    def counts(self) -> Int[Array, "L R M"]:
        """How many points every cluster holds."""
        return jnp.diff(self.cuts, axis=0)


def all_runs(points: Float[Array, "d M"], mass: Float[Array, "d M"]) -> Runs:
    """Return mass, mean and spread of all runs of sorted points; nothing cancels.

    Args:
        points: (d, M), ascending.
        mass: (d, M), h >= 0.
    """
    end = jnp.arange(points.shape[0], dtype=jnp.int32)[:, None]

    def extend(run: Runs, point):
        # To the left, all runs at once: those that begin one place further on.
        number, x, h = point
        is_longer = end > number
        old = jnp.where(is_longer, run.mass, 0)
        mass = old + h
        gap = x - jnp.where(is_longer, run.mean, x)
        share = h / jnp.where(mass > 0, mass, 1)
        mean = jnp.where(is_longer, run.mean, x) + gap * share
        spread = jnp.where(is_longer, run.spread, 0) + gap * gap * old * share
        run = Runs(mass, mean, spread)
        return run, run

    zero = jnp.zeros_like(points)
    numbers = jnp.arange(points.shape[0], dtype=jnp.int32)
    return lax.scan(extend, Runs(zero, zero, zero), (numbers, points, mass), reverse=True)[1]


def uniform_partitions(
    points: Float[Array, "d M"], num_clusters: Int[Array, " R"], max_clusters: int
) -> Int[Array, "L+1 R M"]:
    """Cut the range of the sorted points into K equal cells; return the cuts."""
    low, span = points[0] * 0.5, points[-1] * 0.5 - points[0] * 0.5
    place = jnp.arange(1, max_clusters, dtype=jnp.int32)[:, None]
    fraction = place.astype(points.dtype) / num_clusters.astype(points.dtype)
    edges = 2 * (low + span * fraction[:, :, None])

    def count(total, point):
        return total + (point <= edges).astype(jnp.int32), None

    start = jnp.zeros(edges.shape, jnp.int32)
    cuts, _ = lax.scan(count, start, points, unroll=_UNROLL)
    cuts = jnp.where((place < num_clusters)[:, :, None], cuts, points.shape[0])
    return _with_ends(cuts, points.shape[0])


class _Programme(NamedTuple):
    """What the dynamic programme leaves behind; `K - 2` numbers K = 2, 3, ...

    Attributes:
        cost: (L - 1, Q, M), the least cost of all points in K clusters.
        last: (L - 1, Q, M), where the last of these K begins.
        before: (L - 1, Q, d, M), where the last of K clusters begins that end before j, at j - 1.
    """

    cost: Float[Array, "L-1 Q M"]
    last: Int[Array, "L-1 Q M"]
    before: Int[Array, "L-1 Q d M"]


def _solve(
    inner: Float[Array, "d d M"],
    first: Float[Array, "Q d M"],
    last: Float[Array, "d Q M"],
    num_levels: int,
) -> _Programme:
    """Solve for K = 2 ... `num_levels` clusters, none of them empty.

    Args:
        inner: costs of runs, infinite where there is none.
        first: costs of the first cluster by its end.
        last: costs of the last cluster by its begin.
        num_levels: 2 <= L <= d.
    """
    num_points = last.shape[0]
    begins = jnp.arange(1, num_points, dtype=jnp.int32)
    unroll = min(_UNROLL, num_points - 1)

    def level(cost, _):
        # The clusters before a cut, by the cut.
        base = jnp.moveaxis(cost, 1, 0)[:-1]

        def visit(best, begin):
            number, before, run = begin
            total = before[:, None] + run
            is_less = total < best[0]
            return (jnp.where(is_less, total, best[0]), jnp.where(is_less, number, best[1])), None

        start = (jnp.full_like(cost, jnp.inf), jnp.zeros(cost.shape, jnp.int32))
        (least, cut), _ = lax.scan(visit, start, (begins, base, inner[1:]), unroll=unroll)
        total = base + last[1:]
        return least, (jnp.min(total, axis=0), 1 + first_least(total, axis=0), cut)

    return _Programme(*lax.scan(level, first, None, length=num_levels - 1)[1])


def _follow(found: _Programme, num_points: int) -> Int[Array, "L-1 Q L M"]:
    """Return the cuts of the best partitions into K = 1 ... L clusters; d where there is none."""
    num_levels, num_rows, num_sets = found.last.shape
    wanted = jnp.arange(1, num_levels + 2, dtype=jnp.int32)[None, :, None]

    def back(cut, level):
        number, last, before = level
        earlier = jnp.take_along_axis(before, jnp.maximum(cut - 1, 0), axis=1)
        cut = jnp.where(wanted == number, last[:, None], jnp.where(wanted > number, earlier, cut))
        return cut, cut

    start = jnp.full((num_rows, num_levels + 1, num_sets), num_points, jnp.int32)
    # Level K finds where the last of K clusters begins; `before` of K ends where K + 1 begins.
    levels = jnp.arange(2, num_levels + 2, dtype=jnp.int32)
    return lax.scan(back, start, (levels, found.last, found.before), reverse=True)[1]


def _with_ends(cuts: Int[Array, "cuts *shape"], num_points: int) -> Int[Array, "cuts+2 *shape"]:
    ends = jnp.zeros_like(cuts[:1], shape=(1, *cuts.shape[1:]))
    return jnp.concatenate([ends, cuts, ends + num_points])


def _look_up(table: Float[Array, "d d M"], begin: Array, end: Array) -> Array:
    """Read entries of runs `begin <= place < end`, (..., M); something finite if there are none."""
    num_points = table.shape[0]
    shape = begin.shape
    row = jnp.clip(begin, 0, num_points - 1) * num_points + jnp.clip(end - 1, 0, num_points - 1)
    flat = table.reshape(num_points * num_points, table.shape[-1])
    return jnp.take_along_axis(flat, row.reshape(-1, shape[-1]), axis=0).reshape(shape)


def means_of(runs: Runs, cuts: Int[Array, "L+1 R M"]) -> Partitions:
    """Return partitions with the means of their clusters as centroids."""
    return Partitions(cuts, _look_up(runs.mean, cuts[:-1], cuts[1:]))


def best_partitions(
    points: Float[Array, "d M"],
    runs: Runs,
    num_clusters: Int[Array, " R"],
    max_clusters: int,
    beta: Float[Array, " M"] | None = None,
) -> tuple[Partitions, Partitions]:
    """Return the best partitions into at most K intervals, without a penalty and with one.

    Args:
        points: (d, M), ascending.
        runs: from `all_runs`.
        num_clusters: (R,), 1 <= K <= L.
        max_clusters: L, static.
        beta: (M,) >= 0, of the penalty `beta (c_K - c_1)^2`, in units of the mass; None for none.

    Returns:
        The optimum without a penalty, and the best that was found with it (the same for None).
    """
    num_points, num_sets = points.shape
    num_levels = min(max_clusters, num_points)
    row = jnp.minimum(num_clusters, num_points) - 1
    if num_levels == 1:
        only = jnp.full((max_clusters - 1, row.shape[0], num_sets), num_points, jnp.int32)
        one = means_of(runs, _with_ends(only, num_points))
        return one, one
    multiplier = jnp.zeros((1, num_sets), points.dtype)
    if beta is not None:
        multiplier = jnp.concatenate([multiplier, 2 * _forces(points, runs, beta)])
    first, last = _outer_costs(points, runs, multiplier)
    index = jnp.arange(num_points, dtype=jnp.int32)
    is_run = (index[:, None] <= index)[:, :, None]
    spread = jnp.where(is_run, runs.spread, jnp.inf)
    found = _solve(spread, first, last, num_levels)
    cuts = _follow(found, num_points)

    def finish(chosen: Int[Array, "L-1 R M"]) -> Partitions:
        missing = [(0, max_clusters - num_levels), (0, 0), (0, 0)]
        chosen = jnp.pad(chosen, missing, constant_values=num_points)
        return means_of(runs, _with_ends(chosen, num_points))

    plain = finish(cuts[:, 0, row])
    if beta is None:
        return plain, plain
    cost, low, high = _with_penalty(runs, found, cuts, first, last, beta)
    multiplier_of = first_least(cost, axis=1)
    # Under a penalty fewer clusters may be better than K.
    is_allowed = jnp.arange(num_levels)[:, None] <= row
    least = jnp.where(is_allowed[:, :, None], jnp.min(cost, axis=1)[:, None], jnp.inf)
    level = first_least(least, axis=0)
    chosen = jnp.take_along_axis(multiplier_of, level, axis=0)
    sets = jnp.arange(num_sets, dtype=jnp.int32)
    penalized = finish(cuts[:, chosen, level, sets])
    # The outer centres of at least two clusters are drawn together.
    place = jnp.arange(max_clusters, dtype=jnp.int32)[:, None, None]
    centroids = jnp.where(place == level, high[level, chosen, sets], penalized.centroids)
    centroids = jnp.where((place == 0) & (level > 0), low[level, chosen, sets], centroids)
    return plain, penalized._replace(centroids=centroids)


def _with_penalty(
    runs: Runs,
    found: _Programme,
    cuts: Int[Array, "L-1 Q L M"],
    first: Float[Array, "Q d M"],
    last: Float[Array, "d Q M"],
    beta: Float[Array, " M"],
) -> tuple[Float[Array, "L Q M"], Float[Array, "L Q M"], Float[Array, "L Q M"]]:
    """Return costs of partitions under the true penalty, and their outer centres."""
    num_points = runs.mass.shape[0]
    end, begin = jnp.swapaxes(cuts[0], 0, 1)[1:], found.last
    left = Runs(*(_look_up(part, jnp.zeros_like(end), end) for part in runs))
    right = Runs(*(_look_up(part, begin, jnp.full_like(begin, num_points)) for part in runs))
    _, low, high = _drawn_together(left, right, beta)
    # From three clusters on, no further than to the centre beside it.
    if cuts.shape[0] > 1:
        three = jnp.arange(2, cuts.shape[2])
        second = _look_up(runs.mean, *(jnp.swapaxes(cut, 0, 1)[2:] for cut in (cuts[0], cuts[1])))
        last_but_one = _look_up(runs.mean, cuts[three - 2, :, three], begin[1:])
        low = low.at[1:].min(second)
        high = high.at[1:].max(last_but_one)

    def at(costs: Float[Array, "Q d M"], place: Int[Array, "K Q M"]) -> Float[Array, "K Q M"]:
        return jnp.take_along_axis(costs[None], place[:, :, None], axis=2)[:, :, 0]

    # The multiplier's share out, the penalty in.
    cost = found.cost - at(first, end - 1) - at(jnp.swapaxes(last, 0, 1), begin)
    cost = cost + _outer_cost(left, right, low, high, beta)
    one = jnp.broadcast_to(runs.spread[0, -1], (1, *cost.shape[1:]))
    centre = jnp.broadcast_to(runs.mean[0, -1], one.shape)
    return (
        jnp.concatenate([one, cost]),
        jnp.concatenate([centre, low]),
        jnp.concatenate([centre, high]),
    )


class _Springs(NamedTuple):
    """Two outer clusters drawn together by a penalty: the force, and their centres."""

    force: Array
    low: Array
    high: Array


def _drawn_together(left: Runs, right: Runs, beta: Array) -> _Springs:
    softness = 1 / _positive(left.mass) + 1 / _positive(right.mass) + 1 / _positive(beta)
    force = (right.mean - left.mean) / softness
    low = left.mean + force / _positive(left.mass)
    return _Springs(force, low, right.mean - force / _positive(right.mass))


def _outer_cost(left: Runs, right: Runs, low: Array, high: Array, beta: Array) -> Array:
    """Cost of the outer clusters and of the penalty, for given centres."""
    cost = left.spread + left.mass * (low - left.mean) ** 2
    cost = cost + right.spread + right.mass * (high - right.mean) ** 2
    return cost + beta * (high - low) ** 2


def _forces(
    points: Float[Array, "d M"], runs: Runs, beta: Float[Array, " M"]
) -> Float[Array, "multipliers M"]:
    """Return forces from that of the best two clusters to that of as many as points."""
    # First clusters that end before place i, last ones that begin at place j.
    left = Runs(*(part[0, :-1][:, None] for part in runs))
    right = Runs(*(part[1:, -1][None, :] for part in runs))
    springs = _drawn_together(left, right, beta)
    cost = _outer_cost(left, right, springs.low, springs.high, beta)
    # The points between are centres of their own, and lie between these.
    is_sound = (springs.low <= points[1:][:, None]) & (springs.high >= points[:-1][None, :])
    index = jnp.arange(points.shape[0] - 1, dtype=jnp.int32)
    order = (index[None, :] - index[:, None])[:, :, None]

    def force_of_best(is_allowed: Array) -> Float[Array, " M"]:
        allowed = jnp.where(is_allowed, cost, jnp.inf)
        is_best = allowed == jnp.min(allowed, axis=(0, 1))
        return jnp.max(jnp.where(is_best, springs.force, 0), axis=(0, 1))

    least = _positive(force_of_best(order == 0))
    most = jnp.maximum(force_of_best((order == 0) | ((order > 0) & is_sound)), least)
    share = jnp.linspace(0, 1, _NUM_MULTIPLIERS, dtype=points.dtype)[:, None]
    return least * jnp.power(most / least, share)


def _outer_costs(
    points: Float[Array, "d M"], runs: Runs, multiplier: Float[Array, "Q M"]
) -> tuple[Float[Array, "Q d M"], Float[Array, "d Q M"]]:
    """Return costs of first clusters by their ends, and of last ones by their begins.

    The centre a of a first cluster minimises `S (a - mean)^2 - lam a`, but goes no further than to
    the next point: beyond it the partition is not the nearest one.
    """
    lam = multiplier[:, None]
    left = Runs(*(part[0] for part in runs))
    beyond = jnp.concatenate([points[1:], points[-1:]])
    a = jnp.minimum(left.mean + 0.5 * lam / _positive(left.mass), beyond)
    first = left.spread + left.mass * (a - left.mean) ** 2 - lam * (a - points[0])
    right = Runs(*(part[:, -1] for part in runs))
    beyond = jnp.concatenate([points[:1], points[:-1]])
    b = jnp.maximum(right.mean - 0.5 * lam / _positive(right.mass), beyond)
    last = right.spread + right.mass * (b - right.mean) ** 2 + lam * (b - points[0])
    return first, jnp.swapaxes(last, 0, 1)


def _positive(values: Array) -> Array:
    return jnp.maximum(values, jnp.finfo(values.dtype).tiny)
