"""Bounds in expectation: mutual information, and the population risk at a rate.

Sources: Xu and Raginsky, "Information-theoretic analysis of generalization capability of learning
algorithms", NeurIPS 2017, arXiv:1705.07809, theorem 1; Bu, Gao, Zou and Veeravalli,
doi:10.3390/e23101255, for its use with a compression rate.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxcomp.bounds.arguments import Number
from jaxcomp.numerics.checks import check_positive
from jaxcomp.numerics.precision import ROUNDING, bound_in_float64, in_float64, round_up


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
    check_positive("num_examples", num_examples)
    check_positive("sub_gaussian_scale", sub_gaussian_scale)
    return _bound(rate_nats, num_examples, sub_gaussian_scale)


@bound_in_float64()
def _bound(rate, num_examples, scale):
    rate, num_examples, scale = jnp.broadcast_arrays(rate, num_examples, scale)
    return scale * jnp.sqrt(2 * (rate / num_examples)) * (1 + ROUNDING)


def population_risk(
    rate_nats: Number,
    *,
    num_weights: Number,
    zero_rate_distortion: Number,
    num_examples: Number,
    sub_gaussian_scale: Number,
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
    for name, value in (
        ("num_weights", num_weights),
        ("zero_rate_distortion", zero_rate_distortion),
        ("num_examples", num_examples),
        ("sub_gaussian_scale", sub_gaussian_scale),
    ):
        check_positive(name, value)
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
    bound = jnp.where(rate == 0, distortion, bound * (1 + ROUNDING))
    zero_wins = ~has_minimum | (interior >= distortion)
    return PopulationRisk(
        bound=round_up(jnp.where(rate >= 0, bound, jnp.nan), dtype),
        has_interior_minimum=has_minimum,
        best_rate_nats=jnp.where(has_minimum, num_weights / 4 * u, 0),
        interior_bound=round_up(interior * (1 + ROUNDING), dtype),
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
