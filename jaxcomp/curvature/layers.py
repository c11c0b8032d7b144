"""The layers of a model: which of its weights are matrices, and the Hessian of each layer's output.

The output error of a layer with the inputs A (examples, fan-in) whose weights W become Q is, per
example, `(1/n) |A (W - Q)|_F^2 = sum over output units of 1/2 e^T H e` with `H = (2/n) A^T A` and e
a unit's error: one matrix of the fan-in for all of its units, and exact. For a convolution the rows
of A are the patches of all positions, summed and divided by the number of *examples*. Beside it
stands the Gauss-Newton matrix of the loss, whose block for one unit weighs the inputs with the
gradient that comes back to that unit. Axis letters as in `jaxcomp.curvature.capture`: `G` groups,
`P` positions, `I` inputs (fan-in), `O` outputs; `E` examples of a chunk.

Sources: Hassibi, Stork (1993); Frantar et al. (2022), arXiv:2210.17323, eq. 1 and 2 (there without
the factor 1/n).
"""

from collections.abc import Iterable, Iterator
from functools import partial
from math import prod
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from jaxcomp.curvature.batches import sized_batches
from jaxcomp.curvature.capture import MatrixLayout, MatrixUse
from jaxcomp.curvature.estimate import (
    CompensatedSum,
    check_finite,
    count_examples,
    diagonal_dtype,
    floating_leaves,
    open_params,
)
from jaxcomp.curvature.gauss_newton import (
    Loss,
    as_predict_fn,
    check_loss,
    check_outputs,
    exact_columns,
    inputs_and_targets,
)
from jaxcomp.curvature.independence import check_outputs_are_independent
from jaxcomp.curvature.not_finite import where_it_began
from jaxcomp.curvature.per_example import (
    CHUNK_BYTES,
    OpenLayers,
    open_layers,
    sum_over_chunks,
    sum_over_columns,
)
from jaxcomp.numerics.transformations import explicit_transfers
from jaxcomp.trees.paths import leaves_by_path, shorten
from jaxcomp.trees.selection import Select, selected_paths
from jaxcomp.types import Batch, Params, PredictFn


class Layer(NamedTuple):
    """How one floating leaf of a model is used.

    Attributes:
        kind: `"matrix"` if its only use is a matrix product or a convolution; `"other"` if not
            (biases, tied weights, weights inside a loop), so that curvature of it goes through
            the gradient of every example.
        num_positions: P, how often an example meets the weight (pixels, tokens); 0 for others.
        layout: the weight as matrices `(G, I, O)`; None for others.
    """

    kind: Literal["matrix", "other"]
    num_positions: int
    layout: MatrixLayout | None


class LayerHessian(NamedTuple):
    """Second derivatives of a mean loss in the weights that enter one unit.

    Attributes:
        hessian: `(G, I, I)`, the same for all units of a group; `(G, O, I, I)`, one for each
            unit, if it was asked for `per_output`. Symmetric, positive semi-definite, usually
            singular: damp it (by about 1 % of its mean diagonal) before it is inverted.
        layout: the weight as matrices `(G, I, O)`: `layout.to_matrices(weight)` and back.
        num_examples: n.
    """

    hessian: Float[Array, "G *O I I"]
    layout: MatrixLayout
    num_examples: int


@explicit_transfers
def find_layers(model_or_fn: PredictFn | Any, params: Params, inputs: Any) -> dict[str, Layer]:
    """List the floating leaves of a model by the way they are used.

    Nothing is computed: the function is traced for the shapes of one example.

    Args:
        model_or_fn: `(params, inputs) -> outputs (batch, ...)`, or a Flax module, which is then
            put into evaluation mode.
        params: any pytree.
        inputs: pytree with leading axis of examples, as for `predict_fn`.

    Returns:
        A `Layer` for each path, in the order of the pytree.

    Raises:
        ValueError: if `predict_fn` does not return one array with the axis of examples.
        TypeError: if it is not callable or not hashable.
    """
    function, params = open_params(_as_function(model_or_fn, params), params)
    uses = _uses_by_path(function, params, inputs)
    return {
        path: Layer("other", 0, None)
        if use is None
        else Layer("matrix", use.num_positions, use.layout)
        for path, use in uses.items()
    }


