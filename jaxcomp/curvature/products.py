"""The products of weights in a jaxpr: a walk from the weights to what multiplies with them.

A *piece* is a weight, or one row of a stack of weights, rearranged. The walk follows every piece
through rearrangements, through calls (`jit`, `remat`, the branch of `lax.platform_dependent` for
the default backend) and through loops (`lax.scan`, and so `fori_loop` with a static number of
steps), to the matrix products and convolutions that it enters. What else a piece enters is an
*obstacle*: the weight is then no layer, and the obstacle is the reason.

Calls with a derivative rule of their own (`custom_vjp`, `custom_jvp`) are opened too where nothing
will be differentiated, or the rule is the derivative of what they compute; else they stay closed.

A loop over a stack of weights takes one row at each step, as a scanned input or by a counter
(`w[i]`); a loop over time meets the whole weight at each step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from jaxcomp.curvature.known_integers import known_constant, known_results
from jaxcomp.curvature.layouts import Step, Take
from jaxcomp.curvature.normal_forms import NormalForm, normal_form
from jaxcomp.curvature.own_rules import forward_of, is_derivative, own_rule
from jaxcomp.numerics.equations import shape_of
from jaxcomp.trees.uses import scan_arguments


class Piece(NamedTuple):
    """A weight or a row of it, rearranged.

    Attributes:
        leaf: number of the weight.
        steps: how it is made from the weight.
    """

    leaf: int
    steps: tuple[Step | Take, ...]


class Product(NamedTuple):
    """A product with a piece.

    Attributes:
        piece: the operand that is a weight.
        loops: numbers of steps of the loops around, the outermost first.
        normal: how its parts are rearranged.
        output: shape and dtype of the result, at one step.
    """

    piece: Piece
    loops: tuple[int, ...]
    normal: NormalForm
    output: jax.ShapeDtypeStruct


@dataclass(frozen=True)
class Opened:
    """A jaxpr, the bodies of those calls and loops in it that hold products, and the products.

    Attributes:
        jaxpr: its equations are numbered by their place.
        constants: values of its constants.
        bodies: place of a call or loop -> its body.
        products: place of a product -> its number among all products, and which operand of it is
            the weight.
    """

    jaxpr: Jaxpr
    constants: Sequence[Any]
    bodies: dict[int, "Opened"]
    products: dict[int, tuple[int, int]]

    def numbers(self) -> set[int]:
        """Return the numbers of the products in it and in its bodies."""
        here = {number for number, _ in self.products.values()}
        return here.union(*(body.numbers() for body in self.bodies.values()))

    def only(self, numbers: set[int]) -> "Opened":
        """Return it with these products alone; what holds no other stays closed."""
        bodies = {place: body.only(numbers) for place, body in self.bodies.items()}
        return Opened(
            self.jaxpr,
            self.constants,
            {place: body for place, body in bodies.items() if body.products or body.bodies},
            {place: found for place, found in self.products.items() if found[0] in numbers},
        )


class Found(NamedTuple):
    """What a walk has found.

    Attributes:
        opened: the function.
        products: of weights that enter products alone, and of others.
        obstacles: weight -> what else it enters, in the order of the function.
    """

    opened: Opened
    products: list[Product]
    obstacles: dict[int, tuple[str, ...]]


def find_products(
    closed: ClosedJaxpr, is_weight: Sequence[bool], *, is_differentiated: bool = True
) -> Found:
    """Walk a jaxpr from its weights.

    Args:
        closed: without equations that nothing depends on.
        is_weight: for each of its first arguments whether it is followed.
        is_differentiated: whether what is found will be, so that rules of differentiation which
            are not the derivative must be kept.
    """
    walk = _Walk(is_differentiated)
    arguments: list[_Value] = [None] * len(closed.jaxpr.invars)
    for leaf, wanted in enumerate(is_weight):
        arguments[leaf] = Piece(leaf, ()) if wanted else None
    opened, results = walk.jaxpr(closed, arguments, ())
    walk.block(results, "it is an output of the function")
    obstacles = {leaf: tuple(reasons) for leaf, reasons in walk.obstacles.items()}
    return Found(opened, walk.products, obstacles)


_Value = Piece | np.ndarray | None
"""What is known of a value: that it is a piece, which integers it holds, or nothing."""

_Loops = tuple[int, ...]


def body_of(equation: JaxprEqn, branch: int | None = None) -> ClosedJaxpr | None:
    """Return what an equation calls once and as it stands; of a conditional its branch."""
    name, parameters = equation.primitive.name, equation.params
    if name in ("jit", "pjit", "closed_call", "core_call"):
        return _closed(parameters["jaxpr"] if "jaxpr" in parameters else parameters["call_jaxpr"])
    if name in ("remat2", "checkpoint", "remat"):
        return _closed(parameters["jaxpr"])
    if name == "cond" and branch is not None:
        return _closed(parameters["branches"][branch])
    return None


def _closed(jaxpr: Any) -> ClosedJaxpr:
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


@dataclass
class _Walk:
    """Products and obstacles found so far."""

    is_differentiated: bool
    products: list[Product] = field(default_factory=list)
    # Reasons are the keys, in the order in which they were met.
    obstacles: dict[int, dict[str, None]] = field(default_factory=dict)

    def block(self, values: Sequence[_Value], reason: str) -> None:
        for value in values:
            if isinstance(value, Piece):
                self.obstacles.setdefault(value.leaf, {})[reason] = None

    def jaxpr(
        self, closed: ClosedJaxpr, arguments: Sequence[_Value], loops: _Loops
    ) -> tuple[Opened, list[_Value]]:
        """Walk a jaxpr; return it opened, and what is known of its results."""
        jaxpr = closed.jaxpr
        opened = Opened(jaxpr, closed.consts, {}, {})
        known: dict[Any, _Value] = dict(zip(jaxpr.invars, arguments, strict=True))
        for variable, constant in zip(jaxpr.constvars, closed.consts, strict=True):
            known[variable] = known_constant(constant, loops)

        def read(atom: Any) -> _Value:
            return known_constant(atom.val, loops) if isinstance(atom, Literal) else known.get(atom)

        for place, equation in enumerate(jaxpr.eqns):
            values = [read(atom) for atom in equation.invars]
            results = self.equation(opened, place, values, loops)
            known.update(zip(equation.outvars, results, strict=True))
        return opened, [read(atom) for atom in jaxpr.outvars]

    def equation(
        self, opened: Opened, place: int, values: list[_Value], loops: _Loops
    ) -> list[_Value]:
        equation = opened.jaxpr.eqns[place]
        name = equation.primitive.name
        if name == "platform_index":
            return [np.full(loops, _platform_index(equation))]
        pieces = [number for number, value in enumerate(values) if isinstance(value, Piece)]
        if not pieces:
            known = [value for value in values if not isinstance(value, Piece)]
            return list(known_results(equation, known, loops))
        if name == "scan":
            body, results = self.scan(equation, values, loops)
            return self.entered(opened, place, body, results)
        branch = _only_number(values[0]) if name == "cond" else None
        called = body_of(equation, branch)
        if called is not None:
            arguments = values[1:] if name == "cond" else values
            body, results = self.jaxpr(called, arguments, loops)
            return self.entered(opened, place, body, results)
        if own_rule(equation) is not None:
            return self.with_rule(opened, place, values, loops)
        if pieces == [0] and name in _REARRANGING:
            piece, found = values[0], _REARRANGING[name](equation, values, loops)
            if isinstance(piece, Piece) and not isinstance(found, str):
                return [piece._replace(steps=(*piece.steps, *steps)) for steps in found]
            reason = str(found)
        else:
            reason = self.multiply(opened, place, values, pieces, loops)
        if reason:
            self.block(values, reason)
        return [None] * len(equation.outvars)

    def with_rule(
        self, opened: Opened, place: int, values: list[_Value], loops: _Loops
    ) -> list[_Value]:
        """Open a call with a derivative rule of its own, if that serves a weight and is right."""
        equation = opened.jaxpr.eqns[place]
        num_products, obstacles = len(self.products), self.known_obstacles()
        body, results = self.jaxpr(forward_of(equation), values, loops)
        reason = _KEPT
        if len(self.products) > num_products or any(isinstance(x, Piece) for x in results):
            is_weight = [isinstance(value, Piece) for value in values]
            if not self.is_differentiated or is_derivative(equation, is_weight):
                return self.entered(opened, place, body, results)
            reason = _DIFFERS
        self.forget(num_products, obstacles)
        self.block(values, reason.format(own_rule(equation)))
        return [None] * len(equation.outvars)

    def known_obstacles(self) -> dict[int, dict[str, None]]:
        return {leaf: dict(reasons) for leaf, reasons in self.obstacles.items()}

    def forget(self, num_products: int, obstacles: dict[int, dict[str, None]]) -> None:
        """Go back to what was known earlier."""
        del self.products[num_products:]
        self.obstacles = obstacles

    def entered(
        self, opened: Opened, place: int, body: Opened, results: list[_Value]
    ) -> list[_Value]:
        """Keep the body of a call or loop if there are products in it."""
        if body.products or body.bodies:
            opened.bodies[place] = body
        return results

    def multiply(
        self,
        opened: Opened,
        place: int,
        values: list[_Value],
        pieces: list[int],
        loops: _Loops,
    ) -> str:
        """Note a product; or return why the equation is none with one weight."""
        equation = opened.jaxpr.eqns[place]
        name = equation.primitive.name
        if name in ("dot_general", "conv_general_dilated") and len(pieces) == 2:
            return "it is multiplied with another weight"
        (side, *_) = pieces
        piece, normal = values[side], normal_form(equation, side)
        if normal is None or not isinstance(piece, Piece):
            return _REASONS.get(name, f"it enters {name}, which is no matrix product")
        aval: Any = equation.outvars[0].aval
        output = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
        opened.products[place] = (len(self.products), side)
        self.products.append(Product(piece, loops, normal, output))
        return ""

    def scan(
        self, equation: JaxprEqn, values: list[_Value], loops: _Loops
    ) -> tuple[Opened, list[_Value]]:
        """Walk the body of a loop once, for all of its steps.

        What its state is at each step is first assumed: that a weight stays the same, and that an
        integer counts up. If the body makes something else of it, less is assumed.
        """
        num_consts, num_carry = scan_arguments(equation)
        length: int = equation.params["length"]
        inner = (*loops, length)
        consts = [_at_every_step(value, length, len(loops)) for value in values[:num_consts]]
        start = values[num_consts : num_consts + num_carry]
        slices = [_at_each_step(value, inner) for value in values[num_consts + num_carry :]]
        time = np.arange(length)[:: -1 if equation.params["reverse"] else 1]
        carry = [_counting(value, 1, time, len(loops)) for value in start]
        body = _closed(equation.params["jaxpr"])
        is_first = [True] * num_carry
        while True:
            num_products, obstacles = len(self.products), self.known_obstacles()
            opened, results = self.jaxpr(body, [*consts, *carry, *slices], inner)
            wrong = [
                number
                for number, (before, after) in enumerate(
                    zip(carry, results[:num_carry], strict=True)
                )
                if not _follows(before, after, time)
            ]
            if not wrong:
                break
            self.forget(num_products, obstacles)
            for number in wrong:
                step = _increment(carry[number], results[number]) if is_first[number] else None
                is_first[number] = False
                carry[number] = (
                    None if step is None else _counting(start[number], step, time, len(loops))
                )
        for before, value, after in zip(start, carry, results[:num_carry], strict=True):
            if value is None:
                self.block([before, after], "it is a state of a loop that changes")
        self.block(results[num_carry:], "a loop returns it at every step")
        return opened, [
            *(
                before if isinstance(value, Piece) else None
                for before, value in zip(start, carry, strict=True)
            ),
            *(None if isinstance(value, Piece) else value for value in results[num_carry:]),
        ]


# --- Values in loops -----------------------------------------------------------------------------


def _at_every_step(value: _Value, length: int, depth: int) -> _Value:
    """A value from outside, as it is inside of a loop."""
    if not isinstance(value, np.ndarray):
        return value
    shape = (*value.shape[:depth], length, *value.shape[depth:])
    return np.broadcast_to(np.expand_dims(value, depth), shape)


def _at_each_step(value: _Value, loops: _Loops) -> _Value:
    """What a loop takes out of a value that it scans; of an array of numbers it is that array."""
    if not isinstance(value, Piece):
        return value
    rows = np.broadcast_to(np.arange(loops[-1]), loops)
    return value._replace(steps=(*value.steps, Take(0, rows)))


def _counting(value: _Value, increment: int, time: np.ndarray, depth: int) -> _Value:
    """A state that starts at a value: the same weight, or an integer that counts."""
    if not isinstance(value, np.ndarray):
        return value
    # A counter has the axes of the loops around and no other.
    is_counter = value.dtype.kind in "iu" and value.ndim == depth
    return value[..., np.newaxis] + increment * time if is_counter else None


def _follows(before: _Value, after: _Value, time: np.ndarray) -> bool:
    """Whether a state at all steps is what the body makes of it, one step later."""
    if before is None:
        return True
    if isinstance(before, Piece):
        return before == after
    if not isinstance(after, np.ndarray) or after.shape != before.shape:
        return False
    order = np.argsort(time)
    return bool(np.all(before[..., order][..., 1:] == after[..., order][..., :-1]))


def _increment(before: _Value, after: _Value) -> int | None:
    """The number that a step adds to a counter."""
    if not isinstance(before, np.ndarray) or not isinstance(after, np.ndarray):
        return None
    return _only_number(after - before) if after.shape == before.shape else None


def _only_number(value: _Value) -> int | None:
    """The one number that an array holds."""
    if not isinstance(value, np.ndarray) or value.size == 0:
        return None
    first = value.reshape(-1)[0]
    return int(first) if np.all(value == first) else None


def _platform_index(equation: JaxprEqn) -> int:
    """Which branch of `lax.platform_dependent` the default backend takes."""
    backend = jax.default_backend()
    names = {"gpu": ("gpu", "cuda", "rocm")}.get(backend, (backend,))
    for index, platforms in enumerate(equation.params["platforms"]):
        if platforms is None or any(name in platforms for name in names):
            return index
    raise ValueError(f"lax.platform_dependent has no branch for {backend}; give it a default.")


# --- Rearrangements ------------------------------------------------------------------------------
# Each returns the steps to each of its results; or why the result is no piece.

_Steps = list[tuple[Step | Take, ...]] | str


def _reshaped(equation: JaxprEqn, values: list[_Value], loops: _Loops) -> _Steps:
    del values, loops
    before, after = shape_of(equation.invars[0]), shape_of(equation.outvars[0])
    if prod(before) != prod(after):
        return "its entries are repeated (broadcast_in_dim)"
    if equation.primitive.name == "reshape" and equation.params.get("dimensions") is not None:
        return "it enters reshape with an order of axes; transpose it first"
    return [(Step("reshape", after),)]


def _transposed(equation: JaxprEqn, values: list[_Value], loops: _Loops) -> _Steps:
    del values, loops
    return [(Step("transpose", tuple(equation.params["permutation"])),)]


def _cast(equation: JaxprEqn, values: list[_Value], loops: _Loops) -> _Steps:
    del values, loops
    aval: Any = equation.outvars[0].aval
    is_floating = jnp.issubdtype(aval.dtype, jnp.floating)
    return [()] if is_floating else f"it is rounded to {aval.dtype}"


def _take_all(rows: dict[int, np.ndarray]) -> tuple[Take, ...]:
    """Take one row along each of some axes; the last first, so that the others keep their place."""
    return tuple(Take(axis, rows[axis]) for axis in sorted(rows, reverse=True))


_CUT = "it is cut into pieces of more than one row"
_LOOKED_UP = "its rows are looked up by indices that depend on the data or are not known"


def _sliced(equation: JaxprEqn, values: list[_Value], loops: _Loops) -> _Steps:
    before, after = shape_of(equation.invars[0]), shape_of(equation.outvars[0])
    rows = {}
    for axis, (size, kept) in enumerate(zip(before, after, strict=True)):
        if kept == size:
            continue
        if kept != 1:
            return _CUT
        if equation.primitive.name == "slice":
            start: _Value = np.full(loops, equation.params["start_indices"][axis])
        else:
            start = values[1 + axis]
        if not isinstance(start, np.ndarray):
            return _LOOKED_UP
        # Where an index lies outside, a dynamic slice starts as near to it as it can.
        rows[axis] = np.asarray(np.clip(start, 0, size - 1))
    return [(*_take_all(rows), Step("reshape", after))]


def _split(equation: JaxprEqn, values: list[_Value], loops: _Loops) -> _Steps:
    """`split` keeps the axis, `unstack` does not."""
    del values
    axis = equation.params["axis"]
    before = shape_of(equation.invars[0])
    if len(equation.outvars) != before[axis]:
        return _CUT
    return [
        (Take(axis, np.full(loops, row)), Step("reshape", shape_of(output)))
        for row, output in enumerate(equation.outvars)
    ]


def _gathered(equation: JaxprEqn, values: list[_Value], loops: _Loops) -> _Steps:
    """Only `w[i]` with one index for each axis that it drops, the first axes of the result."""
    before, indices = shape_of(equation.invars[0]), values[1]
    numbers = equation.params["dimension_numbers"]
    axes = tuple(numbers.start_index_map)
    sizes = tuple(1 if axis in axes else size for axis, size in enumerate(before))
    is_one_row = (
        tuple(numbers.collapsed_slice_dims) == tuple(sorted(axes))
        and not numbers.operand_batching_dims
        and tuple(equation.params["slice_sizes"]) == sizes
        and shape_of(equation.invars[1]) == (len(axes),)
    )
    if not is_one_row or not isinstance(indices, np.ndarray):
        return _LOOKED_UP
    rows = {axis: indices[..., number] for number, axis in enumerate(axes)}
    if any(np.any((rows[axis] < 0) | (rows[axis] >= before[axis])) for axis in axes):
        return "one of its rows is looked up by an index outside"
    return [_take_all(rows)]


_Rearranging = Callable[[JaxprEqn, list[_Value], _Loops], _Steps]

_REARRANGING: dict[str, _Rearranging] = {
    "reshape": _reshaped,
    "squeeze": _reshaped,
    "expand_dims": _reshaped,
    "broadcast_in_dim": _reshaped,
    "transpose": _transposed,
    "convert_element_type": _cast,
    "copy": lambda equation, values, loops: [()],
    "slice": _sliced,
    "dynamic_slice": _sliced,
    "split": _split,
    "unstack": _split,
    "gather": _gathered,
}

_KEPT = "it enters a function with a derivative rule of its own ({}), which is kept"
_DIFFERS = (
    "it enters a function with a derivative rule of its own ({}), which is kept: as far as can be "
    "told, it is not the derivative of what the function computes"
)

_REASONS = {
    "conv_general_dilated": "it is not the kernel of a convolution, but what is convolved",
    "while": "it enters a loop whose number of steps is not known when it is traced (while)",
    "cond": "it enters a conditional whose branch is not known when it is traced (cond)",
    "concatenate": "it is joined with other arrays before its product (concatenate)",
}
