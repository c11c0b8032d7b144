"""The inverse of the relative entropy of two coins, and what inverses by halving share."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from jaxcomp.bounds.arguments import Number
from jaxcomp.numerics.precision import ROUNDING, bound_in_float64

# Halvings of [0, 1]: down to the last bit of float64 and beyond, for answers near 0.
_NUM_HALVINGS = 100


def kl_inverse(train_error: Number, divergence_nats: Number) -> Float[Array, "*shape"]:
    """Return the largest p with `kl(q || p) <= c`, the upper inverse of the relative entropy.

    kl is that of two coins, `q ln(q/p) + (1 - q) ln((1 - q)/(1 - p))`.

    Args:
        train_error: q in [0, 1]; NaN outside.
        divergence_nats: c >= 0, broadcast against it; NaN where negative.

    Returns:
        p in [q, 1], by bisection to the last bit of float64, rounded up: q at c = 0, 1 - exp(-c) at
        q = 0. Its derivatives are infinite where those of the inverse are: by c at c = 0, by q at
        q = 0.
    """
    return _kl_inverse(train_error, divergence_nats)


@bound_in_float64()
def _kl_inverse(q, divergence):
    return upper_inverse(*jnp.broadcast_arrays(q, divergence))


@jax.custom_jvp
def upper_inverse(q: Array, divergence: Array) -> Array:
    """Return the largest p with `kl(q || p) <= divergence`; arrays of one shape, float64."""

    def is_within(p):
        # By the relative changes: near q logarithms of quotients would lose what is looked for.
        inside = (p > 0) & (p < 1)
        p = jnp.where(inside, p, 0.5)
        change = p - q
        first = jnp.where(q > 0, -q * jnp.log1p(change / jnp.where(q > 0, q, 1)), 0)
        second = jnp.where(q < 1, -(1 - q) * jnp.log1p(-change / jnp.where(q < 1, 1 - q, 1)), 0)
        slack = ROUNDING * (jnp.abs(first) + jnp.abs(second) + divergence)
        return inside & (first + second <= divergence + slack)

    found = bisect(is_within, q, jnp.ones_like(q))
    # The ends, where there is a closed form or nothing to look for: kl(1 || p) falls as p rises.
    found = jnp.where(q == 0, -jnp.expm1(-divergence), found)
    # Where p is next to 1, ln(1 - p) does not know more of it than its last digits.
    found = jnp.minimum(found * (1 + ROUNDING), 1)
    found = jnp.where(divergence == 0, q, jnp.where(q == 1, 1, found))
    return jnp.where((q >= 0) & (q <= 1) & (divergence >= 0), found, jnp.nan)


@partial(upper_inverse.defjvp, symbolic_zeros=True)
def _upper_inverse_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Differentiate kl(q || p) = c: dp = (dc - kl_q dq) / kl_p, kl_p = (p - q) / (p (1 - p))."""
    q, divergence = primals
    p = upper_inverse(q, divergence)
    inside = (q < p) & (p < 1)
    by_divergence = jnp.where(inside, p * (1 - p) / jnp.where(inside, p - q, 1), 0)
    by_divergence = jnp.where((divergence == 0) & (q < 1), jnp.inf, by_divergence)
    positive = inside & (q > 0)
    log_odds = jnp.log(jnp.where(positive, p / jnp.where(positive, q, 1), 1)) - jnp.log(
        jnp.where(positive, (1 - p) / (1 - jnp.where(positive, q, 0)), 1)
    )
    # At c = 0 both are infinite and p = q.
    by_error = jnp.where(positive & (divergence > 0), log_odds * by_divergence, 0)
    by_error = jnp.where(divergence == 0, 1, by_error)
    by_error = jnp.where((q == 0) & (p < 1) & (divergence > 0), jnp.inf, by_error)
    return p, sum_of_products((by_error, by_divergence), tangents, p)


def sum_of_products(factors: tuple[Array, ...], tangents: Any, like: Array) -> Array:
    """Return the sum over arguments that vary: a factor may be infinite where one does not."""
    total = jnp.zeros_like(like)
    for factor, tangent in zip(factors, tangents, strict=True):
        if not isinstance(tangent, SymbolicZero):
            total = total + factor * tangent
    return total


def bisect(is_within: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Return the upper end of the last interval between `low` (within) and `high` (not within)."""

    def halve(_, ends):
        low, high = ends
        middle = low + 0.5 * (high - low)
        within = is_within(middle)
        return jnp.where(within, middle, low), jnp.where(within, high, middle)

    # The upper end: a bound must not be rounded down.
    return lax.fori_loop(0, _NUM_HALVINGS, halve, (low, high))[1]
