"""What a Gaussian posterior costs against a Gaussian prior whose scale is chosen afterwards."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxcomp.bounds.relative_entropy import bisect
from jaxcomp.numerics.checks import check_positive, is_concrete
from jaxcomp.numerics.precision import ROUNDING, in_float64, round_up


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
    check_positive("largest_scale", largest_scale)
    check_positive("scales_per_e_fold", scales_per_e_fold)
    if prior_scale is not None:
        check_positive("prior_scale", prior_scale)
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
    check_positive("standard_deviation", standard_deviation)
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
    choice = (2 * jnp.log(j) + math.log(math.pi**2 / 6)) * (1 + ROUNDING)
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
    return jnp.sum(parts + ROUNDING * lost, axis=-1) * (1 + 1e-14)


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
    turning = bisect(lambda j: log_ratio(j) < 0, low, high)
    root = bisect(lambda j: slope(j) < 0, turning, high)
    around = jnp.floor(root)[..., None] + jnp.arange(-1.0, 3.0)
    j = jnp.concatenate([jnp.ones_like(root)[..., None], jnp.maximum(around, 1)], axis=-1)
    x = (j - best[..., None]) / fineness
    total = number * (0.5 * jnp.exp(2 * x) - x) + 2 * jnp.log(j)
    return jnp.min(jnp.where(total == jnp.min(total, axis=-1, keepdims=True), j, jnp.inf), axis=-1)
