"""Find the calls of LAPACK in a program that could run at the same time.

On a CPU of two cores batched calls that run side by side may wait for each other for ever. Two
calls are in order if one needs the other's output, however indirectly. A loop or a branch counts as
one call, and is looked into as well.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

# Primitives of `jax.lax.linalg`, by their names.
PRIMITIVES = {
    "cholesky",
    "cholesky_update",
    "eig",
    "eigh",
    "geqp3",
    "geqrf",
    "hessenberg",
    "householder_product",
    "lu",
    "ormqr",
    "qr",
    "schur",
    "svd",
    "symmetric_product",
    "triangular_solve",
    "tridiagonal",
    "tridiagonal_solve",
}


def _inner(equation: Any) -> Iterator[Any]:
    """The programs inside an equation: of loops, branches, compiled and custom functions."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


def _decompositions(program: Any) -> list[Any]:
    """All calls in a program and in those inside it."""
    found = []
    for equation in program.eqns:
        if equation.primitive.name in PRIMITIVES:
            found.append(equation)
        for inner in _inner(equation):
            found += _decompositions(inner)
    return found


def _unordered(program: Any) -> list[str]:
    """Pairs of equations with calls in them, of which neither needs the other's output."""
    pairs: list[str] = []
    seen: list[tuple[int, str]] = []
    needs: dict[Any, set[int]] = {}
    for number, equation in enumerate(program.eqns):
        before = set().union(*(needs.get(v, set()) for v in equation.invars if _is_variable(v)))
        is_call = equation.primitive.name in PRIMITIVES
        inside = [call for inner in _inner(equation) for call in _decompositions(inner)]
        if is_call or inside:
            name = equation.primitive.name
            pairs += [f"{other} and {name}" for place, other in seen if place not in before]
            seen.append((number, name))
            before = before | {number}
        for inner in _inner(equation):
            pairs += _unordered(inner)
        for variable in equation.outvars:
            needs[variable] = before
    return pairs


def _is_variable(value: Any) -> bool:
    return not hasattr(value, "val")


def unordered_decompositions(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """Name the pairs of calls in a function's program that nothing puts in order."""
    return _unordered(jax.make_jaxpr(function)(*arguments).jaxpr)


def batched_decompositions(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """Name the calls in a function's program that take more than one matrix."""
    calls = _decompositions(jax.make_jaxpr(function)(*arguments).jaxpr)
    return [
        str(call.primitive.name)
        for call in calls
        if any(np.prod(variable.aval.shape[:-2]) > 1 for variable in call.invars)
    ]
