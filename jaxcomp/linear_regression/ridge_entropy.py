"""The differential entropy of ridge over samples, from a density that Kac-Rice gives exactly.

On the host in float64: two outer integrals over where the weights lie, and an inner one over the
length of the residuals.

Source: Azais and Wschebor, "Level sets and extrema of random processes and fields" (2009), theorem
6.2 (Kac-Rice).
"""

import math

import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray
from scipy import special

from jaxcomp.linear_regression.problem import Setting, check_setting
from jaxcomp.numerics.units import LN2

_Numbers = NDArray[np.float64]

# Grids of the outer integrals: the distance of their points in arsinh(spreads from the middle), at
# first and at last, where they end, and what of the density may be missing or double.
_DISTANCES = (0.1, 0.05, 0.025)
_LEAST_REACH = 60.0
_TOLERANCE = 1e-7
# Beyond this penalty per example, ridge is the first term of its series in 1/lambda to all digits.
_LARGEST_PENALTY = 1e18
# Of ln |w| from the middle: t's tail with three degrees of freedom is e^-120 there.
_FURTHEST_LENGTH = 40.0
# Points of the inner integral over the length of the residuals; in widths, where they end below.
_NODES = 161
_FURTHEST = 90.0


def ridge_log_density(
    along: ArrayLike, across: ArrayLike, setting: Setting, penalty: float
) -> _Numbers:
    """Return the log density of the ridge solution over samples, exactly (for `Sigma = I`).

    Ridge, `W = (G + lambda I)^{-1} X^T y`, is the only root of `X^T (y - X w) = lambda w`. By the
    Kac-Rice formula its density at w is that of `T = X^T (y - X w)` at `lambda w`, times the
    expected determinant of `G + lambda I` given that. With `v = w - w*`, `sigma^2 = s2 + |v|^2`
    and `t = |y - X w|^2/sigma^2`, which is chi-squared with n degrees of freedom,

        T | t ~ N(-v t, t (sigma^2 I - v v^T)),
        G | t, T = lambda^2 w w^T/(sigma^2 t) + C^{1/2} Wishart_d(n - 1) C^{1/2},
        C = I - v v^T/sigma^2,

    and the expected determinant is `sum_k (n-1)!/(n-1-k)! [z^k] det(M + z C)`, a sum of positive
    terms. One integral over t remains. With lambda = 0 this is the multivariate t.

    Args:
        along: the weight along w*, any shape.
        across: the length of the part of w orthogonal to w*; broadcast.
        setting: d >= 2, n > d + 1, s2 and B = |w*|^2; numbers.
        penalty: lambda >= 0 on `|w|^2`, beside the *sum* of squared residuals.

    Returns:
        ln p(w), float64; w in R^d, so that the density of (along, across) is larger by
        `across^(d-2)` and the area of a sphere.

    Raises:
        ValueError: on d < 2, n <= d + 1 or a negative penalty.
    """
    d, n, s2, signal = _ridge_numbers(setting, penalty)
    along, across = np.broadcast_arrays(
        np.asarray(along, np.float64), np.asarray(across, np.float64)
    )
    gap = along - math.sqrt(signal)
    # Times the penalty where they meet it: squares of large penalties are no floats.
    pulled_w = (penalty * along) ** 2 + (penalty * across) ** 2
    pulled_v = penalty * along * gap + penalty * across * across
    sigma2 = s2 + gap**2 + across**2
    # Powers of t: the residuals' chi-squared density and the normal density of T.
    power = (n - d) / 2
    rate = sigma2 / (2 * s2)
    inverse = (pulled_w + pulled_v**2 / s2) / (2 * sigma2)
    P = _expected_powers(d, n, penalty)
    share = s2 / sigma2
    constant = penalty * P["d-1,0"] + share * P["d-1,1"]
    by_t = (
        pulled_w * (penalty * P["d-2,0"] + share * P["d-2,1"]) + pulled_v**2 / sigma2 * P["d-2,1"]
    ) / sigma2
    integral = _log_gig_integral(power, rate, inverse, constant, by_t)
    normal = -d / 2 * np.log(2 * np.pi * sigma2) - 0.5 * np.log(share) - pulled_v / s2
    chi_squared = -n / 2 * LN2 - math.lgamma(n / 2)
    return integral + normal + chi_squared + P["log_unit"]


