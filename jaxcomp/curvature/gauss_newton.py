"""The diagonal of the Gauss-Newton matrix, exact or by sampled labels, in nats per squared weight.

For a loss `l(f(w, x), y)` with the Jacobian J of the outputs and the Hessian `S S^T` of l with
respect to them, the Gauss-Newton matrix is the mean over examples of `J^T S S^T J`. It is positive
semi-definite, equals the Fisher matrix for softmax cross-entropy (and for the squared error), and
its diagonal is *equal* to that of the Hessian if the network is piecewise linear (ReLU, max
pooling, fixed batch norm): no unit's output then has a second derivative in any one weight.

The diagonal needs, for every column s of S, the gradient of `s . f` for one example, squared. A
layer's gradient is a sum over positions p of `a[p, i] delta[p, o]`, and its square is either taken
after the sum, or expanded,

    sum over c of (sum_p a[p, i] delta[c, p, o])^2
        = sum over p, q of (a[p, i] a[q, i]) (sum over c of delta[c, p, o] delta[c, q, o]),

one matrix product in which the columns are already summed: the better one for few positions. With
one position (a dense layer) it is the squares trick `(a^2)^T (delta^2)`. Squaring position by
position drops the terms p != q and is wrong. Axis letters as in `jaxcomp.curvature.capture`, and
`E` examples of a chunk, `C` columns.

Sources: Schraudolph (2002), doi:10.1162/08997660260028683; Dangel, Kunstner, Hennig, "BackPACK",
arXiv:1912.10985 (DiagGGN); Gao, Liu, Wang, Oh (2019), whose `E[(df)^2 / f]` is the same diagonal.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from jaxcomp.curvature.capture import Capture, capture
from jaxcomp.curvature.compilation import hint_if_compiled_again
from jaxcomp.curvature.estimate import (
    CompensatedSum,
    DiagonalEstimate,
    FloatingLeaves,
    SampleFn,
    Sampling,
    as_partial,
    check_positive_count,
    count_examples,
    diagonal_dtype,
    estimate_on_batch,
    floating_leaves,
    sampled_by,
)
from jaxcomp.types import Batch, Params, PredictFn, PRNGKey

OutputLoss = Callable[[Array, Any], Float[Array, ""]]
"""`(outputs, target) -> loss` of one example, in nats, convex in the outputs."""

Loss = Literal["softmax_cross_entropy", "squared_error"] | OutputLoss
LOSSES = ("softmax_cross_entropy", "squared_error")

CHUNK_BYTES = 64 * 2**20
"""What the numbers of a chunk of examples may take, where the caller does not say."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussNewtonSampler:
    """The exact diagonal as a single sample, or one sample per drawn label."""

    predict_fn: Partial
    params: Params
    key: PRNGKey | None
    loss: Loss = field(metadata={"static": True})
    num_label_samples: int | None = field(metadata={"static": True})
    examples_per_chunk: int | None = field(metadata={"static": True})
    first_example: Int[Array, ""] | int = 0

    def starting_at(self, example: int) -> "GaussNewtonSampler":
        """Return the sampler for a batch that starts at this example: labels are keyed by it."""
        return replace(self, first_example=example)

    def at(self, batch: Batch) -> SampleFn:
        """Lay the layers open once; a sample is one pass over the examples, chunk by chunk."""
        hint_if_compiled_again("gauss_newton_diagonal", self.predict_fn.func, (self.params, batch))
        inputs, targets = inputs_and_targets(batch)
        leaves = floating_leaves(self.params)
        layers = open_layers(self.predict_fn, leaves, inputs)
        check_outputs(layers.output_shape, self.loss)
        num_columns = prod(layers.output_shape) if self.num_label_samples is None else 1
        num_examples = count_examples(batch)

        def sample(index: Int[Array, ""]) -> Params:
            def columns(outputs: Array, example: Any, number: Int[Array, ""]) -> Array:
                if self.num_label_samples is None:
                    return exact_columns(outputs, example[1], self.loss)
                assert self.key is not None
                key = jax.random.fold_in(jax.random.fold_in(self.key, index), number)
                return _sampled_column(outputs, example[1], self.loss, key)

            total = sum_of_squares(
                layers,
                columns,
                (inputs, targets),
                num_columns=num_columns,
                examples_per_chunk=self.examples_per_chunk,
                inputs_of=lambda chunk: chunk[0],
                first_example=self.first_example,
            )
            return leaves.diagonal(tuple(x / num_examples for x in total))

        if self.num_label_samples is not None:
            return sample
        exact = sample(jnp.int32(0))
        return lambda index: exact


