"""Axes of an array over which a function of it is a sum of terms, one for each index.

A loss per token is `sum over t of l(f[t], y[t])`, however it is written. Its Hessian has one block
for each t and nothing beside: far less than the square of all outputs. Whether a function has that
form can be read off its jaxpr, operation by operation. With respect to one axis every value is

- *constant*: it does not depend on the array;
- *along* its axis k: the entry with index t there depends on the part t of the array alone;
- a *sum*: every entry is a sum of terms, each of which depends on one part;
- *mixed*: anything else.

Elementwise functions, and reductions over other axes, keep what lies along an axis; a linear
operation makes a sum of anything that is not mixed; all else mixes. What is not known here counts
as mixed, so that the answer errs to the safe side. If a function is such a sum over two axes, its
Hessian links no two indices of either, so that it is one over both at once.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
from jax.extend.core import JaxprEqn, Literal

from jaxcomp.numerics.equations import shape_of

_CONSTANT, _SUM, _MIXED = -1, -2, -3
"""States of a value; the axis that it lies along is counted from 0."""

_Rule = Callable[[JaxprEqn, list[int]], int]


def independent_axes(
    function: Callable[..., Any], array: jax.ShapeDtypeStruct, *constants: Any
) -> tuple[int, ...]:
    """Return the axes of its first argument over which a scalar function is a sum of terms.

    Nothing is computed: the function is traced for shapes.

    Args:
        function: `(array, *constants) -> scalar`.
        array: shape and dtype of the first argument.
        constants: pytrees of arrays, or of shapes and dtypes.

    Returns:
        Axes in ascending order; none where nothing could be told. Axes of length 1 are among them.
    """
    closed = jax.make_jaxpr(function)(array, *constants)
    found = []
    for axis, length in enumerate(array.shape):
        states = [axis] + [_CONSTANT] * (len(closed.jaxpr.invars) - 1)
        if length == 1 or _MIXED not in _states_of_results(closed.jaxpr, states):
            found.append(axis)
    return tuple(found)


def _states_of_results(jaxpr: Any, inputs: Sequence[int]) -> list[int]:
    state_of: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> int:
        # What is not there is a constant that the function closes over.
        return _CONSTANT if isinstance(atom, Literal) else state_of.get(atom, _CONSTANT)

    for equation in jaxpr.eqns:
        states = [read(atom) for atom in equation.invars]
        state_of.update(zip(equation.outvars, _states_after(equation, states), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _states_after(equation: JaxprEqn, states: list[int]) -> list[int]:
    name, count = equation.primitive.name, len(equation.outvars)
    if all(state == _CONSTANT for state in states):
        return [_CONSTANT] * count
    if _MIXED in states:
        return [_MIXED] * count
    if name in _CALLS:
        called = equation.params[_CALLS[name]]
        return _states_of_results(getattr(called, "jaxpr", called), states)
    if name == "cond" and states[0] == _CONSTANT:
        branches = [
            _states_of_results(branch.jaxpr, states[1:]) for branch in equation.params["branches"]
        ]
        return [_joined(states) for states in zip(*branches, strict=True)]
    if name in _ELEMENTWISE:
        return [_elementwise(equation, states)] * count
    if name in _RULES:
        return [_RULES[name](equation, states)] * count
    return [_MIXED] * count


_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
"""Operations that are calls, and which parameter holds the function."""


def _joined(states: Sequence[int]) -> int:
    """State of one of several values, the choice being a constant."""
    different = {state for state in states if state != _CONSTANT}
    if _MIXED in different:
        return _MIXED
    return different.pop() if len(different) == 1 else (_SUM if different else _CONSTANT)


# --- Elementwise operations ----------------------------------------------------------------------


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ELEMENTWISE = _names(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type
    copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow
    is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or pow
    reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh
    xor
    """
)


def _elementwise(equation: JaxprEqn, states: list[int]) -> int:
    different = {state for state in states if state != _CONSTANT}
    if len(different) == 1 and _SUM not in different:
        return different.pop()
    return _SUM if _is_linear(equation, states) else _MIXED


def _is_linear(equation: JaxprEqn, states: list[int]) -> bool:
    """Whether an elementwise operation is linear in its operands that are no constants."""
    name = equation.primitive.name
    if name in ("add", "add_any", "sub", "neg", "copy", "copy_p"):
        return True
    if name == "mul":
        return states.count(_CONSTANT) == 1
    if name == "div":
        return states[1] == _CONSTANT
    if name == "select_n":
        return states[0] == _CONSTANT
    if name == "convert_element_type":
        kinds = {atom.aval.dtype.kind for atom in (equation.invars[0], equation.outvars[0])}  # pyright: ignore
        return not kinds & set("biu")
    return False


# --- Operations on axes --------------------------------------------------------------------------


def _sum(equation: JaxprEqn, states: list[int]) -> int:
    return _without(states[0], equation.params["axes"], otherwise=_SUM)


