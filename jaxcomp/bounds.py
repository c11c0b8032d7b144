"""Information-theoretic bounds on the generalization gap, and certificates for compressed files.

Two kinds. In expectation: the mutual-information bound, and the bound on the population risk that
it gives together with a rate-distortion function (`population_risk`). With probability 1 - delta
over the training examples, for all codes at once: `occam` for one network in a file, `pac_bayes_kl`
and `catoni` for a random one; `gaussian_complexity`, `choice_bits` and `self_delimiting_bits` say
what was spent.

All of them broadcast over their arguments and can be traced, mapped and differentiated: where an
inverse is found by halving, its derivative is that of the implicit function. They compute in
float64 and in logarithms (2^-B is no float at all), allow for the rounding of that, and return the
default floating dtype, rounded up: a float32 certificate is never below the exact one. Pass sizes
and complexities as Python or NumPy numbers; a float32 array counts no more than 16,777,216 bits
one by one.

Sources: Xu and Raginsky, "Information-theoretic analysis of generalization capability of learning
algorithms", NeurIPS 2017, arXiv:1705.07809, theorem 1; Bu, Gao, Zou and Veeravalli,
doi:10.3390/e23101255, for its use with a compression rate; Langford, JMLR 6 (2005), for the
binomial tail; Maurer, arXiv:cs/0411099; Catoni, arXiv:0712.0248; Lotfi et al., arXiv:2211.13609.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.scipy.special import gammaln
from jaxtyping import Array, Bool, Float

from jaxcomp.precision import bound_in_float64, in_float64, round_up
from jaxcomp.quantizers.checks import is_concrete

Tail = Literal["binomial", "chernoff"]
TAILS: tuple[str, ...] = get_args(Tail)

_LN2 = math.log(2.0)
# Halvings of [0, 1]: down to the last bit of float64 and beyond, for answers near 0.
_NUM_HALVINGS = 100
# Terms of a continued fraction; it stops when nothing changes, after O(sqrt n) of them.
_MAX_TERMS = 100_000
# What a few operations in float64 may lose, relative to the largest of their numbers; log-gamma
# functions are that exact as well.
_ROUNDING = 2e-15
# A share of n examples within so much of a whole number of errors is one, whatever its dtype.
_PART_OF_AN_ERROR = 0.01

_Number = Float[Array, "*shape"] | float


class PopulationRisk(NamedTuple):
    """The bound on the population risk as a function of the rate, and where it is least.

    Attributes:
        bound: the bound at the rates asked for, excess over the risk of the uncompressed weights
            on their sample.
        has_interior_minimum: whether the bound has a local minimum at a positive rate.
        best_rate_nats: that rate R*, 0 where there is none.
        interior_bound: the bound at R*; NaN where there is none.
        zero_rate_wins: whether R = 0 is the best rate of all: the bound says that compressing
            everything away is best, that is, it says nothing about compression.
        kappa: `sigma^2 d / (2 n D0^2)`, which decides: an interior minimum exists below 1/e, and
            beats R = 0 below 0.2036.
    """

    bound: Float[Array, "*shape"]
    has_interior_minimum: Bool[Array, "*shape"]
    best_rate_nats: Float[Array, "*shape"]
    interior_bound: Float[Array, "*shape"]
    zero_rate_wins: Bool[Array, "*shape"]
    kappa: Float[Array, "*shape"]


def mutual_information_bound(
    rate_nats: Float[Array, "*shape"] | float, *, num_examples: float, sub_gaussian_scale: float
) -> Float[Array, "*shape"]:
    """Return `sqrt(2 sigma^2 R / n)`, a bound on the expected generalization gap.

    It holds when R bounds the mutual information of training sample and compressed weights, for
    the *whole* model: the rate of an uninformed compressor, or `ln 2` times the expected length
    in bits of a prefix code fixed before the sample is seen, tables and codebooks included. The
    empirical entropy of one network's assignments is not such a rate. The bound is vacuous where
    it exceeds the range of the loss, 1 for the 0-1 loss.

    Args:
        rate_nats: R >= 0 in nats (bits times `ln 2`), of any shape; NaN where negative.
        num_examples: n > 0, the independent examples the weights were trained on.
        sub_gaussian_scale: sigma > 0 of the loss; `(b - a)/2` for a loss in [a, b], so 1/2 for
            the 0-1 loss. Cross-entropy is unbounded and has none: use a clipped loss.

    Returns:
        The bound in the units of the loss, shaped like `rate_nats`.

    Raises:
        ValueError: if `num_examples` or `sub_gaussian_scale` is not a positive finite number.

    Source: Xu and Raginsky (2017), theorem 1.
    """
    _check_positive(num_examples=num_examples, sub_gaussian_scale=sub_gaussian_scale)
    return _bound(rate_nats, num_examples, sub_gaussian_scale)


def _check_positive(**numbers: Any) -> None:
    for name, value in numbers.items():
        # Tracers are passed on: inside jit values cannot be looked at.
        if is_concrete(value):
            values = np.asarray(value, np.float64)
            is_bad = ~((values > 0) & np.isfinite(values))
            if np.any(is_bad):
                raise ValueError(
                    f"{name} must be a positive finite number, got {values[is_bad].ravel()[0]:g}."
                )


@bound_in_float64()
def _bound(rate, num_examples, scale):
    rate, num_examples, scale = jnp.broadcast_arrays(rate, num_examples, scale)
    return scale * jnp.sqrt(2 * (rate / num_examples)) * (1 + _ROUNDING)


def population_risk(
    rate_nats: _Number,
    *,
    num_weights: _Number,
    zero_rate_distortion: _Number,
    num_examples: _Number,
    sub_gaussian_scale: _Number,
) -> PopulationRisk:
    """Return `D0 exp(-2R/d) + sqrt(2 sigma^2 R / n)`, and the rate where it is least.

    The two sides of compression: what the best uninformed compressor of rate R pays on the sample
    when the weights are a Gaussian of d dimensions, and what its rate lets it overfit. The second
    term has infinite slope at 0, so R = 0 is always a local minimum of the bound. With
    `kappa = sigma^2 d / (2 n D0^2)` another one exists iff `kappa < 1/e`, at
    `R* = -(d/4) W(-kappa)` on the lower branch of Lambert's function, with value
    `D0 exp(-u/2) (1 + u)`, `u = 4 R*/d`; it beats R = 0 iff `kappa < 0.2036`.

    Args:
        rate_nats: R >= 0 of the whole model, any shape; NaN where negative.
        num_weights: d > 0.
        zero_rate_distortion: D0 > 0, the loss paid on the sample at rate 0, in loss units.
        num_examples: n > 0.
        sub_gaussian_scale: sigma > 0; see `mutual_information_bound`. All arguments broadcast.

    Returns:
        The bound and its minimum, all of the common shape.

    Raises:
        ValueError: if one of the other arguments is a number that is not positive and finite.

    Source: Bu et al. (2021); Corless et al., Adv. Comput. Math. 5 (1996), for Lambert's function.
    """
    _check_positive(
        num_weights=num_weights,
        zero_rate_distortion=zero_rate_distortion,
        num_examples=num_examples,
        sub_gaussian_scale=sub_gaussian_scale,
    )
    return _population_risk(
        rate_nats,
        num_weights,
        zero_rate_distortion,
        num_examples,
        sub_gaussian_scale,
        dtype=jnp.result_type(float),
    )


@in_float64("dtype")
def _population_risk(rate, num_weights, distortion, num_examples, scale, *, dtype):
    rate, num_weights, distortion, num_examples, scale = jnp.broadcast_arrays(
        rate, num_weights, distortion, num_examples, scale
    )
    # Squares of numbers far from 1 are no floats.
    kappa = (scale / distortion) ** 2 * (num_weights / (2 * num_examples))
    has_minimum = kappa < math.exp(-1)
    u = -lambert_lower_branch(jnp.where(has_minimum, -kappa, -math.exp(-1)))
    interior = jnp.where(has_minimum, distortion * jnp.exp(-u / 2) * (1 + u), jnp.nan)
    overfitting = scale * jnp.sqrt(2 * (jnp.maximum(rate, 0) / num_examples))
    # Where nothing is overfitted the bound is the distortion itself, exactly.
    bound = distortion * jnp.exp(-2 * rate / num_weights) + overfitting
    bound = jnp.where(rate == 0, distortion, bound * (1 + _ROUNDING))
    zero_wins = ~has_minimum | (interior >= distortion)
    return PopulationRisk(
        bound=round_up(jnp.where(rate >= 0, bound, jnp.nan), dtype),
        has_interior_minimum=has_minimum,
        best_rate_nats=jnp.where(has_minimum, num_weights / 4 * u, 0),
        interior_bound=round_up(interior * (1 + _ROUNDING), dtype),
        zero_rate_wins=zero_wins,
        kappa=kappa,
    )


@jax.jit
def lambert_lower_branch(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return W_{-1}(x), the solution w <= -1 of `w exp(w) = x` for -1/e <= x < 0.

    Newton's method in logarithms, `u - ln u = -ln(-x)` with u = -w, which x near 0 does not
    underflow. -infinity at 0, NaN elsewhere. The derivative is -infinity at -1/e.
    """
    return _lambert(jnp.asarray(x))