def ridge_entropy_nats(setting: Setting, penalty: float) -> float:
    """Return h(W), the differential entropy of ridge over samples (for `Sigma = I`).

    The exact density depends on two numbers, here the logarithm of the length of w and
    `x = arsinh(along / across)`, which stands for the angle to w*; the entropy is an integral over
    them, by the trapezoidal rule. The origin, where the density need not be smooth, is infinitely
    far away in them, and both are hyperbolic sines of the grid's variables: even where the tails
    are those of a t distribution with three degrees of freedom, nothing that matters is cut off.
    The density is exact, so that its integral has to be 1: the grids are moved, scaled and refined
    until it is, on all points and on every second one.

    Args:
        setting: d >= 2, n > d + 1, s2 and B = |w*|^2; numbers, w* the same for all samples.
        penalty: lambda >= 0 on `|w|^2`, beside the *sum* of squared residuals.

    Returns:
        h(W) in nats, to some 1e-6; may be negative, and falls without bound as the penalty grows.

    Raises:
        ValueError: on d < 2, n <= d + 1 or a negative penalty.
        RuntimeError: if the density does not integrate to 1 on the finest grid.
    """
    d, n, s2, signal = _ridge_numbers(setting, penalty)
    largest = _LARGEST_PENALTY * n
    if penalty > largest:
        return ridge_entropy_nats(setting, largest) - d * math.log(penalty / largest)
    # To start with: as if G were n I. Then by the moments of both variables.
    gain = n / (n + penalty)
    spread = gain * math.sqrt(s2 / (n - d))
    along, across = gain * math.sqrt(signal), spread * math.sqrt(d - 1)
    length = math.hypot(along, across)
    place = np.array([math.log(length), math.asinh(along / across)])
    scale = np.array([spread / length, 1 / math.sqrt(2 * (d - 1))])
    # The mass that t's tails have beyond.
    reach = max(_LEAST_REACH, 10 ** (9 / (n - d + 1)))
    missing = math.inf
    for distance in _DISTANCES:
        offset, step = _spread_grid(distance, reach)
        for _ in range(8):
            grids = place[:, None] + scale[:, None] * offset
            log_density, log_mass = _log_ridge_mass(grids[0], grids[1], setting, penalty)
            log_mass = log_mass + np.log(scale[0] * step)[:, None] + np.log(scale[1] * step)
            mass = np.exp(log_mass)
            total = float(np.sum(mass))
            # Every second point is a grid of its own, with a quarter of the points.
            missing = max(abs(total - 1), abs(4 * float(np.sum(mass[::2, ::2])) - 1) ** 2)
            if missing < _TOLERANCE:
                return -float(np.sum(mass * np.where(mass > 0, log_density, 0)))
            means, deviations = _moments(grids, mass / total)
            is_settled = np.all(np.abs(means - place) < 0.1 * deviations) and np.all(
                np.abs(np.log(deviations / scale)) < 0.1
            )
            # A spread below the distance of the points in the middle cannot be seen on them.
            place, scale = means, np.maximum(deviations, 0.5 * distance * scale)
            if is_settled:
                break
    raise RuntimeError(
        f"the density of ridge for {setting} and penalty {penalty:g} does not integrate to 1 on "
        f"the finest grid: off by {missing:.1g}."
    )


def _spread_grid(distance: float, reach: float) -> tuple[_Numbers, _Numbers]:
    """Return an odd number of points from -reach to reach and their shares of an integral."""
    half = math.ceil(math.asinh(reach) / distance)
    x = distance * np.arange(-half, half + 1)
    return np.sinh(x), np.cosh(x) * distance


