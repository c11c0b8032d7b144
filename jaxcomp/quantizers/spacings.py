"""Spacings of the grids that the inputs of a layer are rounded to.

`a_i = c (p / L_ii)^exponent`, where L_ii is the pivot of an input and p the geometric mean of the
pivots. With exponent 0 all inputs have one step, with 1 all contribute the same error. Ratios are
powers of 2^(1/4), so that a spacing is a small integer beside c; they and c have eight significant
bits, so that most bytes of them, and of their products with small codes, are zeros in a file.
Inputs may share a spacing, as a channel's do at all positions of a convolution: it is that of the
geometric mean of their pivots.

Axes: `G` groups, `I` inputs.

Source: WaterSIC, arXiv:2603.04956 (exponent 1).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxcomp.numerics.units import LN2
from jaxcomp.quantizers.feedback import Factor

# At high rate such ratios cost half a hundredth of a bit more than free ones.
LEVELS_PER_OCTAVE = 4
_MAX_LEVEL = 127


class Spacing(NamedTuple):
    """The spacings of a layer: `scale * 2^(levels / 4)`, both factors in eight significant bits.

    Attributes:
        scale: c, ().
        levels: (G, I) int32.
        exponent: (), what the levels were made with.
        slope: (), what c was made with.
    """

    scale: Float[Array, ""]
    levels: Int[Array, "G I"]
    exponent: Float[Array, ""]
    slope: Float[Array, ""]

    @property
    def of_inputs(self) -> Float[Array, "G I"]:
        """The spacings a (G, I)."""
        return self.scale * self.ratios

    @property
    def ratios(self) -> Float[Array, "G I"]:
        """The spacings over c."""
        return _ratios(self.levels, self.scale.dtype)


def spacing_for(
    factor: Factor,
    mean_importance: Float[Array, ""],
    multiplier: Float[Array, ""],
    exponent: Float[Array, ""],
    slope: Float[Array, ""],
    sharing: Int[Array, "G I"] | None = None,
) -> Spacing:
    """Return the spacings for which a bit is worth `slope` times what it is at high rate.

    Args:
        factor: of the inputs.
        mean_importance: of the outputs, g.
        multiplier: distortion that a bit is worth, > 0.
        exponent: of the spacings, over pivots.
        slope: > 0.
        sharing: from 0 to G I - 1, equal for inputs that have one spacing; None for none.
    """
    pivots, is_live = factor.pivots, factor.is_live
    octaves = jnp.log2(jnp.where(is_live, pivots, 1))
    octaves = exponent * (mean_of_live(octaves, is_live) - octaves)
    octaves = jnp.where(is_live, octaves, 0)
    if sharing is not None:
        none = jnp.zeros(octaves.size, octaves.dtype)
        total, number = (
            none.at[sharing].add(part) for part in (octaves, is_live.astype(octaves.dtype))
        )
        octaves = (total / jnp.maximum(number, 1))[sharing]
    levels = jnp.round(LEVELS_PER_OCTAVE * octaves)
    levels = jnp.clip(levels, -_MAX_LEVEL, _MAX_LEVEL).astype(jnp.int32)
    mean = mean_of_live((pivots * _ratios(levels, pivots.dtype)) ** 2, is_live)
    # The root in two parts: the quotient may be out of range.
    scale = jnp.sqrt(6 * multiplier / (LN2 * slope)) / jnp.sqrt(mean_importance * mean)
    return Spacing(shortened(jnp.where(mean > 0, scale, 1)), levels, exponent, slope)


def mean_of_live(values: Float[Array, "G I"], is_live: Bool[Array, "G I"]) -> Float[Array, ""]:
    """Return the mean over inputs that are not always 0; 0 if all are."""
    number = jnp.maximum(jnp.sum(is_live), 1).astype(values.dtype)
    return jnp.sum(jnp.where(is_live, values, 0)) / number


def shortened(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Round to eight significant bits."""
    return lax.reduce_precision(values, 11 if values.dtype == jnp.float64 else 8, 7)


def _ratios(levels: Int[Array, "..."], dtype: Any) -> Float[Array, "..."]:
    return shortened(jnp.exp2(levels.astype(dtype) / LEVELS_PER_OCTAVE))