@jax.custom_jvp
def _lambert(x: Array) -> Array:
    inside = (x < 0) & (x >= -jnp.exp(-jnp.ones_like(x)) * (1 + 4 * jnp.finfo(x.dtype).eps))
    target = jnp.maximum(-jnp.log(jnp.where(inside, -x, 1)), 1)
    # Exact to first order near the branch point, and within ln ln of the answer far away.
    excess = target - 1
    start = 1 + jnp.sqrt(2 * excess) + excess

    def newton(_, u):
        # d/du (u - ln u) = 1 - 1/u vanishes at the branch point itself.
        residual = u - jnp.log(u) - target
        return jnp.maximum(u - residual * u / jnp.maximum(u - 1, jnp.finfo(u.dtype).tiny), 1)

    u = lax.fori_loop(0, 12, newton, start)
    u = jnp.where(excess == 0, 1, u)
    return jnp.where(inside, -u, jnp.where(x == 0, -jnp.inf, jnp.nan))


@_lambert.defjvp
def _lambert_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    # From ln(-w) + w = ln(-x).
    (x,), (x_dot,) = primals, tangents
    w = _lambert(x)
    return w, w / ((1 + w) * x) * x_dot


def kl_inverse(train_error: _Number, divergence_nats: _Number) -> Float[Array, "*shape"]:
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
    return _upper_inverse(*jnp.broadcast_arrays(q, divergence))


