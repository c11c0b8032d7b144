"""Evaluate a jaxpr with perturbations of its products, which also returns what they multiply.

In a loop the perturbations of all steps are scanned inputs, and the operands of all steps are
scanned outputs: both have an axis for each loop around, the outermost first.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from jax import lax
from jax.extend.core import JaxprEqn, Literal
from jaxtyping import Array

from jaxcomp.curvature.products import Opened
from jaxcomp.numerics.equations import evaluate_equation
from jaxcomp.trees.uses import scan_arguments

Numbered = dict[int, Array]
"""Arrays by the number of the product that they belong to."""


def run(
    opened: Opened, arguments: Sequence[Any], perturbations: Mapping[int, Array]
) -> tuple[list[Any], Numbered]:
    """Evaluate; return the outputs, and the operands beside the weights.

    Args:
        opened: the function.
        arguments: of its jaxpr.
        perturbations: what is added to the result of each of its products.
    """
    jaxpr = opened.jaxpr
    environment: dict[Any, Any] = dict(zip(jaxpr.constvars, opened.constants, strict=True))
    environment.update(zip(jaxpr.invars, arguments, strict=True))
    operands: Numbered = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else environment[atom]

    for place, equation in enumerate(jaxpr.eqns):
        values = [read(atom) for atom in equation.invars]
        if place in opened.bodies:
            body = opened.bodies[place]
            here = {number: perturbations[number] for number in body.numbers()}
            name = equation.primitive.name
            if name == "scan":
                results, found = _loop(equation, body, values, here)
            else:
                results, found = run(body, values[1:] if name == "cond" else values, here)
            operands.update(found)
        else:
            results = evaluate_equation(equation, values)
        if place in opened.products:
            number, side = opened.products[place]
            operands[number] = values[1 - side]
            results = [results[0] + perturbations[number]]
        environment.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars], operands


def _loop(
    equation: JaxprEqn, body: Opened, values: list[Any], perturbations: Numbered
) -> tuple[list[Any], Numbered]:
    num_consts, num_carry = scan_arguments(equation)
    consts, start = values[:num_consts], values[num_consts : num_consts + num_carry]
    # Several products often have one operand (queries, keys, values): it is stacked up once.
    place_of: dict[int, int] = {}

    def step(carry: list[Any], slices: tuple[list[Any], Numbered]) -> tuple[list[Any], Any]:
        own, perturbations = slices
        outputs, operands = run(body, [*consts, *carry, *own], perturbations)
        distinct = list({id(operand): operand for operand in operands.values()}.values())
        order = {id(operand): place for place, operand in enumerate(distinct)}
        place_of.update({number: order[id(operand)] for number, operand in operands.items()})
        return outputs[:num_carry], (outputs[num_carry:], distinct)

    carry, (stacked, distinct) = lax.scan(
        step,
        start,
        (values[num_consts + num_carry :], perturbations),
        length=equation.params["length"],
        reverse=equation.params["reverse"],
        unroll=equation.params["unroll"],
    )
    return [*carry, *stacked], {number: distinct[place] for number, place in place_of.items()}


def count_activations(opened: Opened, depends: Sequence[bool]) -> int:
    """Count the numbers that are computed from some of the arguments, in one evaluation.

    What calls compute inside counts only where they are opened, and loops count as often as they
    run.
    """
    return _count(opened.jaxpr, opened, depends)[0]


def _count(jaxpr: Any, opened: Opened | None, depends: Sequence[bool]) -> tuple[int, list[bool]]:
    """Count, and tell which outputs depend on the arguments."""
    dependent = {variable for variable, does in zip(jaxpr.invars, depends, strict=True) if does}
    count = 0

    def does(atom: Any) -> bool:
        return not isinstance(atom, Literal) and atom in dependent

    for place, equation in enumerate(jaxpr.eqns):
        flags = [does(atom) for atom in equation.invars]
        if not any(flags):
            continue
        name = equation.primitive.name
        body = None if opened is None else opened.bodies.get(place)
        if name == "scan":
            inside, results = _count_loop(equation, body, flags)
        elif body is not None:
            inside, results = _count(body.jaxpr, body, flags[1:] if name == "cond" else flags)
        else:
            inside = sum(prod(variable.aval.shape) for variable in equation.outvars)
            results = [True] * len(equation.outvars)
        count += inside
        dependent.update(v for v, does in zip(equation.outvars, results, strict=True) if does)
    return count, [does(atom) for atom in jaxpr.outvars]


def _count_loop(
    equation: JaxprEqn, body: Opened | None, flags: list[bool]
) -> tuple[int, list[bool]]:
    num_consts, num_carry = scan_arguments(equation)
    inner = equation.params["jaxpr"]
    jaxpr = getattr(inner, "jaxpr", inner)
    while True:
        count, results = _count(jaxpr, body, flags)
        carry = flags[num_consts : num_consts + num_carry]
        joined = [a or b for a, b in zip(carry, results[:num_carry], strict=True)]
        if joined == carry:
            return equation.params["length"] * count, results
        flags = [*flags[:num_consts], *joined, *flags[num_consts + num_carry :]]
