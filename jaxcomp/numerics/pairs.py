"""Numbers of some 48 bits as unevaluated sums of two float32: for hardware without float64.

Every operation is made of float32 additions and products, each rounded once; compilers may fuse a
product with a sum (which then is rounded less often), but must not reorder, and XLA does not. The
range stays that of float32: numbers should be about 1, or nothing is left of their lower parts.

Sources: Dekker, Numer. Math. 18 (1971); Knuth, TAOCP 2, 4.2.2; Hida, Li and Bailey, ARITH 2001.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxcomp.numerics.sums import running, two_sum

# All but the lower half of the 24 bits of a float32.
_UPPER = np.int32(-(1 << 12))


class Pair(NamedTuple):
    """`high + low`, where high is the sum rounded to float32.

    Attributes:
        high: (...) float32.
        low: (...) float32, at most half a unit in the last place of `high`.
    """

    high: Float[Array, "..."]
    low: Float[Array, "..."]

    def __getitem__(self, index: object) -> "Pair":  # pyright: ignore
        """Index both parts alike."""
        return Pair(self.high[index], self.low[index])  # pyright: ignore


def two_product(a: Float[Array, "..."], b: Float[Array, "..."]) -> Pair:
    """Return `a b` exactly, if it and its rounding error are in the range of float32.

    Factors are cut by their bits: the usual multiplication by 2^12 + 1 goes wrong where a compiler
    fuses it with the subtraction after it. Products of halves are exact, so that fusing changes
    nothing.
    """
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    product = a * b
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return Pair(product, error)


def _halves(value: Float[Array, "..."]) -> tuple[Array, Array]:
    bits = lax.bitcast_convert_type(value, jnp.int32) & _UPPER
    high = lax.bitcast_convert_type(bits, jnp.float32)
    return high, value - high


def _normal(high: Array, low: Array) -> Pair:
    return Pair(*two_sum(high, low))


def exact_difference(a: Float[Array, "..."], b: Float[Array, "..."]) -> Pair:
    """Return the difference of two float32, exactly."""
    return Pair(*two_sum(a, -b))


def add(a: Pair, b: Pair) -> Pair:
    """Add, to some 2^-45 of the larger magnitude."""
    total, error = two_sum(a.high, b.high)
    return _normal(total, error + (a.low + b.low))


def subtract(a: Pair, b: Pair) -> Pair:
    """Subtract, to some 2^-45 of the larger magnitude."""
    return add(a, Pair(-b.high, -b.low))


def multiply(a: Pair, b: Float[Array, "..."] | Pair) -> Pair:
    """Multiply by a pair or by a float32, to some 2^-45 of the product."""
    b = Pair(b, jnp.zeros_like(b)) if not isinstance(b, Pair) else b
    product, error = two_product(a.high, b.high)
    return _normal(product, error + (a.high * b.low + a.low * b.high))


def running_pairs(values: Pair) -> Pair:
    """Return the sum of every row and all before it."""

    def combine(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        total = add(Pair(*a), Pair(*b))
        return total.high, total.low

    return Pair(*running(combine, (values.high, values.low), (0.0, 0.0)))


def anchored_pairs(columns: Pair, anchor: Int[Array, ""]) -> Pair:
    """As `sums.anchored_sums`, of pairs: sums between an anchor and every edge, (B + 1, C)."""
    place = jnp.arange(columns.high.shape[0], dtype=jnp.int32)
    is_above = (place >= anchor)[:, None]
    above = Pair(*(jnp.where(is_above, part, 0) for part in columns))
    below = Pair(*(jnp.where(is_above, 0, part)[::-1] for part in columns))
    up, down = running_pairs(above), running_pairs(below)
    # One of the two is 0 at every edge.
    return Pair(
        *(
            jnp.pad(u, [(1, 0), (0, 0)]) - jnp.pad(d[::-1], [(0, 1), (0, 0)])
            for u, d in zip(up, down, strict=True)
        )
    )
