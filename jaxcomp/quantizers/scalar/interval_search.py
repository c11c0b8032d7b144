"""The cheapest cut of B bins into runs, for every number of runs, when costs are Monge.

A layer of the dynamic programme is `D_k[j] = min over i < j of D_{k-1}[i] + cost(i, j)`, the bins
`i..j-1` being the last run. For Monge costs the best i never falls as j grows, so that rows are
found coarse to fine: the rows between two known ones look between their cuts only. Each level
refines by `_FAN` rows and looks at whole chunks of `_CHUNK` cuts at a time, in arithmetic without
gathers: a cut in a chunk that ends at m makes the run `i..m-1` merged with `m..j-1`, and the first
part depends on i alone.

Costs are rounded, and a row can cost many orders of magnitude more than one below it: the last
rows of a heavy tail, with few runs. Which of its cuts is best is then decided by rounding, and
cuts that the cheap rows need could be lost. So each row is passed on to those below it with the
highest cut that *could* be best for all that rounding allows: by Monge, no lower row has its best
cut beyond. For the rows above it, which cost more, what that loses is rounding again.

Axes: `B` bins (a multiple of `_CHUNK`), `C` chunks of them, `K` runs.

Sources: Wu, J. Algorithms 12 (1991), 663-673; Gronlund et al., arXiv:1701.07204.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxcomp.numerics.precision import first_least
from jaxcomp.numerics.sums import (
    count_below,
)
from jaxcomp.numerics.transformations import counted_loop
from jaxcomp.quantizers.scalar.runs import Runs, RunTable, merge, nothing_like, read_runs

# Cuts looked at together, and rows found between two known ones.
_CHUNK = 16
_LOG2_FAN = 3
_FAN = 1 << _LOG2_FAN


def roundings_of_cost(num_bins: int) -> int:
    """Return by how many roundings of itself the cost of a run is off at most.

    Three for every merge that made it, all terms being positive.
    """
    return 3 * num_bins.bit_length() + 10


def tie_roundings(num_bins: int) -> int:
    """Return by how many roundings of a cost two cuts may differ and be taken for equal."""
    return 2 * (roundings_of_cost(num_bins) + 4)


class BinCosts(NamedTuple):
    """What a run of bins costs: the spread of its bins, the first and the last one replaced.

    Attributes:
        inner: the bins as they are between the first and the last of a run.
        first: the bins as the first of a longer run.
        last: the bins as the last of a longer run.
        single: (B,) cost of a run of one bin.
    """

    inner: Runs
    first: Runs
    last: Runs
    single: Float[Array, " bins"]


class _Costs(NamedTuple):
    """The parts from which the cost of any run is made.

    Attributes:
        table: of the inner bins.
        last: as in `BinCosts`.
        left: (chunk, C), the run from each bin to the end of its chunk.
        near: (chunk, C, chunk), cost of the run from bin i to bin j of a chunk, both included,
            at [i, c, j]; +inf for i > j.
    """

    table: RunTable
    last: Runs
    left: Runs
    near: Float[Array, "chunk chunks chunk"]


class Cuts(NamedTuple):
    """The cheapest cuts; row k, column j is about the first j + 1 bins and at most k + 1 runs.

    Attributes:
        cost: (K, B).
        chunk: (K, B), the chunk of bins in which the last run begins.
    """

    cost: Float[Array, "clusters bins"]
    chunk: Int[Array, "clusters bins"]


def padded_length(num_bins: int) -> int:
    """Return the smallest number of bins the search takes that is at least `num_bins`."""
    return max(_CHUNK, 1 << max(num_bins - 1, 0).bit_length())


def cheapest_cuts(bins: BinCosts, table: RunTable, *, max_clusters: int) -> Cuts:
    """Cut every prefix of the bins into at most 1..K runs.

    Args:
        bins: B of them, `padded_length` of something.
        table: of `bins.inner`.
        max_clusters: K, static.

    Returns:
        Costs, and the chunk of bins in which the last run begins, for the first bins in any
        number and any number of runs.
    """
    costs = _prepare(bins, table)
    num_bins = bins.single.shape[0]
    unreachable = jnp.full((num_bins,), jnp.inf, bins.single.dtype)

    def layer(previous, _):
        # Zero bins cost nothing, with any number of runs.
        base = jnp.concatenate([jnp.zeros_like(previous[:1]), previous[:-1]])
        best, chunk = _layer(costs, base)
        return best, (best, chunk)

    _, (best, chunk) = lax.scan(layer, unreachable, None, length=max_clusters)
    return Cuts(best, chunk)


def follow_cuts(
    cuts: Cuts, bins: BinCosts, table: RunTable
) -> Int[Array, "clusters clusters_plus_1"]:
    """Return where the runs begin, for every number of runs.

    Args:
        cuts: as `cheapest_cuts` returns them, for the same bins and table.
        bins: B of them.
        table: of `bins.inner`.

    Returns:
        (K, K + 1): in row k run r is made of the bins from entry r to entry r + 1, for r <= k;
        from entry k + 1 on all are B. Where fewer runs are enough the first ones are empty.
    """
    max_clusters, num_bins = cuts.cost.shape
    runs = jnp.arange(max_clusters, dtype=jnp.int32)
    offset = jnp.arange(_CHUNK, dtype=jnp.int32)

    def step(back, state):
        stop, begins = state
        layer = runs - back
        row = jnp.maximum(layer, 0)
        start = cuts.chunk[row, jnp.maximum(stop - 1, 0)][:, None] * _CHUNK + offset[None, :]
        before = cuts.cost[jnp.maximum(row - 1, 0)[:, None], jnp.maximum(start - 1, 0)]
        before = jnp.where(start == 0, 0, jnp.where(layer[:, None] > 0, before, jnp.inf))
        ends = jnp.broadcast_to(stop[:, None], start.shape)
        total = before + _run_costs(bins, table, start, ends)
        total = jnp.where(start < ends, total, jnp.inf)
        cut = start[runs, first_least(total, axis=-1)]
        cut = jnp.where((layer <= 0) | (stop == 0), 0, cut)
        stop = jnp.where(layer >= 0, cut, stop)
        # Layers below 0 are none: dropped.
        column = jnp.where(layer >= 0, layer, max_clusters + 1)
        return stop, begins.at[runs, column].set(cut, mode="drop")

    full = jnp.full((max_clusters, max_clusters + 1), num_bins, jnp.int32)
    start = (jnp.full((max_clusters,), num_bins, jnp.int32), full)
    return counted_loop(jnp.int32(0), jnp.int32(max_clusters), step, start)[1]


def _run_costs(bins: BinCosts, table: RunTable, start: Array, stop: Array) -> Array:
    """Return the costs of runs of at least one bin."""

    def at(runs: Runs, place: Array) -> Runs:
        return Runs(*(part.at[place].get(mode="clip") for part in runs))

    inner = read_runs(table, start + 1, stop - 1)
    longer = merge(merge(at(bins.first, start), inner), at(bins.last, stop - 1))
    return jnp.where(stop - start == 1, bins.single.at[start].get(mode="clip"), longer.spread)


def _prepare(bins: BinCosts, table: RunTable) -> _Costs:
    num_bins = bins.single.shape[0]
    index = jnp.arange(num_bins, dtype=jnp.int32)
    chunk_end = (index // _CHUNK + 1) * _CHUNK
    left = merge(bins.first, read_runs(table, index + 1, chunk_end))

    def chunked(runs: Runs) -> Runs:
        return Runs(*(part.reshape(-1, _CHUNK) for part in runs))

    first, inner, last = chunked(bins.first), chunked(bins.inner), chunked(bins.last)
    offset = jnp.arange(_CHUNK, dtype=jnp.int32)[None, :]
    single = bins.single.reshape(-1, _CHUNK)

    def extend(run, columns):
        place, inner_bin, last_bin = columns
        longer = merge(run, Runs(*(part[:, None] for part in last_bin)))
        cost = jnp.where(offset == place, single, longer.spread)
        cost = jnp.where(offset <= place, cost, jnp.inf)
        grown = merge(run, Runs(*(part[:, None] for part in inner_bin)))
        run = Runs(
            *(
                jnp.where(offset == place, start, jnp.where(offset < place, new, old))
                for start, new, old in zip(first, grown, run, strict=True)
            )
        )
        return run, cost

    def by_column(runs: Runs) -> Runs:
        return Runs(*(part.T for part in runs))

    _, near = lax.scan(extend, nothing_like(first), (offset[0], by_column(inner), by_column(last)))
    return _Costs(table, bins.last, by_column(chunked(left)), near.transpose(2, 1, 0))


def _layer(
    costs: _Costs, base: Float[Array, " bins"]
) -> tuple[Float[Array, " bins"], Int[Array, " bins"]]:
    """Return cost and cut of every row, `base` being the cost of the bins before each cut."""
    num_bins = base.shape[0]
    base = base.reshape(-1, _CHUNK).T
    best = _least(lambda i: base[i][:, None] + costs.near[i]).ravel()
    own = jnp.arange(num_bins, dtype=jnp.int32) // _CHUNK
    state = (best, own, own)
    num = num_levels(num_bins)

    # As many nodes on every level as the last one has: one program for all of them.
    num_nodes = max(num_bins // _FAN, 1)

    def refine(level, state):
        stride = lax.shift_left(jnp.int32(1), (num - 1 - level) * _LOG2_FAN)
        return _refine(costs, base, state, stride, level > 0, num_nodes)

    best, chunk, _ = counted_loop(jnp.int32(0), jnp.int32(num), refine, state)
    return best, chunk


def _refine(costs, base, state, stride, is_last_known, num_nodes):
    """Find the rows at multiples of the stride between those known already.

    The state holds for every row the least total, the chunk that has it and the highest chunk
    whose total may be the least, rounding considered.
    """
    best, chunk, highest = state
    num_bins = best.shape[0]
    begin = jnp.arange(num_nodes, dtype=jnp.int32) * (stride * _FAN)
    first_chunk = highest[jnp.clip(begin - 1, 0, num_bins - 1)]
    first_chunk = jnp.where(begin == 0, 0, first_chunk)
    # Nodes that this level does not have begin after everything.
    first_chunk = jnp.where(begin < num_bins, first_chunk, num_bins)
    stops = begin[:, None] + jnp.arange(1, _FAN + 1, dtype=jnp.int32)[None, :] * stride
    # The last row of a node is the first of the next but one level up: known, not to be touched.
    is_new = ~is_last_known | (stops - begin[:, None] < stride * _FAN)
    rows = jnp.where(is_new, stops, num_bins + 1) - 1
    # Rows not found yet hold the best cut of their own chunk, the highest one they can have.
    near, own = best.at[rows].get(mode="clip"), chunk.at[rows].get(mode="clip")
    value, found, reach = _look(costs, base, jnp.minimum(stops, num_bins), first_chunk, near)
    tolerance = 1 + tie_roundings(num_bins) * jnp.finfo(best.dtype).eps / 2
    return (
        best.at[rows].set(jnp.minimum(value, near), mode="drop"),
        chunk.at[rows].set(jnp.where(value <= near, found, own), mode="drop"),
        highest.at[rows].set(jnp.where(near <= value * tolerance, own, reach), mode="drop"),
    )


def _least(total_of) -> Array:
    """Return the least of the totals of a chunk's cuts.

    Unrolled: one pass in vector registers, three times as fast as a reduction. Which cut has it is
    found when the cuts are followed back, for the few rows that need it: to look for it here would
    double time and multiply what there is to compile.
    """
    best = total_of(0)
    for i in range(1, _CHUNK):
        best = jnp.minimum(best, total_of(i))
    return best


def num_levels(num_bins: int) -> int:
    """Return in how many levels the rows are found, coarse to fine."""
    return max(1, -(-(num_bins.bit_length() - 1) // _LOG2_FAN))


def _look(
    costs: _Costs,
    base: Float[Array, "chunk chunks"],
    stops: Int[Array, "nodes rows"],
    first_chunk: Int[Array, " nodes"],
    near: Float[Array, "nodes rows"],
) -> tuple[Float[Array, "nodes rows"], Int[Array, "nodes rows"], Int[Array, "nodes rows"]]:
    """Return the best cut of every row in the chunks below its own that its node looks at.

    A node looks from its first chunk to that of the next node, both included: all nodes together
    at `chunks + nodes - 1`, laid out one after the other. `near` is the best of the row's own
    chunk; the last result is the highest of the others that may be better than all.
    """
    num_chunks, num_nodes = base.shape[1], stops.shape[0]
    flat = jnp.arange(num_chunks + num_nodes - 1, dtype=jnp.int32)
    begin = first_chunk + jnp.arange(num_nodes, dtype=jnp.int32)
    node = count_below(begin, flat) - 1
    chunk = jnp.minimum(flat - node, num_chunks - 1)
    stop = stops[node]
    middle = jnp.broadcast_to(((chunk + 1) * _CHUNK)[:, None], stop.shape)
    last = Runs(*(part[stop - 1] for part in costs.last))
    right = merge(read_runs(costs.table, middle, stop - 1), last)
    left = Runs(*(part[:, chunk][:, :, None] for part in costs.left))
    before = base[:, chunk][:, :, None] + left.spread
    tiny = jnp.finfo(base.dtype).tiny

    def total(i):
        share = right.mass / (left.mass[i] + right.mass + tiny)
        gap = jnp.maximum(right.mean - left.mean[i], 0)
        return before[i] + left.mass[i] * share * gap * gap

    # Kept from being computed again by each of its readers: compiling took 8 seconds.
    least = lax.optimization_barrier(_least(total))
    value = jnp.where(middle < stop, least + right.spread, jnp.inf)
    return _least_of_nodes(value, chunk, node, near, num_chunks * _CHUNK)


def _least_of_nodes(value, chunk, node, near, num_bins):
    """Reduce over the chunks of each node: the least value, a chunk that has it, the highest."""
    shape = near.shape
    eps = jnp.finfo(value.dtype).eps
    best = jnp.full(shape, jnp.inf, value.dtype).at[node].min(value)
    # A tolerance in case the values are computed twice, with another rounding.
    limit = best[node] * (1 + 4 * eps)
    candidates = jnp.where(value <= limit, chunk[:, None], jnp.iinfo(jnp.int32).max)
    found = jnp.full(shape, jnp.iinfo(jnp.int32).max, jnp.int32).at[node].min(candidates)
    limit = jnp.minimum(best, near)[node] * (1 + tie_roundings(num_bins) * eps / 2)
    candidates = jnp.where(value <= limit, chunk[:, None], -1)
    return best, found, jnp.full(shape, -1, jnp.int32).at[node].max(candidates)
