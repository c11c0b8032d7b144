"""How finely should one quantize? The step of a two-part code, from curvature.

A weight quantized with a step costs `-log2 step` bits more for every halving, and its rounding
error, uniform within the cell, raises the loss by `h step^2 / 24` nats, where h is the curvature
of the *total* loss (nats, a sum over examples). The sum is least at `step = sqrt(12 / h)`, where
the loss has risen by half a nat per weight: wide minima need fewer bits.

Axes: as the weights.

Source: Wallace and Freeman, J. R. Stat. Soc. B 49 (1987), the two-part code of least length.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxcomp.coding.checks import check_curvature
from jaxcomp.numerics.precision import in_float64, narrow, result_dtype
from jaxcomp.types import Params


class StepChoice(NamedTuple):
    """Steps and what they are predicted to cost; trees shaped like the curvature."""

    step: Params
    """The best step: of each weight, or one scalar for each leaf."""
    loss_rise_nats: Params
    """Predicted rise of the total loss by rounding: of each weight, or the sum over a leaf."""


def optimal_step(
    curvature: Params,
    *,
    per_weight: bool = False,
    prior_scale: Float[Any, ""] | float | None = None,
) -> StepChoice:
    """Return the steps that minimise bits of weights plus loss, by leaf or by weight.

    Args:
        curvature: h >= 0 of the total loss, array or pytree; diagonal of a Hessian or Fisher
            matrix of the mean loss times the number of examples.
        per_weight: one step for each weight (then the receiver has to know the curvature), or one
            for each leaf, `sqrt(12 / mean h)`, which a code can carry.
        prior_scale: t. With it, steps are at most `sqrt(12) t`: a weight with `h t^2 < 1` is known
            as well from the prior alone, nothing need be sent for it, and its rise is that of
            setting it to zero, `h t^2 / 2`. Without it a weight without curvature gets an
            infinite step, and a leaf of them too.

    Returns:
        Steps and predicted rises, in the dtype of the curvature, float32 at least.

    Raises:
        ValueError: if a known curvature is negative or not finite, or `prior_scale` not positive.
    """
    for leaf in jax.tree.leaves(curvature):
        check_curvature("curvature", leaf)
    if (
        prior_scale is not None
        and not isinstance(prior_scale, Tracer)
        and not 0 < float(prior_scale) < np.inf
    ):
        raise ValueError(f"prior_scale must be positive and finite, got {prior_scale}.")
    limit = np.inf if prior_scale is None else prior_scale
    leaves, structure = jax.tree.flatten(curvature)
    chosen = [_choose(h, limit, per_weight=per_weight, result=result_dtype(h)) for h in leaves]
    return StepChoice(*(jax.tree.unflatten(structure, part) for part in zip(*chosen, strict=True)))


@in_float64("per_weight", "result")
def _choose(curvature: Array, prior_scale: Array, *, per_weight: bool, result: Any) -> StepChoice:
    h = curvature if per_weight else jnp.mean(curvature)
    step = jnp.minimum(jnp.sqrt(12 / h), 12**0.5 * prior_scale)
    # A weight without curvature costs nothing, however wide its step.
    rise = _loss_rise(curvature, step)
    rise = rise if per_weight else jnp.sum(rise)
    return StepChoice(narrow(step, result), narrow(rise, result))


def predicted_loss_rise_nats(curvature: Array, *, step: Array | float) -> Array:
    """Return `h step^2 / 24` nats, the mean rise of the loss by rounding to the step.

    Args:
        curvature: h of the total loss, any shape.
        step: broadcasts against it.

    Returns:
        Nats, shaped like both; 0 where there is no curvature.
    """
    return _predicted_rise(curvature, step, result=result_dtype(curvature))


@in_float64("result")
def _predicted_rise(curvature: Array, step: Array, *, result: Any) -> Array:
    return narrow(_loss_rise(curvature, step), result)


def _loss_rise(curvature: Array, step: Array) -> Array:
    step = jnp.broadcast_to(step, curvature.shape)
    is_curved = curvature > 0
    return jnp.where(is_curved, curvature * jnp.square(jnp.where(is_curved, step, 0)) / 24, 0)
