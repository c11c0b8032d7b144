"""How a function uses each leaf of its parameters, read from its jaxpr; nothing is computed.

A leaf is a *matrix* if it multiplies activations: as an operand of a matrix product or convolution,
or as a table whose rows are looked up (the product with a one-hot matrix), possibly after
rearrangement, cutting, or entrywise change (weight standardization, masks, low-rank additions).
Gains, biases, statistics, position tables that are added, and class tokens are used *otherwise*.

A leaf is a *stack* of layers if a loop (`lax.scan`) takes its entries along one axis one by one, or
they are taken out by constant indices. The layer that makes the outputs is the matrix that every
way from the inputs to the outputs meets last.

The walk is a forward analysis: what is known of a value is whether it depends on the inputs, which
leaves it is entry by entry, and which matrices were last on the way to it. Bodies of loops are
walked until nothing changes.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxcomp.trees.paths import leaves_by_path
from jaxcomp.types import Params


class LeafUse(NamedTuple):
    """How a function uses one leaf.

    Attributes:
        kind: `"matrix"` if it multiplies activations somewhere, `"other"` if it is used otherwise
            only, `"unused"` if not at all.
        stack_axis: the axis along which it is a stack of layers; None if it is none.
        makes_outputs: whether it is the one matrix that makes the outputs, and nothing else.
    """

    kind: Literal["matrix", "other", "unused"]
    stack_axis: int | None = None
    makes_outputs: bool = False


def find_uses(
    function: Callable[[Params, Any], Any], params: Params, inputs: Any
) -> dict[str, LeafUse]:
    """Return the `LeafUse` of every leaf by its path.

    Args:
        function: `(params, inputs) -> outputs`, traceable by JAX.
        params: any pytree of arrays.
        inputs: a pytree of arrays, of which only shapes and dtypes count.

    Returns:
        A dict from paths to uses, in the order of the pytree.
    """
    paths = list(leaves_by_path(params))
    closed = jax.make_jaxpr(function)(params, inputs)
    walk = _Walk()
    arguments = [
        _Value(roots=frozenset({_Root(leaf, tuple(range(len(var.aval.shape))))}))
        if leaf < len(paths)
        else _Value(depends=True)
        for leaf, var in enumerate(closed.jaxpr.invars)
    ]
    outputs = walk.closed(closed, arguments)
    for output in outputs:
        walk.used_otherwise(output)
    last = frozenset().union(*(output.last for output in outputs if output.depends))
    return {path: walk.use(leaf, last) for leaf, path in enumerate(paths)}


def output_layer(uses: Mapping[str, LeafUse]) -> str | None:
    """Return the path of the layer that makes the outputs, if there is exactly one."""
    return next((path for path, use in uses.items() if use.makes_outputs), None)


class _Root(NamedTuple):
    """A leaf that a value is, entry by entry, and which axis of the leaf each axis is."""

    leaf: int
    axes: tuple[int | None, ...]


class _Value(NamedTuple):
    """What is known of a value.

    Attributes:
        depends: whether on the inputs of the function.
        roots: the leaves that it is, if it depends on parameters only.
        last: the matrices that were last on the way to it.
    """

    depends: bool = False
    roots: frozenset[_Root] = frozenset()
    last: frozenset[int] = frozenset()


def _joined(values: Sequence[_Value]) -> _Value:
    return _Value(
        any(value.depends for value in values),
        frozenset().union(*(value.roots for value in values)),
        frozenset().union(*(value.last for value in values)),
    )


# Names that call a jaxpr with the same arguments, and where it is kept.
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
# Rounds of a loop after which what was last is joined instead of replaced: it could go on changing
# places with each round.
_ROUNDS = 4


@dataclass
class _Walk:
    """Uses found so far, by the number of the leaf."""

    matrices: set[int] = field(default_factory=set)
    others: set[int] = field(default_factory=set)
    stack_axes: dict[int, set[int | None]] = field(default_factory=dict)
    # Where a leaf is a matrix, to tell a layer from a tied one: the equation, and the calls to it.
    places: dict[int, set[tuple[int, ...]]] = field(default_factory=dict)
    trail: list[int] = field(default_factory=list)

    def use(self, leaf: int, last: frozenset[int]) -> LeafUse:
        axes = self.stack_axes.get(leaf, set())
        axis = next(iter(axes)) if len(axes) == 1 else None
        if leaf in self.matrices:
            is_single = leaf not in self.others and len(self.places[leaf]) == 1 and not axes
            return LeafUse("matrix", axis, is_single and last == {leaf})
        return LeafUse("other" if leaf in self.others else "unused", axis)

    def used_otherwise(self, value: _Value) -> None:
        self.others.update(root.leaf for root in value.roots)

    def used_as_matrix(self, value: _Value, equation: Any) -> frozenset[int]:
        """Note the use; return what is last on the way now."""
        leaves = {root.leaf for root in value.roots}
        self.matrices |= leaves
        for leaf in leaves:
            self.places.setdefault(leaf, set()).add((*self.trail, id(equation)))
        return frozenset(leaves) or value.last

    def closed(self, closed: Any, arguments: Sequence[_Value]) -> list[_Value]:
        """Walk a jaxpr, closed or not; return its outputs."""
        jaxpr = getattr(closed, "jaxpr", closed)
        known: dict[Any, _Value] = dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> _Value:
            # Literals and constants are neither inputs nor leaves.
            return known.get(atom, _Value()) if not hasattr(atom, "val") else _Value()

        for equation in jaxpr.eqns:
            results = self.equation(equation, [read(atom) for atom in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, operands: list[_Value]) -> list[_Value]:
        name, parameters = equation.primitive.name, equation.params
        if name == "scan":
            return self.scan(equation, operands)
        if name == "while":
            return self.loop(equation, operands)
        if name == "cond":
            branches = [self.closed(branch, operands[1:]) for branch in parameters["branches"]]
            depends = operands[0].depends
            return [_joined([*results, _Value(depends)]) for results in zip(*branches, strict=True)]
        called = next((parameters[key] for key in _CALLS if key in parameters), None)
        if called is not None and _fits(getattr(called, "jaxpr", called), equation):
            # One function called twice is two places, though its equations are the same.
            self.trail.append(id(equation))
            results = self.closed(called, operands)
            self.trail.pop()
            return results
        if name in ("dot_general", "conv_general_dilated"):
            return [self.product(equation, operands)]
        if name == "gather" or (name == "dynamic_slice" and any(v.depends for v in operands[1:])):
            return self.lookup(equation, operands)
        return self.entrywise(equation, operands)

    def product(self, equation: Any, operands: list[_Value]) -> _Value:
        left, right = operands[:2]
        depends = left.depends or right.depends
        last = frozenset()
        for value, other, atom in ((left, right, 0), (right, left, 1)):
            if value.depends:
                continue
            # Two parameters may be a factor each, but a vector (a token, say) is none.
            if other.depends or sum(size > 1 for size in equation.invars[atom].aval.shape) > 1:
                last |= self.used_as_matrix(value, equation)
            else:
                self.used_otherwise(value)
        return _Value(depends, last=last if last else left.last | right.last)

    def lookup(self, equation: Any, operands: list[_Value]) -> list[_Value]:
        table, depends = operands[0], any(value.depends for value in operands[1:])
        outputs = equation.outvars
        if table.depends:
            return self.entrywise(equation, operands)
        if not depends:
            # Constant places are a rearrangement; the axes are no longer known.
            lost = frozenset(
                _Root(root.leaf, (None,) * len(outputs[0].aval.shape)) for root in table.roots
            )
            return [table._replace(roots=lost)] * len(outputs)
        sizes = equation.params["slice_sizes"]
        if prod(sizes) > 1:
            return [_Value(True, last=self.used_as_matrix(table, equation))] * len(outputs)
        self.used_otherwise(table)
        return [_Value(True, last=_joined(operands).last)] * len(outputs)

    def entrywise(self, equation: Any, operands: list[_Value]) -> list[_Value]:
        """Everything else: entry by entry where shapes agree or entries are only moved."""
        name = equation.primitive.name
        joined = _joined([value for value in operands if value.depends] or operands)
        if joined.depends:
            for value in operands:
                self.used_otherwise(value)
            return [joined._replace(roots=frozenset())] * len(equation.outvars)
        results = []
        for output in equation.outvars:
            roots: set[_Root] = set()
            for atom, value in zip(equation.invars, operands, strict=True):
                shape = getattr(atom.aval, "shape", ())
                moved = self.moved(equation, name, shape, output.aval.shape)
                if moved is None:
                    self.used_otherwise(value)
                    continue
                roots |= {
                    self.cut(equation, name, shape, root)._replace(
                        axes=tuple(None if axis is None else root.axes[axis] for axis in moved)
                    )
                    for root in value.roots
                }
            results.append(_Value(False, frozenset(roots), joined.last))
        return results

    def cut(self, equation: Any, name: str, shape: tuple[int, ...], root: _Root) -> _Root:
        """Note it if one entry of a leaf's axis is taken out alone."""
        if name in ("slice", "dynamic_slice"):
            cut = [
                axis
                for axis, (before, after) in enumerate(
                    zip(shape, equation.outvars[0].aval.shape, strict=True)
                )
                if after < before
            ]
            is_one = len(cut) == 1 and equation.outvars[0].aval.shape[cut[0]] == 1
            if is_one and len(shape) > 2 and cut[0] == 0:
                self.stack_axes.setdefault(root.leaf, set()).add(root.axes[0])
        return root

    def moved(
        self, equation: Any, name: str, before: tuple[int, ...], after: tuple[int, ...]
    ) -> tuple[int | None, ...] | None:
        """Where each axis of a result comes from; None if entries are not kept one by one."""
        if name == "transpose":
            return tuple(equation.params["permutation"])
        if name in ("slice", "dynamic_slice", "split", "rev"):
            return tuple(range(len(after))) if len(before) == len(after) else ()
        if name in ("concatenate", "pad"):
            return (None,) * len(after)
        if name == "broadcast_in_dim" and prod(before) == prod(after):
            places = equation.params["broadcast_dimensions"]
            return tuple(
                places.index(axis) if axis in places else None for axis in range(len(after))
            )
        if before == after:
            return tuple(range(len(after)))
        if name in ("reshape", "squeeze", "expand_dims"):
            return _reshaped(before, after)
        return None

    def scan(self, equation: Any, operands: list[_Value]) -> list[_Value]:
        parameters = equation.params
        num_consts, num_carry = scan_arguments(equation)
        consts, carry = operands[:num_consts], operands[num_consts : num_consts + num_carry]
        slices = []
        for value in operands[num_consts + num_carry :]:
            for root in value.roots:
                self.stack_axes.setdefault(root.leaf, set()).add(root.axes[0])
            roots = frozenset(root._replace(axes=root.axes[1:]) for root in value.roots)
            slices.append(value._replace(roots=roots))

        def body(carry: list[_Value]) -> list[_Value]:
            return self.closed(parameters["jaxpr"], [*consts, *carry, *slices])

        carry = self.fixed_point(lambda carry: body(carry)[:num_carry], carry)
        results = body(carry)
        # What is stacked up has one more axis, which is no leaf's.
        stacked = [
            value._replace(
                roots=frozenset(root._replace(axes=(None, *root.axes)) for root in value.roots)
            )
            for value in results[num_carry:]
        ]
        return [*carry, *stacked]

    def loop(self, equation: Any, operands: list[_Value]) -> list[_Value]:
        parameters = equation.params
        first, second = parameters["cond_nconsts"], parameters["body_nconsts"]
        condition, consts = operands[:first], operands[first : first + second]

        def body(carry: list[_Value]) -> list[_Value]:
            self.closed(parameters["cond_jaxpr"], [*condition, *carry])
            return self.closed(parameters["body_jaxpr"], [*consts, *carry])

        return self.fixed_point(body, operands[first + second :])

    def fixed_point(
        self, body: Callable[[list[_Value]], list[_Value]], carry: Sequence[_Value]
    ) -> list[_Value]:
        """Join the carry of a loop with what its body makes of it until that adds nothing.

        Once round, `last` is what the body ends with: the start is met only by no round at all.
        """
        carry = list(carry)
        for round_number in itertools.count():
            results = body(carry)
            joined = []
            for before, after in zip(carry, results, strict=True):
                value = _joined([before, after])
                if after.depends and before.depends and round_number < _ROUNDS:
                    value = value._replace(last=after.last)
                if value.depends and value.roots:
                    self.used_otherwise(value)
                    value = value._replace(roots=frozenset())
                joined.append(value)
            if joined == carry:
                break
            carry = joined
        return carry


