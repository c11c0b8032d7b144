"""Where NaN or infinity began, found after curvature has turned out not to be finite.

One more pass, operation by operation: first the weights and the data, then the function, its
gradient and a second derivative, until an operation makes something that is not finite out of
finite numbers. The message names the operation and the layer, which is the weights that were last
met on the way. An infinity that is a constant (a mask of attention) is not where anything began.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Array, Bool, Float

from jaxcomp.numerics.equations import evaluate_equation
from jaxcomp.trees.paths import leaves_by_path, shorten
from jaxcomp.types import Batch, Params

Evaluate = Callable[[Params, Batch], Any]


def where_it_began(evaluate: Evaluate, params: Params, batches: Iterable[Batch]) -> str:
    """Say in a clause where values that are not finite begin.

    Args:
        evaluate: `(params, batch) -> outputs or loss`, what curvature is taken of.
        params: the weights.
        batches: the data, of which the first batch that is not finite is told of.
    """
    broken = _broken(params)
    if broken:
        return f"it began in the weights {shorten(broken)}, which are not finite themselves"
    for number, batch in enumerate(batches):
        broken = _broken(batch)
        if broken:
            paths = shorten(path or "the array" for path in broken)
            return f"it began in the data, in {paths} of batches[{number}]"
        for stage, function in _STAGES:
            event = _first_event(functools.partial(function, evaluate), params, batch)
            if event is not None:
                return f"it began {stage}{event}, for examples of batches[{number}]"
    return "weights, data, function and derivatives are finite, so that it began in their products"


def _broken(tree: Any) -> list[str]:
    """Return the paths of floating arrays that are not finite."""
    return [
        path
        for path, leaf in leaves_by_path(tree).items()
        if _is_floating(leaf) and any(_broken_by(leaf))
    ]


def _broken_by(value: Any) -> tuple[bool, bool]:
    """Return whether there are NaN, and infinite numbers."""
    has_nan, has_infinite = jax.device_get(_nan_and_infinite(value))
    return bool(has_nan), bool(has_infinite)


@jax.jit
def _nan_and_infinite(value: Float[Array, "..."]) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
    return jnp.any(jnp.isnan(value)), jnp.any(jnp.isinf(value))


def _is_floating(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)


# --- What is evaluated ---------------------------------------------------------------------------


def _total(evaluate: Evaluate, params: Params, batch: Batch) -> Float[Array, ""]:
    outputs = [x for x in jax.tree.leaves(evaluate(params, batch)) if _is_floating(x)]
    return functools.reduce(jnp.add, [jnp.sum(x.astype(jnp.float32)) for x in outputs])


def _gradient(evaluate: Evaluate, params: Params, batch: Batch) -> Any:
    """The gradient in the floating leaves."""
    leaves, structure = jax.tree.flatten(params)
    places = [place for place, leaf in enumerate(leaves) if _is_floating(leaf)]

    def total(values: list[Array]) -> Float[Array, ""]:
        changed = list(leaves)
        for place, value in zip(places, values, strict=True):
            changed[place] = value
        return _total(evaluate, structure.unflatten(changed), batch)

    return jax.grad(total)([leaves[place] for place in places])


def _second(evaluate: Evaluate, params: Params, batch: Batch) -> Any:
    """A product with the Hessian, of the sum of the outputs."""
    leaves, structure = jax.tree.flatten(params)
    places = [place for place, leaf in enumerate(leaves) if _is_floating(leaf)]

    def gradient(values: list[Array]) -> Any:
        changed = list(leaves)
        for place, value in zip(places, values, strict=True):
            changed[place] = value
        return _gradient(evaluate, structure.unflatten(changed), batch)

    values = [leaves[place] for place in places]
    return jax.jvp(gradient, (values,), ([jnp.ones_like(value) for value in values],))[1]


_STAGES = (
    ("", lambda evaluate, params, batch: evaluate(params, batch)),
    ("in the gradient, ", _gradient),
    ("in a second derivative, ", _second),
)


# --- Operation by operation ----------------------------------------------------------------------


class _Value(NamedTuple):
    """A value and where it comes from.

    Attributes:
        value: the array.
        weights: paths of the weights that it is computed from, if from nothing else.
        layer: if it depends on the data, how many layers it has met, and the last one's weights.
    """

    value: Any
    weights: frozenset[str] = frozenset()
    layer: tuple[int, tuple[str, ...]] | None = None


class _Event(NamedTuple):
    """An operation that made something new: NaN out of numbers, or infinity out of finite ones."""

    name: str
    is_nan: bool
    has_infinite_inputs: bool
    is_layer: bool
    layer: tuple[str, ...]

    def __str__(self) -> str:
        if not self.layer:
            return f"before the first layer, in {self.name}"
        paths = shorten(repr(path) for path in self.layer)
        place = "in the layer" if self.is_layer else "behind the layer"
        return f"{place} {paths}, in {self.name}"


def _first_event(function: Evaluate, params: Params, batch: Batch) -> _Event | None:
    """Return the operation where it began; None if all results are finite."""
    closed: Any = jax.make_jaxpr(function)(params, batch)
    weights = leaves_by_path(params)
    values = [_Value(leaf, frozenset({path})) for path, leaf in weights.items()]
    values += [_Value(leaf, layer=(0, ())) for leaf in jax.tree.leaves(batch)]
    events: list[_Event] = []
    results = _walk(closed.jaxpr, closed.consts, values, events)
    found = [_broken_by(result.value) for result in results if _is_floating(result.value)]
    if not any(map(any, found)):
        return None
    infinite = next((event for event in events if not event.is_nan), None)
    if any(has_nan for has_nan, _ in found):
        first = next((event for event in events if event.is_nan), None)
        if first is not None and not (first.has_infinite_inputs and infinite is not None):
            return first
    return infinite


def _walk(
    jaxpr: Any, constants: Sequence[Any], inputs: Sequence[_Value], events: list[_Event]
) -> list[_Value]:
    known: dict[Any, _Value] = dict(zip(jaxpr.invars, inputs, strict=True))
    known.update(zip(jaxpr.constvars, map(_Value, constants), strict=True))

    def read(atom: Any) -> _Value:
        return _Value(atom.val) if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        called = _called(equation)
        if called is not None:
            results = _walk(called.jaxpr, called.consts, operands, events)
        else:
            results = _results(equation, operands, events)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _called(equation: Any) -> Any:
    """Return the jaxpr that an equation calls as it stands; None for operations and loops."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = equation.params.get(name)
        if found is None or equation.primitive.name in ("scan", "while", "cond"):
            continue
        closed = found if hasattr(found, "consts") else ClosedJaxpr(found, ())
        if len(closed.jaxpr.invars) == len(equation.invars):
            return closed
    return None


