"""The grid of a step: which multiple of it a weight is rounded to.

One rule for everything that rounds weights to multiples of a step, in JAX and on the host:

- The step is rounded to float32, unless the weights are float64: so a number in a program, a traced
  number and the one in a stream are the same step.
- The index k is the whole number nearest to weight / step, ties to the even one; the quotient is
  formed in float64. For weights up to float32 and |k| <= 2^23 that is the nearest multiple without
  exception: a quotient of two 24-bit numbers is a tie or more than 2^-48 of itself away from one.
- The rounded weight is `k step`, formed in float64 and rounded to float32, then to the weights'
  dtype.

Two ends: k is at most the largest whose multiple the dtype can hold, and a step so fine that k
exceeds 2^52 leaves the weight as it is, since even float64 has no finer numbers there.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxcomp.numerics.precision import narrow, widen

_MAX_WHOLE = 2.0**52


def leaf_dtype(leaf: Any) -> np.dtype:
    """Return the dtype of an array or its shape; JAX's default one for a Python number."""
    return np.dtype(leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf))


def grid_step(step: Float[Any, "..."], *, dtype: Any) -> Float[Any, "..."]:
    """Return the step as weights of a dtype use it, float64.

    Args:
        step: positive; float64, of NumPy or of JAX.
        dtype: of the weights.

    Returns:
        The nearest float32, for weights that are not float64; a step that float32 takes for 0 or
        infinity stays as it is.
    """
    if dtype == np.float64:
        return step
    if isinstance(step, jnp.ndarray):
        rounded = widen(narrow(step, jnp.float32))
        return jnp.where((rounded > 0) & jnp.isfinite(rounded), rounded, step)
    with np.errstate(over="ignore"):
        rounded = np.asarray(step, np.float32).astype(np.float64)
    return np.where((rounded > 0) & np.isfinite(rounded), rounded, step)


def nearest_index(values: Float[Any, "..."], step: Any, *, dtype: Any) -> Float[Any, "..."]:
    """Return the index of the nearest multiple of the step, a whole number in float64.

    Args:
        values: float64, of NumPy or of JAX.
        step: from `grid_step`; one number, or shaped like the values.
        dtype: of the weights, whose range limits the index.

    Returns:
        Indices, never a negative zero; NaN for NaN.
    """
    xp = np if isinstance(values, np.ndarray) else jnp
    largest = float(jnp.finfo(dtype).max)
    with np.errstate(over="ignore"):
        # XLA turns the division by one number into a product with its reciprocal, whose rounding
        # is another one. It does not do so where the divisor differs from weight to weight.
        index = xp.rint(values / xp.where(xp.isnan(values), 1.0, step))
        limit = xp.floor(largest / xp.asarray(step))
    index = xp.clip(index, -limit, limit)
    return xp.where(index == 0, 0.0, index)


def nearest_multiple(values: Float[Any, "..."], step: Any, *, dtype: Any) -> Float[Any, "..."]:
    """Return the nearest multiple of the step, float64; arguments as for `nearest_index`."""
    xp = np if isinstance(values, np.ndarray) else jnp
    index = nearest_index(values, step, dtype=dtype)
    is_on_grid = xp.abs(index) < _MAX_WHOLE
    return xp.where(is_on_grid, xp.where(is_on_grid, index, 0.0) * step, values)