def _gauss_newton_sampling(
    predict_fn: PredictFn,
    params: Params,
    batch: Batch,
    *,
    loss: Loss = "softmax_cross_entropy",
    num_label_samples: int | None = None,
    key: PRNGKey | None = None,
    examples_per_chunk: int | None = None,
) -> Sampling:
    """Check the arguments of `gauss_newton_diagonal`, of which the batch plays no part."""
    del batch
    check_loss(loss)
    if num_label_samples is None and key is not None:
        raise ValueError(
            "key is for sampled labels: pass num_label_samples with it, or leave it out for the "
            "exact diagonal."
        )
    if num_label_samples is not None:
        num_label_samples = check_positive_count("num_label_samples", num_label_samples, minimum=2)
        if key is None:
            raise ValueError(
                "num_label_samples needs a key: pass key=jax.random.key(seed), or leave "
                "num_label_samples out for the exact diagonal."
            )
    if examples_per_chunk is not None:
        examples_per_chunk = check_positive_count("examples_per_chunk", examples_per_chunk)
    sampler = GaussNewtonSampler(
        as_predict_fn(predict_fn),
        params,
        key,
        loss,
        num_label_samples,
        examples_per_chunk,
    )
    return Sampling(sampler, num_label_samples or 1)


@sampled_by(_gauss_newton_sampling)
def gauss_newton_diagonal(
    predict_fn: PredictFn,
    params: Params,
    batch: Batch,
    *,
    loss: Loss = "softmax_cross_entropy",
    num_label_samples: int | None = None,
    key: PRNGKey | None = None,
    examples_per_chunk: int | None = None,
) -> DiagonalEstimate:
    """Compute the diagonal of the Gauss-Newton matrix of a mean loss.

    Exact over all outputs by default: a forward pass, and for every output a backward pass through
    the upper layers, which for a classifier of few classes costs about 1.5 gradients. With
    `num_label_samples` the labels are drawn from the model instead: one gradient each, for
    models with many outputs. Pure: `jax.vmap` over `params` or `batch`.

    Dense layers and convolutions are found in the jaxpr of `predict_fn`, whatever library it is
    written in; all other weights (biases, tied weights, weights in a `scan`) go through their
    gradient for every example and column: the same result at more memory (`find_layers` lists
    them).

    Args:
        predict_fn: `(params, inputs) -> outputs (batch, ...)` in evaluation mode: the outputs of
            an example must not depend on the others (dropout off, batch statistics fixed). Called
            on batches of one example. Static or traced as `loss_fn` of `hutchinson_diagonal`.
        params: pytree of arrays; leaves that are not floating are constants.
        batch: `(inputs, targets)`, pytrees with leading axis B >= 1. Only a callable loss reads
            the targets.
        loss: `"softmax_cross_entropy"` of logits `(batch, classes)`; `"squared_error"`, the sum
            over outputs of `(f - y)^2`, without a half; or `(outputs, target) -> scalar` of one
            example, convex in the outputs (negative curvature of it is set to 0). Static.
        num_label_samples: S >= 2 labels drawn for each example, static; None for the exact
            diagonal. Not every loss has labels: for the others, random signs combine the columns
            of the outputs' Hessian, which is as unbiased.
        key: typed PRNG key for the labels, consumed; required with `num_label_samples` alone.
        examples_per_chunk: examples held at once, static; None chooses some 64 MiB worth.

    Returns:
        The diagonal as `mean`, shaped like `params`, float32 (float64 for float64 leaves), never
        negative, in nats per squared weight; zeros for leaves that are not floating.
        `standard_error` is that over the drawn labels, zeros for the exact diagonal. Values that
        are not finite pass through: see `check_finite`.

    Raises:
        ValueError: for an unknown loss, a count that is not positive, labels to sample without a
            key, a batch that is no pair of equal lengths, or outputs that do not fit the loss.
        TypeError: if `predict_fn` is not callable or not hashable, or a leaf of `params` complex.
    """
    sampler, num_samples = _gauss_newton_sampling(
        predict_fn,
        params,
        batch,
        loss=loss,
        num_label_samples=num_label_samples,
        key=key,
        examples_per_chunk=examples_per_chunk,
    )
    return estimate_on_batch(sampler, batch, num_samples=num_samples)


