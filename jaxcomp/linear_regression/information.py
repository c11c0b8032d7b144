"""How much the learner's weights say about its sample, and the bounds that follow.

A deterministic learner with real-valued weights has `I(S;W)` infinite. Rounded to steps of
`delta` it has `I(S;[W]) = H([W])`, which is `h(W) - d ln delta` for fine steps, h the differential
entropy over samples: of a multivariate t for least squares, and of a density that the Kac-Rice
formula gives exactly for ridge. What a Gaussian channel lets through is finite by itself.

Entropies are computed on the host in float64: differences of log-gamma functions of several
thousand examples have no digits left in single precision. The bounds on gaps can be traced, and are
rounded up to JAX's default floating dtype.

Sources: Kotz and Nadarajah, "Multivariate t distributions" (2004), section 1.8 (entropy);
Xu and Raginsky, arXiv:1705.07809, section 2 (the decoupling argument); Kozachenko and
Leonenko, Probl. Inf. Transm. 23 (1987), for the estimate from draws.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpy.typing import NDArray
from scipy import spatial, special

from jaxcomp.linear_regression.closed_forms import Channel, channel_risks, gain_and_loss
from jaxcomp.linear_regression.problem import Setting, check_num_examples, check_setting
from jaxcomp.linear_regression.ridge_entropy import log_sphere_area
from jaxcomp.numerics.precision import ROUNDING, bound_in_float64
from jaxcomp.numerics.units import LN2

_Numbers = NDArray[np.float64]

# Of (z - (1 - e^-z)) / z^2, the highest power first; up to 0.5 to all digits of float64.
_SERIES = tuple((-1.0) ** k / math.factorial(k + 2) for k in range(14, -1, -1))


def design_information_nats(dim: ArrayLike, num_examples: ArrayLike) -> _Numbers:
    """Return J = I(X;W), what the *spread* of least squares says about the inputs.

    Given X, least squares is `N(w*, s2 G^-1)`; over X it is a multivariate t with
    `nu = n - d + 1` degrees of freedom. The difference of their entropies is

        J = lnGamma(nu/2) - lnGamma((n+1)/2) + (n+1)/2 [psi((n+1)/2) - psi(nu/2)] - d/2
            + 1/2 sum_{i<d} psi((n-i)/2),

    whatever w*, Sigma and s2. The informed channel of rate R > 0, whose output has the same
    spread up to scale, has `I(S;What) = R + J`.

    Args:
        dim: d >= 1, integers.
        num_examples: n > d + 1, integers; broadcast.

    Returns:
        J >= 0 in nats, float64.

    Raises:
        ValueError: if n <= d + 1.
    """
    check_num_examples(dim, num_examples)
    d, n = np.broadcast_arrays(np.asarray(dim, np.float64), np.asarray(num_examples, np.float64))
    return _t_entropy(d, n) - _conditional_entropy(d, n)


def least_squares_entropy_nats(
    dim: ArrayLike,
    num_examples: ArrayLike,
    *,
    noise_variance: ArrayLike = 1.0,
    log_det_covariance: ArrayLike = 0.0,
) -> _Numbers:
    """Return h(W), the differential entropy of least squares over samples.

    Args:
        dim: d >= 1.
        num_examples: n > d + 1; all arguments broadcast.
        noise_variance: s2.
        log_det_covariance: ln det Sigma, 0 for the identity.

    Returns:
        h(W) in nats, for weights in their own units; may be negative.

    Raises:
        ValueError: if n <= d + 1.
    """
    check_num_examples(dim, num_examples)
    d, n = np.broadcast_arrays(np.asarray(dim, np.float64), np.asarray(num_examples, np.float64))
    scale = d / 2 * np.log(np.asarray(noise_variance, np.float64))
    return _t_entropy(d, n) + scale - np.asarray(log_det_covariance, np.float64) / 2


def rounded_entropy_nats(
    differential_entropy_nats: ArrayLike, dim: ArrayLike, step: ArrayLike
) -> _Numbers:
    """Return `max(h(W) - d ln delta, 0)`: the entropy of W rounded to multiples of delta.

    It is a lower bound for every step (the density inside a cell is replaced by its mean, which
    can only raise the entropy), and exact as the step shrinks: the error is about
    `delta^2/24` times the trace of the Fisher information of W with respect to its place, that is
    `delta^2/(24 s^2)` nats for every weight of standard deviation s.

    Args:
        differential_entropy_nats: h(W).
        dim: d.
        step: delta > 0; `10**-k` rounds to k decimals.

    Returns:
        Nats of the whole model.

    Raises:
        ValueError: if a step is not positive.
    """
    step = np.asarray(step, np.float64)
    if not np.all(step > 0):
        raise ValueError(f"step must be positive, got {step.min()}.")
    entropy = np.asarray(differential_entropy_nats, np.float64)
    return np.maximum(entropy - np.asarray(dim, np.float64) * np.log(step), 0.0)


def least_squares_rounded_entropy_bound_nats(
    true_weights: Float[ArrayLike, " d"],
    num_examples: int,
    step: float,
    *,
    noise_variance: float = 1.0,
) -> float:
    """Return `sum_i H([W_i])` of least squares for any step: an upper bound on H([W]).

    Every weight by itself is `w*_i` plus Student's t with `nu = n - d + 1` degrees of freedom times
    `sqrt(s2/nu)`, so that the probability of every cell is known (for `Sigma = I`). The bound is
    above the joint entropy by the dependence of the weights, which share one random scale.

    Args:
        true_weights: (d,), w*.
        num_examples: n > d + 1.
        step: delta > 0.
        noise_variance: s2.

    Returns:
        Nats of the whole model.

    Raises:
        ValueError: if n <= d + 1 or the step is not positive.
    """
    weights = np.asarray(true_weights, np.float64)
    check_num_examples(weights.size, num_examples)
    if not step > 0:
        raise ValueError(f"step must be positive, got {step}.")
    nu = num_examples - weights.size + 1
    scale = math.sqrt(noise_variance / nu)
    # Beyond these quantiles less than 1e-12 of the mass is left, in cells of no weight.
    reach = scale * -float(special.stdtrit(nu, 1e-13))
    most = math.ceil(reach / step) + 1
    places = np.round(weights[:, None] / step) + np.arange(-most, most + 1)
    low = ((places - 0.5) * step - weights[:, None]) / scale
    high = low + step / scale
    # Of the two tails the smaller one: 1 - (1 - p) would have no digits.
    flip = low > 0
    cell = special.stdtr(nu, np.where(flip, -low, high)) - special.stdtr(
        nu, np.where(flip, -high, low)
    )
    return float(np.sum(special.entr(np.maximum(cell, 0.0))))


def estimated_entropy_nats(
    solutions: Float[ArrayLike, "datasets d"], true_weights: Float[ArrayLike, " d"]
) -> float:
    """Estimate h(W) from draws whose distribution is symmetric about the axis of w*.

    So are least squares and ridge for `Sigma = I`. Only the joint entropy of the weight along w*
    and the length across has to be estimated (Kozachenko and Leonenko's third neighbours, in units
    of the standard deviations); the direction across is uniform on a sphere.

    Args:
        solutions: (M, d) draws, d >= 2, M > 10.
        true_weights: (d,), w*; may be 0.

    Returns:
        Nats; the standard error is about `sqrt(d/(2 M))`.

    Raises:
        ValueError: on wrong shapes or too few draws.
    """
    draws = np.asarray(solutions, np.float64)
    axis = np.asarray(true_weights, np.float64)
    if draws.ndim != 2 or draws.shape[1] < 2 or draws.shape[1:] != axis.shape:
        raise ValueError(
            f"solutions must have shape (datasets, d) with d >= 2 true weights, got "
            f"{draws.shape} and {axis.shape}."
        )
    num_draws, dim = draws.shape
    if num_draws <= 10:
        raise ValueError(f"solutions must hold more than 10 draws, got {num_draws}.")
    length = np.linalg.norm(axis)
    axis = axis / length if length > 0 else np.eye(dim)[0]
    along = draws @ axis
    across = np.linalg.norm(draws - along[:, None] * axis, axis=1)
    pair = np.stack([along, across], axis=1)
    scale = pair.std(axis=0)
    neighbours = 3
    distance, _ = spatial.KDTree(pair / scale).query(pair / scale, k=neighbours + 1)
    planar = (
        special.digamma(num_draws)
        - special.digamma(neighbours)
        + math.log(math.pi)
        + 2 * np.mean(np.log(distance[:, -1]))
        + np.sum(np.log(scale))
    )
    return float(planar + (dim - 2) * np.mean(np.log(across)) + log_sphere_area(dim - 1))


def coordinate_entropy_nats(solutions: Float[ArrayLike, "datasets d"], step: float) -> float:
    """Estimate an upper bound on the entropy of weights rounded to multiples of a step.

    The joint entropy is at most the sum over weights. A weight that takes few values, each with
    some twenty draws, counts with its empirical entropy (with Miller's and Madow's correction of
    the bias); one that takes more with Massey's bound `1/2 ln(2 pi e (s^2/delta^2 + 1/12))`, s^2
    the variance of the rounded weight, which is close for weights that are nearly normal.

    Args:
        solutions: (M, d) draws.
        step: delta > 0.

    Returns:
        Nats of the whole model.

    Raises:
        ValueError: if the step is not positive.

    Source: Massey, "On the entropy of integer-valued random variables", Beijing Int. Workshop on
    Information Theory (1988); Cover and Thomas, problem 8.7.
    """
    if not step > 0:
        raise ValueError(f"step must be positive, got {step}.")
    cells = np.rint(np.asarray(solutions, np.float64) / step)
    total = 0.0
    for column in cells.T:
        _, counts = np.unique(column, return_counts=True)
        num_draws = column.size
        if 20 * counts.size <= num_draws:
            share = counts / num_draws
            total += float(np.sum(special.entr(share)) + (counts.size - 1) / (2 * num_draws))
        else:
            variance = float(column.var(ddof=1))
            total += 0.5 * math.log(2 * math.pi * math.e * (variance + 1 / 12))
    return total


def relative_gap_bound(
    information_nats: Float[ArrayLike, "..."], num_examples: Float[ArrayLike, "..."]
) -> Float[Array, "..."]:
    """Return the bound on `E[1 - L_S(What)/L_mu(What)]` that holds for squared loss.

    For weights that do not depend on the sample, `n L_S/L_mu` is chi-squared with n degrees of
    freedom; by Donsker and Varadhan's formula the relative gap x of weights with information I
    fulfils `-x/2 - 1/2 ln(1-x) <= I/n`, which is the infimum over t of
    `(I/n + t - 1/2 ln(1+2t))/t` solved for x. It lies below both 1 and `2 sqrt(I/n)`.

    Args:
        information_nats: I(S;What) >= 0 or an upper bound on it, of the whole model.
        num_examples: n >= 1; broadcast.

    Returns:
        The bound, between 0 and 1, rounded up; NaN where the information is negative.
    """
    return _relative_gap_bound(information_nats, num_examples)


def least_squares_relative_gap(
    dim: Float[ArrayLike, "..."], num_examples: Float[ArrayLike, "..."]
) -> Float[Array, "..."]:
    """Return `E[1 - L_S(W)/L_mu(W)] = 1 - (n-d)(n-d+1)/(n(n+1))` of least squares.

    The residuals and W are independent given X, and `s2/L_mu(W)` is Beta distributed.

    Args:
        dim: d >= 1.
        num_examples: n > d; broadcast.

    Returns:
        The relative gap, between 0 and 1.
    """
    d, n = jnp.asarray(dim, float), jnp.asarray(num_examples, float)
    return d * (2 * n - d + 1) / (n * (n + 1))


class GapBound(NamedTuple):
    """A bound on `E[L_mu - L_S]` in units of the risk, and the information it rests on.

    Both are rounded up.
    """

    information_nats: Float[Array, "..."]
    """Upper bound on the information of the channel with samples weighted by their risk."""
    bound: Float[Array, "..."]
    """Upper bound on the generalization error."""


def channel_gap_bound(
    setting: Setting, rate_nats: Float[ArrayLike, "..."], *, channel: Channel
) -> GapBound:
    """Return a bound on the generalization error of an uninformed channel that really holds.

    Squared loss is not sub-Gaussian over R^d, so `sqrt(2 sigma^2 R/n)` does not apply. Under the
    distribution in which every (sample, What) is weighted by `L_mu(What)`, the generalization error
    is `E L_mu` times a *relative* gap. So it is at most `E L_mu(What) * relative_gap_bound(I')`,
    with I' the relative entropy of that distribution and a product of the sample's with any other;
    for the uninformed channels it is at most

        I' = R + (a^2 V/E L_mu) (1 + a (d + 2)/(nu - 4)),   nu = n - d + 1.

    Args:
        setting: n > d + 3, since fourth moments of W enter; fields broadcast.
        rate_nats: R >= 0 of the whole model.
        channel: "uninformed" or "uninformed_zero_mean", static.

    Returns:
        The information and the bound.

    Raises:
        ValueError: on another channel, or n <= d + 3.
    """
    if channel not in ("uninformed", "uninformed_zero_mean"):
        raise ValueError(
            f"channel must be 'uninformed' or 'uninformed_zero_mean', got {channel!r}: the bound "
            "is known for these."
        )
    check_num_examples(setting.dim, setting.num_examples, above=3)
    check_setting(setting)
    return _channel_gap_bound(setting, rate_nats, channel=channel)


@bound_in_float64("channel")
def _channel_gap_bound(setting: Setting, rate: Array, *, channel: Channel) -> GapBound:
    risks = channel_risks(setting, rate, channel=channel)
    d, n = jnp.asarray(setting.dim), jnp.asarray(setting.num_examples)
    a, _ = gain_and_loss(rate, d)
    weighting = a * a * setting.excess_risk / risks.population * (1 + a * (d + 2) / (n - d - 3))
    information = (rate + weighting) * (1 + 2 * ROUNDING)
    bound = risks.population * _relative_gap(information, n) * (1 + 2 * ROUNDING)
    return GapBound(*jnp.broadcast_arrays(information, bound))


@bound_in_float64()
def _relative_gap_bound(information: Array, num_examples: Array) -> Array:
    return _relative_gap(information, num_examples)


def _relative_gap(information: Array, num_examples: Array) -> Array:
    """Solve `x + ln(1-x) = -2 I/n` by Newton's method in `z = -ln(1-x)`: `z - (1-e^-z) = y`.

    The left side is convex and rising in z > 0; from `y + 1`, above the root, or from `sqrt(2y)`
    plus a little more than its next term, Newton's steps only come down. Relative errors of y and
    of the left side reach x by half at most.
    """
    y = 2 * (information / num_examples)
    start = jnp.minimum(y + 1, jnp.sqrt(2 * y) + y)

    def step(_, z):
        slope = -jnp.expm1(-z)
        # Near 0 the difference z - (1 - e^-z) cancels: its series there.
        series = z * z * jnp.polyval(jnp.asarray(_SERIES), jnp.minimum(z, 0.5))
        value = jnp.where(z < 0.5, series, z - slope)
        return jnp.where(slope > 0, z - (value - y) / jnp.where(slope > 0, slope, 1), z)

    z = lax.fori_loop(0, 12, step, start)
    return jnp.minimum(-jnp.expm1(-z) * (1 + 2 * ROUNDING), 1)


def _t_entropy(d: _Numbers, n: _Numbers) -> _Numbers:
    """h(W) for s2 = 1 and Sigma = I: a multivariate t of scale 1/nu."""
    nu = n - d + 1
    log_norm = special.gammaln(nu / 2) - special.gammaln((n + 1) / 2) + d / 2 * np.log(np.pi)
    tail = (n + 1) / 2 * (special.digamma((n + 1) / 2) - special.digamma(nu / 2))
    return log_norm + tail


def _conditional_entropy(d: _Numbers, n: _Numbers) -> _Numbers:
    """h(W|X) for s2 = 1 and Sigma = I: normal with covariance G^-1, G Wishart."""
    index = np.arange(int(d.max()) if d.size else 0)
    inside = index < d[..., None]
    argument = np.where(inside, (n[..., None] - index) / 2, 1.0)
    log_det = d * LN2 + np.sum(np.where(inside, special.digamma(argument), 0.0), axis=-1)
    return d / 2 * math.log(2 * math.pi * math.e) - log_det / 2
