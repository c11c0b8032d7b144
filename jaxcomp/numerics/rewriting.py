"""Functions whose convolutions and pools are rewritten, for a back end that runs them slowly.

The function is traced, and its jaxpr evaluated again with other operations for some of its
equations, also inside of `jit`, checkpoints, loops and branches. Derivatives and batches that the
function takes are in that jaxpr already, as further convolutions: they are rewritten as they are,
and no rule of differentiation is involved. What has a derivative of its own (`custom_jvp`,
`custom_vjp`) and has not been differentiated within stays as it is.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from math import prod
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from jaxcomp.numerics.convolutions import convolution_as_product
from jaxcomp.numerics.equations import evaluate_equation, evaluate_jaxpr
from jaxcomp.numerics.windows import (
    Windows,
    add_to_window_maxima,
    at_window_maxima,
    window_maxima,
    window_sums,
)

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def quick_on_cpu(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Return the function with what XLA is slow at rewritten, where the default backend is a CPU.

    Slow are convolutions of gradients, in groups or of few channels, and windowed maxima and sums
    with their derivatives. Every floating convolution is rewritten: alone, a forward one of many
    channels may take twice as long then (strided or 1 x 1 ones 2.5 times), but in whole estimators
    rewriting fewer was slower throughout (LeNet-5: `benchmarks/curvature.py`). The results are the
    same up to the order of sums. Elsewhere, and without `jit` (`jax.disable_jit`), the function is
    called as it is.

    Args:
        function: of pytrees of arrays, for use inside `jit`.
    """

    @wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        config: Any = jax.config
        if jax.default_backend() != "cpu" or config.jax_disable_jit:
            return function(*args, **kwargs)
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args, **kwargs)
        results = _evaluate(closed, jax.tree.leaves((args, kwargs)))
        return jax.tree.structure(shapes).unflatten(results)

    return call


def _evaluate(closed: ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    return evaluate_jaxpr(closed, arguments, _evaluate_equation)


def _evaluate_equation(equation: JaxprEqn, arguments: list[Any]) -> list[Any]:
    name, parameters = equation.primitive.name, equation.params
    rule = _RULES.get(name)
    if rule is not None:
        result = rule(equation, *arguments)
        if result is not None:
            return [result]
    elif name in ("jit", "pjit", "closed_call", "core_call"):
        inner = parameters["jaxpr"] if "jaxpr" in parameters else parameters["call_jaxpr"]
        if _is_affected(inner):
            inner = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
            return _evaluate(inner, arguments)
    elif name in _CALLS:
        changed = {key: _rewritten_jaxpr(parameters[key]) for key in _CALLS[name]}
        parameters = parameters | changed
    elif name in ("checkpoint", "remat2") and _is_affected(parameters["jaxpr"]):
        # Its jaxpr holds no constants: they become its first arguments.
        closed = _rewritten_jaxpr(ClosedJaxpr(parameters["jaxpr"], ()))
        parameters = parameters | _without_constants(closed, parameters)
        arguments = [*closed.consts, *arguments]
    return evaluate_equation(equation, arguments, parameters)


# Primitives that call jaxprs, and the parameters that hold these.
_CALLS = {
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
}


def _rewritten_jaxpr(jaxpr: Any) -> Any:
    """Return a jaxpr of the same inputs and outputs."""
    if isinstance(jaxpr, tuple):
        return tuple(map(_rewritten_jaxpr, jaxpr))
    if not _is_affected(jaxpr):
        return jaxpr
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in jaxpr.in_avals]
    return jax.make_jaxpr(lambda *arguments: _evaluate(jaxpr, arguments))(*shapes)


def _without_constants(closed: ClosedJaxpr, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a checkpoint whose first arguments are the constants."""
    number = len(closed.consts)
    shapes = [jax.typeof(x) for x in closed.consts] + list(closed.in_avals)
    opened = jax.make_jaxpr(
        lambda *arguments: _evaluate(
            ClosedJaxpr(closed.jaxpr, arguments[:number]), arguments[number:]
        )
    )(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in shapes))
    changed: dict[str, Any] = {"jaxpr": opened.jaxpr}
    if isinstance(parameters.get("prevent_cse"), tuple):  # one for each argument
        changed["prevent_cse"] = (False,) * number + parameters["prevent_cse"]
    return changed


def _is_affected(jaxpr: Any) -> bool:
    """Whether a jaxpr, or one that it calls, has an equation to rewrite."""
    if isinstance(jaxpr, ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    for equation in jaxpr.eqns:
        if equation.primitive.name in _RULES:
            return True
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple) else (parameter,):
                if isinstance(inner, ClosedJaxpr | Jaxpr) and _is_affected(inner):
                    return True
    return False


# --- Rules ----------------------------------------------------------------------------------------


MOST_PLACES = 25
"""Up to how many entries a window of a pool is unrolled."""


def _convolution(equation: JaxprEqn, lhs: Any, rhs: Any) -> Any:
    parameters = {k: v for k, v in equation.params.items() if k != "out_sharding"}
    is_floating = jnp.issubdtype(lhs.dtype, jnp.floating) and lhs.dtype == rhs.dtype
    if not is_floating:
        return None
    return convolution_as_product(lhs, rhs, **parameters)


def _windows(equation: JaxprEqn, rank: int) -> Windows | None:
    parameters = equation.params
    if prod(parameters["window_dimensions"]) > MOST_PLACES:
        return None
    return Windows(
        tuple(parameters["window_dimensions"]),
        tuple(parameters["window_strides"]),
        tuple(parameters["padding"]),
        tuple(parameters.get("base_dilation", (1,) * rank)),
        tuple(parameters.get("window_dilation", (1,) * rank)),
    )


def _maxima(equation: JaxprEqn, x: Any) -> Any:
    windows = _windows(equation, x.ndim)
    return None if windows is None else window_maxima(x, windows)


def _sums(equation: JaxprEqn, x: Any) -> Any:
    windows = _windows(equation, x.ndim)
    return None if windows is None else window_sums(x, windows)


def _at_maxima(equation: JaxprEqn, tangents: Any, x: Any) -> Any:
    windows = _windows(equation, x.ndim)
    if windows is None or equation.params["select_prim"] is not lax.ge_p:
        return None  # of a minimum
    return at_window_maxima(tangents, x, windows)


def _to_maxima(equation: JaxprEqn, source: Any, x: Any) -> Any:
    windows = _windows(equation, x.ndim)
    if windows is None or equation.params["select_prim"] is not lax.ge_p:
        return None
    return add_to_window_maxima(source, x, windows)


_RULES: dict[str, Callable[..., Any]] = {
    "conv_general_dilated": _convolution,
    "reduce_window_max": _maxima,
    "reduce_window_sum": _sums,
    "select_and_gather_add": _at_maxima,
    "select_and_scatter_add": _to_maxima,
}
