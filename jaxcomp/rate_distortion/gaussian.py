"""Rate and distortion of independent Gaussian components: reverse water-filling, both directions.

Component i has variance v_i and importance h_i >= 0; the distortion is `sum h_i E (w_i - y_i)^2`.
At water level theta a component with `a_i = v_i h_i` above theta keeps the weighted distortion
theta and costs `1/2 ln(a_i / theta)` nats; the others keep a_i and cost nothing. Both directions
are solved in closed form on the sorted a_i, without iteration.

Axes: `...` sources, `d` components, `R` rates or distortions.

Source: Cover and Thomas, Elements of Information Theory, section 10.3.3, with weights.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcomp.numerics.transformations import vectorized


def gaussian_distortion(
    variances: Float[Array, "... components"],
    importance: Float[Array, "... components"] | float,
    rate_nats: Float[Array, "... rates"] | float,
) -> Float[Array, "... rates"]:
    """Return the least weighted distortion at a total rate, D(R).

    Args:
        variances: (..., d), v_i >= 0.
        importance: h_i >= 0, broadcastable to `variances`.
        rate_nats: (..., R), or a number: total rate of all components in nats, at least 0, of any
            shape if there is one source. NaN where negative.

    Returns:
        (..., R), total `sum h_i D_i`: `sum h_i v_i` at rate 0, 0 at rate infinity. Its derivative
        in the rate is -2 theta.

    Raises:
        ValueError: if `variances` has no axis, or the shapes do not fit.
    """
    variances, importance, rate_nats = _checked(variances, importance, rate_nats, "rate_nats")
    return _distortion(variances, importance, rate_nats)


def gaussian_rate(
    variances: Float[Array, "... components"],
    importance: Float[Array, "... components"] | float,
    distortion: Float[Array, "... rates"] | float,
) -> Float[Array, "... rates"]:
    """Return the least total rate at a weighted distortion, R(D).

    Args:
        variances: (..., d), v_i >= 0.
        importance: h_i >= 0, broadcastable to `variances`.
        distortion: (..., R), or a number: total `sum h_i D_i`, at least 0. NaN where negative.

    Returns:
        (..., R), nats of all components together: 0 from `sum h_i v_i` on, infinity at 0 (unless
        no component has any weight).

    Raises:
        ValueError: if `variances` has no axis, or the shapes do not fit.
    """
    variances, importance, distortion = _checked(variances, importance, distortion, "distortion")
    return _rate(variances, importance, distortion)


def _checked(variances, importance, values, name):
    shapes = jnp.shape(variances), jnp.shape(importance), jnp.shape(values)
    if not shapes[0]:
        raise ValueError("variances must have an axis of components, got a number.")
    try:
        if jnp.broadcast_shapes(shapes[0], shapes[1]) != shapes[0]:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"importance must have the shape of variances, {shapes[0]}, or broadcast to it, "
            f"got {shapes[1]}."
        ) from None
    try:
        jnp.broadcast_shapes(shapes[0][:-1], shapes[2][:-1])
    except ValueError:
        raise ValueError(
            f"{name} must have leading axes like those of variances, {shapes[0][:-1]}, before its "
            f"last one, got shape {shapes[2]}."
        ) from None
    # To the default dtype: numbers and integers too.
    return tuple(jnp.asarray(value, float) for value in (variances, importance, values))


@jax.jit
def _distortion(variances, importance, rate):
    return _over_last_axis(_distortion_of_source, variances * _like(importance, variances), rate)


@jax.jit
def _rate(variances, importance, distortion):
    return _over_last_axis(_rate_of_source, variances * _like(importance, variances), distortion)


def _like(importance: Array, variances: Array) -> Array:
    return jnp.broadcast_to(importance, variances.shape)


def _over_last_axis(solve, spread: Array, values: Array) -> Array:
    if values.ndim == 0:
        return vectorized(solve, signature="(d),(r)->(r)")(spread, values[None])[..., 0]
    return vectorized(solve, signature="(d),(r)->(r)")(spread, values)


def _sorted_sums(spread: Array) -> tuple[Array, Array, Array, Array]:
    """Return a_1 >= a_2 ..., their logarithms (0 where a = 0), and sums for k = 1..d.

    The sums: of the first k logarithms, and of all a beyond the first k.
    """
    ordered = jnp.flip(jnp.sort(spread))
    logs = jnp.log(jnp.where(ordered > 0, ordered, 1))
    tails = jnp.flip(jnp.cumsum(jnp.flip(ordered)))
    return ordered, logs, jnp.cumsum(logs), jnp.append(tails[1:], 0)


def _distortion_of_source(spread: Array, rate: Array) -> Array:
    ordered, logs, log_sums, tails = _sorted_sums(spread)
    number = jnp.arange(1, spread.shape[0] + 1, dtype=spread.dtype)
    # Rate at which component k + 1 begins to be coded; those without spread never are.
    begins = 0.5 * (log_sums[:-1] - number[:-1] * logs[1:])
    begins = jnp.where(ordered[1:] > 0, begins, jnp.inf)
    last = jnp.searchsorted(begins, rate, side="right")
    level = jnp.exp((log_sums[last] - 2 * rate) / number[last])
    # Without any spread the level is meaningless and the distortion 0.
    found = jnp.where(ordered[0] > 0, number[last] * level + tails[last], 0)
    return jnp.where(rate >= 0, found, jnp.nan)


def _rate_of_source(spread: Array, distortion: Array) -> Array:
    ordered, _, log_sums, tails = _sorted_sums(spread)
    number = jnp.arange(1, spread.shape[0] + 1, dtype=spread.dtype)
    # Distortion at which component k + 1 begins to be coded, decreasing in k.
    begins = number[:-1] * ordered[1:] + tails[:-1]
    last = jnp.searchsorted(-begins, -distortion, side="left")
    # Components without spread are last and have logarithm 0: none of them may be counted.
    last = jnp.minimum(last, jnp.maximum(jnp.sum(ordered > 0) - 1, 0))
    level = (distortion - tails[last]) / number[last]
    is_coded = (distortion < jnp.sum(ordered)) & (level > 0)
    rate = 0.5 * (log_sums[last] - number[last] * jnp.log(jnp.where(is_coded, level, 1)))
    # At zero distortion and beyond rounding below it there is no finite rate.
    rate = jnp.where(is_coded, jnp.maximum(rate, 0), jnp.inf)
    rate = jnp.where(distortion >= jnp.sum(ordered), 0, rate)
    return jnp.where(distortion >= 0, rate, jnp.nan)
