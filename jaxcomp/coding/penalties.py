"""The map between a penalty and a rate: L2 regularization as mutual information.

Let H be the Hessian of the *total* negative log-likelihood in nats (a sum over examples), and the
prior `N(0, I / precision)`. A sample of the posterior then carries

    R(precision) = 1/2 log det(I + H / precision)

nats about the data: in a linear-Gaussian model exactly its mutual information with the weights,
and reverse water-filling at level 1 over the eigenvalues. A penalty of `weight_decay/2 |w|^2` on
a *mean* loss over n examples is the prior of precision `n weight_decay`. For squared loss with
noise variance s2, the negative log-likelihood is the squared error over 2 s2. Decoupled weight
decay (AdamW) is no Gaussian prior.

Axes: `...` penalties, `D` eigenvalues.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from jaxcomp.coding.checks import check_curvature
from jaxcomp.coding.distributions import Gaussian, Laplace
from jaxcomp.numerics.checks import check_positive
from jaxcomp.numerics.precision import in_float64

# Beside 1, nothing is left of half a unit in the last place of float64.
_ROUNDING = 2.0**-53
# The widest bracket of a float64 logarithm is halved to rounding.
_NUM_BISECTIONS = 80
_MAX_LOG = 707.0


def l2_rate_nats(
    hessian_eigenvalues: Float[Any, "D"], prior_precision: Float[Any, "..."] | float
) -> Float[Array, "..."]:
    """Return `1/2 sum log(1 + h / precision)`, the rate of an L2 penalty.

    For a network, pass the diagonal of its Hessian (or Fisher matrix) times the number of
    examples: the diagonal form, which ignores the coupling of weights and is an upper bound of the
    full one (Hadamard's inequality).

    Args:
        hessian_eigenvalues: h >= 0 of the total negative log-likelihood, any shape; all are
            summed. Apply a policy to negative estimates of curvature first.
        prior_precision: positive, any shape; traced.

    Returns:
        Nats, shaped like `prior_precision`; right for every ratio, however large.

    Raises:
        ValueError: if a known eigenvalue is negative or not finite, or a precision not positive
            and finite.
    """
    check_curvature("hessian_eigenvalues", hessian_eigenvalues)
    check_positive("prior_precision", prior_precision)
    return _rate(hessian_eigenvalues, prior_precision)


@in_float64()
def _rate(eigenvalues: Array, precision: Array) -> Array:
    h, p = eigenvalues.reshape(1, -1), precision.reshape(-1, 1)
    # There log(1 + h / p) = log(h / p), and the ratio may be out of range.
    is_large = h * _ROUNDING > p
    large = jnp.log(jnp.where(is_large, h, 1.0)) - jnp.log(p)
    terms = jnp.where(is_large, large, jnp.log1p(jnp.where(is_large, 0.0, h) / p))
    return 0.5 * jnp.sum(terms, axis=1).reshape(precision.shape)


def prior_precision_from_rate(
    hessian_eigenvalues: Float[Any, "D"], rate_nats: Float[Any, "..."] | float
) -> Float[Array, "..."] | Float[np.ndarray, "..."]:
    """Return the prior precision at which the L2 rate is `rate_nats`, the inverse map.

    The rate falls strictly from infinity to 0, so there is one solution; bisection of its
    logarithm finds it to rounding. It has the derivatives of the implicit function.

    Args:
        hessian_eigenvalues: h >= 0 as in `l2_rate_nats`, not all zero.
        rate_nats: positive, any shape; traced.

    Returns:
        The precision, shaped like `rate_nats`. Divide by the number of examples for the weight
        decay of a mean loss. One that is beyond the range of JAX's default dtype comes back as a
        NumPy array of float64 if the arguments are known, else as the end of the range.

    Raises:
        ValueError: if all eigenvalues are zero, one is negative, a rate is not positive and
            finite, or a known precision is beyond the range of float64.
    """
    check_curvature("hessian_eigenvalues", hessian_eigenvalues)
    check_positive("rate_nats", rate_nats)
    if isinstance(hessian_eigenvalues, Tracer):
        return _inverse_rate(hessian_eigenvalues, rate_nats)[0]
    if not np.any(np.asarray(hessian_eigenvalues) > 0):
        raise ValueError("hessian_eigenvalues must not all be 0: then every rate is 0.")
    if isinstance(rate_nats, Tracer):
        return _inverse_rate(hessian_eigenvalues, rate_nats)[0]
    dtype = jnp.result_type(float)
    with jax.enable_x64(True):
        found = _inverse_rate(hessian_eigenvalues, rate_nats)
    precision, log_precision = (np.asarray(part) for part in found)
    if not np.all(np.abs(log_precision) < _MAX_LOG):
        rate = np.asarray(rate_nats, np.float64).flat[np.argmax(np.abs(log_precision))]
        raise ValueError(
            f"rate_nats must belong to a precision between 1e-307 and 1e307, got {rate:g}, whose "
            "precision is beyond that."
        )
    info = jnp.finfo(dtype)
    fits = np.all((precision >= info.tiny) & (precision <= info.max))
    return jnp.asarray(precision, dtype) if fits else precision


@in_float64()
def _inverse_rate(eigenvalues: Array, rate: Array) -> tuple[Array, Array]:
    """Return the precision and its logarithm, which is never out of range."""
    h, target = eigenvalues.reshape(1, -1), rate.reshape(-1, 1)

    def rate_at(h: Array, log_precision: Array) -> Array:
        is_positive = h > 0
        log_ratio = jnp.log(jnp.where(is_positive, h, 1.0)) - log_precision
        # The second form has the derivative of the first where h is 0.
        at_zero = jnp.where(is_positive, 0.0, h) * jnp.exp(jnp.clip(-log_precision, -700, 700))
        terms = jnp.where(is_positive, jax.nn.softplus(log_ratio), at_zero)
        return 0.5 * jnp.sum(terms, axis=1, keepdims=True)

    # Brackets: every term is at most h / (2 precision), and the largest alone is below the rate.
    log_h = jnp.where(h > 0, jnp.log(jnp.where(h > 0, h, 1.0)), -jnp.inf)
    log_h, known_h, known = jax.lax.stop_gradient((log_h, h, target))
    high = logsumexp(log_h) - jnp.log(2 * known)
    # log(exp(2 R) - 1) without overflow
    low = jnp.max(log_h) - (2 * known + jnp.log(-jnp.expm1(-2 * known)))

    def bisect(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        is_above = rate_at(known_h, middle) > known
        return jnp.where(is_above, middle, low), jnp.where(is_above, high, middle)

    low, high = jax.lax.fori_loop(0, _NUM_BISECTIONS, bisect, (low, jnp.maximum(low, high)))
    middle = 0.5 * (low + high)
    # A step of Newton's method, which carries the derivatives in eigenvalues and rate.
    slope = -0.5 * jnp.sum(jax.nn.sigmoid(log_h - middle), axis=1, keepdims=True)
    log_precision = (middle - (rate_at(h, middle) - target) / slope).reshape(rate.shape)
    return jnp.exp(log_precision), log_precision


def prior_precision_from_weight_decay(
    weight_decay: Float[Any, "..."] | float, num_examples: float
) -> Float[Array, "..."]:
    """Return `n weight_decay`: the prior precision of a penalty on a mean loss.

    Args:
        weight_decay: positive; the penalty is `weight_decay / 2 |w|^2`, as in plain SGD.
        num_examples: n, over which the loss is a mean.

    Returns:
        The precision `1 / scale^2` of the Gaussian prior.

    Raises:
        ValueError: if one of the two is not positive.
    """
    check_positive("weight_decay", weight_decay)
    check_positive("num_examples", num_examples)
    return _total_penalty(weight_decay, num_examples)


@in_float64("power")
def _total_penalty(penalty: Array, num_examples: Array, *, power: float = 1.0) -> Array:
    # Rounded to float32 only once: the square of a scale may be out of its range.
    return (penalty * num_examples) ** power


def gaussian_from_weight_decay(weight_decay: float, num_examples: float) -> Gaussian:
    """Return the Gaussian prior that an L2 penalty implies: `scale^2 = 1 / (n weight_decay)`."""
    check_positive("weight_decay", weight_decay)
    check_positive("num_examples", num_examples)
    return Gaussian(_total_penalty(weight_decay, num_examples, power=-0.5))


def laplace_from_l1(l1_penalty: float, num_examples: float) -> Laplace:
    """Return the Laplace prior of a penalty `l1_penalty |w|` on a mean loss: `1 / (n l1)`."""
    check_positive("l1_penalty", l1_penalty)
    check_positive("num_examples", num_examples)
    return Laplace(_total_penalty(l1_penalty, num_examples, power=-1.0))
