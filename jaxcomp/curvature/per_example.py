"""Squared gradients of single examples, summed: the work behind exact diagonals.

For a function of weights and one example with outputs f, and columns s (vectors like f), the sum
over examples and columns of `(d (s . f) / d w)^2` for every weight w. A layer's gradient is a sum
over positions p of `a[p, i] delta[p, o]` (`jaxcomp.curvature.capture`), and its square is either
taken after the sum, or expanded,

    sum over c of (sum_p a[p, i] delta[c, p, o])^2
        = sum over p, q of (a[p, i] a[q, i]) (sum over c of delta[c, p, o] delta[c, q, o]),

one matrix product in which the columns are already summed: the better one for few positions. With
one position (a dense layer) it is the squares trick `(a^2)^T (delta^2)`. Squaring position by
position drops the terms p != q and is wrong. Axis letters: `E` examples of a chunk, `C` columns,
`G` groups, `P` positions, `I` inputs and `O` outputs of a layer.

Source: Dangel, Kunstner, Hennig, "BackPACK", arXiv:1912.10985 (DiagGGN, second moments).
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from jaxcomp.curvature.capture import Arrays, Capture, capture
from jaxcomp.curvature.estimate import (
    CompensatedSum,
    FloatingLeaves,
    count_examples,
    diagonal_dtype,
    shapes_of_one,
)
from jaxcomp.curvature.units import Exponents, in_units
from jaxcomp.numerics.memory import chunk_bytes
from jaxcomp.numerics.placement import Placement, placed_examples
from jaxcomp.numerics.scaling import group_exponent


class Columns(NamedTuple):
    """Columns of a chunk of examples: what the outputs are combined with.

    Attributes:
        num_columns: C, of each example.
        at: number of a column -> that column of every example, shaped like the outputs.
    """

    num_columns: int
    at: Callable[[Int[Array, ""]], Float[Array, "E *shape"]]

    def where(self, is_example: Bool[Array, " E"]) -> "Columns":
        """Return columns that are zero for those that fill up the last chunk."""

        def at(index: Int[Array, ""]) -> Float[Array, "E *shape"]:
            column = self.at(index)
            keep = is_example.reshape(-1, *(1,) * (column.ndim - 1))
            return jnp.where(keep, column, jnp.zeros((), column.dtype))

        return Columns(self.num_columns, at)


class OpenLayers(NamedTuple):
    """A function of one example with its layers laid open, and what is left to differentiate.

    Attributes:
        capture: the function of `(values, example)`.
        leaves: the weights.
        others: positions of the floating leaves that are no layer.
    """

    capture: Capture
    leaves: FloatingLeaves
    others: tuple[int, ...]

    def inputs_of_uses(self, inputs: Any) -> list[Float[Array, "E G P I"]]:
        """Evaluate a chunk of E examples for what its layers multiply their weights with."""

        def one(example: Any, perturbations: list[Arrays]) -> tuple[Arrays, ...]:
            return self.capture.run(perturbations, self.leaves.values, _as_batch(example))[1]

        operands = jax.vmap(one)(inputs, self._perturbations(inputs))
        return self._normal(operands)

    def linearize(self, inputs: Any) -> "Linearized":
        """Evaluate a chunk of E examples, ready to pull gradients of its one output back."""
        size = count_examples(inputs, name="inputs")
        uses, values = self.capture.uses, self.leaves.values
        perturbations = self._perturbations(inputs)
        # One copy for each example, so that each has a gradient of its own.
        others = [jnp.broadcast_to(values[p], (size, *values[p].shape)) for p in self.others]

        def one(example: Any, perturbations: list[Arrays], others: list[Array]) -> Any:
            replaced = list(values)
            for position, value in zip(self.others, others, strict=True):
                replaced[position] = value
            outputs, operands = self.capture.run(perturbations, replaced, _as_batch(example))
            return outputs[0], operands

        outputs, pullback, operands = jax.vjp(
            partial(jax.vmap(one), inputs), perturbations, others, has_aux=True
        )
        dtypes = [diagonal_dtype(value.dtype) for value in values]

        def gradients(column: Float[Array, "E *shape"]) -> tuple[list[Array], list[Array]]:
            of_outputs, of_others = pullback(column)
            deltas = [use.to_outputs(of_use) for use, of_use in zip(uses, of_outputs, strict=True)]
            return deltas, [
                gradient.astype(dtypes[position])
                for position, gradient in zip(self.others, of_others, strict=True)
            ]

        return Linearized(outputs, self._normal(operands), gradients)

    def _perturbations(self, inputs: Any) -> list[Arrays]:
        size = count_examples(inputs, name="inputs")
        return [
            tuple(jnp.zeros((size, *output.shape), output.dtype) for output in use.outputs)
            for use in self.capture.uses
        ]

    def _normal(self, operands: tuple[Arrays, ...]) -> list[Float[Array, "E G P I"]]:
        """Bring what the weights are multiplied with into the normal form of `capture`."""
        pairs = zip(self.capture.uses, operands, strict=True)
        return [use.to_inputs(of_use) for use, of_use in pairs]


class Linearized(NamedTuple):
    """A chunk of examples, evaluated.

    Attributes:
        outputs: `(E, ...)`.
        inputs: of each use, `(E, G, P, I)`.
        gradients: `(E, ...) -> (deltas, others)`: for a linear combination of the outputs of each
            example, its gradients in the outputs of each use, `(E, G, P, O)`, and in the other
            leaves, `(E, ...)`.
    """

    outputs: Float[Array, "E ..."]
    inputs: list[Float[Array, "E G P I"]]
    gradients: Callable[[Float[Array, "E ..."]], tuple[list[Array], list[Array]]]

    def in_units(self, layers: OpenLayers, exponents: Exponents) -> "Linearized":
        """Return the same with the gradients of every leaf times `2^e`.

        The inputs of a layer may be as far from 1 as its weights, and come in units of their own.
        """
        if exponents is None:
            return self
        of_inputs = tuple(group_exponent(a, axis=tuple(range(a.ndim))) for a in self.inputs)
        inputs = in_units(self.inputs, tuple(-e for e in of_inputs))
        of_uses = tuple(
            exponents[use.position] + e
            for use, e in zip(layers.capture.uses, of_inputs, strict=True)
        )
        of_others = tuple(exponents[position] for position in layers.others)

        def gradients(column: Float[Array, "E *shape"]) -> tuple[list[Array], list[Array]]:
            deltas, others = self.gradients(column)
            return in_units(deltas, of_uses), in_units(others, of_others)

        return Linearized(self.outputs, inputs, gradients)


def open_layers(
    predict_fn: Partial,
    leaves: FloatingLeaves,
    inputs: Any,
    *,
    is_differentiated: bool = True,
) -> OpenLayers:
    """Lay open a function of `(params, inputs)`, which is evaluated one example at a time.

    It may return any tree; gradients (`OpenLayers.linearize`) are for one array `(1, ...)` alone.
    If nothing but the inputs of layers is asked for (`is_differentiated` false), layers inside of
    functions with a derivative rule of their own are found whatever that rule is.
    """

    def predict(values: tuple[Array, ...], inputs: Any) -> Any:
        return predict_fn(leaves.rebuild(values), inputs)

    return open_function(predict, leaves, inputs, is_differentiated=is_differentiated)


def open_function(
    function: Callable[[tuple[Array, ...], Any], Any],
    leaves: FloatingLeaves,
    batch: Any,
    *,
    is_differentiated: bool = True,
) -> OpenLayers:
    """Lay open `(values, batch of one example) -> outputs`."""
    example = shapes_of_one(batch)
    with jax.default_matmul_precision("highest"):
        captured = capture(function, leaves.values, example, is_differentiated=is_differentiated)
    others = set(range(len(leaves.values))) - {use.position for use in captured.uses}
    return OpenLayers(captured, leaves, tuple(sorted(others)))


class _Plan(NamedTuple):
    """How much is held at once, chosen from shapes.

    Attributes:
        num_chunks: of the batch.
        is_paired: for each use, whether its square is expanded over pairs of positions.
    """

    num_chunks: int
    is_paired: tuple[bool, ...]


def _plan(
    layers: OpenLayers,
    num_columns: int,
    numbers_per_example: int,
    num_examples: int,
    examples_per_chunk: int | None,
) -> _Plan:
    uses = layers.capture.uses
    # A pair costs a row of one product; a column costs P rows, and to square and add I x O numbers.
    is_paired = tuple(
        use.num_positions * (use.num_positions + 1) // 2 <= num_columns * (use.num_positions + 4)
        for use in uses
    )
    if examples_per_chunk is None:
        # Activations, their gradients, and what the derivative keeps.
        numbers = 4 * layers.capture.num_activations + numbers_per_example
        numbers += 2 * sum(layers.leaves.values[position].size for position in layers.others)
        for use, paired in zip(uses, is_paired, strict=True):
            layout, rows = use.layout, use.num_positions
            if paired:
                rows = rows * (rows + 1) // 2
            else:
                numbers += prod(layout.shape)
            numbers += layout.num_groups * rows * (layout.num_inputs + layout.num_outputs)
        examples_per_chunk = chunk_bytes() // (4 * numbers)
    num_chunks = -(-num_examples // int(np.clip(examples_per_chunk, 1, num_examples)))
    return _Plan(num_chunks, is_paired)


ColumnsFn = Callable[[Float[Array, "E ..."], Any, Int[Array, " E"]], Columns]
"""Outputs, examples of a chunk and their numbers -> the columns of the chunk."""


def sum_over_chunks(
    add_fn: Callable[[Any, Int[Array, " E"], Bool[Array, " E"]], Any],
    zeros: Any,
    batch: Any,
    *,
    num_chunks: int,
) -> Any:
    """Sum a function of chunks of examples over a batch, compensated.

    Args:
        add_fn: `(chunk, rows, is_example) -> terms`, like `zeros`: the examples of a chunk, their
            numbers in the batch, and which of them count (not those that fill the last chunk).
        zeros: the empty sum.
        batch: pytree with leading axis of examples.
        num_chunks: at least so many, and fewer than twice as many; their sizes are even, so that
            few examples are computed in vain. Of a batch that is spread over devices chunks have
            examples of all of them.
    """
    placement = placed_examples()
    num_shards = 1 if placement is None else placement.num_shards
    num_examples = count_examples(batch) // num_shards
    num_chunks = -(-num_chunks // num_shards)
    # Chunks of equal size need no mask, which would cost a copy of every layer's inputs.
    whole = (n for n in range(num_chunks, 2 * num_chunks) if num_examples % n == 0)
    num_chunks = next(whole, num_chunks)
    chunk_size = -(-num_examples // num_chunks)
    every = jnp.ones(chunk_size, bool)
    if num_chunks == 1:
        number = num_shards * num_examples
        return add_fn(batch, jnp.arange(number, dtype=jnp.int32), jnp.ones(number, bool))

    def step(total: CompensatedSum, chunk: Int[Array, ""]) -> tuple[CompensatedSum, None]:
        # The last chunk starts early enough to be full, and leaves out what was there before.
        start = jnp.minimum(chunk * chunk_size, num_examples - chunk_size)
        rows = start + jnp.arange(chunk_size, dtype=jnp.int32)
        is_new = every if num_examples % chunk_size == 0 else rows >= chunk * chunk_size
        if placement is None:
            some = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, chunk_size), batch)
        else:
            some = _part_of_shards(placement, batch, start, chunk_size)
            firsts = num_examples * jnp.arange(num_shards, dtype=jnp.int32)
            rows = (firsts[:, None] + rows[None, :]).reshape(-1)
            is_new = jnp.tile(is_new, num_shards)
        return total.add(add_fn(some, rows, is_new)), None

    chunks = jnp.arange(num_chunks, dtype=jnp.int32)
    return lax.scan(step, CompensatedSum.empty(zeros), chunks)[0].value()


def _part_of_shards(placement: Placement, batch: Any, start: Int[Array, ""], size: int) -> Any:
    """Return so many examples of every shard of a batch, from a place in it on: none moves."""
    num_shards = placement.num_shards

    def leaf(x: Array) -> Array:
        shards = x.reshape(num_shards, x.shape[0] // num_shards, *x.shape[1:])
        shards = placement.like_examples(shards)
        part = lax.dynamic_slice_in_dim(shards, start, size, axis=1)
        return placement.like_examples(part.reshape(num_shards * size, *x.shape[1:]))

    return jax.tree.map(leaf, batch)


def sum_of_squares(
    layers: OpenLayers,
    columns_fn: ColumnsFn,
    batch: Any,
    *,
    num_columns: int,
    numbers_per_example: int,
    examples_per_chunk: int | None,
    inputs_of: Callable[[Any], Any] = lambda batch: batch,
    first_example: Int[Array, ""] | int = 0,
    exponents: Exponents = None,
    is_summed: bool = True,
) -> tuple[Array, ...]:
    """Sum over examples and columns of the squared gradients of `column . outputs`, for each leaf.

    Args:
        layers: the function.
        columns_fn: the columns of the examples of a chunk.
        batch: pytree with leading axis of examples.
        num_columns: C, of each example.
        numbers_per_example: how many numbers its columns are made of.
        examples_per_chunk: E; None chooses.
        inputs_of: what of a batch the function is evaluated on.
        first_example: number of the first example, from which the others are counted.
        exponents: e of every leaf, whose gradients then count `2^e` times.
        is_summed: whether over columns too; else they are the first axis of the results.
    """
    # The columns that one expanded square serves.
    num_summed = num_columns if is_summed else 1
    plan = _plan(layers, num_summed, numbers_per_example, count_examples(batch), examples_per_chunk)
    leading = () if is_summed else (num_columns,)

    def squares(chunk: Any, rows: Int[Array, " E"], is_example: Bool[Array, " E"]) -> Any:
        linearized = layers.linearize(inputs_of(chunk)).in_units(layers, exponents)
        columns = columns_fn(linearized.outputs, chunk, rows + first_example)
        return _squares(layers, plan, linearized, columns.where(is_example), is_summed)

    zeros = tuple(
        jnp.zeros(leading + x.shape, diagonal_dtype(x.dtype)) for x in layers.leaves.values
    )
    with jax.default_matmul_precision("highest"):
        return sum_over_chunks(squares, zeros, batch, num_chunks=plan.num_chunks)


def _squares(
    layers: OpenLayers,
    plan: _Plan,
    linearized: Linearized,
    columns: Columns,
    is_summed: bool,
) -> tuple[Array, ...]:
    """Squared gradients of a chunk, summed over its examples (and columns); for each leaf."""
    uses = layers.capture.uses

    def of_column(column: Float[Array, "E *shape"]) -> list[Array]:
        """What one column adds: pair products of paired uses, squares of everything else."""
        deltas, gradients = linearized.gradients(column)
        return [
            _pairs(delta) if paired else _squares_of_sums(a, delta)
            for a, delta, paired in zip(linearized.inputs, deltas, plan.is_paired, strict=True)
        ] + [jnp.sum(gradient * gradient, axis=0) for gradient in gradients]

    def of_leaves(totals: list[Array]) -> tuple[Array, ...]:
        results: list[Any] = [None] * len(layers.leaves.values)
        of_uses = zip(uses, linearized.inputs, totals, plan.is_paired, strict=False)
        for use, a, total, paired in of_uses:
            squares = _contract_pairs(_pairs(a), total, use.num_positions) if paired else total
            results[use.position] = use.layout.from_matrices(squares)
        for position, total in zip(layers.others, totals[len(uses) :], strict=True):
            results[position] = total
        return tuple(results)

    if is_summed:
        return of_leaves(sum_over_columns(of_column, columns))
    numbers = jnp.arange(columns.num_columns, dtype=jnp.int32)
    return lax.map(lambda number: of_leaves(of_column(columns.at(number))), numbers)


def sum_over_columns(
    term_fn: Callable[[Float[Array, "E *shape"]], list[Array]], columns: Columns
) -> list[Array]:
    """Sum a function of the columns, one after the other.

    All columns at once would need C times the memory, and sums over a leading axis are slow on
    CPUs.
    """

    def term(index: Int[Array, ""]) -> list[Array]:
        return term_fn(columns.at(index))

    first = jnp.int32(0)
    if columns.num_columns == 1:
        return term(first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(term, first))

    def add(total: list[Array], index: Int[Array, ""]) -> tuple[list[Array], None]:
        return jax.tree.map(jnp.add, total, term(index)), None

    return lax.scan(add, zeros, jnp.arange(columns.num_columns, dtype=jnp.int32))[0]


def _pairs(x: Float[Array, "E G P I"]) -> Float[Array, "E G pairs I"]:
    """Products of the values at all pairs of positions p <= q."""
    positions = x.shape[2]
    if positions == 1:
        return x * x
    first, second = np.triu_indices(positions)
    return x[:, :, first] * x[:, :, second]


def _contract_pairs(
    a: Float[Array, "E G pairs I"], products: Float[Array, "E G pairs O"], num_positions: int
) -> Float[Array, "G I O"]:
    """Expand the square over pairs of positions; one product over examples and pairs."""
    if num_positions > 1:
        first, second = np.triu_indices(num_positions)
        # The terms (p, q) and (q, p) are equal.
        weight = np.where(first == second, 1.0, 2.0).reshape(1, 1, -1, 1)
        products = products * weight.astype(products.dtype)
    squares = jnp.einsum("egpi,egpo->gio", a, products)
    # Where the terms cancel, rounding can leave less than nothing.
    return squares if num_positions == 1 else jnp.maximum(squares, 0.0)


def _squares_of_sums(
    a: Float[Array, "E G P I"], delta: Float[Array, "E G P O"]
) -> Float[Array, "G I O"]:
    """Sum over positions, square, then sum over examples."""
    # With the groups first, and the outputs before the positions: XLA's products and sums on CPUs
    # are up to thirty times slower with examples before groups, and two with positions in between.
    a, delta = jnp.swapaxes(a, 0, 1), jnp.transpose(delta, (1, 0, 3, 2))
    gradients = jnp.einsum("gepi,geop->geoi", a, lax.optimization_barrier(delta))
    return jnp.swapaxes(jnp.sum(gradients * gradients, axis=1), 1, 2)


def _as_batch(example: Any) -> Any:
    return jax.tree.map(lambda x: jnp.expand_dims(x, 0), example)