def as_predict_fn(predict_fn: PredictFn) -> Partial:
    """Return a model's function as a pytree, see `as_partial`."""
    return as_partial(predict_fn, name="predict_fn", signature="(params, inputs) -> outputs")


def check_loss(loss: Loss) -> None:
    """Refuse what is no loss of one example.

    Raises:
        ValueError: naming the losses there are.
    """
    if not (loss in LOSSES if isinstance(loss, str) else callable(loss)):
        raise ValueError(
            f"loss must be one of {', '.join(LOSSES)}, or a function (outputs, target) -> scalar "
            f"of one example, got {loss!r}."
        )


def check_outputs(shape: tuple[int, ...], loss: Loss) -> None:
    """Refuse outputs of one example that the loss cannot take.

    Raises:
        ValueError: if a softmax has more than one axis of classes.
    """
    if loss == "softmax_cross_entropy" and len(shape) != 1:
        raise ValueError(
            "softmax_cross_entropy needs logits (batch, classes), got outputs of shape "
            f"{('batch', *shape)}; for other outputs pass loss as a function "
            "(outputs, target) -> scalar of one example."
        )


# --- Columns of the outputs' Hessian -------------------------------------------------------------


def exact_columns(
    outputs: Float[Array, "*shape"], target: Any, loss: Loss
) -> Float[Array, "C *shape"]:
    """Return S with `S S^T` the Hessian of the loss of one example in its outputs, as rows."""
    flat = outputs.reshape(-1).astype(diagonal_dtype(outputs.dtype))
    size = flat.shape[0]
    if loss == "softmax_cross_entropy":
        p = jax.nn.softmax(flat)
        rows = jnp.sqrt(p).reshape(-1, 1) * (jnp.eye(size, dtype=p.dtype) - p.reshape(1, -1))
    elif loss == "squared_error":
        rows = np.sqrt(2.0).astype(flat.dtype) * jnp.eye(size, dtype=flat.dtype)
    else:
        assert callable(loss)
        hessian = jax.hessian(lambda o: loss(o.reshape(outputs.shape), target))(flat)
        if hessian.shape != (size, size):
            raise ValueError(
                f"loss must return a scalar for one example, got the shape {hessian.shape[:-2]}."
            )
        values, vectors = jnp.linalg.eigh(hessian)
        rows = jnp.sqrt(jnp.maximum(values, 0.0)).reshape(-1, 1) * vectors.T
    return rows.reshape(size, *outputs.shape).astype(outputs.dtype)


def _sampled_column(
    outputs: Float[Array, "*shape"], target: Any, loss: Loss, key: PRNGKey
) -> Float[Array, "1 *shape"]:
    """Return one random s with `E[s s^T]` the Hessian of the loss in the outputs."""
    if loss == "softmax_cross_entropy":
        flat = outputs.astype(diagonal_dtype(outputs.dtype))
        label = jax.random.categorical(key, flat)
        column = jax.nn.softmax(flat) - jax.nn.one_hot(label, flat.shape[0], dtype=flat.dtype)
    else:
        rows = exact_columns(outputs, target, loss)
        signs = jax.random.rademacher(key, rows.shape[:1], rows.dtype)
        column = jnp.tensordot(signs, rows, 1)
    return column.reshape(1, *outputs.shape).astype(outputs.dtype)


