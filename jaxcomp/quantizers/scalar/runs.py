"""Mass, mean and spread of runs of bins, without a subtraction of large numbers.

Differences of prefix sums lose the small cluster far out in a heavy tail, whatever their
precision. Runs are *merged* here instead, by the update of Chan, Golub and LeVeque: all terms are
non-negative, so a spread is accurate to a few eps of itself. Any run of bins is two entries of a
table of log2 B rows (a disjoint sparse table), hence one merge.

Axes: `B` bins, in order of value.

Source: Chan, Golub, LeVeque, The American Statistician 37 (1983), 242-247, equation 2.1.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxcomp.numerics.transformations import counted_loop


class Runs(NamedTuple):
    """Sums over runs of bins, any shape.

    Attributes:
        mass: sum of h.
        mean: weighted mean; arbitrary for a run without mass.
        spread: sum of h (w - mean)^2.
    """

    mass: Float[Array, "*runs"]
    mean: Float[Array, "*runs"]
    spread: Float[Array, "*runs"]


def merge(low: Runs, high: Runs) -> Runs:
    """Take runs and the runs above them together.

    Where `high` does not lie above `low` the two are taken to meet.
    """
    mass = low.mass + high.mass
    share = high.mass / jnp.where(mass > 0, mass, 1)
    gap = jnp.maximum(high.mean - low.mean, 0)
    return Runs(
        mass=mass,
        mean=jnp.where(low.mass > 0, low.mean + share * gap, high.mean),
        spread=low.spread + high.spread + low.mass * share * gap * gap,
    )


def nothing_like(runs: Runs) -> Runs:
    """Return runs of the same shape without mass."""
    return runs._replace(mass=jnp.zeros_like(runs.mass), spread=jnp.zeros_like(runs.spread))


class RunTable(NamedTuple):
    """What any run of bins can be read from.

    Attributes:
        entries: levels of B runs, one level after the other. On level l, bin i holds the bins
            from i to the end of its block of 2^l if bit l of i is 0, else from the start of that
            block to i. B is a power of two.
        num_bins: B.
    """

    entries: Runs
    num_bins: Int[Array, ""] | int


def run_table(bins: Runs) -> RunTable:
    """Build the table in log2 B passes; B must be a power of two."""
    num_bins = bins.mass.shape[0]
    num_levels = max(num_bins.bit_length() - 1, 1)
    index = jnp.arange(num_bins, dtype=jnp.int32)

    def at(runs: Runs, place: Int[Array, " bins"]) -> Runs:
        return Runs(*(part.at[place].get(mode="clip") for part in runs))

    def select(is_first, a: Runs, b: Runs) -> Runs:
        return Runs(*(jnp.where(is_first, x, y) for x, y in zip(a, b, strict=True)))

    def double(level, state):
        entries, prefix, suffix = state
        block = lax.shift_right_logical(index, level)
        is_odd = (block & 1) == 1
        row = select(is_odd, prefix, suffix)
        entries = Runs(
            *(
                lax.dynamic_update_slice_in_dim(whole, part, level * num_bins, axis=0)
                for whole, part in zip(entries, row, strict=True)
            )
        )
        below = lax.shift_left(block, level) - 1
        above = lax.shift_left(block + 1, level)
        prefix = select(is_odd, merge(at(prefix, below), prefix), prefix)
        suffix = select(is_odd, suffix, merge(suffix, at(suffix, above)))
        return entries, prefix, suffix

    nothing = jnp.zeros((num_levels * num_bins,), bins.mass.dtype)
    start = (Runs(nothing, nothing, nothing), bins, bins)
    entries, *_ = counted_loop(jnp.int32(0), jnp.int32(num_levels), double, start)
    return RunTable(entries, num_bins)


def read_runs(table: RunTable, start: Int[Array, "*runs"], stop: Int[Array, "*runs"]) -> Runs:
    """Return the runs of the bins `start <= i < stop`; empty where `stop <= start`.

    Both between 0 and B.
    """
    is_empty = stop <= start
    start = jnp.minimum(start, table.num_bins - 1)
    last = jnp.maximum(stop - 1, 0)
    level = jnp.maximum(31 - lax.clz(start ^ last), 0)
    row = level * table.num_bins

    def entry(place):
        index = row + place
        return Runs(*(part.at[index].get(mode="promise_in_bounds") for part in table.entries))

    low, high = entry(start), entry(last)
    both = merge(low, high)
    is_single = start == last
    zero = jnp.zeros((), low.mass.dtype)
    return Runs(
        mass=jnp.where(is_empty, zero, jnp.where(is_single, low.mass, both.mass)),
        mean=jnp.where(is_single, low.mean, both.mean),
        spread=jnp.where(is_empty, zero, jnp.where(is_single, low.spread, both.spread)),
    )