@jax.custom_jvp
def _upper_inverse(q: Array, divergence: Array) -> Array:
    def is_within(p):
        # By the relative changes: near q logarithms of quotients would lose what is looked for.
        inside = (p > 0) & (p < 1)
        p = jnp.where(inside, p, 0.5)
        change = p - q
        first = jnp.where(q > 0, -q * jnp.log1p(change / jnp.where(q > 0, q, 1)), 0)
        second = jnp.where(q < 1, -(1 - q) * jnp.log1p(-change / jnp.where(q < 1, 1 - q, 1)), 0)
        slack = _ROUNDING * (jnp.abs(first) + jnp.abs(second) + divergence)
        return inside & (first + second <= divergence + slack)

    found = _bisect(is_within, q, jnp.ones_like(q))
    # The ends, where there is a closed form or nothing to look for: kl(1 || p) falls as p rises.
    found = jnp.where(q == 0, -jnp.expm1(-divergence), found)
    # Where p is next to 1, ln(1 - p) does not know more of it than its last digits.
    found = jnp.minimum(found * (1 + _ROUNDING), 1)
    found = jnp.where(divergence == 0, q, jnp.where(q == 1, 1, found))
    return jnp.where((q >= 0) & (q <= 1) & (divergence >= 0), found, jnp.nan)


@partial(_upper_inverse.defjvp, symbolic_zeros=True)
def _upper_inverse_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Differentiate kl(q || p) = c: dp = (dc - kl_q dq) / kl_p, kl_p = (p - q) / (p (1 - p))."""
    q, divergence = primals
    p = _upper_inverse(q, divergence)
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
    return p, _sum_of_products((by_error, by_divergence), tangents, p)


def _sum_of_products(factors: tuple[Array, ...], tangents: Any, like: Array) -> Array:
    """Return the sum over arguments that vary: a factor may be infinite where one does not."""
    total = jnp.zeros_like(like)
    for factor, tangent in zip(factors, tangents, strict=True):
        if not isinstance(tangent, SymbolicZero):
            total = total + factor * tangent
    return total


def _bisect(is_within: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Return the upper end of the last interval between `low` (within) and `high` (not within)."""

    def halve(_, ends):
        low, high = ends
        middle = low + 0.5 * (high - low)
        within = is_within(middle)
        return jnp.where(within, middle, low), jnp.where(within, high, middle)

    # The upper end: a bound must not be rounded down.
    return lax.fori_loop(0, _NUM_HALVINGS, halve, (low, high))[1]