@explicit_transfers
def layer_hessians(
    model_or_fn: PredictFn | Any,
    params: Params,
    batches: Iterable[Batch],
    *,
    select: Select = None,
    per_output: bool = False,
    loss: Loss = "softmax_cross_entropy",
) -> dict[str, LayerHessian]:
    """Gather the Hessians of the layers of a model from its real inputs, in one pass.

    By default that of the layer's output error, `(2/n) A^T A`: what post-training quantization
    uses. With `per_output` the blocks of the Gauss-Newton matrix of the model's *loss*, one for
    the weights that enter each output unit; their diagonals are `gauss_newton_diagonal`. That is
    O times the memory.

    Args:
        model_or_fn: `(params, inputs) -> outputs (batch, ...)` in evaluation mode, static or
            traced as `loss_fn` of `hutchinson_diagonal` and called on batches of one example; or
            a Flax module.
        params: any pytree; of a Flax module its `nnx.State` or its Linen variables.
        batches: an iterable of `(inputs, targets)`, passed over once (and read in full, so that
            a generator will do). A batch that is no pair is all inputs.
        select: which weights, as in `jaxcomp.compress`; by default all that are matrices.
        per_output: whether each output unit has its own.
        loss: with `per_output`, as in `gauss_newton_diagonal`.

    Returns:
        A `LayerHessian` for each path, float32 (float64 for float64 weights). Sums over batches
        are compensated, so that their number adds no rounding error.

    Raises:
        ValueError: if `select` names a weight that is no matrix (they are listed by
            `find_layers`), there are no batches, the outputs of an example depend on the others in
            the first batch, or the result is not finite.
        TypeError: if `predict_fn` is not callable or not hashable.
    """
    function, params = open_params(_as_function(model_or_fn, params), params)
    check_loss(loss)
    total, uses, num_examples = None, {}, 0
    for batch, size in sized_batches(batches):
        inputs, targets = inputs_and_targets(batch) if _is_pair(batch) else (batch, None)
        if total is None:
            check_outputs_are_independent(function, params, inputs)
            uses = _selected_uses(function, params, inputs, select)
            total = CompensatedSum.empty(_zero_hessians(params, uses, per_output=per_output))
        jax.block_until_ready(total)
        total = _add_batch(
            total,
            function,
            params,
            (inputs, targets),
            positions=tuple(use.position for use in uses.values()),
            loss=loss if per_output else None,
        )
        num_examples += size
    if total is None:
        raise ValueError("batches is empty; pass at least one batch.")
    factor = (1.0 if per_output else 2.0) / num_examples
    # Batches that can be passed over again are, if anything is not finite.
    again = None if isinstance(batches, Iterator) else partial(_began, function, params, batches)
    hessians: Any = check_finite(dict(zip(uses, total.value(), strict=True)), again)
    return {
        path: LayerHessian(hessians[path] * factor, use.layout, num_examples)
        for path, use in uses.items()
    }


def _began(function: Partial, params: Params, batches: Iterable[Batch]) -> str:
    """Say where values that are not finite began."""
    inputs = (batch[0] if _is_pair(batch) else batch for batch in batches)
    return where_it_began(function, params, inputs)


def _as_function(model_or_fn: Any, params: Params) -> Partial:
    """Return the function of a model; only here are models told from functions."""
    bases = {base.__module__.partition(".")[0] for base in type(model_or_fn).__mro__}
    if "flax" in bases:
        # Not known to this package otherwise; whoever has a module has Flax.
        from jaxcomp.adapters import predict_fn_of

        return as_predict_fn(predict_fn_of(model_or_fn, params))
    return as_predict_fn(model_or_fn)


def _uses_by_path(function: Partial, params: Params, inputs: Any) -> dict[str, MatrixUse | None]:
    """The use of every floating leaf, None where it is no matrix."""
    leaves = floating_leaves(params)
    paths = list(leaves_by_path(params))
    uses = {use.position: use for use in open_layers(function, leaves, inputs).capture.uses}
    return {paths[position]: uses.get(number) for number, position in enumerate(leaves.positions)}


def _selected_uses(
    function: Partial, params: Params, inputs: Any, select: Select
) -> dict[str, MatrixUse]:
    uses = _uses_by_path(function, params, inputs)
    matrices = {path: use for path, use in uses.items() if use is not None}
    if select is None:
        return matrices
    chosen = selected_paths(params, select)
    others = [path for path in chosen if path not in matrices]
    if others:
        raise ValueError(
            f"select names {shorten(others)}, whose only use is not a matrix product or "
            f"convolution; layers with a Hessian are {shorten(matrices)}."
        )
    return {path: matrices[path] for path in chosen}


