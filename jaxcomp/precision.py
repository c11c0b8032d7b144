"""64-bit arithmetic inside a kernel, whatever the default is.

A certificate of 1e-6 nats, or a tail of 2^-50000, is beyond float32. The functions that need more
compute in float64 and return JAX's default floating dtype: float32, or float64 under
`jax_enable_x64`. They can be traced, mapped and differentiated like any other. Inputs that are
float64 on the host (Python numbers, NumPy arrays) enter unrounded.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_Result = TypeVar("_Result")


def in_float64(
    *static_argnames: str,
) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """Decorate a kernel of arrays: jitted, float64 inside, the default dtype outside.

    Args:
        static_argnames: keyword arguments that are passed on as they are, and compiled for.

    Returns:
        A decorator. All other arguments of the kernel become float64 arrays, integers too; of its
        result the floating leaves are rounded to the default dtype.
    """

    def decorate(kernel: Callable[..., _Result]) -> Callable[..., _Result]:
        compiled = jax.jit(kernel, static_argnames=static_argnames)

        @wraps(kernel)
        def wrapped(*args: Any, **kwargs: Any) -> _Result:
            default = jnp.result_type(float)
            with jax.enable_x64(True):
                args = tuple(jnp.asarray(value, jnp.float64) for value in args)
                kwargs = {
                    name: value if name in static_argnames else jnp.asarray(value, jnp.float64)
                    for name, value in kwargs.items()
                }
                return jax.tree.map(
                    lambda leaf: leaf.astype(default) if leaf.dtype == jnp.float64 else leaf,
                    compiled(*args, **kwargs),
                )

        return wrapped

    return decorate


def first_least(values: Float[Array, "..."], *, axis: int) -> Int[Array, "..."]:
    """Return where the least value is along one axis, the first of equal ones; int32.

    Not an argmin, which JAX can't lower in float64 inside a float32 program. NaN is least nowhere.
    """
    shape = [1] * values.ndim
    shape[axis] = -1
    index = jnp.arange(values.shape[axis], dtype=jnp.int32).reshape(shape)
    is_least = values == jnp.min(values, axis=axis, keepdims=True)
    return jnp.min(jnp.where(is_least, index, values.shape[axis] - 1), axis=axis)