# --- The pass over the examples ------------------------------------------------------------------


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

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the outputs of one example."""
        return self.capture.outputs.shape[1:]

    def linearize(self, inputs: Any) -> "Linearized":
        """Evaluate a chunk of E examples, ready to pull gradients of its outputs back."""
        size = count_examples(inputs, name="inputs")
        uses, values = self.capture.uses, self.leaves.values
        perturbations = [jnp.zeros((size, *use.output.shape), use.output.dtype) for use in uses]
        # One copy for each example, so that each has a gradient of its own.
        others = [jnp.broadcast_to(values[p], (size, *values[p].shape)) for p in self.others]

        def one(example: Any, perturbations: list[Array], others: list[Array]) -> Any:
            replaced = list(values)
            for position, value in zip(self.others, others, strict=True):
                replaced[position] = value
            outputs, operands = self.capture.run(perturbations, replaced, _as_batch(example))
            return outputs[0], operands

        outputs, pullback, operands = jax.vjp(
            partial(jax.vmap(one), inputs), perturbations, others, has_aux=True
        )
        dtypes = [diagonal_dtype(value.dtype) for value in values]
        normal = [
            jax.vmap(use.to_inputs)(operand).astype(dtypes[use.position])
            for use, operand in zip(uses, operands, strict=True)
        ]

        def gradients(column: Float[Array, "E *shape"]) -> tuple[list[Array], list[Array]]:
            of_outputs, of_others = pullback(column)
            deltas = [
                jax.vmap(use.to_outputs)(delta).astype(dtypes[use.position])
                for use, delta in zip(uses, of_outputs, strict=True)
            ]
            return deltas, [
                gradient.astype(dtypes[position])
                for position, gradient in zip(self.others, of_others, strict=True)
            ]

        return Linearized(outputs, normal, gradients)


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


def open_layers(predict_fn: Partial, leaves: FloatingLeaves, inputs: Any) -> OpenLayers:
    """Lay open a function of `(params, inputs)`, which is evaluated one example at a time.

    Raises:
        ValueError: if it does not return one array whose leading axis is that of the examples.
    """

    def predict(values: tuple[Array, ...], inputs: Any) -> Any:
        return predict_fn(leaves.rebuild(values), inputs)

    layers = open_function(predict, leaves, inputs)
    output = layers.capture.outputs
    if not hasattr(output, "shape") or output.ndim < 1 or output.shape[0] != 1:
        raise ValueError(
            "predict_fn must return one array (batch, ...), got "
            f"{jax.tree.map(lambda x: x.shape, output)} for a batch of one example."
        )
    return layers


def open_function(
    function: Callable[[tuple[Array, ...], Any], Any], leaves: FloatingLeaves, batch: Any
) -> OpenLayers:
    """Lay open `(values, batch of one example) -> array (1, ...)`."""
    example = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *jnp.shape(x)[1:]), jnp.result_type(x)), batch
    )
    with jax.default_matmul_precision("highest"):
        captured = capture(function, leaves.values, example)
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
    layers: OpenLayers, num_columns: int, num_examples: int, examples_per_chunk: int | None
) -> _Plan:
    uses = layers.capture.uses
    # A pair costs a row of one product; a column costs P rows, and to square and add I x O numbers.
    is_paired = tuple(
        use.num_positions * (use.num_positions + 1) // 2 <= num_columns * (use.num_positions + 4)
        for use in uses
    )
    if examples_per_chunk is None:
        # Activations, their gradients, and what the derivative keeps.
        numbers = 4 * layers.capture.num_activations + num_columns * prod(layers.output_shape)
        numbers += 2 * sum(layers.leaves.values[position].size for position in layers.others)
        for use, paired in zip(uses, is_paired, strict=True):
            layout, rows = use.layout, use.num_positions
            if paired:
                rows = rows * (rows + 1) // 2
            else:
                numbers += prod(layout.shape)
            numbers += layout.num_groups * rows * (layout.num_inputs + layout.num_outputs)
        examples_per_chunk = CHUNK_BYTES // (4 * numbers)
    num_chunks = -(-num_examples // int(np.clip(examples_per_chunk, 1, num_examples)))
    return _Plan(num_chunks, is_paired)


ColumnsFn = Callable[[Array, Any, Int[Array, ""]], Float[Array, "C ..."]]
"""Outputs, example and number of an example -> columns, as rows, shaped like the outputs."""


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
            few examples are computed in vain.
    """
    num_examples = count_examples(batch)
    # Chunks of equal size need no mask, which would cost a copy of every layer's inputs.
    whole = (n for n in range(num_chunks, 2 * num_chunks) if num_examples % n == 0)
    num_chunks = next(whole, num_chunks)
    chunk_size = -(-num_examples // num_chunks)
    every = jnp.ones(chunk_size, bool)
    if num_chunks == 1:
        return add_fn(batch, jnp.arange(num_examples, dtype=jnp.int32), every)

    def step(total: CompensatedSum, chunk: Int[Array, ""]) -> tuple[CompensatedSum, None]:
        # The last chunk starts early enough to be full, and leaves out what was there before.
        start = jnp.minimum(chunk * chunk_size, num_examples - chunk_size)
        rows = start + jnp.arange(chunk_size, dtype=jnp.int32)
        is_new = every if num_examples % chunk_size == 0 else rows >= chunk * chunk_size
        some = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, chunk_size), batch)
        return total.add(add_fn(some, rows, is_new)), None

    chunks = jnp.arange(num_chunks, dtype=jnp.int32)
    return lax.scan(step, CompensatedSum.empty(zeros), chunks)[0].value()


