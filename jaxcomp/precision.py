"""64-bit arithmetic inside a kernel, whatever the default is.

A certificate of 1e-6 nats, or a tail of 2^-50000, is beyond float32. The functions that need more
compute in float64 and return JAX's default floating dtype: float32, or float64 under
`jax_enable_x64`. They can be traced, mapped and differentiated like any other. Inputs that are
float64 on the host (Python numbers, NumPy arrays) enter unrounded.
"""

from collections.abc import Callable
from functools import partial, wraps
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


def bound_in_float64(
    *static_argnames: str,
) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """Decorate a kernel of bounds: like `in_float64`, but no result is rounded down.

    What is at least the truth in float64 still is in the default dtype, which a certificate has to
    be. Infinity, where the dtype does not reach so far.

    Args:
        static_argnames: see `in_float64`.
    """

    def decorate(kernel: Callable[..., _Result]) -> Callable[..., _Result]:
        def rounded(*args: Any, dtype: Any, **kwargs: Any) -> _Result:
            return jax.tree.map(lambda leaf: round_up(leaf, dtype), kernel(*args, **kwargs))

        rounded.__name__ = kernel.__name__
        bounds = in_float64(*static_argnames, "dtype")(rounded)

        @wraps(kernel)
        def wrapped(*args: Any, **kwargs: Any) -> _Result:
            return bounds(*args, dtype=jnp.result_type(float), **kwargs)

        return wrapped

    return decorate


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def round_up(values: Float[Array, "..."], dtype: Any) -> Float[Array, "..."]:
    """Return the least numbers of a dtype that are not below float64 values, still in float64.

    Subnormal numbers, which backends take for 0, are not used. The derivative is that of the
    values themselves.
    """
    if dtype == values.dtype:
        return values
    # Found in float64, where all of the dtype's numbers are: cast to it, they stay as they are.
    rounded = values.astype(dtype)
    above = jnp.nextafter(rounded, jnp.full((), jnp.inf, dtype))
    rounded, above = rounded.astype(values.dtype), above.astype(values.dtype)
    raised = jnp.where(rounded < values, above, rounded)
    tiny = float(jnp.finfo(dtype).tiny)
    return jnp.where((values > 0) & (values < tiny), tiny, raised)


@round_up.defjvp
def _round_up_jvp(dtype: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
    return round_up(primals[0], dtype), tangents[0]


def first_least(values: Float[Array, "..."], *, axis: int) -> Int[Array, "..."]:
    """Return where the least value is along one axis, the first of equal ones; int32.

    Not an argmin, which JAX can't lower in float64 inside a float32 program. NaN is least nowhere.
    """
    shape = [1] * values.ndim
    shape[axis] = -1
    index = jnp.arange(values.shape[axis], dtype=jnp.int32).reshape(shape)
    is_least = values == jnp.min(values, axis=axis, keepdims=True)
    return jnp.min(jnp.where(is_least, index, values.shape[axis] - 1), axis=axis)