def occam(
    train_error: _Number,
    size_bits: _Number,
    *,
    num_examples: _Number,
    delta: _Number,
    tail: Tail = "binomial",
) -> Float[Array, "*shape"]:
    """Bound the population error of a network that a file of B bits decodes to.

    With probability at least 1 - delta over n independent examples, for all self-delimiting files
    at once, so that seeds, penalties and the choice of the best of many files cost nothing; what
    the decoder needs and the file lacks must be charged (`choice_bits`, `self_delimiting_bits`).
    0-1 loss only. Examples drawn with replacement count once: n and the error refer to the
    distinct ones.

    Args:
        train_error: share of the n examples that the decoded network gets wrong. For the binomial
            tail the number of errors is the largest whole one of which this is the share as
            rounded in its dtype (a hundredth of an error is allowed in any dtype), or else the next
            one above; hence the derivative by it is 0.
        size_bits: B >= 0, all that the decoder needs.
        num_examples: n >= 1, a whole number.
        delta: in (0, 1), the probability that the bound fails. The four broadcast.
        tail: "binomial", the largest p with `P(Binomial(n, p) <= errors) >= delta 2^-B`, exact;
            "chernoff", `kl(train_error || p) <= (B ln 2 + ln(1/delta)) / n`, a little looser.
            Static.

    Returns:
        The bound, at most 1 (where it says nothing); NaN for arguments out of range.

    Raises:
        ValueError: on an unknown tail, or numbers out of range.

    Source: Langford (2005), section 3 and theorem 4.6.
    """
    if tail not in TAILS:
        raise ValueError(f"tail must be one of {TAILS}, got {tail!r}.")
    _check_certificate(train_error, num_examples, delta)
    _check_at_least_zero(size_bits, "size_bits")
    if tail == "chernoff":
        return _occam_chernoff(train_error, size_bits, num_examples, delta)
    # A Python number is a float64.
    dtype = getattr(train_error, "dtype", np.float64)
    eps = jnp.finfo(dtype if jnp.issubdtype(dtype, jnp.floating) else np.float64).eps
    return _occam_binomial(train_error, size_bits, num_examples, delta, float(eps))


def _check_certificate(train_error, num_examples, delta, *, suffix: str = "") -> None:
    for name, value, fits, allowed in (
        ("train_error", train_error, lambda v: (v >= 0) & (v <= 1), "between 0 and 1"),
        (
            f"num_{suffix or 'examples'}",
            num_examples,
            lambda v: (v >= 1) & np.isfinite(v) & (v == np.floor(v)),
            "at least 1 and whole",
        ),
        (
            f"delta_{suffix}" if suffix else "delta",
            delta,
            lambda v: (v > 0) & (v < 1),
            "strictly between 0 and 1",
        ),
    ):
        if not is_concrete(value):
            continue
        values = np.asarray(value, np.float64)
        is_bad = ~fits(values)
        if np.any(is_bad):
            raise ValueError(f"{name} must be {allowed}, got {values[is_bad].ravel()[0]:g}.")


def _check_at_least_zero(value, name: str) -> None:
    if is_concrete(value):
        values = np.asarray(value, np.float64)
        if np.any(~(values >= 0)):
            raise ValueError(f"{name} must be at least 0, got {np.min(values):g}.")


def _valid(found: Array, cost: Array, n: Array, delta: Array) -> Array:
    """Return NaN for what cannot be refused where values are traced.

    In one choice: JAX 0.12 cannot differentiate a choice of a choice backwards here.
    """
    return jnp.where((cost >= 0) & (n >= 1) & (delta > 0) & (delta < 1), found, jnp.nan)


@bound_in_float64()
def _occam_chernoff(train_error, size_bits, num_examples, delta):
    train_error, size_bits, n, delta = jnp.broadcast_arrays(
        train_error, size_bits, num_examples, delta
    )
    complexity = size_bits * _LN2 - jnp.log(delta)
    return _valid(_upper_inverse(train_error, complexity / n), size_bits, n, delta)


@bound_in_float64()
def _occam_binomial(train_error, size_bits, num_examples, delta, eps):
    train_error, size_bits, n, delta = jnp.broadcast_arrays(
        train_error, size_bits, num_examples, delta
    )
    complexity = size_bits * _LN2 - jnp.log(delta)
    errors = lax.stop_gradient(_whole_errors(train_error, n, eps))
    return _valid(_binomial_inverse(errors, n, -complexity), size_bits, n, delta)


def _whole_errors(share: Array, n: Array, eps: Array) -> Array:
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
def _binomial_inverse(errors: Array, n: Array, log_level: Array) -> Array:
    """Return the largest p with `ln P(Binomial(n, p) <= errors) >= log_level`."""
    # No errors: (1 - p)^n. All errors: the tail is 1 for every p.
    none, all_wrong = errors == 0, errors >= n
    inner = jnp.where(none | all_wrong, 0, errors)
    share = jnp.clip(inner / n, 0, 1)
    # Above the exact inverse, always; what the tail cannot be computed for is left at that.
    chernoff = _upper_inverse(share, -log_level / n)

    def is_within(p):
        tail, rounding = _log_binomial_tail(inner, n, p)
        return tail >= log_level - rounding + _ROUNDING * log_level

    found = _bisect(is_within, share, chernoff)
    found = jnp.where(none, -jnp.expm1(log_level / n), found)
    found = jnp.where(all_wrong, 1, jnp.minimum(found * (1 + _ROUNDING), 1))
    is_valid = (errors >= 0) & (n >= 1) & (log_level <= 0)
    return jnp.where(is_valid, found, jnp.nan)