def _results(equation: Any, operands: list[_Value], events: list[_Event]) -> list[_Value]:
    """Evaluate an operation, and note whether anything began there."""
    outputs = evaluate_equation(equation, [operand.value for operand in operands])
    weights = frozenset().union(*(operand.weights for operand in operands))
    layers = [operand.layer for operand in operands if operand.layer is not None]
    layer = max(layers, default=(0, ()))
    if weights:  # that meet data here are a layer themselves
        layer = (layer[0] + 1, tuple(sorted(weights)))
    event = _event(equation.primitive.name, operands, outputs)
    if event is not None:
        events.append(event._replace(layer=layer[1], is_layer=bool(weights)))
    if layers:
        return [_Value(output, layer=layer) for output in outputs]
    return [_Value(output, weights) for output in outputs]


def _event(name: str, operands: list[_Value], outputs: list[Any]) -> _Event | None:
    def broken(values: Iterable[Any]) -> tuple[bool, bool]:
        found = [_broken_by(value) for value in values if _is_floating(value)]
        return any(has_nan for has_nan, _ in found), any(has_inf for _, has_inf in found)

    made_nan, made_infinite = broken(outputs)
    if not made_nan and not made_infinite:
        return None
    was_nan, was_infinite = broken(operand.value for operand in operands)
    if made_nan and not was_nan:
        return _Event(name, True, was_infinite, False, ())
    if made_infinite and not was_infinite and not was_nan:
        return _Event(name, False, False, False, ())
    return None
