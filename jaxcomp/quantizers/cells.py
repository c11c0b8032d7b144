"""Cells of value and importance together: what an entropy-constrained quantizer has to know.

Points that agree in value and in importance, up to the resolution of a two-dimensional histogram,
are one cell, or the points themselves where they are few. A cell goes whole to one symbol.

Axes: `...` groups, `N` points, `B` cells.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxcomp.numerics import across
from jaxcomp.numerics.sums import pairwise_sum
from jaxcomp.numerics.transformations import without_derivative
from jaxcomp.quantizers.binning import bins_of_points
from jaxcomp.quantizers.bins import BinSums, PointBins, sums_of_bins
from jaxcomp.quantizers.histograms import (
    Moments,
    histogram_moments,
    importance_in_units,
    points_in_units,
)
from jaxcomp.quantizers.placed import over_devices

# By what factor the variance within bins of value may be above the least possible.
MOST_EXCESS = 64.0
# Octaves of importance below the mean that are told apart.
_OCTAVES_BELOW_MEAN = 8


@over_devices(lambda num_bins=1024, num_levels=16: num_bins * num_levels)
@partial(jax.jit, static_argnames=("num_bins", "num_levels"))
@without_derivative
def joint_moments(
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None = None,
    *,
    num_bins: int = 1024,
    num_levels: int = 16,
) -> Moments:
    """Reduce every group of points to a histogram over value and importance together.

    Intervals of value are equal in `asinh((w - mean) / spread)`: even where the weights are, wider
    in proportion to the distance further out; they are cut again where values lie on very different
    scales (`bins_of_points`). Intervals of importance are equal in log h, from
    2^-8 of the mean (what is less important counts as one) to the maximum.

    Args:
        points: (..., N) floating, finite.
        importance: h >= 0, broadcastable to `points`. With None this is `histogram_moments`
            with `num_bins * num_levels` bins.
        num_bins: intervals of value, static.
        num_levels: intervals of importance, static.

    Returns:
        Moments of B = min(N, num_bins * num_levels) cells, in order of their position; up to that
        number of points each point is a cell. Unlike in other moments, several cells may have the
        same position; cells without points come last, at the largest point.
    """
    num_cells = num_bins * num_levels
    if importance is None:
        return histogram_moments(points, num_bins=num_cells)
    points = jnp.asarray(points)
    batch_shape = points.shape[:-1]
    weights, mass_exponent = importance_in_units(importance, points)
    scaled, exponent = points_in_units(points)
    scaled, weights = (part.reshape(-1, points.shape[-1]) for part in (scaled, weights))
    if across.number_of_points(points.shape[-1]) <= num_cells:
        found = points_as_cells(scaled, weights)
    else:
        found = _joint_cells(scaled, weights, num_bins=num_bins, num_levels=num_levels)
    minimum = across.least(jnp.min(scaled, axis=-1))
    maximum = across.most(jnp.max(scaled, axis=-1))
    moments = Moments(*found, minimum, maximum, exponent.ravel(), mass_exponent.ravel())
    return jax.tree.map(lambda leaf: leaf.reshape(*batch_shape, *leaf.shape[1:]), moments)


class CellSums(NamedTuple):
    """Cells of value and importance in units, in order of their position, (groups, B) each.

    Attributes:
        position: weighted mean of the points.
        num_points: int32.
        mass: sum of the importances.
        deviation: root of the weighted variance.
    """

    position: Float[Array, "groups cells"]
    num_points: Int[Array, "groups cells"]
    mass: Float[Array, "groups cells"]
    deviation: Float[Array, "groups cells"]


def points_as_cells(
    points: Float[Array, "groups points"],
    weights: Float[Array, "groups points"],
    num_padding: Int[Array, ""] | None = None,
) -> CellSums:
    """Return every point in units as a cell of its own; padding, which weighs 0, as empty ones."""
    size = points.shape[-1]
    number = jnp.ones(points.shape, jnp.int32)
    if num_padding is not None:
        is_point = jnp.arange(size, dtype=jnp.int32) < size - num_padding
        number = jnp.broadcast_to(is_point.astype(jnp.int32), points.shape)
        largest = jnp.max(points, axis=-1, keepdims=True)
        points = jnp.where(is_point, points, largest)
    is_empty = 1 - number
    position, _, number, mass = lax.sort(
        (points, is_empty, number, weights), dimension=1, num_keys=2
    )
    return CellSums(position, number, mass, jnp.zeros_like(mass))


class ValueBins(NamedTuple):
    """Intervals of value, equal in `asinh((w - centre) / spread)`.

    Attributes:
        centre: (groups, 1).
        spread: (groups, 1), mean distance from the centre.
        low: (groups,), place of the smallest point.
        high: (groups,), of the largest one.
    """

    centre: Float[Array, "groups 1"]
    spread: Float[Array, "groups 1"]
    low: Float[Array, " groups"]
    high: Float[Array, " groups"]

    @classmethod
    def of(
        cls,
        points: Float[Array, "groups points"],
        minimum: Float[Array, " groups"],
        maximum: Float[Array, " groups"],
        *,
        number: Float[Array, ""] | int,
        is_point: Bool[Array, " points"] | bool = True,
    ) -> "ValueBins":
        """Make the rule of so many points in units."""

        def mean(values: Array) -> Array:
            return across.total(pairwise_sum(jnp.where(is_point, values / number, 0)))[:, None]

        centre = mean(points)
        spread = mean(jnp.abs(points - centre))
        rule = cls(centre, jnp.where(spread > 0, spread, 1), minimum, maximum)
        low, high = (rule._place(end[:, None])[:, 0] for end in (minimum, maximum))
        return rule._replace(low=low, high=high)

    def _place(self, points: Float[Array, "groups points"]) -> Float[Array, "groups points"]:
        return jnp.arcsinh((points - self.centre) / self.spread)

    def bins_of(
        self, points: Float[Array, "groups points"], num_bins: int
    ) -> Int[Array, "groups points"]:
        """Return the bin of every point."""
        return _equal_intervals(self._place(points), self.low, self.high, num_bins)


class Levels(NamedTuple):
    """Intervals of importance, equal in log h.

    Attributes:
        mean: (groups, 1), mean importance, in units.
        high: (groups,), place of the largest one.
    """

    mean: Float[Array, "groups 1"]
    high: Float[Array, " groups"]

    @classmethod
    def of(cls, mean: Float[Array, " groups"], largest: Float[Array, " groups"]) -> "Levels":
        """Make the rule of the mean and the largest importance of every group."""
        mean = jnp.where(mean > 0, mean, 1)[:, None]
        return cls(mean, _log_importance(largest[:, None], mean)[:, 0])

    def levels_of(
        self, weights: Float[Array, "groups points"], num_levels: int
    ) -> Int[Array, "groups points"]:
        """Return the level of every weight."""
        low = jnp.full_like(self.high, -_OCTAVES_BELOW_MEAN)
        return _equal_intervals(_log_importance(weights, self.mean), low, self.high, num_levels)


def _log_importance(weights: Array, mean: Array) -> Array:
    return jnp.log2(jnp.where(weights > 0, weights / mean, 1e-30))


def _joint_cells(
    points: Float[Array, "groups points"],
    weights: Float[Array, "groups points"],
    *,
    num_bins: int,
    num_levels: int,
) -> CellSums:
    num_points, num_cells = across.number_of_points(points.shape[-1]), num_bins * num_levels
    minimum = across.least(jnp.min(points, axis=-1))
    maximum = across.most(jnp.max(points, axis=-1))
    rule = ValueBins.of(points, minimum, maximum, number=num_points)
    value_bin = rule.bins_of(points, num_bins)
    # Cut again where the values lie on very different scales, and only there: a grid that is even
    # in the bulk serves quantizers with a rate better than one that is best without.
    value_bin, _ = bins_of_points(
        points, weights, value_bin, num_bins=num_bins, most_excess=MOST_EXCESS
    )
    mean = across.total(pairwise_sum(weights / num_points))
    levels = Levels.of(mean, across.most(jnp.max(weights, axis=-1)))
    level = levels.levels_of(weights, num_levels)
    bins = PointBins.of(value_bin * num_levels + level, num_cells)
    return cells_of_sums(sums_of_bins(points, weights, bins), maximum)


def cells_of_sums(sums: BinSums, maximum: Float[Array, " groups"]) -> CellSums:
    """Return cells by the sums over each.

    Cells without points, all at the largest point, come behind those that are there.
    """
    is_occupied, largest = sums.num_points > 0, maximum[:, None]
    position = jnp.where(is_occupied, jnp.minimum(sums.lowest + sums.mean, largest), largest)
    is_empty = (~is_occupied).astype(jnp.int32)
    position, _, number, mass, deviation = lax.sort(
        (position, is_empty, sums.num_points, sums.mass, sums.deviation), dimension=1, num_keys=2
    )
    return CellSums(position, number, mass, deviation)


def _equal_intervals(
    values: Float[Array, "groups points"],
    low: Float[Array, " groups"],
    high: Float[Array, " groups"],
    number: int,
) -> Int[Array, "groups points"]:
    width = high - low
    scale = number / jnp.where(width > 0, width, 1)
    place = (values - low[:, None]) * scale[:, None]
    return jnp.clip(place.astype(jnp.int32), 0, number - 1)
