"""Points in bins: which is in which, and the sums over each.

Every bin stores sums about its *own* lowest point, so that nothing cancels. Sums of parts of the
points add up (`add_sums`): chunks of a tensor larger than memory, or shares of several processes.

A CPU scatters, and adds in float64; accelerators count and add by matrix products in float32, and
find extremes by comparing every point with every bin (`numerics.segments`).

Axes: `groups`, `N` points, `B` bins.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from jaxcomp.numerics import across
from jaxcomp.numerics.segments import (
    counts_by_products,
    extremes_by_comparison,
    sums_by_products,
)
from jaxcomp.numerics.transformations import counted_loop
from jaxcomp.quantizers.padding import without_copies

# Points whose sums advance together on CPU: what is computed of them stays in the cache. XLA would
# deal out larger chunks to its threads, which takes longer than the sums.
_CHUNK = 1 << 11

_State = TypeVar("_State", bound=tuple[Any, ...])


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

        return lax.platform_dependent(
            self.flat,
            cpu=by_scatter,
            default=lambda _: across.total(counts_by_products(self._index(), self.num_bins)),
        )

    def minimum(self, values: Float[Array, "groups points"]) -> Float[Array, "groups bins"]:
        """Return the minimum of every bin; infinite where there are no points."""
        return across.least(self._extremes(jax.ops.segment_min, values, is_least=True))

    def maximum(self, values: Float[Array, "groups points"]) -> Float[Array, "groups bins"]:
        """Return the maximum of every bin; infinite where there are no points."""
        return across.most(self._extremes(jax.ops.segment_max, values, is_least=False))

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
        last = self.flat.reshape(points.shape)[:, -1] % self.num_bins
        count = without_copies(self.count(), last, num_padding)
        mass = count.astype(points.dtype)
        if weights is None and num_padding is not None:
            weights = counts_of_first(points, points.shape[-1] - num_padding)
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
        """Add the points by matrix products, where scatters would be atomic, in any order."""
        return across.total(sums_by_products(values, self._index(), self.num_bins))

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
        arrays = [self.flat, *(part.ravel() for part in values)]

        def added(totals, place, one, *parts):
            parts = [part.astype(jnp.float64) for part in (one, *parts)]
            if base is not None:
                parts[1] = parts[1] - _entries(base.ravel(), place).astype(jnp.float64)
            return tuple(
                total.at[place].add(term, mode="promise_in_bounds", wrap_negative_indices=False)
                for total, term in zip(totals, _in_pairs(terms(*parts)), strict=True)
            )

        def add(totals, numbers, is_new, place, *parts):
            del numbers
            return added(totals, place, is_new, *parts)

        with jax.enable_x64(True):
            zero = jnp.zeros((self.num_groups * self.num_bins,), jnp.float64)
            totals = in_chunks(add, _in_pairs((zero,) * num_terms), *arrays)
            if num_padding is not None:
                # All copies are like the last one.
                last = [array.reshape(self.num_groups, -1)[:, -1] for array in arrays]
                totals = added(
                    totals, last[0], jnp.broadcast_to(-num_padding, last[0].shape), *last[1:]
                )
            separate = _out_of_pairs(totals)
            return tuple(across.total(total.reshape(self.num_groups, -1)) for total in separate)

    def _mass_by_products(self, weights, count):
        number = jnp.maximum(count, 1).astype(weights.dtype)
        rough = self.sum_by_products(weights) / number
        # Signed deviations from the rough mean.
        mass = rough * number + self.sum_by_products(weights - self.look_up(rough))
        return jnp.where((count > 0) & (rough > 0), jnp.maximum(mass, 0), 0)

    def _index(self) -> Int[Array, "groups points"]:
        """Return the bin of every point within its group."""
        group = jnp.arange(self.num_groups, dtype=jnp.int32)[:, None] * self.num_bins
        return self.flat.reshape(self.num_groups, -1) - group

    def _extremes(self, reduce, values, *, is_least):
        def by_scatter(values):
            size = self.num_groups * self.num_bins
            reduced = reduce(values.ravel(), self.flat, size, mode="promise_in_bounds")
            return reduced.reshape(self.num_groups, self.num_bins)

        def by_comparison(values):
            return extremes_by_comparison(values, self._index(), self.num_bins, is_least=is_least)

        return lax.platform_dependent(values, cpu=by_scatter, default=by_comparison)


def chunk_of(length: int) -> int:
    """Return how many of so many points `in_chunks` visits at once."""
    return min(_CHUNK, length)


def in_chunks(
    add: Callable[..., _State], state: _State, *arrays: Shaped[Array, " all_points"]
) -> _State:
    """Visit points chunk by chunk, in order; on CPU.

    Args:
        add: `(state, numbers, is_new, *parts) -> state` of a chunk: the numbers of its points,
            which of them were not visited before, and their part of every array.
        state: at first.
        arrays: of all points.
    """
    length = arrays[0].shape[0]
    chunk = chunk_of(length)

    def step(number: Array, state: _State) -> _State:
        # The last chunk begins early, so that it is whole.
        start = jnp.minimum(number * chunk, length - chunk)
        parts = (lax.dynamic_slice(array, (start,), (chunk,)) for array in arrays)
        numbers = jnp.arange(chunk, dtype=jnp.int32) + start
        return add(state, numbers, numbers >= number * chunk, *parts)

    return counted_loop(jnp.int32(0), jnp.int32(-(-length // chunk)), step, state)


def _in_pairs(terms: tuple[Float[Array, "..."], ...]) -> tuple[Shaped[Array, "..."], ...]:
    """Join two terms as parts of complex numbers: to add these takes little more than one."""
    joined = [lax.complex(*terms[at : at + 2]) for at in range(0, len(terms) - 1, 2)]
    return (*joined, *terms[2 * len(joined) :])


def _out_of_pairs(totals: tuple[Shaped[Array, "..."], ...]) -> list[Float[Array, "..."]]:
    """Undo `_in_pairs`."""
    parts = [
        (lax.real(total), lax.imag(total)) if jnp.iscomplexobj(total) else (total,)
        for total in totals
    ]
    return [part for both in parts for part in both]


def _entries(table: Shaped[Array, " all_bins"], places: Int[Array, "..."]) -> Shaped[Array, "..."]:
    """Return entries of a table at places that are known to be inside."""
    return table.at[places].get(mode="promise_in_bounds", wrap_negative_indices=False)


def counts_of_first(
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
