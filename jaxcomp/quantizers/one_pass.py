"""The histogram of one large group in a single pass over its points, on a CPU.

The general way (`binning`, `bins`) writes points in units, importances in units and bins, and
visits them for the lowest point of every bin and again for the sums: to write and to read such
arrays takes longer than what is computed. Here a chunk of points stays in the cache from its
units to its sums, which are taken about one point for all bins, in float64.

That does for ordinary weights and not for all: sums about one point lose the digits of bins that
are far from it and narrow, bins may have to be cut again, and subnormal numbers need arithmetic on
their bits. Whether it did is found in the same pass, and the caller goes the general way if not.

Axes: one group of `N` points, `B` bins.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt

from jaxcomp.numerics import across
from jaxcomp.numerics.scaling import group_exponent, normalise
from jaxcomp.numerics.sums import running_maximum
from jaxcomp.quantizers.binning import MOST_EXCESS, density_of_every, middle_of, needs_cut
from jaxcomp.quantizers.bins import BinSums, chunk_of, in_chunks

# From here on passes saved are worth a second program; at half of it nothing was won.
_FROM = 1 << 18
# What the squares of the distances from one point may be above those within the bins: float64 has
# 53 bits, of which a sum of 2^20 numbers may lose 10, and 15 are left for the variance.
_MOST_LOST = 2.0**28
# The least normal float32 as `below_magnitude` gives it.
LEAST_NORMAL = (1 << 23) - 1
# A variance this much below the square of the distance is rounding.
_LEAST_VARIANCE = 2.0**-40
# Mass of a point that has none: beside any other it vanishes, and of bins that have no other it
# gives the mean of the points.
_ALMOST_NOTHING, _LEAST_MASS = 2.0**-300, 2.0**-200


class OnePass(NamedTuple):
    """A histogram of one group, fields as in `Moments`, and whether it is one.

    Attributes:
        position: (1, B); of a bin without mass the mean of its points.
        num_points: (1, B) int32.
        mass: (1, B).
        deviation: (1, B).
        minimum: (1,).
        maximum: (1,).
        exponent: (1,) int32.
        mass_exponent: (1,) int32.
        is_sound: () whether all of this holds; else the general way must be gone.
    """

    position: Float[Array, "1 bins"]
    num_points: Int[Array, "1 bins"]
    mass: Float[Array, "1 bins"]
    deviation: Float[Array, "1 bins"]
    minimum: Float[Array, " 1"]
    maximum: Float[Array, " 1"]
    exponent: Int[Array, " 1"]
    mass_exponent: Int[Array, " 1"]
    is_sound: Bool[Array, ""]


def is_one_large_group(
    points: Float[Array, "... points"], weights: Shaped[Array, "... points"] | None, num_bins: int
) -> bool:
    """Return whether a group is of the kind that one pass is for: static."""
    return (
        points.size == points.shape[-1] >= max(_FROM, 4 * num_bins)
        and points.dtype == jnp.float32
        and (weights is None or (weights.dtype == jnp.float32 and weights.size == points.size))
        and not across.axes_of_points()
    )


def quickly_on_cpus(
    quickly: Callable[..., tuple[Any, Bool[Array, ""]]],
    generally: Callable[..., Any],
    *arguments: Any,
) -> Any:
    """Return what is quickly found on a CPU if it is sound, else what the general way finds.

    Args:
        quickly: returns what is found, and whether it is sound.
        generally: returns the like of it.
        *arguments: of both.
    """

    def checked(*arguments: Any) -> Any:
        found, is_sound = quickly(*arguments)
        return lax.cond(is_sound, lambda *_: found, generally, *arguments)

    return lax.platform_dependent(*arguments, cpu=checked, default=generally)


def moments_in_one_pass(
    points: Float[Array, "1 points"],
    weights: Float[Array, "1 points"] | None,
    num_padding: Int[Array, ""] | None,
    *,
    num_bins: int,
    log2_largest: int,
) -> OnePass:
    """Return the histogram of points as they come, on a CPU only.

    Args:
        points: (1, N) float32.
        weights: (1, N) float32, or None.
        num_padding: as in `histogram_moments`.
        num_bins: B.
        log2_largest: the largest point is so many octaves above one unit.
    """
    minimum, maximum = jnp.min(points, axis=-1), jnp.max(points, axis=-1)
    extremes = jnp.stack([minimum, maximum], axis=-1)
    exponent = group_exponent(extremes) - log2_largest
    minimum, maximum = normalise(extremes, exponent).T
    mass_exponent = jnp.zeros_like(exponent)
    is_sound = _is_factor(exponent)
    if weights is not None:
        largest = jnp.max(weights, axis=-1)
        mass_exponent = group_exponent(largest[:, None])
        is_sound = is_sound & _is_factor(mass_exponent) & (largest[0] > 0)
    rule, few = density_of_every(
        points,
        weights,
        minimum,
        maximum,
        num_bins=num_bins,
        num_padding=num_padding,
        units=(exponent, mass_exponent),
    )
    middle = middle_of(few)
    per_unit, mass_per_unit = _factor(exponent), _factor(mass_exponent)
    num_points = points.shape[-1]

    def add(state, numbers, is_new, own, *weight):
        least, totals = state
        if num_padding is not None:
            is_new = is_new & (numbers < num_points - num_padding)
        least = jnp.minimum(least, below_magnitude(own))
        scaled = own * per_unit
        place = rule.bins_of(scaled[None], num_bins)[0]
        one = is_new.astype(jnp.float64)
        distance = scaled.astype(jnp.float64) - middle.astype(jnp.float64)
        if weight:
            least = jnp.minimum(least, below_magnitude(weight[0]))
            mass = (weight[0] * mass_per_unit).astype(jnp.float64)
            mass = one * jnp.maximum(mass, _ALMOST_NOTHING)
        else:
            mass = one
        first = mass * distance
        # Two terms as parts of a complex number: to add these takes little more than one.
        terms = (lax.complex(mass, first), lax.complex(one, first * distance))
        return least, tuple(
            total.at[place].add(term, mode="promise_in_bounds", wrap_negative_indices=False)
            for total, term in zip(totals, terms, strict=True)
        )

    with jax.enable_x64(True):
        start = jnp.full((chunk_of(num_points),), LEAST_NORMAL, jnp.uint32)
        nothing = jnp.zeros((num_bins,), jnp.complex128)
        arrays = (points[0],) if weights is None else (points[0], weights[0])
        least, (with_first, with_second) = in_chunks(add, (start, (nothing, nothing)), *arrays)
        mass, first = lax.real(with_first), lax.imag(with_first)
        count, second = lax.real(with_second), lax.imag(with_second)
        has_points = count > 0
        inverse = 1 / jnp.where(has_points, mass, 1)
        mean = jnp.where(has_points, first * inverse, 0)
        variance = jnp.where(has_points, second * inverse, 0) - mean * mean
        variance = jnp.where(variance > _LEAST_VARIANCE * (mean * mean), variance, 0)
        is_sound = is_sound & (jnp.sum(first * mean) <= _MOST_LOST * jnp.sum(mass * variance))
        position = (middle.astype(jnp.float64) + mean).astype(points.dtype)
        deviation = jnp.where(mass > _LEAST_MASS, jnp.sqrt(variance), 0).astype(points.dtype)
        mass = jnp.where(mass > _LEAST_MASS, mass, 0).astype(points.dtype)
        count = count.astype(jnp.int32)
    position, count, mass, deviation = (part[None] for part in (position, count, mass, deviation))
    sums = BinSums(count, mass, position, jnp.zeros_like(position), deviation)
    is_pending = needs_cut(sums, None, most_excess=MOST_EXCESS)[0][0]
    # An empty bin sits with the occupied one below.
    position = jnp.clip(position, minimum[:, None], maximum[:, None])
    position = running_maximum(jnp.where(count > 0, position, minimum[:, None]).T).T
    return OnePass(
        position,
        count,
        mass,
        deviation,
        minimum,
        maximum,
        exponent,
        mass_exponent,
        is_sound & ~is_pending & jnp.all(least >= LEAST_NORMAL),
    )


def _is_factor(exponent: Int[Array, " 1"]) -> Bool[Array, ""]:
    """Return whether `2^-exponent` is a normal float32."""
    return jnp.all((exponent >= -127) & (exponent <= 126))


def _factor(exponent: Int[Array, " 1"]) -> Float[Array, ""]:
    """Return `2^-exponent`, if it is one."""
    bits = lax.shift_left(jnp.clip(127 - exponent[0], 1, 254), jnp.int32(23))
    return lax.bitcast_convert_type(bits, jnp.float32)


def below_magnitude(values: Float[Array, " points"]) -> UInt[Array, " points"]:
    """Return float32 as integers by their magnitude, less 1: subnormal ones are the least.

    Below `LEAST_NORMAL` are those that are subnormal; 0 becomes the largest integer.
    """
    bits = lax.bitcast_convert_type(values, jnp.uint32) & jnp.uint32(0x7FFFFFFF)
    return bits - jnp.uint32(1)