def sum_of_squares(
    layers: OpenLayers,
    columns_fn: ColumnsFn,
    batch: Any,
    *,
    num_columns: int,
    examples_per_chunk: int | None,
    inputs_of: Callable[[Any], Any] = lambda batch: batch,
    first_example: Int[Array, ""] | int = 0,
) -> tuple[Array, ...]:
    """Sum over examples and columns of the squared gradients of `column . outputs`, for each leaf.

    Args:
        layers: the function.
        columns_fn: the columns of one example.
        batch: pytree with leading axis of examples.
        num_columns: C, of each example.
        examples_per_chunk: E; None chooses.
        inputs_of: what of a batch the function is evaluated on.
        first_example: number of the first example, from which the others are counted.
    """
    plan = _plan(layers, num_columns, count_examples(batch), examples_per_chunk)

    def squares(chunk: Any, rows: Int[Array, " E"], is_example: Bool[Array, " E"]) -> Any:
        linearized = layers.linearize(inputs_of(chunk))
        columns = jax.vmap(columns_fn)(linearized.outputs, chunk, rows + first_example)
        keep = is_example.reshape(-1, *(1,) * (columns.ndim - 1))
        columns = jnp.where(keep, columns, jnp.zeros((), columns.dtype))
        return _squares(layers, plan, linearized, jnp.swapaxes(columns, 0, 1))

    zeros = tuple(jnp.zeros(x.shape, diagonal_dtype(x.dtype)) for x in layers.leaves.values)
    with jax.default_matmul_precision("highest"):
        return sum_over_chunks(squares, zeros, batch, num_chunks=plan.num_chunks)


def _squares(
    layers: OpenLayers,
    plan: _Plan,
    linearized: Linearized,
    columns: Float[Array, "C E *shape"],
) -> tuple[Array, ...]:
    """Squared gradients of a chunk, summed over its examples and columns; for each leaf."""
    uses = layers.capture.uses

    def of_column(column: Float[Array, "E *shape"]) -> list[Array]:
        """What one column adds: pair products of paired uses, squares of everything else."""
        deltas, gradients = linearized.gradients(column)
        return [
            _pairs(delta) if paired else _squares_of_sums(a, delta)
            for a, delta, paired in zip(linearized.inputs, deltas, plan.is_paired, strict=True)
        ] + [jnp.sum(gradient * gradient, axis=0) for gradient in gradients]

    totals = sum_over_columns(of_column, columns)
    results: list[Any] = [None] * len(layers.leaves.values)
    for use, a, total, paired in zip(uses, linearized.inputs, totals, plan.is_paired, strict=False):
        squares = _contract_pairs(_pairs(a), total, use.num_positions) if paired else total
        results[use.position] = use.layout.from_matrices(squares)
    for position, total in zip(layers.others, totals[len(uses) :], strict=True):
        results[position] = total
    return tuple(results)


def sum_over_columns(
    term_fn: Callable[[Array], list[Array]], columns: Float[Array, "C E *shape"]
) -> list[Array]:
    """Sum a function of the columns, one after the other.

    All columns at once would need C times the memory, and sums over a leading axis are slow on
    CPUs.
    """
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(term_fn, columns[0]))

    def add(total: list[Array], column: Array) -> tuple[list[Array], None]:
        return jax.tree.map(jnp.add, total, term_fn(column)), None

    return lax.scan(add, zeros, columns)[0]


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
    gradients = jnp.einsum("egpi,egpo->egio", a, delta)
    return jnp.sum(gradients * gradients, axis=0)


def _as_batch(example: Any) -> Any:
    return jax.tree.map(lambda x: jnp.expand_dims(x, 0), example)


def inputs_and_targets(batch: Any) -> tuple[Any, Any]:
    """Separate a batch.

    Raises:
        ValueError: if it is no pair, or its arrays differ in their number of examples.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            f"batch must be a pair (inputs, targets), got {type(batch).__name__}"
            + (f" of {len(batch)}." if isinstance(batch, tuple | list | dict) else ".")
        )
    count_examples(batch)
    return batch[0], batch[1]