@partial(_binomial_inverse.defjvp, symbolic_zeros=True)
def _binomial_inverse_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Differentiate by the level: `d tail / dp = -n C(n - 1, k) p^k (1 - p)^(n - 1 - k)`.

    The number of errors and n are whole numbers: no derivative by them.
    """
    errors, n, log_level = primals
    p = _binomial_inverse(errors, n, log_level)
    inside = (p > 0) & (p < 1) & (errors < n)
    inner, p_inside = jnp.where(inside, errors, 0), jnp.where(inside, p, 0.5)
    log_slope = gammaln(n + 1) - gammaln(inner + 1) - gammaln(n - inner)
    log_slope += inner * jnp.log(p_inside) + (n - inner - 1) * jnp.log1p(-p_inside)
    by_level = jnp.where(inside, -jnp.exp(jnp.where(inside, log_level, 0) - log_slope), 0)
    return p, _sum_of_products((by_level,), tangents[2:], p)


@jax.jit
def log_binomial_tail(
    errors: Float[Array, "*shape"], n: Float[Array, "*shape"], p: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Return `ln P(Binomial(n, p) <= k)` for whole k < n and k/n <= p < 1; float64 in, float64 out.

    At least the truth: 0 where 100,000 terms of the fraction are not enough (n beyond some 1e10).

    The tail is the regularised incomplete beta function `I_{1-p}(n - k, k + 1)`, here from Gauss'
    continued fraction times its prefactor in logarithms, so that tails of e^-100000 are as exact as
    others. It converges in O(sqrt n) terms; below the mean, p < k/n, use the complement.

    Source: Press et al., Numerical Recipes, section 6.4 (modified Lentz' method).
    """
    tail, rounding = _log_binomial_tail(errors, n, p)
    return jnp.minimum(tail + rounding, 0)


def _log_binomial_tail(errors: Array, n: Array, p: Array) -> tuple[Array, Array]:
    """Return the logarithm of the tail, and what rounding may have taken from it."""
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
    rounding = _ROUNDING * sum((jnp.abs(part) for part in parts), start=jnp.ones_like(x))
    tiny = jnp.full_like(x, 1e-300)

    def guarded(value):
        return jnp.where(jnp.abs(value) < tiny, tiny, value)

    def lentz(c, d, value, coefficient):
        d = 1 / guarded(1 + coefficient * d)
        c = guarded(1 + coefficient / c)
        return c, d, value * c * d

    def term(state):
        m, c, d, value, _ = state
        c, d, new = lentz(c, d, value, m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)))
        c, d, new = lentz(c, d, new, -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)))
        # A lane that has settled stays: its neighbours may need more terms.
        is_moving = jnp.abs(new - value) > 1e-15 * jnp.abs(new)
        return m + 1, c, d, jnp.where(is_moving, new, value), is_moving

    d = 1 / guarded(1 - (a + b) * x / (a + 1))
    state = (jnp.ones((), x.dtype), jnp.ones_like(x), d, d, jnp.ones_like(x, bool))
    num_terms, *_, value, is_moving = lax.while_loop(
        lambda state: jnp.any(state[4]) & (state[0] < _MAX_TERMS), term, state
    )
    log_tail = jnp.where(is_moving, 0, jnp.minimum(prefactor + jnp.log(value), 0))
    log_tail = jnp.where(is_inside, log_tail, jnp.where(p <= 0, 0, -jnp.inf))
    return log_tail, rounding + _ROUNDING * num_terms


def pac_bayes_kl(
    train_error: _Number,
    complexity_nats: _Number,
    *,
    num_examples: _Number,
    delta: _Number,
    num_draws: _Number | None = None,
    delta_draws: _Number | None = None,
) -> Float[Array, "*shape"]:
    """Bound the population error of a random network, `w ~ q`, averaged over q.

    With probability at least 1 - delta over n independent examples, for all q at once:
    `kl(E err_S || E err_mu) <= (KL(q || prior) + ln(2 sqrt(n) / delta)) / n`, the prior fixed
    before the data were seen or paid for. A deterministic network in a file of B bits is the
    special case `KL = B ln 2`; `occam` is sharper for it.

    Args:
        train_error: the mean training error of q; or, with `num_draws`, its mean over that many
            independent draws of q.
        complexity_nats: KL(q || prior) >= 0; see `gaussian_complexity`.
        num_examples: n >= 1.
        delta: in (0, 1). All arguments broadcast.
        num_draws: m, if the training error was estimated from m draws of q.
        delta_draws: probability allowed to that estimate, required with `num_draws`; the bound
            then holds with probability 1 - delta - delta_draws.

    Returns:
        The bound, at most 1 (where it says nothing).

    Raises:
        ValueError: on numbers out of range, or one of `num_draws` and `delta_draws` without the
            other.

    Source: Maurer (2004), theorem 5; Langford and Caruana, NIPS 2001, for the draws.
    """
    _check_certificate(train_error, num_examples, delta)
    _check_at_least_zero(complexity_nats, "complexity_nats")
    if (num_draws is None) != (delta_draws is None):
        raise ValueError("num_draws and delta_draws must be given together, got only one of them.")
    if num_draws is not None and delta_draws is not None:
        _check_certificate(train_error, num_draws, delta_draws, suffix="draws")
        train_error = _sampled_error(train_error, num_draws, delta_draws)
    return _pac_bayes_kl(train_error, complexity_nats, num_examples, delta)