def _zero_hessians(
    params: Params, uses: dict[str, MatrixUse], *, per_output: bool
) -> tuple[Array, ...]:
    leaves = leaves_by_path(params)
    return tuple(
        jnp.zeros(
            (
                use.layout.num_groups,
                *((use.layout.num_outputs,) if per_output else ()),
                use.layout.num_inputs,
                use.layout.num_inputs,
            ),
            diagonal_dtype(leaves[path].dtype),
        )
        for path, use in uses.items()
    )


@partial(jax.jit, static_argnames=("positions", "loss"), donate_argnames=("total",))
def _add_batch(
    total: CompensatedSum,
    function: Partial,
    params: Params,
    batch: tuple[Any, Any],
    *,
    positions: tuple[int, ...],
    loss: Loss | None,
) -> CompensatedSum:
    """Add the sums over the examples of one batch; `loss` is None for the layers' own outputs."""
    layers = open_layers(function, floating_leaves(params), batch[0])._replace(others=())
    if loss is not None:
        check_outputs(layers.output_shape, loss)
    with jax.default_matmul_precision("highest"):
        terms = sum_over_chunks(
            partial(_chunk_hessians, layers, positions, loss),
            total.total,
            batch,
            num_chunks=_num_chunks(layers, positions, loss, count_examples(batch[0])),
        )
    return total.add(terms)


def _num_chunks(
    layers: OpenLayers, positions: tuple[int, ...], loss: Loss | None, num_examples: int
) -> int:
    numbers = layers.capture.num_activations * (1 if loss is None else 4)
    for use in layers.capture.uses:
        if use.position in positions:
            layout = use.layout
            numbers += 2 * use.num_positions * layout.num_groups * layout.num_inputs
            numbers += 0 if loss is None else prod(layout.shape)
    chunk_size = int(np.clip(CHUNK_BYTES // (4 * numbers), 1, num_examples))
    return -(-num_examples // chunk_size)


def _chunk_hessians(
    layers: OpenLayers,
    positions: tuple[int, ...],
    loss: Loss | None,
    chunk: tuple[Any, Any],
    rows: Int[Array, " E"],
    is_example: Bool[Array, " E"],
) -> tuple[Array, ...]:
    """Sums over a chunk of examples: of `a a^T`, or of `u u^T` for the gradients u of each unit."""
    del rows
    inputs, targets = chunk
    linearized = layers.linearize(inputs)
    number_of = {use.position: number for number, use in enumerate(layers.capture.uses)}
    chosen = [number_of[position] for position in positions]
    keep = is_example.astype(jnp.float32)
    if loss is None:
        return tuple(
            _gram(a * keep.reshape(-1, 1, 1, 1).astype(a.dtype), "egpi,egpj->gij")
            for a in (linearized.inputs[number] for number in chosen)
        )
    columns = jax.vmap(lambda o, t: exact_columns(o, t, loss))(linearized.outputs, targets)
    columns = columns * keep.reshape(-1, *(1,) * (columns.ndim - 1)).astype(columns.dtype)

    def of_column(column: Float[Array, "E *shape"]) -> list[Array]:
        deltas, _ = linearized.gradients(column)
        return [
            deltas[number] ** 2
            if layers.capture.uses[number].num_positions == 1
            else _gram(_unit_gradients(linearized.inputs[number], deltas[number]), _PER_OUTPUT)
            for number in chosen
        ]

    found = sum_over_columns(of_column, jnp.swapaxes(columns, 0, 1))
    return tuple(
        _gram(_unit_gradients(linearized.inputs[number], jnp.sqrt(total)), _PER_OUTPUT)
        if layers.capture.uses[number].num_positions == 1
        else total
        for number, total in zip(chosen, found, strict=True)
    )


_PER_OUTPUT = "egoi,egoj->goij"


def _unit_gradients(
    a: Float[Array, "E G P I"], delta: Float[Array, "E G P O"]
) -> Float[Array, "E G O I"]:
    """Gradients in the weights that enter each unit, summed over positions."""
    return jnp.einsum("egpi,egpo->egoi", a, delta)


def _gram(rows: Array, subscripts: str) -> Array:
    return jnp.einsum(subscripts, rows, rows)


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, tuple | list) and len(batch) == 2
