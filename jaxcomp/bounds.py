"""Information-theoretic bounds on the generalization gap, and certificates for compressed files.

Two kinds. In expectation: the mutual-information bound, and the bound on the population risk that
it gives together with a rate-distortion function (`population_risk`). With probability 1 - delta
over the training examples, for all codes at once: `occam` for one network in a file, `pac_bayes_kl`
and `catoni` for a random one; `gaussian_complexity`, `choice_bits` and `self_delimiting_bits` say
what was spent.

All of them broadcast over their arguments and can be traced and mapped. The certificates compute in
float64 and in logarithms (2^-B is no float at all) and return the default floating dtype.

Sources: Xu and Raginsky, "Information-theoretic analysis of generalization capability of learning
algorithms", NeurIPS 2017, arXiv:1705.07809, theorem 1; Bu, Gao, Zou and Veeravalli,
doi:10.3390/e23101255, for its use with a compression rate; Langford, JMLR 6 (2005), for the
binomial tail; Maurer, arXiv:cs/0411099; Catoni, arXiv:0712.0248; Lotfi et al., arXiv:2211.13609.
"""

import math
from numbers import Real
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import gammaln
from jaxtyping import Array, Bool, Float

from jaxcomp.precision import in_float64
from jaxcomp.quantizers.checks import is_concrete

Tail = Literal["binomial", "chernoff"]
TAILS: tuple[str, ...] = get_args(Tail)

_LN2 = math.log(2.0)
# Halvings of [0, 1]: down to the last bit of float64 and beyond, for answers near 0.
_NUM_HALVINGS = 100
# Terms of a continued fraction; it stops when nothing changes, after O(sqrt n) of them.
_MAX_TERMS = 100_000

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
    return _bound(jnp.asarray(rate_nats, float), num_examples, sub_gaussian_scale)


def _check_positive(**numbers) -> None:
    for name, value in numbers.items():
        # Tracers are passed on: inside jit values cannot be looked at.
        if isinstance(value, Real) and not (float(value) > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be a positive finite number, got {value}.")


@jax.jit
def _bound(rate: Array, num_examples: Array, scale: Array) -> Array:
    num_examples = jnp.asarray(num_examples, rate.dtype)
    scale = jnp.asarray(scale, rate.dtype)
    return scale * jnp.sqrt(2 * rate / num_examples)


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
        rate_nats, num_weights, zero_rate_distortion, num_examples, sub_gaussian_scale
    )


@in_float64()
def _population_risk(rate, num_weights, distortion, num_examples, scale) -> PopulationRisk:
    rate, num_weights, distortion, num_examples, scale = jnp.broadcast_arrays(
        rate, num_weights, distortion, num_examples, scale
    )
    kappa = scale**2 * num_weights / (2 * num_examples * distortion**2)
    has_minimum = kappa < math.exp(-1)
    u = -lambert_lower_branch(jnp.where(has_minimum, -kappa, -math.exp(-1)))
    interior = jnp.where(has_minimum, distortion * jnp.exp(-u / 2) * (1 + u), jnp.nan)
    bound = distortion * jnp.exp(-2 * rate / num_weights) + scale * jnp.sqrt(
        2 * rate / num_examples
    )
    zero_wins = ~has_minimum | (interior >= distortion)
    return PopulationRisk(
        bound=jnp.where(rate >= 0, bound, jnp.nan),
        has_interior_minimum=has_minimum,
        best_rate_nats=jnp.where(has_minimum, num_weights / 4 * u, 0),
        interior_bound=interior,
        zero_rate_wins=zero_wins,
        kappa=kappa,
    )


