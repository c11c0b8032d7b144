"""Weights as matrices `(G, I, O)`: the rearrangements on the way from an array to a product.

A function may reshape, transpose and cast a weight before it multiplies with it, and it may take
one row out of a stack of weights: `w[3]`, or what a loop over the stack takes at each step. The
steps on that way are recorded here, and turned into one layout of the *whole* array, in which the
axes of rows come first and are part of the groups `G`: a stack of matrices is a batch of layers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped


class Step(NamedTuple):
    """One rearrangement of an array: a reshape to a shape, or a transpose by a permutation."""

    kind: Literal["reshape", "transpose"]
    argument: tuple[int, ...]

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of an array after the step."""
        if self.kind == "reshape":
            return self.argument
        return tuple(before[axis] for axis in self.argument)

    def apply(self, array: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """Rearrange an array."""
        move = jnp.reshape if self.kind == "reshape" else jnp.transpose
        return move(array, self.argument)

    def undo(self, array: Shaped[Array, "..."], before: tuple[int, ...]) -> Shaped[Array, "..."]:
        """Bring an array back to the shape before the step."""
        if self.kind == "reshape":
            return jnp.reshape(array, before)
        return jnp.transpose(array, tuple(np.argsort(self.argument).tolist()))


@dataclass(frozen=True, eq=False)
class Take:
    """One row along an axis is taken out, and the axis with it.

    Attributes:
        axis: of the array at that point.
        rows: which row it is at each step of the loops around, with one axis for each loop, the
            outermost first; no axis outside loops.
    """

    axis: int
    rows: np.ndarray


@dataclass(frozen=True)
class MatrixLayout:
    """How a weight is laid out as matrices `(G, I, O)`: a fixed rearrangement of its entries.

    Attributes:
        shape: of the weight.
        num_groups: G, all rows of a stack included.
        num_inputs: I, fan-in of a group.
        num_outputs: O, outputs of a group.
        steps: the rearrangements, from the weight to the matrices; none of them is superfluous.
    """

    shape: tuple[int, ...]
    num_groups: int
    num_inputs: int
    num_outputs: int
    steps: tuple[Step, ...]

    def to_matrices(self, weight: Shaped[Array, "..."]) -> Shaped[Array, "G I O"]:
        """Return the weight (or anything shaped like it) as one matrix for each group."""
        for step in self.steps:
            weight = step.apply(weight)
        return weight

    def from_matrices(self, matrices: Shaped[Array, "G I O"]) -> Shaped[Array, "..."]:
        """Undo `to_matrices`."""
        shapes = [self.shape]
        for step in self.steps:
            shapes.append(step.shape(shapes[-1]))
        for step, before in zip(self.steps[::-1], shapes[-2::-1], strict=True):
            matrices = step.undo(matrices, before)
        return matrices


class StackLayout(NamedTuple):
    """The layout of a whole array of which a product sees one row at a time.

    Attributes:
        matrices: the layout; its groups are the rows, each with the groups of the product.
        num_rows: of the array, counted along all its axes of rows.
        takes: how rows are taken; none if the product sees the whole array.
        sizes: lengths of the axes of rows, as many as `takes`.
    """

    matrices: MatrixLayout
    num_rows: int
    takes: tuple[Take, ...]
    sizes: tuple[int, ...]

    def rows(self, loops: tuple[int, ...]) -> np.ndarray:
        """Return which row each step of the loops around uses, all loops counted as one."""
        flat = np.zeros(loops, np.int64)
        for take, size in zip(self.takes, self.sizes, strict=True):
            # What was taken in an outer loop is the same at every step of the inner ones.
            inner = (1,) * (len(loops) - take.rows.ndim)
            flat = flat * size + take.rows.reshape(take.rows.shape + inner)
        return flat.reshape(-1)


def stack_layout(shape: tuple[int, ...], steps: Iterable[Step | Take]) -> StackLayout:
    """Turn the steps from an array to the matrices `(G, I, O)` of one row into its layout.

    Args:
        shape: of the array.
        steps: from the array to the matrices of a product.
    """
    takes, sizes, lifted = [], [], []
    row = shape
    for step in steps:
        num = len(sizes)
        outer = tuple(range(num))
        if isinstance(step, Take):
            # The axis of rows goes to the front, behind those that are there.
            inner = tuple(num + axis for axis in range(len(row)) if axis != step.axis)
            lifted.append(Step("transpose", (*outer, num + step.axis, *inner)))
            takes.append(step)
            sizes.append(row[step.axis])
            row = row[: step.axis] + row[step.axis + 1 :]
            continue
        if step.kind == "reshape":
            lifted.append(Step("reshape", (*sizes, *step.argument)))
        else:
            lifted.append(Step("transpose", (*outer, *(num + axis for axis in step.argument))))
        row = step.shape(row)
    groups, num_inputs, num_outputs = row
    num_rows = prod(sizes)
    whole = (num_rows * groups, num_inputs, num_outputs)
    simple = _simplified(shape, [*lifted, Step("reshape", whole)])
    return StackLayout(MatrixLayout(shape, *whole, simple), num_rows, tuple(takes), tuple(sizes))


def _simplified(shape: tuple[int, ...], steps: Iterable[Step]) -> tuple[Step, ...]:
    """Leave out steps that do nothing and join those that are one, so that equal ways look equal.

    Equal up to what a transpose that moves axes of different sizes can be written as.
    """
    shapes, kept = [shape], []
    for step in steps:
        # A step that joins the one before is looked at again: it may do nothing now.
        while True:
            before = shapes[-1]
            if step.kind == "transpose" and _is_reshape(step, before):
                step = Step("reshape", step.shape(before))
            if not kept or kept[-1].kind != step.kind:
                break
            last = kept.pop()
            shapes.pop()
            if step.kind == "transpose":
                step = Step("transpose", tuple(last.argument[axis] for axis in step.argument))
        if step.kind == "reshape" and step.argument == before:
            continue
        kept.append(step)
        shapes.append(step.shape(before))
    return tuple(kept)


def _is_reshape(step: Step, before: tuple[int, ...]) -> bool:
    """Whether a transpose moves only axes of one entry."""
    moved = [axis for axis in step.argument if before[axis] != 1]
    return moved == sorted(moved)
