"""Mass and moments of runs of bins, as differences of sums from the median outwards.

Differences cancel: the sums are float64 or, for float32 positions, pairs of float32.

Axes: `B` bins, `C` columns: mass, first moment, second.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcomp.numerics import pairs
from jaxcomp.numerics.pairs import Pair
from jaxcomp.numerics.sums import anchored_sums


def anchored_moments(
    position: Float[Array, " bins"],
    mass: Float[Array, " bins"],
    middle: Int[Array, ""],
    num_columns: int,
) -> Float[Array, "bins_plus_1 columns"] | Pair:
    """Return sums of mass and of moments about the middle bin, between it and every edge.

    Args:
        position: (B,) float64, or float32 about 1.
        mass: (B,).
        middle: the bin that sums start from.
        num_columns: C, 2 or 3, static.

    Returns:
        (B + 1, C), in the dtype of the positions; of float32 as a pair.
    """
    centre = position[jnp.minimum(middle, position.shape[0] - 1)]
    if position.dtype == jnp.float64:
        offset = position - centre
        columns = [mass, mass * offset, mass * offset * offset][:num_columns]
        return anchored_sums(jnp.stack(columns, axis=-1), middle)
    offset = pairs.exact_difference(position, centre)
    own = [Pair(mass, jnp.zeros_like(mass))]
    for _ in range(num_columns - 1):
        own.append(pairs.multiply(offset, own[-1]))
    columns = Pair(*(jnp.stack(parts, axis=-1) for parts in zip(*own, strict=True)))
    return pairs.anchored_pairs(columns, middle)


def between(
    sums: Float[Array, "bins_plus_1 columns"] | Pair,
    start: Int[Array, "*runs"],
    stop: Int[Array, "*runs"],
) -> Float[Array, "*runs columns"] | Pair:
    """Return the sums over runs of bins `start <= i < stop`."""
    if isinstance(sums, Pair):
        return pairs.subtract(sums[stop], sums[start])
    return sums[stop] - sums[start]
