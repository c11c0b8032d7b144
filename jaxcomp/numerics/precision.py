"""64-bit arithmetic inside a kernel, whatever the default is.

A certificate of 1e-6 nats, or a tail of 2^-50000, is beyond float32. The functions that need more
compute in float64 and return JAX's default floating dtype: float32, or float64 under
`jax_enable_x64`. They can be traced, mapped and differentiated like any other; only second
derivatives in reverse mode need `jax_enable_x64`. Inputs that are float64 on the host (Python
numbers, NumPy arrays) enter unrounded, and so do float32 numbers below 1e-38, which XLA's own
conversion takes for 0.

Where the hardware has no float64 (TPUs), calls with known numbers are computed on the host's CPU,
so that bounds are worth what they say; inside a program of the caller's XLA emulates float64.
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

from jaxcomp.numerics.host import default_device
from jaxcomp.numerics.transformations import always_compiled

_Result = TypeVar("_Result")

# What a few operations in float64 may lose, relative to the largest of their numbers; log-gamma
# functions are that exact as well.
ROUNDING = 2e-15
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

        @always_compiled
        @wraps(kernel)
        def wrapped(*args: Any, **kwargs: Any) -> _Result:
            static = tuple((name, kwargs.pop(name)) for name in static_argnames if name in kwargs)
            default = jnp.result_type(float)

            def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Result:
                args = tuple(_as_arrays(value) for value in args)
                kwargs = {name: _as_arrays(value) for name, value in kwargs.items()}
                with jax.enable_x64(True):
                    return compiled(args, kwargs, static=static, dtype=default)

            if lacks_float64() and can_be_on_host((args, kwargs)):
                return computed_on_host(call, args, kwargs)
            return _call_differentiably(call, args, kwargs)

        return wrapped

    return decorate


def lacks_float64() -> bool:
    """Tell whether what is traced now is for hardware without float64: TPUs.

    XLA emulates it there by pairs of float32, in the range of float32 and with 49 bits, and cannot
    take float64 apart into bits. GPUs have float64, on some at 1/64 of the rate of float32.
    """
    return default_device().platform == "tpu"


def can_be_on_host(arguments: Any) -> bool:
    """Tell whether arguments are known, and this process holds all of them."""
    return all(
        not isinstance(leaf, Tracer)
        and (not isinstance(leaf, jax.Array) or leaf.is_fully_addressable)
        for leaf in jax.tree.leaves(arguments)
    )


def computed_on_host(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Call a function of few known numbers on the host's CPU; results go to the default device."""
    fetched = jax.tree.map(
        lambda leaf: jax.device_get(leaf) if isinstance(leaf, jax.Array) else leaf, arguments
    )
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        results = jax.device_get(function(*fetched))
    return jax.device_put(results)


def _call_differentiably(call: Callable[..., _Result], *arguments: Any) -> _Result:
    """Call a function of pytrees that is float64 inside, so that any program can differentiate it.

    Numbers that are known have no derivative, and are not rounded on their way in.
    """
    leaves, structure = jax.tree.flatten(arguments)
    traced = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tracer)]
    if not traced:
        return call(*arguments)

    def evaluate(*values: Array) -> _Result:
        return call(*structure.unflatten(_replaced(leaves, traced, values)))

    return _differentiable(evaluate)(*(leaves[place] for place in traced))


def _differentiable(evaluate: Callable[..., _Result]) -> Callable[..., _Result]:
    """Give a function of traced numbers that is float64 inside a rule for its derivative.

    JAX differentiates `jit`, loops and checkpoints when they have been traced, and its rules would
    make their constants in the default dtype, which does not fit. By this rule the function is
    traced anew, 64-bit types on, and so is its derivative, for the next one in forward mode.
    """
    differentiable = jax.custom_jvp(evaluate)

    @partial(differentiable.defjvp, symbolic_zeros=True)
    def _(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[_Result, _Result]:
        varied = [place for place, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]

        def derivative(*values: Array) -> _Result:
            primals, directions = values[: len(tangents)], values[len(tangents) :]
            # Linearised, not by `jax.jvp`: what is not linear in the directions is computed apart
            # from what is, or programs inside would mix them and could not be transposed.
            with jax.enable_x64(True):
                push = jax.linearize(
                    lambda *along: evaluate(*_replaced(primals, varied, along)),
                    *(primals[place] for place in varied),
                )[1]
                return push(*directions)

        directions = [tangents[place] for place in varied]
        return differentiable(*primals), _differentiable(derivative)(*primals, *directions)

    return differentiable


def _replaced(values: Sequence[Any], places: Sequence[int], by: Sequence[Any]) -> list[Any]:
    """Return the values with others in some places."""
    replaced = list(values)
    for place, value in zip(places, by, strict=True):
        replaced[place] = value
    return replaced


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


def round_down(values: Float[Array, "..."], dtype: Any) -> Float[Array, "..."]:
    """Return the largest numbers of a dtype that are not above float64 values; see `round_up`."""
    return -round_up(-values, dtype)


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
