"""Equations of a jaxpr, evaluated one by one."""

from typing import Any

from jax.extend.core import JaxprEqn


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
