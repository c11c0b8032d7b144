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
from jaxcomp.quantizers.binning import (
    MOST_EXCESS,
    DensityBins,
    density_of_every,
    middle_of,
    needs_cut,
)
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

# Over every bin, in float64: mass, mass times distance from the one point, number of points, mass
# times the square of the distance; (B,) each.
SumsAboutOne = tuple[
    Float[Array, " bins"], Float[Array, " bins"], Float[Array, " bins"], Float[Array, " bins"]
]


class Frame(NamedTuple):
    """In which units sums are, and about which point.

    Attributes:
        exponent: (1,) int32, of the points.
        mass_exponent: (1,) int32, of the weights.
        minimum: (1,) the smallest point, in units.
        maximum: (1,) the largest one.
        middle: () the point that distances are from, likewise.
    """

    exponent: Int[Array, " 1"]
    mass_exponent: Int[Array, " 1"]
    minimum: Float[Array, " 1"]
    maximum: Float[Array, " 1"]
    middle: Float[Array, ""]


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
    if weights is not None:
        mass_exponent = group_exponent(jnp.max(weights, axis=-1, keepdims=True))
    rule, few = density_of_every(
        points,
        weights,
        minimum,
        maximum,
        num_bins=num_bins,
        num_padding=num_padding,
        units=(exponent, mass_exponent),
    )
    frame = Frame(exponent, mass_exponent, minimum, maximum, middle_of(few))
    with jax.enable_x64(True):
        sums, is_normal = sums_about_one(
            points[0],
            None if weights is None else weights[0],
            rule,
            frame,
            num_bins=num_bins,
            num_padding=num_padding,
        )
        bins, is_sound = bins_about_one(sums, frame)
    is_pending = needs_cut(bins, None, most_excess=MOST_EXCESS)[0][0]
    # An empty bin sits with the occupied one below.
    position = jnp.where(bins.num_points > 0, bins.lowest, minimum[:, None])
    position = running_maximum(position.T).T
    return OnePass(
        position,
        bins.num_points,
        bins.mass,
        bins.deviation,
        minimum,
        maximum,
        exponent,
        mass_exponent,
        is_sound & ~is_pending & is_normal,
    )


def sums_about_one(
    points: Float[Array, " points"],
    weights: Float[Array, " points"] | None,
    rule: DensityBins,
    frame: Frame,
    *,
    num_bins: int,
    num_padding: Int[Array, ""] | None,
) -> tuple[SumsAboutOne, Bool[Array, ""]]:
    """Visit points as they come, once: the sums over every bin, and whether all are normal numbers.

    On a CPU only, and where types of 64 bits are on. Where several devices share the points, of
    those of all.

    Args:
        points: (N,) float32.
        weights: (N,) float32, or None.
        rule: of points in units.
        frame: of the sums.
        num_bins: B.
        num_padding: as in `histogram_moments`.
    """
    per_unit, mass_per_unit = _factor(frame.exponent), _factor(frame.mass_exponent)
    num_points = points.shape[0]

    def add(state, numbers, is_new, own, *weight):
        least, totals = state
        if num_padding is not None:
            is_new = is_new & (numbers < num_points - num_padding)
        least = jnp.minimum(least, below_magnitude(own))
        scaled = own * per_unit
        place = rule.bins_of(scaled[None], num_bins)[0]
        one = is_new.astype(jnp.float64)
        distance = scaled.astype(jnp.float64) - frame.middle.astype(jnp.float64)
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

    start = jnp.full((chunk_of(num_points),), LEAST_NORMAL, jnp.uint32)
    nothing = jnp.zeros((num_bins,), jnp.complex128)
    arrays = (points,) if weights is None else (points, weights)
    least, (with_first, with_second) = in_chunks(add, (start, (nothing, nothing)), *arrays)
    (mass, first), (number, second) = (
        (across.total(lax.real(pair)), across.total(lax.imag(pair)))
        for pair in (with_first, with_second)
    )
    is_normal = across.everywhere(jnp.all(least >= LEAST_NORMAL))
    return (mass, first, number, second), is_normal


def as_words(sums: SumsAboutOne) -> UInt[Array, "4 bins 2"]:
    """Return sums as integers, in which they can leave a program where float64 is not on."""
    return lax.bitcast_convert_type(jnp.stack(sums), jnp.uint32)


def of_words(words: UInt[Array, "4 bins 2"]) -> SumsAboutOne:
    """Undo it, where types of 64 bits are on."""
    mass, first, number, second = lax.bitcast_convert_type(words, jnp.float64)
    return mass, first, number, second


def bins_about_one(sums: SumsAboutOne, frame: Frame) -> tuple[BinSums, Bool[Array, ""]]:
    """Return what sums about one point say of every bin, and whether they say it.

    Where types of 64 bits are on. Bins of which the sums say enough may still have to be cut.

    Args:
        sums: over all points, which are normal numbers.
        frame: of the sums.

    Returns:
        (1, B) each, the mean of a bin in place of its lowest point.
    """
    dtype = frame.middle.dtype
    mass, first, count, second = sums
    has_points = count > 0
    inverse = 1 / jnp.where(has_points, mass, 1)
    mean = jnp.where(has_points, first * inverse, 0)
    variance = jnp.where(has_points, second * inverse, 0) - mean * mean
    variance = jnp.where(variance > _LEAST_VARIANCE * (mean * mean), variance, 0)
    is_sound = jnp.sum(first * mean) <= _MOST_LOST * jnp.sum(mass * variance)
    is_sound = is_sound & (jnp.sum(mass) > _LEAST_MASS)
    is_sound = is_sound & _is_factor(frame.exponent) & _is_factor(frame.mass_exponent)
    has_mass = mass > _LEAST_MASS
    position = (frame.middle.astype(jnp.float64) + mean).astype(dtype)
    position = jnp.clip(position, frame.minimum, frame.maximum)
    bins = BinSums(
        count.astype(jnp.int32),
        jnp.where(has_mass, mass, 0).astype(dtype),
        jnp.where(has_points, position, jnp.inf),
        jnp.zeros_like(position),
        jnp.where(has_mass, jnp.sqrt(variance), 0).astype(dtype),
    )
    return BinSums(*(part[None] for part in bins)), is_sound


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
