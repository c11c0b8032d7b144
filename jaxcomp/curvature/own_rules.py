"""Calls with derivative rules of their own: whether the rule is the derivative of what is computed.

`custom_vjp` and `custom_jvp` serve two ends. Some rules compute the derivative in a better way
(attention in blocks, recomputed): these calls may be opened, and their forward function
differentiated instead. Others are meant to be something else (straight-through rounding, clipped
or reversed gradients): those must be kept. No jaxpr tells one from the other, so that both are
evaluated, on random numbers: a rule counts as the derivative if it gives the same outputs and
cotangents up to rounding, for inputs of ordinary size and cotangents a thousand times smaller and
larger than that, and has finite ones wherever the rule has, for larger inputs too.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, jaxpr_as_fun
from jaxtyping import Array

from jaxcomp.numerics.equations import evaluate_equation

_PROBES = (
    (1.0, 1.0, True),
    (0.1, 1e3, True),
    (1.0, 1e-3, True),
    (10.0, 1.0, False),
    (1e3, 1.0, False),
)
"""Sizes of inputs and cotangents, and whether results are compared or only must be finite: among
large inputs rounding errors may be larger than the derivative (where a softmax is saturated)."""


def own_rule(equation: JaxprEqn) -> str | None:
    """Return the kind of rule that a call has, `"custom_vjp"` or `"custom_jvp"`; None if none."""
    name = equation.primitive.name
    return next((kind for kind in ("custom_vjp", "custom_jvp") if name.startswith(kind)), None)


def forward_of(equation: JaxprEqn) -> ClosedJaxpr:
    """Return the function of a call with a rule of its own."""
    found = equation.params["call_jaxpr"]
    return found if isinstance(found, ClosedJaxpr) else ClosedJaxpr(found, ())


def is_derivative(equation: JaxprEqn, is_weight: Sequence[bool]) -> bool:
    """Tell whether the rule of a call gives the derivative of its forward function.

    Values are drawn, whatever they are in the program that is being traced: floating numbers from
    the normal distribution (weights divided by about the root of their fan-in), booleans are True,
    all else is 0.

    Args:
        equation: the call.
        is_weight: for each of its inputs.

    Returns:
        False also where that cannot be told: of a function that does not run on its own, or whose
        outputs are not all floating.
    """
    try:
        with jax.ensure_compile_time_eval():
            return _agrees(equation, is_weight)
    except Exception:
        return False  # whatever a user's function raises, its rule is kept


def _agrees(equation: JaxprEqn, is_weight: Sequence[bool]) -> bool:
    rng = np.random.default_rng(0)
    avals: list[Any] = [atom.aval for atom in equation.invars]
    floating = [n for n, aval in enumerate(avals) if jnp.issubdtype(aval.dtype, jnp.floating)]
    outputs: list[Any] = [variable.aval for variable in equation.outvars]
    if any(not jnp.issubdtype(aval.dtype, jnp.floating) for aval in outputs):
        return False
    forward = jaxpr_as_fun(forward_of(equation))

    @jax.jit
    def both(arguments: list[Array], cotangents: list[Array]) -> list[list[Array]]:
        results = []
        for function in (lambda *full: evaluate_equation(equation, list(full)), forward):

            def of_floating(*some: Array, function: Any = function) -> list[Array]:
                full = list(arguments)
                for number, value in zip(floating, some, strict=True):
                    full[number] = value
                return function(*full)

            values, pullback = jax.vjp(of_floating, *(arguments[number] for number in floating))
            results.append([*values, *pullback(type(values)(cotangents))])
        return results

    for size, size_of_cotangents, is_compared in _PROBES:
        arguments = [
            _drawn(rng, aval, size=(max(np.prod(aval.shape), 1) ** -0.25 if weight else size))
            for aval, weight in zip(avals, is_weight, strict=True)
        ]
        cotangents = [_drawn(rng, aval, size=size_of_cotangents) for aval in outputs]
        for ours, theirs in zip(*both(arguments, cotangents), strict=True):
            if not _is_close(np.asarray(ours), np.asarray(theirs), is_compared=is_compared):
                return False
    return True


def _drawn(rng: np.random.Generator, aval: Any, *, size: float) -> Array:
    if jnp.issubdtype(aval.dtype, jnp.floating):
        return jnp.asarray(size * rng.normal(size=aval.shape), aval.dtype)
    if aval.dtype == bool:
        return jnp.ones(aval.shape, bool)
    return jnp.zeros(aval.shape, aval.dtype)


def _is_close(ours: np.ndarray, theirs: np.ndarray, *, is_compared: bool) -> bool:
    """Whether the rule's results are those of the forward function, relative to the largest."""
    tolerance = float(jnp.finfo(ours.dtype).eps) ** 0.5
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    if not is_compared:
        return bool(np.all(np.isfinite(theirs) | ~np.isfinite(ours)))
    largest = np.max(np.abs(ours), initial=0.0)
    return bool(np.all(np.abs(ours - theirs) <= tolerance * largest))
