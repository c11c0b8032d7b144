"""Equations of a jaxpr, evaluated one by one."""

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var


def evaluate_jaxpr(
    closed: ClosedJaxpr,
    arguments: Sequence[Any],
    evaluate: Callable[[JaxprEqn, list[Any]], list[Any]],
) -> list[Any]:
    """Return the results of a jaxpr whose equations are evaluated by a function.

    Args:
        closed: with its constants.
        arguments: of the jaxpr; whatever `evaluate` takes.
        evaluate: `(equation, values of its inputs) -> its results`.
    """
    jaxpr = closed.jaxpr
    environment: dict[Var, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    environment.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else environment[atom]

    for equation in jaxpr.eqns:
        results = evaluate(equation, [read(atom) for atom in equation.invars])
        environment.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def evaluate_equation(
    equation: JaxprEqn, arguments: list[Any], parameters: dict[str, Any] | None = None
) -> list[Any]:
    """Return the results of an equation for other arguments, in the context it was traced in.

    Args:
        equation: of a jaxpr.
        arguments: arrays or tracers, one for each of its inputs (and for what `parameters` adds).
        parameters: in place of its own.
    """
    parameters = equation.params if parameters is None else parameters
    bound = equation.primitive.get_bind_params(parameters)
    with equation.ctx.manager:
        results = equation.primitive.bind(*arguments, **bound)
    return list(results) if equation.primitive.multiple_results else [results]


def shape_of(atom: Any) -> tuple[int, ...]:
    """Return the shape of a variable or literal of a jaxpr."""
    return tuple(atom.aval.shape)
