"""The binomial tail in logarithms, and its inverse.

Source: Langford, JMLR 6 (2005).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import gammaln
from jaxtyping import Array

from jaxcomp.bounds.relative_entropy import bisect, sum_of_products, upper_inverse
from jaxcomp.numerics.precision import ROUNDING

# Terms of a continued fraction; it stops when nothing changes, after O(sqrt n) of them.
_MAX_TERMS = 100_000
# A share of n examples within so much of a whole number of errors is one, whatever its dtype.
_PART_OF_AN_ERROR = 0.01


def whole_errors(share: Array, n: Array, eps: Array) -> Array:
    """Return the largest whole number of errors whose share of n may have been rounded to `share`.

    A share may also be 1 less a rounded accuracy.
    """
    errors = share * n
    single = float(jnp.finfo(jnp.float32).eps)
    uncertain = eps * errors + eps / 4 * n
    uncertain = jnp.maximum(
        uncertain, jnp.minimum(single * errors + single / 4 * n, _PART_OF_AN_ERROR)
    )
    whole = jnp.floor(errors + uncertain)
    whole = jnp.where(whole >= errors - uncertain, whole, whole + 1)
    return jnp.where((share >= 0) & (share <= 1), jnp.clip(whole, 0, n), jnp.nan)


@jax.custom_jvp
def binomial_inverse(errors: Array, n: Array, log_level: Array) -> Array:
    """Return the largest p with `ln P(Binomial(n, p) <= errors) >= log_level`."""
    # No errors: (1 - p)^n. All errors: the tail is 1 for every p.
    none, all_wrong = errors == 0, errors >= n
    inner = jnp.where(none | all_wrong, 0, errors)
    share = jnp.clip(inner / n, 0, 1)
    # Above the exact inverse, always; what the tail cannot be computed for is left at that.
    chernoff = upper_inverse(share, -log_level / n)

    def is_within(p):
        tail, rounding = _log_binomial_tail(inner, n, p)
        return tail >= log_level - rounding + ROUNDING * log_level

    found = bisect(is_within, share, chernoff)
    found = jnp.where(none, -jnp.expm1(log_level / n), found)
    found = jnp.where(all_wrong, 1, jnp.minimum(found * (1 + ROUNDING), 1))
    is_valid = (errors >= 0) & (n >= 1) & (log_level <= 0)
    return jnp.where(is_valid, found, jnp.nan)


@partial(binomial_inverse.defjvp, symbolic_zeros=True)
def _binomial_inverse_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Differentiate by the level: `d tail / dp = -n C(n - 1, k) p^k (1 - p)^(n - 1 - k)`.

    The number of errors and n are whole numbers: no derivative by them.
    """
    errors, n, log_level = primals
    p = binomial_inverse(errors, n, log_level)
    inside = (p > 0) & (p < 1) & (errors < n)
    inner, p_inside = jnp.where(inside, errors, 0), jnp.where(inside, p, 0.5)
    log_slope = gammaln(n + 1) - gammaln(inner + 1) - gammaln(n - inner)
    log_slope += inner * jnp.log(p_inside) + (n - inner - 1) * jnp.log1p(-p_inside)
    by_level = jnp.where(inside, -jnp.exp(jnp.where(inside, log_level, 0) - log_slope), 0)
    return p, sum_of_products((by_level,), tangents[2:], p)


def _log_binomial_tail(errors: Array, n: Array, p: Array) -> tuple[Array, Array]:
    """Return `ln P(Binomial(n, p) <= k)`, k < n whole and k/n <= p < 1, and what rounding may lose.

    At least the truth with that: 0 where 100,000 terms of the fraction are not enough (n beyond
    some 1e10).

    The tail is the regularised incomplete beta function `I_{1-p}(n - k, k + 1)`, here from Gauss'
    continued fraction times its prefactor in logarithms, so that tails of e^-100000 are as exact as
    others. It converges in O(sqrt n) terms; below the mean, p < k/n, use the complement.

    Source: Press et al., Numerical Recipes, section 6.4 (modified Lentz' method).
    """
    a, b = n - errors, errors + 1
    x = 1 - p
    is_inside = (x > 0) & (p > 0)
    x = jnp.where(is_inside, x, 0.5)
    log_p = jnp.log(jnp.where(is_inside, p, 0.5))
    parts = (
        a * jnp.log1p(-jnp.where(is_inside, p, 0.5)),
        b * log_p,
        -jnp.log(a),
        gammaln(a + b),
        -gammaln(a),
        -gammaln(b),
    )
    prefactor = sum(parts, start=jnp.zeros_like(x))
    rounding = ROUNDING * sum((jnp.abs(part) for part in parts), start=jnp.ones_like(x))
    tiny = jnp.full_like(x, 1e-300)

    def guarded(value):
        return jnp.where(jnp.abs(value) < tiny, tiny, value)

    def lentz(c, d, value, coefficient):
        d = 1 / guarded(1 + coefficient * d)
        c = guarded(1 + coefficient / c)
        return c, d, value * c * d

    def term(state):
        m, c, d, value, was_moving = state
        c, d, new = lentz(c, d, value, m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)))
        c, d, new = lentz(c, d, new, -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)))
        # A lane that has settled stays, while its neighbours need more terms: rounding may move
        # each of them again and again, and all of them never rest at once.
        is_moving = was_moving & (jnp.abs(new - value) > 1e-15 * jnp.abs(new))
        return m + 1, c, d, jnp.where(is_moving, new, value), is_moving

    d = 1 / guarded(1 - (a + b) * x / (a + 1))
    state = (jnp.ones((), x.dtype), jnp.ones_like(x), d, d, jnp.ones_like(x, bool))
    num_terms, *_, value, is_moving = lax.while_loop(
        lambda state: jnp.any(state[4]) & (state[0] < _MAX_TERMS), term, state
    )
    log_tail = jnp.where(is_moving, 0, jnp.minimum(prefactor + jnp.log(value), 0))
    log_tail = jnp.where(is_inside, log_tail, jnp.where(p <= 0, 0, -jnp.inf))
    return log_tail, rounding + ROUNDING * num_terms
