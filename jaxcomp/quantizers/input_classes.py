"""Classes of inputs whose codes are alike, the lengths of their symbols and what all of it costs.

The codes of one input of a layer are wide where its weights are large against its spacing, and
nearly all 0 where they are small. A table for each class of inputs knows that; which class an input
belongs to is stored. All bits are ideal lengths: those of counts, of a real coder within a percent.

Axes: `G` groups, `I` inputs, `O` outputs, `J` classes, `T` symbols (code z at place z + (T - 1)/2).
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int16

from jaxcomp.numerics.segments import counts_by_products
from jaxcomp.numerics.sums import pairwise_sum
from jaxcomp.numerics.transformations import counted_loop
from jaxcomp.numerics.units import LN2

# Weights of symbols that have not occurred, all together, in units of one that has.
_UNSEEN = 1.0
# Levels of spacing that are told apart in counting what they cost.
_MAX_LEVEL = 128


class Bits(NamedTuple):
    """What a rounded layer costs, by ideal lengths, in bits.

    Attributes:
        codes: the codes of all weights.
        tables: `1/2 log2 N` for every symbol of a table of N codes but one.
        labels: which class and which level of spacing the inputs have, or that one is always 0.
    """

    codes: Float[Array, ""]
    tables: Float[Array, ""]
    labels: Float[Array, ""]

    @property
    def total(self) -> Float[Array, ""]:
        """All of it."""
        return self.codes + self.tables + self.labels


def classes_by_magnitude(
    codes: Int16[Array, "G I O"], is_live: Bool[Array, "G I"], *, num_classes: int
) -> Int[Array, "G I"]:
    """Return classes of equally many inputs, in the order of the mean magnitude of their codes.

    Args:
        codes: z (G, I, O).
        is_live: (G, I); inputs that are always 0 are not counted, and get any class.
        num_classes: J, static.

    Returns:
        (G, I) int32, from 0 for the smallest codes to J - 1.
    """

    # Input after input: all codes as floats would be twice as large.
    def step(row: Array, sums: Float[Array, "G I"]) -> Float[Array, "G I"]:
        own = lax.dynamic_index_in_dim(codes, row, 1, keepdims=False).astype(jnp.float32)
        return lax.dynamic_update_index_in_dim(sums, jnp.sum(jnp.abs(own), axis=-1), row, 1)

    start = jnp.zeros(is_live.shape, jnp.float32)
    magnitude = counted_loop(0, codes.shape[1], step, start)
    flat = jnp.where(is_live, magnitude, jnp.inf).ravel()
    rank = jnp.argsort(jnp.argsort(flat)).astype(jnp.int32)
    number = jnp.maximum(jnp.sum(is_live, dtype=jnp.int32), 1)
    found = jnp.minimum(rank * num_classes // number, num_classes - 1)
    return found.reshape(is_live.shape)


def count_codes(
    codes: Int16[Array, "G I O"],
    classes: Int[Array, "G I"],
    is_live: Bool[Array, "G I"],
    *,
    num_classes: int,
    max_code: int,
) -> Int[Array, "J T"]:
    """Count the codes of each class, without inputs that are always 0.

    Args:
        codes: z (G, I, O), within +-`max_code`.
        classes: (G, I).
        is_live: (G, I).
        num_classes: J, static.
        max_code: (T - 1)/2, static.
    """
    num_symbols = 2 * max_code + 1
    first = classes * num_symbols + max_code
    # Those of other inputs go where nobody looks.
    first = jnp.where(is_live, first, num_classes * num_symbols + max_code)

    # Input after input: places of all codes would be twice as large as the codes.
    def step(row: Array, counts: Int[Array, " symbols"]) -> Int[Array, " symbols"]:
        own = lax.dynamic_index_in_dim(codes, row, 1, keepdims=False).astype(jnp.int32)
        place = lax.dynamic_index_in_dim(first, row, 1) + own
        return lax.platform_dependent(
            counts,
            place,
            cpu=lambda counts, place: counts.at[place].add(1),
            default=lambda counts, place: (
                counts + counts_by_products(place.reshape(1, -1), counts.shape[0])[0]
            ),
        )

    counts = jnp.zeros((num_classes + 1) * num_symbols, jnp.int32)
    counts = counted_loop(0, codes.shape[1], step, counts)
    return counts.reshape(num_classes + 1, num_symbols)[:num_classes]


def length_bits(counts: Int[Array, "J T"]) -> Float[Array, "J T"]:
    """Return lengths of all symbols, also of those that have not occurred.

    One more code is shared among all symbols, by `1/(1 + |z|)^2`.
    """
    magnitude = np.abs(np.arange(counts.shape[-1]) - (counts.shape[-1] - 1) // 2)
    prior = 1.0 / (1.0 + magnitude) ** 2
    prior = jnp.asarray(_UNSEEN * prior / prior.sum(), jnp.float32)
    number = jnp.sum(counts, axis=-1, keepdims=True).astype(jnp.float32)
    return jnp.log2(number + _UNSEEN) - jnp.log2(counts.astype(jnp.float32) + prior[None])


@partial(jax.jit, static_argnames=("num_times",))
def bits_of(
    counts: Int[Array, "J T"],
    classes: Int[Array, "G I"],
    levels: Int[Array, "G I"],
    is_live: Bool[Array, "G I"],
    *,
    num_times: float = 1.0,
) -> Bits:
    """Return the bits of a layer, or those expected from a sample of its outputs.

    Args:
        counts: (J, T), of the sample.
        classes: (G, I).
        levels: (G, I), of the spacings.
        is_live: (G, I).
        num_times: outputs over those of the sample, static. The entropy of few counts is too
            small, by half a nat for every symbol that occurs but one; that is added to it.
    """
    number = jnp.sum(counts, axis=-1).astype(jnp.float32)
    seen = counts.astype(jnp.float32)
    lengths = jnp.log2(jnp.maximum(number, 1))[:, None] - jnp.log2(jnp.maximum(seen, 1))
    codes = jnp.sum(pairwise_sum(seen * lengths))
    num_symbols = jnp.maximum(jnp.sum(counts > 0, axis=-1), 1).astype(jnp.float32) - 1
    if num_times > 1:
        codes = num_times * (codes + jnp.sum(num_symbols) / (2 * LN2))
    tables = 0.5 * jnp.sum(num_symbols * jnp.log2(jnp.maximum(num_times * number, 1)))
    level = jnp.clip(levels, -_MAX_LEVEL, _MAX_LEVEL) + _MAX_LEVEL
    num_labels = counts.shape[0] * (2 * _MAX_LEVEL + 1)
    label = jnp.where(is_live, classes * (2 * _MAX_LEVEL + 1) + level, num_labels)
    occur = jnp.zeros(num_labels + 1, jnp.int32).at[label].add(1).astype(jnp.float32)
    labels = jnp.sum(occur * (math.log2(label.size) - jnp.log2(jnp.maximum(occur, 1))))
    return Bits(codes, tables, labels)