def _reduction(equation: JaxprEqn, states: list[int]) -> int:
    return _without(states[0], equation.params["axes"], otherwise=_MIXED)


def _without(state: int, axes: Sequence[int], *, otherwise: int) -> int:
    """State after `axes` are gone; `otherwise` if the own axis is among them, or there is none."""
    if state < 0 or state in axes:
        return otherwise
    return state - sum(axis < state for axis in axes)


def _cumulative_sum(equation: JaxprEqn, states: list[int]) -> int:
    return _SUM if states[0] == equation.params["axis"] else states[0]


def _cumulative(equation: JaxprEqn, states: list[int]) -> int:
    return _MIXED if states[0] in (_SUM, equation.params["axis"]) else states[0]


def _sort(equation: JaxprEqn, states: list[int]) -> int:
    different = {state for state in states if state != _CONSTANT}
    if len(different) == 1 and not different & {_SUM, equation.params["dimension"]}:
        return different.pop()
    return _MIXED


def _broadcast(equation: JaxprEqn, states: list[int]) -> int:
    state = states[0]
    return state if state < 0 else equation.params["broadcast_dimensions"][state]


def _reshape(equation: JaxprEqn, states: list[int]) -> int:
    state = states[0]
    before, after = shape_of(equation.invars[0]), shape_of(equation.outvars[0])
    if state < 0 or equation.params.get("dimensions") is not None:
        return _SUM
    for axis, length in enumerate(after):
        if length == before[state] and prod(after[:axis]) == prod(before[:state]):
            return axis
    return _SUM


def _squeeze(equation: JaxprEqn, states: list[int]) -> int:
    return _without(states[0], equation.params["dimensions"], otherwise=_SUM)


def _transpose(equation: JaxprEqn, states: list[int]) -> int:
    return states[0] if states[0] < 0 else equation.params["permutation"].index(states[0])


def _reverse(equation: JaxprEqn, states: list[int]) -> int:
    return _SUM if states[0] in equation.params["dimensions"] else states[0]


def _slice(equation: JaxprEqn, states: list[int]) -> int:
    state = states[0]
    before, after = shape_of(equation.invars[0]), shape_of(equation.outvars[0])
    whole = state >= 0 and after[state] == before[state]
    return state if whole else _SUM


def _dynamic_slice(equation: JaxprEqn, states: list[int]) -> int:
    # A slice of the whole length starts at 0, whatever was asked for.
    return _slice(equation, states) if set(states[1:]) <= {_CONSTANT} else _MIXED


def _pad(equation: JaxprEqn, states: list[int]) -> int:
    state, filling = states
    is_kept = (
        state >= 0
        and filling == _CONSTANT
        and tuple(equation.params["padding_config"][state]) == (0, 0, 0)
    )
    return state if is_kept else _SUM


def _concatenate(equation: JaxprEqn, states: list[int]) -> int:
    state = _joined(states)
    return _SUM if state == equation.params["dimension"] else state


def _split(equation: JaxprEqn, states: list[int]) -> int:
    return _SUM if states[0] == equation.params["axis"] else states[0]


def _gather(equation: JaxprEqn, states: list[int]) -> int:
    state, indices = states
    if indices != _CONSTANT:
        return _MIXED
    numbers = equation.params["dimension_numbers"]
    if state not in numbers.operand_batching_dims:
        return _SUM
    index_axis = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(state)]
    rank = len(shape_of(equation.outvars[0]))
    return [axis for axis in range(rank) if axis not in numbers.offset_dims][index_axis]


def _product(equation: JaxprEqn, states: list[int]) -> int:
    contracting, batch = equation.params["dimension_numbers"]
    if _CONSTANT in states:
        side = 1 - states.index(_CONSTANT)
        state = states[side]
        if state < 0 or state in contracting[side]:
            return _SUM
        # Batch axes come first, then what is left of the left, then of the right operand.
        if state in batch[side]:
            return batch[side].index(state)
        used = (*batch[side], *contracting[side])
        place = state - sum(axis < state for axis in used)
        left = len(shape_of(equation.invars[0])) - len(batch[0]) - len(contracting[0])
        return len(batch[0]) + place + (left if side == 1 else 0)
    if tuple(states) in set(zip(*contracting, strict=True)):
        return _SUM
    if tuple(states) in set(zip(*batch, strict=True)):
        return batch[0].index(states[0])
    return _MIXED


_RULES: dict[str, _Rule] = {
    "reduce_sum": _sum,
    **dict.fromkeys(
        _names("argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_xor"),
        _reduction,
    ),
    "cumsum": _cumulative_sum,
    **dict.fromkeys(_names("cumlogsumexp cummax cummin cumprod"), _cumulative),
    "sort": _sort,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "rev": _reverse,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "pad": _pad,
    "concatenate": _concatenate,
    "split": _split,
    "gather": _gather,
    "dot_general": _product,
}
