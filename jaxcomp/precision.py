"""64-bit arithmetic inside a kernel, whatever the default is.

A certificate of 1e-6 nats, or a tail of 2^-50000, is beyond float32. The functions that need more
compute in float64 and return JAX's default floating dtype: float32, or float64 under
`jax_enable_x64`. They can be traced, mapped and differentiated like any other; only second
derivatives in reverse mode need `jax_enable_x64`. Inputs that are float64 on the host (Python
numbers, NumPy arrays) enter unrounded.
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

from jaxcomp.transformations import always_compiled

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

        @always_compiled
        @wraps(kernel)
        def wrapped(*args: Any, **kwargs: Any) -> _Result:
            static = {name: kwargs.pop(name) for name in static_argnames if name in kwargs}
            default = jnp.result_type(float)

            def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Result:
                with jax.enable_x64(True):
                    args, kwargs = jax.tree.map(
                        lambda value: jnp.asarray(value, jnp.float64), (args, kwargs)
                    )
                    return jax.tree.map(
                        lambda leaf: leaf.astype(default) if leaf.dtype == jnp.float64 else leaf,
                        compiled(*args, **kwargs, **static),
                    )

            return _call_differentiably(call, args, kwargs)

        return wrapped

    return decorate


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
            with jax.enable_x64(True):
                return jax.jvp(
                    lambda *along: evaluate(*_replaced(primals, varied, along)),
                    [primals[place] for place in varied],
                    list(directions),
                )[1]

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


def first_least(values: Float[Array, "..."], *, axis: int) -> Int[Array, "..."]:
    """Return where the least value is along one axis, the first of equal ones; int32.

    Not an argmin, which JAX can't lower in float64 inside a float32 program. NaN is least nowhere.
    """
    shape = [1] * values.ndim
    shape[axis] = -1
    index = jnp.arange(values.shape[axis], dtype=jnp.int32).reshape(shape)
    is_least = values == jnp.min(values, axis=axis, keepdims=True)
    return jnp.min(jnp.where(is_least, index, values.shape[axis] - 1), axis=axis)
