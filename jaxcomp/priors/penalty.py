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
from jaxtyping import Array, Float

from jaxcomp.priors.families import Gaussian, Laplace


@jax.jit
def _rate(eigenvalues: Array, precision: Array) -> Array:
    ratios = eigenvalues.reshape(1, -1) / precision.reshape(-1, 1)
    return 0.5 * jnp.sum(jnp.log1p(ratios), axis=1).reshape(precision.shape)


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
        Nats, shaped like `prior_precision`.

    Raises:
        ValueError: if a known eigenvalue is negative or not finite, or a precision not positive.
    """
    eigenvalues = _checked_eigenvalues(hessian_eigenvalues)
    _check_positive("prior_precision", prior_precision)
    return _rate(eigenvalues, jnp.asarray(prior_precision, eigenvalues.dtype))


def prior_precision_from_rate(
    hessian_eigenvalues: Float[Any, "D"], rate_nats: Float[Any, "..."] | float
) -> Float[Array, "..."]:
    """Return the prior precision at which the L2 rate is `rate_nats`, the inverse map.

    The rate falls strictly from infinity to 0, so there is one solution; bisection of its
    logarithm finds it to rounding.

    Args:
        hessian_eigenvalues: h >= 0 as in `l2_rate_nats`, not all zero.
        rate_nats: positive, any shape; traced.

    Returns:
        The precision, shaped like `rate_nats`. Divide by the number of examples for the weight
        decay of a mean loss.

    Raises:
        ValueError: if all eigenvalues are zero, one is negative, or a rate is not positive.
    """
    eigenvalues = _checked_eigenvalues(hessian_eigenvalues)
    if not isinstance(eigenvalues, Tracer) and not np.any(np.asarray(eigenvalues) > 0):
        raise ValueError("hessian_eigenvalues must not all be 0: then every rate is 0.")
    _check_positive("rate_nats", rate_nats)
    return _inverse_rate(eigenvalues, jnp.asarray(rate_nats, eigenvalues.dtype))


@jax.jit
def _inverse_rate(eigenvalues: Array, rate: Array) -> Array:
    # Brackets: every term is at most h / (2 precision), and the largest alone is below the rate.
    largest = jnp.max(eigenvalues)
    high = jnp.log(jnp.sum(eigenvalues / largest)) + jnp.log(largest) - jnp.log(2 * rate)
    # log(exp(2 R) - 1) without overflow
    low = jnp.log(largest) - (2 * rate + jnp.log(-jnp.expm1(-2 * rate)))
    low = jnp.maximum(low, jnp.log(jnp.finfo(rate.dtype).tiny))

    def bisect(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        is_too_high = _rate(eigenvalues, jnp.exp(middle)) > rate
        return jnp.where(is_too_high, middle, low), jnp.where(is_too_high, high, middle)

    low, high = jax.lax.fori_loop(0, 60, bisect, (low, jnp.maximum(low, high)))
    return jnp.exp(0.5 * (low + high))


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
    _check_positive("weight_decay", weight_decay)
    _check_positive("num_examples", num_examples)
    return jnp.asarray(weight_decay, float) * num_examples


def gaussian_from_weight_decay(weight_decay: float, num_examples: float) -> Gaussian:
    """Return the Gaussian prior that an L2 penalty implies: `scale^2 = 1 / (n weight_decay)`."""
    return Gaussian(prior_precision_from_weight_decay(weight_decay, num_examples) ** -0.5)


def laplace_from_l1(l1_penalty: float, num_examples: float) -> Laplace:
    """Return the Laplace prior of a penalty `l1_penalty |w|` on a mean loss: `1 / (n l1)`."""
    _check_positive("l1_penalty", l1_penalty)
    _check_positive("num_examples", num_examples)
    return Laplace(1 / (jnp.asarray(l1_penalty, float) * num_examples))


def _checked_eigenvalues(eigenvalues: Any) -> Array:
    if not isinstance(eigenvalues, Tracer):
        values = np.asarray(eigenvalues, np.float64)
        if not np.all((values >= 0) & np.isfinite(values)):
            raise ValueError(
                f"hessian_eigenvalues must be finite and at least 0, got {np.min(values):g}; "
                "apply a policy for negative curvature first."
            )
    eigenvalues = jnp.asarray(eigenvalues)
    if not jnp.issubdtype(eigenvalues.dtype, jnp.floating):
        eigenvalues = eigenvalues.astype(float)
    return eigenvalues


def _check_positive(name: str, value: Any) -> None:
    if not isinstance(value, Tracer) and not np.all(np.asarray(value, np.float64) > 0):
        raise ValueError(f"{name} must be positive, got {np.min(np.asarray(value)):g}.")
