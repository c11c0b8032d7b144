"""Layers of any function, found in its jaxpr: their inputs, and the gradients of their outputs.

A *matrix use* is all that a function does with a weight, if that is matrix products or
convolutions with the weight as one operand; the weight may have been reshaped, transposed or cast
before, or be one row of a stack. Every such use is brought into one normal form,

    z[g, p, o] = sum over i of a[g, p, i] w[g, i, o],

with the axis letters `G` groups (of a convolution, or the batch axes of a product; and every row of
a stack of layers, whether a loop scans it or it is indexed, `w[i]`), `P` positions (pixels, tokens,
heads, steps of a loop over time that uses the whole weight at each, and every further use of a
weight that is used several times; 1 for a dense layer on a vector), `I` inputs (fan-in) and `O`
outputs. What curvature needs of a layer is `a`, and the gradient of a loss with respect to `z`: a
zero is added to `z`, and differentiated. The gradient of one example's loss with respect to the
weight is then the sum over positions of `a[g, p, i] delta[g, p, o]`.

All this is for the function of *one example* (a batch of one), to be used under `jax.vmap`: so it
does not matter where a model keeps its batch axis, and products of the form "batch times weight"
come out again as single large ones. Weights that are used otherwise (biases, embeddings, weights
that are changed before they multiply) are not captured: `Capture.reasons` says why, and they are
left to ordinary differentiation.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float

from jaxcomp.curvature.estimate import diagonal_dtype
from jaxcomp.curvature.layouts import MatrixLayout, StackLayout, stack_layout
from jaxcomp.curvature.products import Product, find_products
from jaxcomp.curvature.running import count_activations, run

Arrays = tuple[Array, ...]
"""One array for each product of a use."""


@dataclass(frozen=True)
class MatrixUse:
    """All uses of a weight in matrix products or convolutions, for one example.

    Attributes:
        position: of the weight among the floating leaves.
        layout: of the weight as matrices `(G, I, O)`.
        num_positions: P.
        order: number of its first product, in the order in which products are evaluated.
        outputs: shapes and dtypes of the perturbations that are added to the result of each of its
            products, at all steps of the loops around.
        to_inputs: brings the captured operands of E examples, `(E, ...)`, into the normal form
            `(E, G, P, I)`.
        to_outputs: brings gradients with respect to their perturbations into `(E, G, P, O)`.
    """

    position: int
    layout: MatrixLayout
    num_positions: int
    order: int
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    to_inputs: Callable[[Arrays], Float[Array, "E G P I"]]
    to_outputs: Callable[[Arrays], Float[Array, "E G P O"]]


@dataclass(frozen=True)
class Capture:
    """A function of weights and one example with its layers laid open.

    Attributes:
        uses: the captured weights, in the order of the leaves.
        reasons: for each leaf why it is not captured; None for those that are.
        outputs: shapes and dtypes of what the function returns.
        num_activations: numbers that evaluating one example makes, weights left out.
        run: `(perturbations, values, example) -> (outputs, operands)`: evaluates the function with
            a perturbation added to the results of each use, and returns what each use multiplies
            its weight with.
    """

    uses: tuple[MatrixUse, ...]
    reasons: tuple[str | None, ...]
    outputs: Any
    num_activations: int
    run: Callable[[Sequence[Arrays], Sequence[Array], Any], tuple[Any, tuple[Arrays, ...]]]


def capture(
    function: Callable[[tuple[Array, ...], Any], Any],
    values: tuple[Array, ...],
    example: Any,
    *,
    is_wanted: Sequence[bool] | None = None,
    is_differentiated: bool = True,
) -> Capture:
    """Trace a function and find the matrix uses among its operations.

    Calls and loops are opened where a weight passes through them to a product (`jit`, `remat`, the
    branch of `lax.platform_dependent` for the default backend, `lax.scan`, `custom_vjp` and
    `custom_jvp` by their forward function). A weight is captured if all that it enters are products
    of one form.

    Args:
        function: `(values, example) -> outputs`, pure.
        values: the floating leaves.
        example: a pytree of arrays, or of shapes and dtypes.
        is_wanted: for each leaf whether it may be captured; None for all.
        is_differentiated: whether `run` will be: a derivative rule of the user's own that is not
            the derivative is then kept, and weights inside are not captured (see `own_rules`).

    Returns:
        The capture; `run` holds the arrays that `function` closes over, and may be used under
        `jax.vmap` and differentiated.
    """
    traced, outputs = jax.make_jaxpr(function, return_shape=True)(values, example)
    # What a loop returns and nobody reads (the weights of a module, say) is no use of it.
    jaxpr, _ = dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars), instantiate=True)
    closed = ClosedJaxpr(jaxpr, traced.consts)
    wanted = [True] * len(values) if is_wanted is None else list(is_wanted)
    found = find_products(closed, wanted, is_differentiated=is_differentiated)
    products_of: dict[int, list[int]] = defaultdict(list)
    for number, product in enumerate(found.products):
        products_of[product.piece.leaf].append(number)

    uses: list[MatrixUse] = []
    reasons: list[str | None] = []
    for leaf, value in enumerate(values):
        numbers = products_of[leaf]
        products = [found.products[number] for number in numbers]
        use = _reason(products, found.obstacles.get(leaf, ()), is_wanted=wanted[leaf])
        if use is None:
            use = _join(leaf, value, products, numbers[0])
        reasons.append(use if isinstance(use, str) else None)
        uses += [] if isinstance(use, str) else [use]
    captured = [products_of[use.position] for use in uses]
    opened = found.opened.only({number for numbers in captured for number in numbers})
    structure = jax.tree.structure(outputs)

    def run_captured(
        perturbations: Sequence[Arrays], leaves: Sequence[Array], example: Any
    ) -> tuple[Any, tuple[Arrays, ...]]:
        numbered = {
            number: array
            for numbers, arrays in zip(captured, perturbations, strict=True)
            for number, array in zip(numbers, arrays, strict=True)
        }
        results, operands = run(opened, [*leaves, *jax.tree.leaves(example)], numbered)
        return structure.unflatten(results), tuple(
            tuple(operands[number] for number in numbers) for numbers in captured
        )

    is_example = [number >= len(values) for number in range(len(jaxpr.invars))]
    return Capture(
        tuple(uses),
        tuple(reasons),
        outputs,
        count_activations(opened, is_example),
        run_captured,
    )


def _reason(products: list[Product], obstacles: tuple[str, ...], *, is_wanted: bool) -> str | None:
    """Why a leaf is not captured, whatever the form of its products; None if it may be."""
    if not is_wanted:
        return "it is left out"
    if obstacles:
        # The first that a reader of the function meets.
        return obstacles[0] + (" (and matrix products elsewhere)" if products else "")
    return None if products else "it is not used"


def _join(leaf: int, value: Array, products: list[Product], order: int) -> MatrixUse | str:
    """Make one use of the products of a leaf; or say why they are not of one form."""
    layouts = [
        stack_layout(value.shape, (*product.piece.steps, *product.normal.weight_steps))
        for product in products
    ]
    layout = layouts[0]
    if not any(prod(product.loops) for product in products):
        return "it is used only in a loop without steps"
    if any(other.matrices != layout.matrices for other in layouts):
        return "it enters matrix products of different forms"
    table = _table(layouts, products)
    num_positions = max(product.normal.sizes[1] for product in products)
    normal = partial(_normal, products, table, num_positions, diagonal_dtype(value.dtype))
    outputs = tuple(
        jax.ShapeDtypeStruct((*product.loops, *product.output.shape), product.output.dtype)
        for product in products
    )
    return MatrixUse(
        leaf,
        layout.matrices,
        table.shape[1] * num_positions,
        order,
        outputs,
        partial(normal, [product.normal.to_inputs for product in products]),
        partial(normal, [product.normal.to_outputs for product in products]),
    )


def _table(layouts: list[StackLayout], products: list[Product]) -> np.ndarray:
    """Where the uses of each row are, among all steps of all products one after the other.

    As many columns as the most used row has uses; -1 where a row has fewer.
    """
    rows = np.concatenate(
        [layout.rows(product.loops) for layout, product in zip(layouts, products, strict=True)]
    )
    counts = np.bincount(rows, minlength=layouts[0].num_rows)
    order = np.argsort(rows, kind="stable")
    column = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((layouts[0].num_rows, int(counts.max())), -1)
    table[rows[order], column] = order
    return table


def _normal(
    products: list[Product],
    table: np.ndarray,
    num_positions: int,
    dtype: np.dtype,
    rearrange: list[Callable[[Array], Array]],
    arrays: Arrays,
) -> Float[Array, "E G P X"]:
    """Rearrange what the products multiply or return, each step alone, and put it into rows.

    Examples stay behind rows until the end, where they are named first: so loops stacked them up,
    and so they are multiplied.
    """
    parts = []
    for product, to_normal, array in zip(products, rearrange, arrays, strict=True):
        for _ in (*product.loops, "examples"):
            to_normal = jax.vmap(to_normal)
        part = to_normal(array).astype(dtype)
        part = part.reshape(len(part), -1, *part.shape[1 + len(product.loops) :])
        missing = num_positions - part.shape[3]
        # Positions that a product does not have add nothing to any sum over positions.
        if missing:
            part = jnp.pad(part, (*[(0, 0)] * 3, (0, missing), (0, 0)))
        parts.append(jnp.swapaxes(part, 0, 1))  # (steps, E, g, p, x)
    steps = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
    _, num_examples, groups, _, width = steps.shape
    by_row = _by_row(steps, table)  # (rows, uses, E, g, p, x)
    normal = jnp.transpose(by_row, (0, 3, 2, 1, 4, 5))
    normal = normal.reshape(len(table) * groups, num_examples, -1, width)
    return jnp.swapaxes(normal, 0, 1)


def _by_row(steps: Float[Array, "steps *x"], table: np.ndarray) -> Float[Array, "rows uses *x"]:
    """Put steps into a table; zeros where it has no step. Copies only if it must."""
    num_rows, num_uses = table.shape
    in_order = np.arange(len(steps))
    if np.array_equal(table.reshape(-1), in_order):
        return steps.reshape(num_rows, num_uses, *steps.shape[1:])
    if np.array_equal(table.T.reshape(-1), in_order):
        return jnp.swapaxes(steps.reshape(num_uses, num_rows, *steps.shape[1:]), 0, 1)
    if np.any(table < 0):
        steps = jnp.concatenate([steps, jnp.zeros_like(steps[:1])])
    return steps[table]
