"""Temperature scaling: the one scalar that makes over-confident logits honest.

Axes: `n` examples, `c` classes, any number of leading axes (models, variants), each with a
temperature of its own. Losses are in nats.

Source: Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017,
arXiv:1706.04599, section 4.2.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcomp.evaluation.metrics import margins

MIN_TEMPERATURE = 1 / 64
"""Smallest temperature returned: where the sample is separated without error."""
MAX_TEMPERATURE = 64.0
"""Largest temperature returned: where the logits carry no information."""

_MAX_ITERATIONS = 40


class _State(NamedTuple):
    iteration: Int[Array, ""]
    beta: Float[Array, "*leading"]
    low: Float[Array, "*leading"]
    high: Float[Array, "*leading"]
    last_slope: Float[Array, "*leading"]
    done: Bool[Array, "*leading"]


@jax.jit
def fit_temperature(
    logits: Float[Array, "*leading n c"], labels: Int[Array, "*#leading n"]
) -> Float[Array, "*leading"]:
    """Return the T that minimises the mean cross-entropy of `logits / T`.

    The loss is convex in `b = 1/T` with slope `E_n[E_p z - z_label]` and curvature
    `E_n[Var_p z]`, p = softmax(b z). Newton's method in b, kept inside a bracket whose geometric
    middle it takes when a step leaves it or does not halve the slope; usually 5 to 8 passes over
    the logits, never more than 40. A fit that has converged no longer moves, so that its result
    does not depend on what else is in the batch. The derivative is that of the implicit function,
    `-dslope / (curvature b^2)`; 0 where T is at a bound.

    Args:
        logits: floating, `(..., n, c)`, n >= 1, of a sample that is *not* reported on. Classes at
            -infinity are ruled out, and have no part in the fit.
        labels: integers that broadcast to `(..., n)`.

    Returns:
        T, one per leading axis, to about the square root of the dtype's rounding unit, in
        [1/64, 64]. The bounds are reached where the optimum lies beyond: 1/64 when every
        example is classified without error (the loss falls for ever as T falls), 64 when higher
        logits are no likelier to be right, or the label's own is -infinity. Logits equal within
        each example leave T open: 1. NaN if an example has no distribution (a logit is NaN or
        +infinity, or all are -infinity) or a label is out of range.

    Raises:
        TypeError: while tracing, if logits are not floating or labels not integers.
        ValueError: while tracing, if the shapes do not fit.

    Source: Guo et al. (2017), section 4.2, equation 9.
    """
    # Classes in front of examples: reductions over ten neighbouring numbers do not vectorise.
    gaps = jnp.swapaxes(margins(logits, labels), -1, -2)
    return _temperature(gaps)


@jax.custom_jvp
def _temperature(gaps: Float[Array, "*leading c n"]) -> Float[Array, "*leading"]:
    smallest = jnp.full(gaps.shape[:-2], 1 / MAX_TEMPERATURE, gaps.dtype)
    largest = jnp.full(gaps.shape[:-2], 1 / MIN_TEMPERATURE, gaps.dtype)
    # In turn, so that the slope is compiled once for both.
    slope_at_smallest, slope_at_largest = jax.lax.map(
        lambda beta: _slope_and_curvature(gaps, beta)[0], jnp.stack([smallest, largest])
    )
    # A slope of exactly 0 at the far end means that every probability there is 0 or 1 and right.
    rises, falls = slope_at_smallest >= 0, slope_at_largest <= 0
    has_no_information = jnp.all((gaps == 0) | jnp.isneginf(gaps), axis=(-1, -2))
    is_invalid = jnp.isnan(slope_at_smallest) | jnp.isnan(slope_at_largest)

    tolerance = jnp.sqrt(jnp.finfo(gaps.dtype).eps)

    def step(state: _State) -> _State:
        slope, curvature = _slope_and_curvature(gaps, state.beta)
        low = jnp.where(slope <= 0, state.beta, state.low)
        high = jnp.where(slope >= 0, state.beta, state.high)
        newton = state.beta - slope / jnp.where(curvature > 0, curvature, 1)
        is_newton = (
            (curvature > 0)
            & (newton > low)
            & (newton < high)
            & (2 * jnp.abs(slope) <= state.last_slope)
        )
        beta = jnp.where(is_newton, newton, jnp.sqrt(low * high))
        # Newton's error after a step of relative size t is about t^2.
        has_landed = is_newton & (jnp.abs(newton - state.beta) <= tolerance * state.beta)
        done = state.done | has_landed | (high <= low * (1 + tolerance)) | (slope == 0)
        beta = jnp.where(slope == 0, state.beta, beta)
        # After a bisection the next slope is judged afresh.
        last_slope = jnp.where(is_newton, jnp.abs(slope), jnp.inf)
        kept = _State(state.iteration, state.beta, state.low, state.high, state.last_slope, done)
        moved = _State(state.iteration, beta, low, high, last_slope, done)
        new = jax.tree.map(
            lambda old, fresh: jnp.where(state.done, old, fresh), kept[1:], moved[1:]
        )
        return _State(state.iteration + 1, *new)

    final = jax.lax.while_loop(
        lambda state: (state.iteration < _MAX_ITERATIONS) & ~jnp.all(state.done),
        step,
        _State(
            iteration=jnp.asarray(0),
            beta=jnp.ones_like(smallest),
            low=smallest,
            high=largest,
            last_slope=jnp.full_like(smallest, jnp.inf),
            done=rises | falls | is_invalid,
        ),
    )
    temperature = jnp.clip(1 / final.beta, MIN_TEMPERATURE, MAX_TEMPERATURE)
    temperature = jnp.where(rises, MAX_TEMPERATURE, temperature)
    temperature = jnp.where(falls, MIN_TEMPERATURE, temperature)
    temperature = jnp.where(has_no_information, 1, temperature)
    return jnp.where(is_invalid, jnp.nan, temperature)


@_temperature.defjvp
def _temperature_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (gaps,), (gaps_dot,) = primals, tangents
    temperature = _temperature(gaps)
    beta = 1 / temperature
    (_, curvature), (slope_dot, _) = jax.jvp(
        lambda gaps: _slope_and_curvature(gaps, beta), (gaps,), (gaps_dot,)
    )
    is_inside = (temperature > MIN_TEMPERATURE) & (temperature < MAX_TEMPERATURE) & (curvature > 0)
    curvature = jnp.where(is_inside, curvature, 1)
    return temperature, jnp.where(is_inside, jnp.square(temperature) / curvature, 0) * slope_dot


def _slope_and_curvature(gaps: Array, beta: Array) -> tuple[Array, Array]:
    """Differentiate the mean loss twice by beta; gaps `(..., c, n)` are the margins."""
    # From the largest margin of each example, so that nothing overflows; the label's is 0.
    largest = jnp.max(gaps, axis=-2, keepdims=True)
    is_infinite = jnp.isposinf(largest)
    below = jnp.where(is_infinite | jnp.isneginf(gaps), -jnp.inf, gaps - largest)
    weights = jnp.exp(below * beta[..., None, None])
    total = jnp.maximum(jnp.sum(weights, axis=-2), 1)
    # Classes of weight 0 may be infinitely far below.
    below = jnp.where(weights > 0, below, 0)
    offset = jnp.sum(weights * below, axis=-2) / total
    second = jnp.sum(weights * jnp.square(below), axis=-2) / total
    variance = jnp.maximum(second - jnp.square(offset), 0)
    return jnp.mean(offset + largest[..., 0, :], axis=-1), jnp.mean(variance, axis=-1)
