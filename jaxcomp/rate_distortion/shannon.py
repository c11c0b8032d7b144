"""The Shannon lower bound for squared error, with importances, and the entropies it needs.

For a source with differential entropy h(W | H) given its importance H, and distortion
`D = E H (W - What)^2`, every code has rate `R >= h(W|H) + 1/2 E ln H - 1/2 ln(2 pi e D)`, nats per
weight. It is tight as D falls to 0, and says nothing of a source with atoms (its differential
entropy is -infinity). Both forms are rounded down: what they say, they say of the numbers that were
passed.

Source: Shannon 1959; Linder and Zamir, IEEE Trans. Inf. Theory 45 (1999), for weighted errors.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, xlogy
from jaxtyping import Array, Float

from jaxcomp.numerics.precision import ROUNDING, in_float64, round_down

_HALF_LOG_2_PI_E = 1.4189385332046727


def shannon_rate(
    differential_entropy_nats: Float[Array, "..."] | float,
    distortion: Float[Array, "..."] | float,
    mean_log_importance: Float[Array, "..."] | float = 0.0,
) -> Float[Array, "..."]:
    """Return the Shannon lower bound on the rate, clipped at 0.

    Args:
        differential_entropy_nats: h(W | H), of one weight.
        distortion: D = E H (W - What)^2 of one weight, at least 0; NaN where negative.
        mean_log_importance: E ln H; -infinity where some weight has no importance (the bound is
            then 0). The three arguments broadcast.

    Returns:
        Nats per weight; infinity at D = 0.
    """
    return _rate(
        differential_entropy_nats,
        distortion,
        mean_log_importance,
        dtype=jnp.result_type(float),
    )


@in_float64("dtype")
def _rate(entropy: Array, distortion: Array, log_importance: Array, *, dtype: Any) -> Array:
    entropy, distortion, log_importance = jnp.broadcast_arrays(entropy, distortion, log_importance)
    positive = jnp.where(distortion > 0, distortion, 1)
    parts = (entropy, 0.5 * log_importance, -_HALF_LOG_2_PI_E, -0.5 * jnp.log(positive))
    rate = sum(parts, start=jnp.zeros_like(entropy)) - _lost(*parts)
    is_informative = jnp.isfinite(entropy + 0.5 * log_importance)
    at_zero = jnp.where(is_informative, jnp.inf, 0)
    rate = jnp.where(distortion == 0, at_zero, jnp.maximum(rate, 0))
    return round_down(jnp.where(distortion >= 0, rate, jnp.nan), dtype)


def _lost(*parts: Any) -> Any:
    """Return what rounding may have added to a sum of such parts; 0 where it is infinite."""
    size = sum(jnp.abs(part) for part in parts)
    return jnp.where(jnp.isfinite(size), ROUNDING * size, 0)


def shannon_distortion(
    differential_entropy_nats: Float[Array, "..."] | float,
    rate_nats: Float[Array, "..."] | float,
    mean_log_importance: Float[Array, "..."] | float = 0.0,
) -> Float[Array, "..."]:
    """Return the Shannon lower bound on the distortion, `exp(2 (h - R) + E ln H) / (2 pi e)`.

    Args:
        differential_entropy_nats: h(W | H), of one weight.
        rate_nats: R >= 0, nats per weight; NaN where negative.
        mean_log_importance: E ln H. The three arguments broadcast.

    Returns:
        E H (W - What)^2 of one weight, at least this. At low rates the distortion of the constant
        code may be less than what other bounds say, never less than this.
    """
    return _distortion(
        differential_entropy_nats,
        rate_nats,
        mean_log_importance,
        dtype=jnp.result_type(float),
    )


@in_float64("dtype")
def _distortion(entropy: Array, rate: Array, log_importance: Array, *, dtype: Any) -> Array:
    parts = (2 * entropy, -2 * rate, -2 * _HALF_LOG_2_PI_E, log_importance)
    exponent = sum(parts, start=jnp.zeros(())) - _lost(*parts)
    found = jnp.exp(exponent) * (1 - ROUNDING)
    return round_down(jnp.where(rate >= 0, found, jnp.nan), dtype)


@jax.jit
def gaussian_entropy(standard_deviation: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """Return the differential entropy of a Gaussian, `1/2 ln(2 pi e s^2)` nats."""
    return _HALF_LOG_2_PI_E + jnp.log(jnp.asarray(standard_deviation, float))


@jax.jit
def laplacian_entropy(scale: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """Return the differential entropy of `exp(-|w|/b) / (2 b)`, `1 + ln 2b` nats."""
    return 1 + jnp.log(2 * jnp.asarray(scale, float))


@jax.jit
def generalised_gaussian_entropy(
    scale: Float[Array, "..."] | float, shape: Float[Array, "..."] | float
) -> Float[Array, "..."]:
    """Return the differential entropy of the density proportional to `exp(-(|w|/a)^b)`, in nats.

    Args:
        scale: a > 0.
        shape: b > 0: 2 is a Gaussian with `a = sqrt(2) s`, 1 a Laplacian; broadcast against
            `scale`.

    Returns:
        `1/b + ln(2 a Gamma(1 + 1/b))`.
    """
    scale, shape = _together(scale, shape)
    return 1 / shape + jnp.log(2 * scale) + gammaln(1 + 1 / shape)


@jax.jit
def density_entropy(
    positions: Float[Array, "... positions"], density: Float[Array, "... positions"]
) -> Float[Array, "..."]:
    """Return the differential entropy of a density given on a grid, by the trapezoidal rule.

    Args:
        positions: (..., P), increasing.
        density: (..., P), at least 0; normalised here.

    Returns:
        `-integral p ln p` in nats.
    """
    positions, density = _together(positions, density)
    total = jnp.trapezoid(density, positions, axis=-1)
    share = density / total[..., None]
    return -jnp.trapezoid(xlogy(share, share), positions, axis=-1)


def _together(*values: Float[Array, "..."] | float) -> list[Float[Array, "..."]]:
    """Bring arguments to the default dtype and one shape."""
    return list(jnp.broadcast_arrays(*(jnp.asarray(value, float) for value in values)))
