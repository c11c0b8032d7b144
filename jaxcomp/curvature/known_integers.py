"""Integers that are known while a function is traced: counters of loops, and what is made of them.

A loop over layers may take its weights out of a stack by a counter, `w[i]`. Which row each step
uses follows from the start and the increment of the counter. Every value here is a NumPy array of
integers or booleans with one axis for each loop around it, the outermost first, and then its own
axes; nothing is computed on a device.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr, JaxprEqn, Literal

# More numbers are tables, not counters.
_MOST_NUMBERS = 2**16


def known_constant(value: Any, loops: tuple[int, ...]) -> np.ndarray | None:
    """Return a literal or a constant array as a known value, if it is one.

    Args:
        value: a number or an array.
        loops: the numbers of steps of the loops around.
    """
    if isinstance(value, Tracer):
        return None
    dtype = value.dtype if hasattr(value, "dtype") else np.result_type(value)
    shape = (*loops, *np.shape(value))
    return np.broadcast_to(jax.device_get(value), shape) if _is_kept(dtype, shape) else None


def known_results(
    equation: JaxprEqn, operands: Sequence[np.ndarray | None], loops: tuple[int, ...]
) -> list[np.ndarray | None]:
    """Return the results of an equation, None where they are not known.

    Args:
        equation: of a jaxpr; calls of `jit` are followed.
        operands: its known operands.
        loops: the numbers of steps of the loops around.
    """
    unknown: list[np.ndarray | None] = [None] * len(equation.outvars)
    name = equation.primitive.name
    if any(operand is None for operand in operands):
        return unknown
    known = [operand for operand in operands if operand is not None]
    if name in ("jit", "pjit"):
        return _of_jaxpr(equation.params["jaxpr"].jaxpr, known, loops)
    if len(equation.outvars) != 1:
        return unknown
    aval: Any = equation.outvars[0].aval
    if not hasattr(aval, "shape") or not _is_kept(aval.dtype, (*loops, *aval.shape)):
        return unknown
    if name in _ELEMENTWISE:
        # A number may stand beside an array.
        rank = len(loops) + len(aval.shape)
        full = [x.reshape(x.shape + (1,) * (rank - x.ndim)) for x in known]
        result = _ELEMENTWISE[name](*full)
    elif name in _MOVES:
        result = _MOVES[name](known, equation.params, loops, tuple(aval.shape))
    else:
        return unknown
    return [np.broadcast_to(result, (*loops, *aval.shape)).astype(aval.dtype)]


def _of_jaxpr(
    jaxpr: Jaxpr, arguments: list[np.ndarray], loops: tuple[int, ...]
) -> list[np.ndarray | None]:
    known: dict[Any, np.ndarray | None] = dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> np.ndarray | None:
        return known_constant(atom.val, loops) if isinstance(atom, Literal) else known.get(atom)

    for equation in jaxpr.eqns:
        results = known_results(equation, [read(atom) for atom in equation.invars], loops)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _is_kept(dtype: Any, shape: tuple[int, ...]) -> bool:
    """Whether values of this kind are followed."""
    # Extended dtypes (random keys) are no NumPy dtypes.
    is_integer = isinstance(dtype, np.dtype) and dtype.kind in "iub"
    return is_integer and prod(shape) <= _MOST_NUMBERS


def _select(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    return np.choose(which.astype(np.int64), cases)


_ELEMENTWISE: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "sign": np.sign,
    "abs": np.abs,
    "max": np.maximum,
    "min": np.minimum,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    # Rounded towards zero, and division by zero is no index.
    "div": lambda x, y: np.sign(x) * np.sign(y) * (np.abs(x) // np.maximum(np.abs(y), 1)),
    "rem": lambda x, y: np.fmod(x, np.where(y == 0, 1, y)),
    "select_n": _select,
    "convert_element_type": lambda x: x,
    "copy": lambda x: x,
}

_Move = Callable[[list[np.ndarray], dict[str, Any], tuple[int, ...], tuple[int, ...]], np.ndarray]


def _broadcast(
    operands: list[np.ndarray], params: dict[str, Any], loops: tuple[int, ...], shape: tuple
) -> np.ndarray:
    (x,) = operands
    own = [1] * len(shape)
    for axis, size in zip(params["broadcast_dimensions"], x.shape[len(loops) :], strict=True):
        own[axis] = size
    return x.reshape((*loops, *own))


def _iota(
    operands: list[np.ndarray], params: dict[str, Any], loops: tuple[int, ...], shape: tuple
) -> np.ndarray:
    del operands, loops
    axis = params["dimension"]
    own = [1] * len(shape)
    own[axis] = shape[axis]
    return np.arange(shape[axis]).reshape(own)


def _slice(
    operands: list[np.ndarray], params: dict[str, Any], loops: tuple[int, ...], shape: tuple
) -> np.ndarray:
    del loops
    strides = params["strides"] or (1,) * len(shape)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return operands[0][(..., *(slice(*bound) for bound in bounds))]


def _reshape(
    operands: list[np.ndarray], params: dict[str, Any], loops: tuple[int, ...], shape: tuple
) -> np.ndarray:
    del params
    return operands[0].reshape((*loops, *shape))


_MOVES: dict[str, _Move] = {
    "broadcast_in_dim": _broadcast,
    "iota": _iota,
    "reshape": _reshape,
    "squeeze": _reshape,
    "rev": lambda x, params, loops, shape: np.flip(
        x[0], tuple(len(loops) + axis for axis in params["dimensions"])
    ),
    "slice": _slice,
    "concatenate": lambda x, params, loops, shape: np.concatenate(
        x, len(loops) + params["dimension"]
    ),
}
