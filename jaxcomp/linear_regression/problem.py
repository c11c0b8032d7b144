"""The problem: what is drawn, and the few numbers that its risks depend on.

`x ~ N(0, Sigma)` in R^d, `y = x^T w* + e`, `e ~ N(0, s2)`, n independent examples, squared loss
without a factor 1/2. Least squares and every channel of this package are equivariant under linear
maps of x, so that their risks depend on `Sigma` and `w*` through `B = |w*|_Sigma^2` alone: one
`Setting` of four numbers covers any input covariance. Real quantizers see the coordinates of the
weights and need the whole `Problem`.

Axes: `d` weights.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxcomp.numerics.checks import check_count, check_positive, is_concrete

Number = ArrayLike


class Setting(NamedTuple):
    """What the closed forms depend on; every field may be an array, all broadcast.

    Attributes:
        dim: d >= 1, weights.
        num_examples: n > d + 1, examples.
        noise_variance: s2 > 0, the risk of the true weights.
        signal: B = |w*|_Sigma^2 >= 0, the variance of the outputs that the weights explain.
    """

    dim: Number
    num_examples: Number
    noise_variance: Number = 1.0
    signal: Number = 0.0

    @property
    def excess_risk(self) -> Array:
        """V = d s2 / (n - d - 1): how far least squares is above the risk of the true weights."""
        d, n, s2, _ = _as_floats(self)
        return d * s2 / (n - d - 1)


class Problem(NamedTuple):
    """A distribution of examples.

    Attributes:
        true_weights: (d,), w*.
        covariance: (d, d), Sigma, positive definite.
        noise_variance: (), s2.
    """

    true_weights: Float[Array, " d"]
    covariance: Float[Array, "d d"]
    noise_variance: Float[Array, ""]

    def setting(self, num_examples: Number) -> Setting:
        """The numbers that the closed forms depend on, for samples of `num_examples`."""
        signal = self.true_weights @ self.covariance @ self.true_weights
        return Setting(self.true_weights.shape[0], num_examples, self.noise_variance, signal)


def make_problem(
    true_weights: Float[ArrayLike, " d"],
    covariance: Float[ArrayLike, "d d"] | None = None,
    noise_variance: float = 1.0,
) -> Problem:
    """Check and assemble a problem.

    Args:
        true_weights: (d,), w*, finite.
        covariance: (d, d), symmetric positive definite; None for the identity.
        noise_variance: s2 > 0.

    Returns:
        The problem, in JAX's default floating dtype.

    Raises:
        ValueError: on a wrong shape, a covariance that is singular or not symmetric, a noise
            variance that is not positive, or numbers that are not finite.
    """
    weights = np.asarray(true_weights, np.float64)
    if weights.ndim != 1 or weights.size < 1 or not np.all(np.isfinite(weights)):
        raise ValueError(
            f"true_weights must be a flat list of finite numbers, got shape {weights.shape}."
        )
    dim = weights.size
    matrix = np.eye(dim) if covariance is None else np.asarray(covariance, np.float64)
    if matrix.shape != (dim, dim) or not np.allclose(matrix, matrix.T, rtol=1e-6, atol=0):
        raise ValueError(
            f"covariance must be a symmetric matrix of shape {(dim, dim)}, got shape "
            f"{matrix.shape}; one row and column for every weight."
        )
    eigenvalues = np.linalg.eigvalsh(matrix)
    # Beyond this condition number single precision cannot solve the normal equations.
    if not eigenvalues[0] > 1e-6 * eigenvalues[-1]:
        raise ValueError(
            f"covariance must be positive definite, got eigenvalues from {eigenvalues[0]:.3g} to "
            f"{eigenvalues[-1]:.3g}; drop the inputs that others determine."
        )
    check_positive("noise_variance", noise_variance)
    return Problem(
        jnp.asarray(weights, float), jnp.asarray(matrix, float), jnp.asarray(noise_variance, float)
    )


def random_problem(
    key: Array,
    dim: int,
    *,
    signal: float = 1.0,
    noise_variance: float = 1.0,
    covariance: Float[ArrayLike, "d d"] | None = None,
) -> Problem:
    """Draw true weights in a random direction that explain a given variance of the outputs.

    Args:
        key: typed PRNG key, consumed here.
        dim: d >= 1.
        signal: B = `w*' Sigma w*` >= 0.
        noise_variance: s2 > 0.
        covariance: (d, d), see `make_problem`; None for the identity.

    Returns:
        The problem.

    Raises:
        ValueError: if an argument is out of range.
    """
    check_count("dim", dim)
    if not (signal >= 0 and np.isfinite(signal)):
        raise ValueError(f"signal must be finite and at least 0, got {signal}.")
    direction = np.asarray(jax.random.normal(key, (dim,)), np.float64)
    problem = make_problem(direction, covariance, noise_variance)
    matrix = np.asarray(problem.covariance, np.float64)
    length = np.sqrt(direction @ matrix @ direction)
    return make_problem(direction * np.sqrt(signal) / length, covariance, noise_variance)


def correlated_covariance(dim: int, correlation: float) -> Float[np.ndarray, "d d"]:
    """Return `Sigma_ij = correlation^|i - j|`: inputs that are a stationary series of order 1.

    Args:
        dim: d >= 1.
        correlation: of neighbours, above -1 and below 1; 0 for the identity.

    Returns:
        The matrix, whose condition number is below `((1 + |c|)/(1 - |c|))^2`.

    Raises:
        ValueError: on another correlation.
    """
    if not -1 < correlation < 1:
        raise ValueError(f"correlation must lie between -1 and 1, got {correlation}.")
    apart = np.abs(np.arange(dim)[:, None] - np.arange(dim)[None, :])
    return np.power(float(correlation), apart)


def check_setting(setting: Setting) -> None:
    """Refuse a setting without finite second moments; tracers pass, their values are unknown."""
    for name, value, least in (("dim", setting.dim, 1), ("signal", setting.signal, 0)):
        if is_concrete(value) and not np.all(np.asarray(value) >= least):
            raise ValueError(f"{name} must be at least {least}, got {np.min(value)}.")
    check_positive("noise_variance", setting.noise_variance)
    check_num_examples(setting.dim, setting.num_examples)


def check_num_examples(dim: Number, num_examples: Number, *, above: int = 1) -> None:
    """Refuse n <= d + `above`, where the moments that are asked for do not exist."""
    if not (is_concrete(dim) and is_concrete(num_examples)):
        return
    d, n = np.broadcast_arrays(np.asarray(dim), np.asarray(num_examples))
    if np.any(n <= d + above):
        bad = n <= d + above
        raise ValueError(
            f"num_examples must be more than dim + {above} for the moments of least squares to "
            f"exist, got {n[bad][0]} examples of dimension {d[bad][0]}; draw more examples."
        )


def _as_floats(setting: Setting) -> tuple[Array, Array, Array, Array]:
    d, n, s2, b = (jnp.asarray(value, float) for value in setting)
    return d, n, s2, b