def scan_arguments(equation: Any) -> tuple[int, int]:
    """Return how many arguments of a `lax.scan` are constants, and how many are its state.

    They come first, in this order; what is taken apart follows.
    """
    # From the shapes, since versions of JAX name the numbers differently: what is taken apart or
    # stacked up has one axis more outside the body than in it.
    inner = getattr(equation.params["jaxpr"], "jaxpr", equation.params["jaxpr"])
    num_carry = len(equation.outvars) - _num_deeper(equation.outvars, inner.outvars)
    num_slices = _num_deeper(equation.invars, inner.invars)
    return len(equation.invars) - num_carry - num_slices, num_carry


def _num_deeper(outer: Sequence[Any], inner: Sequence[Any]) -> int:
    """How many values have more axes outside the body of a loop than in it."""
    pairs = zip(outer, inner, strict=True)
    return sum(len(one.aval.shape) > len(other.aval.shape) for one, other in pairs)


def _fits(jaxpr: Any, equation: Any) -> bool:
    """Whether a jaxpr has the arguments and results of the equation that calls it."""
    return len(jaxpr.invars) == len(equation.invars) and len(jaxpr.outvars) == len(equation.outvars)


def _reshaped(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int | None, ...]:
    """Which axis of the old shape each axis of the new one is; None where axes were joined."""
    starts = {int(np.prod(before[:axis], dtype=np.int64)): axis for axis in range(len(before))}
    result: list[int | None] = []
    for axis, size in enumerate(after):
        old = starts.get(int(np.prod(after[:axis], dtype=np.int64)))
        while old is not None and old < len(before) and before[old] == 1 != size:
            old += 1
        result.append(
            old if old is not None and old < len(before) and before[old] == size else None
        )
    return tuple(result)