def _log_ridge_mass(
    log_length: _Numbers, x: _Numbers, setting: Setting, penalty: float
) -> tuple[_Numbers, _Numbers]:
    """Return ln p(w) on a grid of ln |w| and x, and with the measure of both, ln p(ln |w|, x)."""
    d = int(np.asarray(setting.dim))
    # Further out, where nothing is left of the density, squares would be no floats.
    middle = log_length[log_length.size // 2]
    log_length = np.clip(log_length, middle - _FURTHEST_LENGTH, middle + _FURTHEST_LENGTH)[:, None]
    length = np.exp(log_length)
    log_cosh = np.abs(x) + np.log1p(np.exp(-2 * np.abs(x))) - LN2
    log_density = ridge_log_density(
        length * np.tanh(x), length * np.exp(-log_cosh), setting, penalty
    )
    measure = d * log_length - (d - 1) * log_cosh + log_sphere_area(d - 1)
    return log_density, log_density + measure


def _moments(grids: _Numbers, shares: _Numbers) -> tuple[_Numbers, _Numbers]:
    """Return means and standard deviations of two variables on their (2, G) grids."""
    marginals = np.stack([shares.sum(axis=1), shares.sum(axis=0)])
    means = np.sum(marginals * grids, axis=1)
    return means, np.sqrt(np.sum(marginals * (grids - means[:, None]) ** 2, axis=1))


def _ridge_numbers(setting: Setting, penalty: float) -> tuple[int, int, float, float]:
    check_setting(setting)
    d, n, s2, signal = (np.asarray(value).item() for value in setting)
    if d < 2:
        raise ValueError(f"dim must be at least 2 for the density of ridge, got {d}.")
    if not (penalty >= 0 and math.isfinite(penalty)):
        raise ValueError(f"penalty must be finite and at least 0, got {penalty}.")
    return int(d), int(n), float(s2), float(signal)


def _expected_powers(d: int, n: int, penalty: float) -> dict[str, float]:
    """Return `sum_i C(m, i) lambda^(m-i) (n-1)!/(n-1-i-j)!` for the four (m, j) in use.

    That is `(lambda + z)^m z^j` with every z^k replaced by `(n-1)!/(n-1-k)!`; all in units of
    `exp(log_unit)`.
    """
    logs: dict[str, float] = {}
    for m, name in ((d - 1, "d-1"), (d - 2, "d-2")):
        i = np.arange(m + 1)
        binomial = special.gammaln(m + 1) - special.gammaln(i + 1) - special.gammaln(m - i + 1)
        for j in (0, 1):
            falling = special.gammaln(n) - special.gammaln(n - i - j)
            terms = binomial + special.xlogy(m - i, penalty) + falling
            logs[f"{name},{j}"] = float(np.logaddexp.reduce(terms))
    unit = logs["d-1,1"]
    return {name: math.exp(value - unit) for name, value in logs.items()} | {"log_unit": unit}


def _log_gig_integral(
    power: float, rate: _Numbers, inverse: _Numbers, constant: _Numbers, by_t: _Numbers
) -> _Numbers:
    """Return `ln int t^(p-1) e^(-rate t - inverse/t) (constant + by_t/t) dt` over t > 0.

    A Bessel function in closed form, but of an order in the thousands; the trapezoidal rule in
    the hyperbolic arcsine of ln t has no such limits: near the mode its points are even in ln t,
    and far below, where the integrand may fall as slowly as t, they go on.
    """
    width = np.sqrt(power**2 + 4 * rate * inverse)
    mode = (power + width) / (2 * rate)
    deviation = 1 / np.sqrt(width)
    low, high = -math.asinh(_FURTHEST), math.asinh(14.0)
    steps = np.linspace(low, high, _NODES)
    x = deviation[..., None] * np.sinh(steps)
    # From the exponent at the mode, which is large.
    grown, shrunk = np.expm1(x), np.expm1(-x)
    at_mode = rate * mode, inverse / mode
    exponent = power * x - at_mode[0][..., None] * grown - at_mode[1][..., None] * shrunk
    factor = constant[..., None] + (by_t / mode)[..., None] * (1 + shrunk)
    logs = exponent + np.log(factor * np.cosh(steps))
    middle = power * np.log(mode) - at_mode[0] - at_mode[1] + np.log(deviation)
    return np.asarray(special.logsumexp(logs, axis=-1)) + middle + math.log(steps[1] - steps[0])


def log_sphere_area(dim: int) -> float:
    """Log of the area of the unit sphere in R^dim; two points in R^1."""
    return LN2 + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