@jax.jit
def lambert_lower_branch(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return W_{-1}(x), the solution w <= -1 of `w exp(w) = x` for -1/e <= x < 0.

    Newton's method in logarithms, `u - ln u = -ln(-x)` with u = -w, which x near 0 does not
    underflow. -infinity at 0, NaN elsewhere.
    """
    x = jnp.asarray(x)
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


def kl_inverse(train_error: _Number, divergence_nats: _Number) -> Float[Array, "*shape"]:
    """Return the largest p with `kl(q || p) <= c`, the upper inverse of the relative entropy.

    kl is that of two coins, `q ln(q/p) + (1 - q) ln((1 - q)/(1 - p))`.

    Args:
        train_error: q in [0, 1]; NaN outside.
        divergence_nats: c >= 0, broadcast against it; NaN where negative.

    Returns:
        p in [q, 1], by bisection to the last bit of float64: q at c = 0, 1 - exp(-c) at q = 0.
    """
    return _kl_inverse(train_error, divergence_nats)


@in_float64()
def _kl_inverse(q, divergence):
    return _upper_inverse(*jnp.broadcast_arrays(q, divergence))


def _upper_inverse(q: Array, divergence: Array) -> Array:
    def is_within(p):
        # By the relative changes: near q logarithms of quotients would lose what is looked for.
        inside = (p > 0) & (p < 1)
        p = jnp.where(inside, p, 0.5)
        change = p - q
        first = jnp.where(q > 0, -q * jnp.log1p(change / jnp.where(q > 0, q, 1)), 0)
        second = jnp.where(q < 1, -(1 - q) * jnp.log1p(-change / jnp.where(q < 1, 1 - q, 1)), 0)
        return inside & (first + second <= divergence)

    found = _bisect(is_within, q)
    # The ends, where there is a closed form or nothing to look for: kl(1 || p) falls as p rises.
    found = jnp.where(q == 0, -jnp.expm1(-divergence), found)
    found = jnp.where(divergence == 0, q, jnp.where(q == 1, 1, found))
    return jnp.where((q >= 0) & (q <= 1) & (divergence >= 0), found, jnp.nan)


def _bisect(is_within, low: Array) -> Array:
    """Return the upper end of the last interval between `low` (within) and 1 (not within)."""

    def halve(_, ends):
        low, high = ends
        middle = low + 0.5 * (high - low)
        within = is_within(middle)
        return jnp.where(within, middle, low), jnp.where(within, high, middle)

    # The upper end: a bound must not be rounded down.
    return lax.fori_loop(0, _NUM_HALVINGS, halve, (low, jnp.ones_like(low)))[1]


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
            tail the number of errors is rounded up to a whole one (numbers within float32 of one
            count as whole).
        size_bits: B >= 0, all that the decoder needs.
        num_examples: n >= 1.
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
    return _occam_binomial(train_error, size_bits, num_examples, delta)


def _check_certificate(train_error, num_examples, delta) -> None:
    for name, value, fits, allowed in (
        ("train_error", train_error, lambda v: (v >= 0) & (v <= 1), "between 0 and 1"),
        ("num_examples", num_examples, lambda v: v >= 1, "at least 1"),
        ("delta", delta, lambda v: (v > 0) & (v < 1), "strictly between 0 and 1"),
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


@in_float64()
def _occam_chernoff(train_error, size_bits, num_examples, delta):
    complexity = (size_bits * _LN2 - jnp.log(delta)) / num_examples
    return _upper_inverse(*jnp.broadcast_arrays(train_error, complexity))


@in_float64()
def _occam_binomial(train_error, size_bits, num_examples, delta):
    train_error, size_bits, n, delta = jnp.broadcast_arrays(
        train_error, size_bits, num_examples, delta
    )
    errors = train_error * n
    errors = jnp.clip(jnp.ceil(errors - 1e-6 - 2e-7 * errors), 0, n)
    return _binomial_inverse(errors, n, jnp.log(delta) - size_bits * _LN2)


def _binomial_inverse(errors: Array, n: Array, log_level: Array) -> Array:
    """Return the largest p with `ln P(Binomial(n, p) <= errors) >= log_level`."""
    # No errors: (1 - p)^n. All errors: the tail is 1 for every p.
    none, all_wrong = errors == 0, errors >= n
    inner = jnp.where(none | all_wrong, 0, errors)
    found = _bisect(
        lambda p: log_binomial_tail(inner, n, p) >= log_level, jnp.clip(inner / n, 0, 1)
    )
    found = jnp.where(none, -jnp.expm1(log_level / n), found)
    found = jnp.where(all_wrong, 1, found)
    is_valid = (errors >= 0) & (n >= 1) & (log_level <= 0)
    return jnp.where(is_valid, found, jnp.nan)


@jax.jit
def log_binomial_tail(
    errors: Float[Array, "*shape"], n: Float[Array, "*shape"], p: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Return `ln P(Binomial(n, p) <= k)` for whole k < n and k/n <= p < 1; float64 in, float64 out.

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
    prefactor = a * jnp.log1p(-jnp.where(is_inside, p, 0.5)) + b * log_p - jnp.log(a)
    prefactor += gammaln(a + b) - gammaln(a) - gammaln(b)
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
    *_, value, _ = lax.while_loop(
        lambda state: jnp.any(state[4]) & (state[0] < _MAX_TERMS), term, state
    )
    log_tail = jnp.minimum(prefactor + jnp.log(value), 0)
    return jnp.where(is_inside, log_tail, jnp.where(p <= 0, 0, -jnp.inf))


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
        _check_certificate(train_error, num_draws, delta_draws)
        train_error = _sampled_error(train_error, num_draws, delta_draws)
    return _pac_bayes_kl(train_error, complexity_nats, num_examples, delta)


@in_float64()
def _sampled_error(mean, num_draws, delta):
    return _upper_inverse(*jnp.broadcast_arrays(mean, -jnp.log(delta) / num_draws))


@in_float64()
def _pac_bayes_kl(train_error, complexity, n, delta):
    divergence = (complexity + _LN2 + 0.5 * jnp.log(n) - jnp.log(delta)) / n
    return _upper_inverse(*jnp.broadcast_arrays(train_error, divergence))


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
    return jnp.minimum(jnp.expm1(-exponent) / jnp.expm1(-temperature), 1)


_catoni = in_float64()(_catoni_bound)


@in_float64()
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
        The complexity in nats, summed over weights; the scale; what choosing it cost.

    Raises:
        ValueError: if a number is not positive and finite, or the shapes do not fit.

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
    if is_concrete(standard_deviation) and not np.all(np.asarray(standard_deviation) > 0):
        raise ValueError(
            f"standard_deviation must be positive, got {np.min(standard_deviation):g}."
        )
    return _gaussian_complexity(
        mean,
        standard_deviation,
        prior_mean,
        largest_scale if prior_scale is None else prior_scale,
        scales_per_e_fold,
        is_chosen=prior_scale is None,
    )


@in_float64("is_chosen")
def _gaussian_complexity(mean, deviation, prior_mean, scale, fineness, *, is_chosen):
    deviation = jnp.broadcast_to(deviation, mean.shape)
    number = mean.shape[-1]
    energy = jnp.sum(deviation**2 + (mean - prior_mean) ** 2, axis=-1)
    log_deviations = jnp.sum(jnp.log(deviation), axis=-1)

    def divergence(t):
        return number * jnp.log(t) - log_deviations + energy / (2 * t**2) - number / 2

    if not is_chosen:
        scale = jnp.broadcast_to(scale, energy.shape)
        return GaussianComplexity(divergence(scale), scale, jnp.zeros_like(energy))

    # KL is least at t^2 = energy / d and convex in ln t; its neighbours on the grid are tried, and
    # those some steps further, where j is cheaper.
    best = fineness * (jnp.log(scale) - 0.5 * jnp.log(energy / number))
    j = jnp.maximum(jnp.floor(best)[..., None] + jnp.arange(-2.0, 3.0), 1)
    t = scale * jnp.exp(-j / fineness)
    choice = 2 * jnp.log(j) + math.log(math.pi**2 / 6)
    total = number * jnp.log(t) - (log_deviations + number / 2)[..., None]
    total += energy[..., None] / (2 * t**2) + choice
    is_least = total == jnp.min(total, axis=-1, keepdims=True)
    j_least = jnp.min(jnp.where(is_least, j, jnp.inf), axis=-1)
    t = scale * jnp.exp(-j_least / fineness)
    choice = 2 * jnp.log(j_least) + math.log(math.pi**2 / 6)
    return GaussianComplexity(divergence(t) + choice, t, choice)


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


@in_float64()
def _choice_bits(*num_candidates):
    return sum((jnp.log2(number) for number in num_candidates), start=jnp.zeros(()))


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


@in_float64()
def _self_delimiting_bits(size_bytes):
    return jnp.log2(size_bytes) + jnp.log2(size_bytes + 1)
