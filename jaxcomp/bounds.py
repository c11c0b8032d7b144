"""Information-theoretic bounds on the generalization gap.

Sources: Xu and Raginsky, "Information-theoretic analysis of generalization capability of learning
algorithms", NeurIPS 2017, arXiv:1705.07809, theorem 1; Bu, Gao, Zou and Veeravalli,
doi:10.3390/e23101255, for its use with a compression rate.
"""

import math
from numbers import Real

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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
    for name, value in (
        ("num_examples", num_examples),
        ("sub_gaussian_scale", sub_gaussian_scale),
    ):
        # Tracers are passed on: inside jit values cannot be looked at.
        if isinstance(value, Real) and not (float(value) > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be a positive finite number, got {value}.")
    return _bound(jnp.asarray(rate_nats, float), num_examples, sub_gaussian_scale)


@jax.jit
def _bound(rate: Array, num_examples: Array, scale: Array) -> Array:
    num_examples = jnp.asarray(num_examples, rate.dtype)
    scale = jnp.asarray(scale, rate.dtype)
    return scale * jnp.sqrt(2 * rate / num_examples)
