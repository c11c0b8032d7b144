"""64-bit arithmetic inside a kernel, whatever the default is.

A certificate of 1e-6 nats, or a tail of 2^-50000, is beyond float32. The functions that need more
compute in float64 and return JAX's default floating dtype: float32, or float64 under
`jax_enable_x64`. They can be traced, mapped and differentiated like any other. Inputs that are
float64 on the host (Python numbers, NumPy arrays) enter unrounded, and so do float32 numbers below
1e-38, which XLA's own conversion takes for 0.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int

_Result = TypeVar("_Result")

# Below the smallest normal float32, numbers are multiples of 2^-149, and their bits count them.
_LEAST_NORMAL = 2.0**-126
_SPACING = 2.0**-149
_SIGN_BIT = np.int32(-(1 << 31))


def in_float64(
    *static_argnames: str,
) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """Decorate a kernel of arrays: jitted, float64 inside, the default dtype outside.

    Args:
        static_argnames: keyword arguments that are passed on as they are, and compiled for.

    Returns:
        A decorator. All other arguments of the kernel, arrays or pytrees of them, become float64,
        integers too; of its result the float64 leaves are rounded to the default dtype.
    """

    def decorate(kernel: Callable[..., _Result]) -> Callable[..., _Result]:
        # Conversions are part of the program, so that no second copy of a large array is written.
        def converted(args: Any, kwargs: Any, *, static: Any, dtype: Any) -> _Result:
            args, kwargs = jax.tree.map(widen, (args, kwargs))
            return jax.tree.map(
                lambda leaf: narrow(leaf, dtype) if leaf.dtype == jnp.float64 else leaf,
                kernel(*args, **kwargs, **dict(static)),
            )

        converted.__name__ = kernel.__name__
        compiled = jax.jit(converted, static_argnames=("static", "dtype"))

        @wraps(kernel)
        def wrapped(*args: Any, **kwargs: Any) -> _Result:
            default = jnp.result_type(float)
            static = tuple((name, kwargs.pop(name)) for name in static_argnames if name in kwargs)
            args = tuple(_as_arrays(value) for value in args)
            kwargs = {name: _as_arrays(value) for name, value in kwargs.items()}
            with jax.enable_x64(True):
                return compiled(args, kwargs, static=static, dtype=default)

        return wrapped

    return decorate


def _as_arrays(tree: Any) -> Any:
    """Return arrays as they are, and numbers and lists of them as float64 of NumPy."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Tracer):
            # Behind a traced Python number there may be one that is float64 once 64 bits are on.
            return lax.convert_element_type(leaf, leaf.dtype)
        if isinstance(leaf, jax.Array | np.ndarray):
            return leaf
        if any(isinstance(part, Tracer) for part in jax.tree.leaves(leaf)):
            return jnp.asarray(leaf)
        return np.asarray(leaf, np.float64)

    return jax.tree.map(convert, tree, is_leaf=lambda node: type(node) in (list, tuple))


def result_dtype(*leaves: Any) -> np.dtype:
    """Return the dtype of results for such arrays or numbers: theirs in JAX, float32 at least."""
    return np.dtype(jnp.promote_types(jnp.result_type(*leaves), jnp.float32))


def widen(values: Array) -> Float[Array, "..."]:
    """Return values in float64, exactly; to be called where 64-bit types are on.

    XLA reads a float32 or bfloat16 below 1e-38 as 0, so such a number is put together from its
    bits. Derivatives are those of the identity, but 0 for such a number.
    """
    wide = values.astype(jnp.float64)
    if values.dtype not in (jnp.float32, jnp.bfloat16):
        return wide
    # A bfloat16 is the upper half of a float32.
    bits = lax.bitcast_convert_type(values, jnp.int32 if values.dtype == jnp.float32 else jnp.int16)
    if values.dtype == jnp.bfloat16:
        bits = bits.astype(jnp.int32) << 16
    distance = bits & ~_SIGN_BIT
    small = distance.astype(jnp.float64) * _SPACING
    is_small = (distance < 1 << 23) & (distance > 0)
    return jnp.where(is_small, jnp.where(bits < 0, -small, small), wide)


def narrow(values: Float[Array, "..."], dtype: Any) -> Float[Array, "..."]:
    """Round float64 to a dtype by way of float32, ties to even, as NumPy does on the host.

    The inverse of `widen`: numbers below 1e-38 stay what they are, to the spacing of float32.
    """
    if dtype == jnp.float64:
        return values
    distance = jnp.abs(values)
    is_small = (distance < _LEAST_NORMAL) & (distance > 0)
    # Without the explicit rounding, XLA may leave out the step by way of float32.
    rounded = lax.reduce_precision(values, 8, 23).astype(jnp.float32)
    bits = jnp.rint(jnp.where(is_small, distance, 0) / _SPACING).astype(jnp.int32)
    if dtype == jnp.bfloat16:
        # To the upper half of the bits.
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & ~np.int32(0xFFFF)
    elif dtype != jnp.float32:
        return rounded.astype(dtype)
    bits = jnp.where(values < 0, bits | _SIGN_BIT, bits)
    if dtype == jnp.bfloat16:
        halves = (bits >> 16).astype(jnp.int16)
        return jnp.where(is_small, lax.bitcast_convert_type(halves, dtype), rounded.astype(dtype))
    return jnp.where(is_small, lax.bitcast_convert_type(bits, dtype), rounded)


def first_least(values: Float[Array, "..."], *, axis: int) -> Int[Array, "..."]:
    """Return where the least value is along one axis, the first of equal ones; int32.

    Not an argmin, which JAX can't lower in float64 inside a float32 program. NaN is least nowhere.
    """
    shape = [1] * values.ndim
    shape[axis] = -1
    index = jnp.arange(values.shape[axis], dtype=jnp.int32).reshape(shape)
    is_least = values == jnp.min(values, axis=axis, keepdims=True)
    return jnp.min(jnp.where(is_least, index, values.shape[axis] - 1), axis=axis)