@bound_in_float64()
def _sampled_error(mean, num_draws, delta):
    mean, num_draws, delta = jnp.broadcast_arrays(mean, num_draws, delta)
    return _valid(_upper_inverse(mean, -jnp.log(delta) / num_draws), mean, num_draws, delta)


@bound_in_float64()
def _pac_bayes_kl(train_error, complexity, n, delta):
    train_error, complexity, n, delta = jnp.broadcast_arrays(train_error, complexity, n, delta)
    divergence = (complexity + _LN2 + 0.5 * jnp.log(n) - jnp.log(delta)) / n
    return _valid(_upper_inverse(train_error, divergence), complexity, n, delta)


def catoni(
    train_error: _Number,
    complexity_nats: _Number,
    *,
    num_examples: _Number,
    delta: _Number,
    temperature: _Number | None = None,
    num_temperatures: int = 64,
) -> Float[Array, "*shape"]:
    """Bound the population error of a random network by Catoni's inequality.

    For a temperature C fixed before the data were seen, with probability at least 1 - delta for all
    q at once: `(1 - exp(-C err_S - (KL + ln(1/delta)) / n)) / (1 - exp(-C))`. The best C is that of
    `pac_bayes_kl` without its `ln(2 sqrt n)`, but it depends on the data: without a `temperature`
    a grid of them is paid for by a union bound.

    Args:
        train_error: mean training error of q.
        complexity_nats: KL(q || prior) >= 0.
        num_examples: n >= 1.
        delta: in (0, 1). All arguments broadcast.
        temperature: C > 0, fixed beforehand; None tries `num_temperatures` of them, evenly spaced
            in ln C between 1e-3 and 10, each with `delta / num_temperatures`.
        num_temperatures: size of that grid, static.

    Returns:
        The bound, at most 1.

    Raises:
        ValueError: on numbers out of range.

    Source: Catoni (2007), theorem 1.2.1.
    """
    _check_certificate(train_error, num_examples, delta)
    _check_at_least_zero(complexity_nats, "complexity_nats")
    if temperature is None:
        if num_temperatures < 1:
            raise ValueError(f"num_temperatures must be at least 1, got {num_temperatures}.")
        grid = np.geomspace(1e-3, 10.0, num_temperatures)
        return _catoni_grid(train_error, complexity_nats, num_examples, delta, grid)
    _check_positive(temperature=temperature)
    return _catoni(train_error, complexity_nats, num_examples, delta, temperature)


def _catoni_bound(train_error, complexity, n, delta, temperature):
    exponent = temperature * train_error + (complexity - jnp.log(delta)) / n
    found = jnp.expm1(-exponent) / jnp.expm1(-temperature) * (1 + _ROUNDING)
    is_valid = (train_error >= 0) & (train_error <= 1) & (temperature > 0)
    cost = jnp.where(is_valid, lax.stop_gradient(complexity), -1)
    return _valid(jnp.minimum(found, 1), cost, n, delta)


@bound_in_float64()
def _catoni(*arguments):
    return _catoni_bound(*jnp.broadcast_arrays(*arguments))


@bound_in_float64()
def _catoni_grid(train_error, complexity, n, delta, grid):
    train_error, complexity, n, delta = (
        value[..., None] for value in jnp.broadcast_arrays(train_error, complexity, n, delta)
    )
    grid = grid.reshape((1,) * (train_error.ndim - 1) + grid.shape)
    bounds = _catoni_bound(train_error, complexity, n, delta / grid.size, grid)
    return jnp.min(bounds, axis=-1)


class GaussianComplexity(NamedTuple):
    """What a Gaussian posterior costs.

    Attributes:
        complexity_nats: KL(q || prior) plus the price of the prior's scale, for `pac_bayes_kl`.
        prior_scale: the prior's standard deviation t that this refers to.
        choice_nats: the part that pays for choosing t from a grid.
    """

    complexity_nats: Float[Array, "..."]
    prior_scale: Float[Array, "..."]
    choice_nats: Float[Array, "..."]


