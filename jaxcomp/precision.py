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


def first_least(values: Float[Array, "..."], *, axis: int) -> Int[Array, "..."]:
    """Return where the least value is along one axis, the first of equal ones; int32.

    Not an argmin, which JAX can't lower in float64 inside a float32 program. NaN is least nowhere.
    """
    shape = [1] * values.ndim
    shape[axis] = -1
    index = jnp.arange(values.shape[axis], dtype=jnp.int32).reshape(shape)
    is_least = values == jnp.min(values, axis=axis, keepdims=True)
    return jnp.min(jnp.where(is_least, index, values.shape[axis] - 1), axis=axis)