def gaussian_complexity(
    mean: Float[Array, "... weights"],
    standard_deviation: Float[Array, "... weights"] | float,
    *,
    prior_scale: Float[Array, "..."] | float | None = None,
    prior_mean: Float[Array, "... weights"] | float = 0.0,
    largest_scale: float = 10.0,
    scales_per_e_fold: float = 10.0,
) -> GaussianComplexity:
    """Return KL of `N(mean, diag(s^2))` from a prior `N(prior_mean, t^2 I)`, and the price of t.

    `KL = sum ln(t/s) + (s^2 + (m - m0)^2) / (2 t^2) - 1/2`. A scale t chosen by looking at the
    posterior is paid for by a union over the grid
    `t_j = largest_scale exp(-j / scales_per_e_fold)`, j = 1, 2, ..., on which t_j has probability
    `6 / (pi^2 j^2)`: it costs `ln(pi^2 j^2 / 6)` nats, a dozen at most, whatever the number of
    weights.

    Args:
        mean: (..., d) of the posterior, m.
        standard_deviation: s > 0, broadcastable to `mean`.
        prior_scale: t, *if it was fixed before the data were seen*; costs nothing. None takes the
            best of the grid and charges for it.
        prior_mean: m0, fixed beforehand (0, or the initial weights), broadcastable to `mean`.
        largest_scale: upper end of the grid, fixed beforehand.
        scales_per_e_fold: its fineness, fixed beforehand.

    Returns:
        The complexity in nats, summed over weights, and what choosing the scale cost, rounded up;
        the scale, the best of the whole grid.

    Raises:
        ValueError: if a number is not positive and finite, a mean is not finite, or the shapes do
            not fit.

    Source: Dziugaite and Roy, arXiv:1703.11008, section 3.1; Langford and Caruana, NIPS 2001.
    """
    _check_positive(largest_scale=largest_scale, scales_per_e_fold=scales_per_e_fold)
    if prior_scale is not None:
        _check_positive(prior_scale=prior_scale)
    shape = np.shape(mean)
    for name, value in (("standard_deviation", standard_deviation), ("prior_mean", prior_mean)):
        try:
            fits = bool(shape) and np.broadcast_shapes(np.shape(value), shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name} must broadcast to mean (..., d), got shapes {np.shape(value)} and {shape}."
            )
    if not shape[-1]:
        raise ValueError(f"mean must hold at least one weight, got shape {shape}.")
    _check_positive(standard_deviation=standard_deviation)
    for name, value in (("mean", mean), ("prior_mean", prior_mean)):
        if is_concrete(value) and not np.all(np.isfinite(np.asarray(value, np.float64))):
            raise ValueError(f"{name} must be finite, got NaN or infinity.")
    return _gaussian_complexity(
        mean,
        standard_deviation,
        prior_mean,
        largest_scale if prior_scale is None else prior_scale,
        scales_per_e_fold,
        is_chosen=prior_scale is None,
        dtype=jnp.result_type(float),
    )


@in_float64("is_chosen", "dtype")
def _gaussian_complexity(mean, deviation, prior_mean, scale, fineness, *, is_chosen, dtype):
    deviation = jnp.broadcast_to(deviation, mean.shape)
    offset = jnp.abs(mean - jnp.broadcast_to(prior_mean, mean.shape))
    if not is_chosen:
        scale = jnp.broadcast_to(scale, mean.shape[:-1])
        divergence = _gaussian_divergence(offset, deviation, scale)
        return GaussianComplexity(round_up(divergence, dtype), scale, jnp.zeros_like(divergence))

    # The root mean square of deviations and offsets, from the largest: squares may be no floats.
    largest = jnp.maximum(jnp.max(deviation, axis=-1), jnp.max(offset, axis=-1))
    square = jnp.mean(
        jnp.square(deviation / largest[..., None]) + jnp.square(offset / largest[..., None]),
        axis=-1,
    )
    # KL is least at this j, not a whole number.
    best = fineness * (jnp.log(scale) - jnp.log(largest) - 0.5 * jnp.log(square))
    j = lax.stop_gradient(_cheapest_scale(best, fineness, float(mean.shape[-1])))
    scale = scale * jnp.exp(-j / fineness)
    choice = (2 * jnp.log(j) + math.log(math.pi**2 / 6)) * (1 + _ROUNDING)
    divergence = _gaussian_divergence(offset, deviation, scale)
    return GaussianComplexity(round_up(divergence + choice, dtype), scale, round_up(choice, dtype))


def _gaussian_divergence(offset: Array, deviation: Array, scale: Array) -> Array:
    """Return the sum of `ln(t/s) + (s^2 + m^2) / (2 t^2) - 1/2`, not below the exact one."""
    t = scale[..., None]
    ratio, shift = deviation / t, jnp.square(offset / t)
    # Each part is at least 0, and where s is close to t no difference of numbers that are not.
    is_close = jnp.abs(ratio - 1) < 0.5
    excess = jnp.where(is_close, (deviation - t) / t, 0)
    near = jnp.maximum(excess + 0.5 * jnp.square(excess) - jnp.log1p(excess), 0)
    log_ratio = jnp.log(jnp.where(is_close, 1, ratio))
    far = 0.5 * (jnp.square(ratio) - 1) - log_ratio
    parts = jnp.where(is_close, near, far) + 0.5 * shift
    lost = jnp.where(is_close, jnp.abs(excess), jnp.square(ratio) + 1 + jnp.abs(log_ratio)) + shift
    return jnp.sum(parts + _ROUNDING * lost, axis=-1) * (1 + 1e-14)


def _cheapest_scale(best: Array, fineness: Array, number: float) -> Array:
    """Return the whole j >= 1 that minimises `d phi((j - best) / f) + 2 ln j` and is the cheapest.

    Here `phi(x) = exp(2 x) / 2 - x`, what KL per weight adds. The slope of the sum,
    `(d / f) (exp(2 (j - best) / f) - 1) + 2 / j`, is convex less concave: it can be negative on one
    interval at most. So the minimum is at j = 1, or where the slope changes sign from below; it
    rises from where `d j^2 exp(2 (j - best) / f) = f^2` on.
    """

    def log_ratio(j):
        return 2 * jnp.log(j) + 2 * (j - best) / fineness + math.log(number) - 2 * jnp.log(fineness)

    def slope(j):
        return number / fineness * jnp.expm1(2 * (j - best) / fineness) + 2 / j

    low, high = jnp.ones_like(best), jnp.maximum(best + 1, 1)
    turning = _bisect(lambda j: log_ratio(j) < 0, low, high)
    root = _bisect(lambda j: slope(j) < 0, turning, high)
    around = jnp.floor(root)[..., None] + jnp.arange(-1.0, 3.0)
    j = jnp.concatenate([jnp.ones_like(root)[..., None], jnp.maximum(around, 1)], axis=-1)
    x = (j - best[..., None]) / fineness
    total = number * (0.5 * jnp.exp(2 * x) - x) + 2 * jnp.log(j)
    return jnp.min(jnp.where(total == jnp.min(total, axis=-1, keepdims=True), j, jnp.inf), axis=-1)


def choice_bits(*num_candidates: _Number) -> Float[Array, "*shape"]:
    """Return the price in bits of choices made by looking at the data, `sum log2(candidates)`.

    A bound that holds for one hypothesis fixed beforehand holds for the best of k at this price:
    architectures, priors, codebooks, code parameters that the decoder must be told. Choices that
    the file already contains (the weights, the penalties that made them) cost nothing more.

    Args:
        num_candidates: number of candidates of each independent choice, at least 1; they
            broadcast.

    Returns:
        Bits, to be added to the size of the file; 0 for no choice.

    Raises:
        ValueError: if a number is below 1.
    """
    for number in num_candidates:
        if is_concrete(number) and not np.all(np.asarray(number) >= 1):
            raise ValueError(f"num_candidates must be at least 1, got {np.min(number):g}.")
    return _choice_bits(*num_candidates)


@bound_in_float64()
def _choice_bits(*num_candidates):
    return sum((_log2(number) for number in num_candidates), start=jnp.zeros(()))


def _log2(number: Array) -> Array:
    """Return log2, exact for powers of two and else never below it."""
    mantissa, exponent = jnp.frexp(number)
    return jnp.where(
        mantissa == 0.5, (exponent - 1).astype(number.dtype), jnp.log2(number) * (1 + _ROUNDING)
    )


def self_delimiting_bits(size_bytes: _Number) -> Float[Array, "*shape"]:
    """Return `log2(L (L + 1))`, what makes a file of L bytes self-delimiting.

    A file system knows where a file ends; a prefix code must say it. The lengths L = 1, 2, ... get
    probability `1 / (L (L + 1))`, which sums to 1.

    Args:
        size_bytes: L >= 1.

    Returns:
        Bits to be added to `8 L`.

    Raises:
        ValueError: if a length is below 1.
    """
    if is_concrete(size_bytes) and not np.all(np.asarray(size_bytes) >= 1):
        raise ValueError(f"size_bytes must be at least 1, got {np.min(size_bytes):g}.")
    return _self_delimiting_bits(size_bytes)


@bound_in_float64()
def _self_delimiting_bits(size_bytes):
    return _log2(size_bytes) + _log2(size_bytes + 1)
