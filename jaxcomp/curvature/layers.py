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

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from math import prod
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from jaxcomp.curvature.batches import AutomaticBatches, check_weight, sized_batches
from jaxcomp.curvature.capture import MatrixUse
from jaxcomp.curvature.estimate import (
    CompensatedSum,
    check_finite,
    count_examples,
    diagonal_dtype,
    floating_leaves,
)
from jaxcomp.curvature.functions import PickOutput, open_params
from jaxcomp.curvature.gauss_newton import (
    as_predict_fn,
    checked_label_samples,
    hessian_of_outputs,
    hint_of_functions,
    inputs_and_targets,
)
from jaxcomp.curvature.independence import check_outputs_are_independent
from jaxcomp.curvature.layer_units import Units, chosen_of, input_units, weight_units
from jaxcomp.curvature.layouts import MatrixLayout
from jaxcomp.curvature.not_finite import where_it_began
from jaxcomp.curvature.output_losses import (
    MAX_COLUMNS,
    Loss,
    LossOfOutputs,
    OutputHessian,
    Reduction,
    checked_loss,
)
from jaxcomp.curvature.per_example import (
    Columns,
    OpenLayers,
    open_layers,
    sum_over_chunks,
    sum_over_columns,
)
from jaxcomp.curvature.units import lost_leaves
from jaxcomp.numerics.memory import chunk_bytes
from jaxcomp.numerics.placement import (
    Placement,
    automatic_axes,
    placed,
    placement_of,
    to_automatic,
)
from jaxcomp.numerics.rewriting import quick_on_cpu
from jaxcomp.numerics.scaling import restore
from jaxcomp.numerics.transformations import explicit_transfers
from jaxcomp.trees.paths import leaves_by_path, shorten
from jaxcomp.trees.selection import Select, selected_paths
from jaxcomp.types import Batch, OutputsFn, Params, PRNGKey


class Layer(NamedTuple):
    """How one floating leaf of a model is used.

    Attributes:
        kind: `"matrix"` if all that it enters are matrix products or convolutions of one form;
            `"other"` if not (biases, embeddings, weights that are changed before they multiply), so
            that curvature of it goes through the gradient of every example.
        num_positions: P, how often an example meets a row of the weight (pixels, tokens, steps of
            a recurrent network); 0 for others.
        layout: the weight as matrices `(G, I, O)`, of a stack of layers those of all layers; None
            for others.
        reason: why it is one of the others, a clause that begins with "it"; of a matrix inside of a
            function whose derivative rule is not the derivative, why `gauss_newton_diagonal`, which
            keeps the rule, does without its layer all the same; else None.
    """

    kind: Literal["matrix", "other"]
    num_positions: int
    layout: MatrixLayout | None
    reason: str | None


class LayerHessian(NamedTuple):
    """Second derivatives of a mean loss in the weights that enter one unit.

    Attributes:
        hessian: `(G, I, I)`, the same for all units of a group; `(G, O, I, I)`, one for each
            unit, if it was asked for `per_output`. Symmetric, positive semi-definite, usually
            singular: damp it (by about 1 % of its mean diagonal) before it is inverted.
        layout: the weight as matrices `(G, I, O)`: `layout.to_matrices(weight)` and back.
        num_examples: n.
        exponent: `(G,)`, or None: where inputs (or gradients) are so large or small that their
            squares are out of range, the second derivatives are those here times `2 ** exponent`.
    """

    hessian: Float[Array, "G *O I I"]
    layout: MatrixLayout
    num_examples: int
    exponent: Int[np.ndarray, " G"] | None = None


@explicit_transfers
def find_layers(model_or_fn: OutputsFn | Any, params: Params, inputs: Any) -> dict[str, Layer]:
    """List the floating leaves of a model by the way they are used.

    Nothing is computed: the function is traced for the shapes of one example. Weights in loops are
    layers too: stacks that `lax.scan` takes apart, rows `w[i]`, weights of a recurrent network.

    Args:
        model_or_fn: `(params, inputs) -> outputs`, any tree of arrays; or a Flax module, which is
            then put into evaluation mode.
        params: any pytree.
        inputs: pytree with leading axis of examples, as for `predict_fn`.

    Returns:
        A `Layer` for each path, in the order of the pytree.

    Raises:
        TypeError: if it is not callable.
    """
    function, params = open_params(as_function(model_or_fn, params), params)
    with automatic_axes(function, params, inputs):
        function, params, inputs = to_automatic((function, params, inputs))
        uses = _uses_by_path(function, params, inputs, is_differentiated=False)
        kept = _uses_by_path(function, params, inputs, is_differentiated=True)
    reasons = {path: use if isinstance(use, str) else None for path, use in kept.items()}
    return {
        path: Layer("other", 0, None, use)
        if isinstance(use, str)
        else Layer("matrix", use.num_positions, use.layout, reasons[path])
        for path, use in uses.items()
    }


@explicit_transfers
def layer_hessians(
    model_or_fn: OutputsFn | Any,
    params: Params,
    batches: Iterable[Batch],
    *,
    select: Select = None,
    per_output: bool = False,
    loss: Loss = "softmax_cross_entropy",
    reduction: Reduction = "mean",
    output: PickOutput | None = None,
    num_label_samples: int | None = None,
    key: PRNGKey | None = None,
    max_columns: int = MAX_COLUMNS,
) -> dict[str, LayerHessian]:
    """Gather the Hessians of the layers of a model from its real inputs, in one pass.

    By default that of the layer's output error, `(2/n) A^T A`: what post-training quantization
    uses. With `per_output` the blocks of the Gauss-Newton matrix of the model's *loss*, one for
    the weights that enter each output unit; their diagonals are `gauss_newton_diagonal`. That is
    O times the memory.

    Args:
        model_or_fn: `(params, inputs) -> outputs` in evaluation mode, static or traced as
            `loss_fn` of `hutchinson_diagonal` and called on batches of one example; or a Flax
            module. Any tree of outputs will do, but for `per_output`.
        params: any pytree; of a Flax module its `nnx.State` or its Linen variables.
        batches: an iterable of `(inputs, targets)`, passed over once (and read in full, so that
            a generator will do). A batch that is no pair is all inputs.
        select: which weights, as in `jaxcomp.compress`; by default all that are matrices.
        per_output: whether each output unit has its own.
        loss: with `per_output`, as in `gauss_newton_diagonal`; so are all that follow.
        reduction: what the mean loss is a mean of.
        output: which of several outputs the loss takes.
        num_label_samples: labels drawn for each position; None for all columns.
        key: typed PRNG key for the labels; an example of the data set has the same ones however
            it is split.
        max_columns: how many outputs of an example the exact blocks may have.

    Returns:
        A `LayerHessian` for each path, float32 (float64 for float64 weights). Sums over batches
        are compensated, so that their number adds no rounding error.

    Raises:
        ValueError: if `select` names a weight that is no matrix (they are listed by
            `find_layers`), there are no batches, all weights of positions are zero, the outputs of
            an example depend on the others in the first batch, or the result is not finite; or as
            `gauss_newton_diagonal`.
        TypeError: if `predict_fn` is not callable.
    """
    function, params = open_params(as_function(model_or_fn, params, output), params)
    gather = partial(
        _gathered,
        select=select,
        loss=checked_loss(loss, reduction, max_columns) if per_output else None,
        num_label_samples=checked_label_samples(num_label_samples, key),
        key=key,
        is_once=isinstance(batches, Iterator),
    )
    with automatic_axes(function, params) as leave:
        function, params = to_automatic((function, params))
        return leave(gather(function, params, AutomaticBatches(batches)))


def _gathered(
    function: Partial,
    params: Params,
    batches: Iterable[Batch],
    *,
    select: Select,
    loss: LossOfOutputs | None,
    num_label_samples: int | None,
    key: PRNGKey | None,
    is_once: bool,
) -> dict[str, LayerHessian]:
    """Gather Hessians; `loss` is None for those of the layers' own outputs."""
    per_output = loss is not None
    total, uses, positions, num_examples, units = None, {}, (), 0, None
    for batch, size in sized_batches(batches):
        inputs, targets = inputs_and_targets(batch) if is_pair(batch) else (batch, None)
        if total is None:
            check_outputs_are_independent(function, params, inputs)
            uses = _selected_uses(function, params, inputs, select, is_differentiated=per_output)
            positions = tuple(use.position for use in uses.values())
        add = partial(
            _add_batch,
            function=function,
            params=params,
            batch=(inputs, targets),
            loss=loss,
            key=key,
            first_example=num_examples,
            positions=positions,
            num_label_samples=num_label_samples,
            placement=placement_of((), batch),
        )
        if total is None:
            # Donated, so that each sum has zeros of its own.
            start = partial(_no_sums, _kinds_of_hessians(params, uses, per_output=per_output))
            total = add(start(), units=None)
            is_lost = lost_leaves(total.total[0])
            if any(is_lost):
                units = (
                    weight_units(params, uses)
                    if per_output
                    else input_units(function, params, inputs, positions)
                )
                total, units = _less_lost(is_lost, total, add(start(), units=units), units)
        else:
            jax.block_until_ready(total)
            total = add(total, units=units)
        num_examples += size
    if total is None:
        raise ValueError("batches is empty; pass at least one batch.")
    sums, weight = _value(total)
    check_weight(weight)
    # Batches that can be passed over again are, if anything is not finite.
    again = None if is_once else partial(_began, function, params, batches)
    check_finite(dict(zip(uses, sums, strict=True)), again)
    hessians = _means(sums, weight, 1.0 if per_output else 2.0)
    return {
        path: LayerHessian(hessian, use.layout, num_examples, _exponent(unit))
        for (path, use), hessian, unit in zip(
            uses.items(), hessians, [None] * len(uses) if units is None else units, strict=True
        )
    }


_value = jax.jit(CompensatedSum.value)


@jax.jit
def _means(
    sums: tuple[Array, ...], weight: Float[Array, ""], factor: Float[Array, ""] | float
) -> tuple[Array, ...]:
    scale = factor / weight
    return tuple(total * scale.astype(total.dtype) for total in sums)


def _exponent(units: Int[np.ndarray, " G"] | None) -> Int[np.ndarray, " G"] | None:
    """Return the exponent of second derivatives in such units; None for ordinary ones."""
    return None if units is None or not np.any(units) else -2 * np.asarray(units)


def _less_lost(
    is_lost: list[bool], plain: CompensatedSum, other: CompensatedSum, units: Units
) -> tuple[CompensatedSum, Units | None]:
    """Return the sums of a first batch that are in range, in ordinary units where these do."""
    is_other = [
        one and not two for one, two in zip(is_lost, lost_leaves(other.total[0]), strict=True)
    ]

    def pick(ones: tuple[Any, ...], others: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            two if chosen else one for one, two, chosen in zip(ones, others, is_other, strict=True)
        )

    total = CompensatedSum(
        (pick(plain.total[0], other.total[0]), plain.total[1]),
        (pick(plain.correction[0], other.correction[0]), plain.correction[1]),
    )
    zeros = tuple(np.zeros_like(u) for u in units)
    return total, pick(zeros, units) if any(is_other) else None


def _began(function: Partial, params: Params, batches: Iterable[Batch]) -> str:
    """Say where values that are not finite began."""
    inputs = (batch[0] if is_pair(batch) else batch for batch in batches)
    return where_it_began(function, params, inputs)


def as_function(model_or_fn: Any, params: Params, output: PickOutput | None = None) -> Partial:
    """Return the function of a model; only here are models told from functions."""
    bases = {base.__module__.partition(".")[0] for base in type(model_or_fn).__mro__}
    if "flax" in bases:
        # Not known to this package otherwise; whoever has a module has Flax.
        from jaxcomp.adapters import predict_fn_of

        return as_predict_fn(predict_fn_of(model_or_fn, params), output)
    return as_predict_fn(model_or_fn, output)


def _uses_by_path(
    function: Partial, params: Params, inputs: Any, *, is_differentiated: bool
) -> dict[str, MatrixUse | str]:
    """The use of every floating leaf, or why it is no matrix."""
    leaves = floating_leaves(params)
    paths = list(leaves_by_path(params))
    layers = open_layers(function, leaves, inputs, is_differentiated=is_differentiated)
    captured = layers.capture
    uses: dict[int, MatrixUse | str] = {use.position: use for use in captured.uses}
    uses |= {number: reason for number, reason in enumerate(captured.reasons) if reason}
    return {paths[position]: uses[number] for number, position in enumerate(leaves.positions)}


def _selected_uses(
    function: Partial, params: Params, inputs: Any, select: Select, *, is_differentiated: bool
) -> dict[str, MatrixUse]:
    uses = _uses_by_path(function, params, inputs, is_differentiated=is_differentiated)
    matrices = {path: use for path, use in uses.items() if not isinstance(use, str)}
    if select is None:
        return matrices
    chosen = selected_paths(params, select)
    others = [path for path in chosen if path not in matrices]
    if others:
        reason = uses.get(others[0], "it is not floating")
        raise ValueError(
            f"select names {shorten(others)}, which have no Hessian of a layer: of {others[0]}, "
            f"{reason}. Layers with a Hessian are {shorten(matrices)}."
        )
    return {path: matrices[path] for path in chosen}


def _kinds_of_hessians(
    params: Params, uses: dict[str, MatrixUse], *, per_output: bool
) -> tuple[tuple[tuple[int, ...], np.dtype], ...]:
    """Return shapes and dtypes."""
    leaves = leaves_by_path(params)
    return tuple(
        (
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


@partial(jax.jit, static_argnums=0)
def _no_sums(kinds: tuple[tuple[tuple[int, ...], np.dtype], ...]) -> CompensatedSum:
    """Return sums of nothing, from one program for all layers."""
    zeros = tuple(jnp.zeros(shape, dtype) for shape, dtype in kinds)
    return CompensatedSum.empty((zeros, jnp.zeros(())))


@partial(
    jax.jit,
    static_argnames=("positions", "num_label_samples", "placement"),
    donate_argnames=("total",),
)
def _add_batch(
    total: CompensatedSum,
    function: Partial,
    params: Params,
    batch: tuple[Any, Any],
    loss: LossOfOutputs | None,
    key: PRNGKey | None,
    first_example: Int[Array, ""] | int,
    units: Units | None,
    *,
    positions: tuple[int, ...],
    num_label_samples: int | None,
    placement: Placement | None,
) -> CompensatedSum:
    """Add the sums over the examples of one batch; `loss` is None for the layers' own outputs."""
    leaves = floating_leaves(params)
    layers = open_layers(function, leaves, batch[0], is_differentiated=loss is not None)
    layers = layers._replace(others=())
    num_examples = count_examples(batch[0])
    weight = jnp.asarray(num_examples, jnp.result_type(float))
    if loss is None:
        terms_fn = partial(_grams_of_inputs, layers, positions, units)
        numbers = layers.capture.num_activations
    else:
        hint_of_functions("layer_hessians", function, loss, (params, batch))
        hessian = hessian_of_outputs(layers, loss, batch[1], is_exact=num_label_samples is None)
        weight = loss.total_weight(hessian.shape, batch[1], num_examples)
        columns_fn = partial(_columns, hessian, num_label_samples, key, first_example)
        terms_fn = partial(_grams_of_gradients, layers, positions, units, columns_fn)
        numbers = 4 * layers.capture.num_activations + hessian.num_held
    with jax.default_matmul_precision("highest"):
        num_chunks = _num_chunks(
            layers, positions, numbers, num_examples, has_gradients=loss is not None
        )
        summed = partial(sum_over_chunks, terms_fn, total.total[0], num_chunks=num_chunks)
        with placed(placement):
            terms = quick_on_cpu(summed)(batch)
    return total.add((terms, weight.astype(total.total[1].dtype)))


def _num_chunks(
    layers: OpenLayers,
    positions: tuple[int, ...],
    numbers: int,
    num_examples: int,
    *,
    has_gradients: bool,
) -> int:
    """How many chunks; `numbers` are those that an example takes outside the chosen layers."""
    for use in layers.capture.uses:
        if use.position in positions:
            layout = use.layout
            numbers += 2 * use.num_positions * layout.num_groups * layout.num_inputs
            numbers += prod(layout.shape) if has_gradients else 0
    chunk_size = int(np.clip(chunk_bytes() // (4 * numbers), 1, num_examples))
    return -(-num_examples // chunk_size)


def _columns(
    hessian: OutputHessian,
    num_label_samples: int | None,
    key: PRNGKey | None,
    first_example: Int[Array, ""] | int,
    outputs: Float[Array, "E *shape"],
    targets: Any,
    rows: Int[Array, " E"],
) -> Columns:
    """All columns of a chunk, or the mean over samples of drawn ones as one column for each."""
    if num_label_samples is None:
        return hessian.exact(outputs, targets)
    assert key is not None
    scale = np.sqrt(1.0 / num_label_samples).astype(outputs.dtype)
    samples = jnp.arange(num_label_samples)
    drawn = hessian.drawn(outputs, targets, key, samples, rows + first_example)
    return Columns(num_label_samples, lambda index: scale * drawn.at(index))


def _grams_of_inputs(
    layers: OpenLayers,
    positions: tuple[int, ...],
    units: Units | None,
    chunk: tuple[Any, Any],
    rows: Int[Array, " E"],
    is_example: Bool[Array, " E"],
) -> tuple[Array, ...]:
    """Sums over a chunk of examples and positions of `a a^T`, a the inputs of a layer."""
    del rows
    inputs = layers.inputs_of_uses(chunk[0])
    chosen = [inputs[number] for number in chosen_of(layers, positions)]
    if units is not None:
        chosen = [
            restore(a, jnp.asarray(u), axis=(0, 2, 3)) for a, u in zip(chosen, units, strict=True)
        ]
    keep = is_example.astype(jnp.float32).reshape(-1, 1, 1, 1)
    return tuple(_gram(a * keep.astype(a.dtype), "egpi,egpj->gij") for a in chosen)


def _grams_of_gradients(
    layers: OpenLayers,
    positions: tuple[int, ...],
    units: Units | None,
    columns_fn: Callable[[Array, Any, Int[Array, " E"]], Columns],
    chunk: tuple[Any, Any],
    rows: Int[Array, " E"],
    is_example: Bool[Array, " E"],
) -> tuple[Array, ...]:
    """Sums over a chunk of examples of `u u^T`, u the gradients in the weights of each unit."""
    inputs, targets = chunk
    linearized = layers.linearize(inputs)
    if units is not None:
        # All groups of a leaf are in the same unit, that of its weights.
        by_leaf = dict(zip(positions, (u[0] for u in units), strict=True))
        zero = jnp.int32(0)
        every = range(len(layers.leaves.values))
        linearized = linearized.in_units(layers, tuple(by_leaf.get(n, zero) for n in every))
    chosen = chosen_of(layers, positions)

    def of_column(column: Float[Array, "E *shape"]) -> list[Array]:
        deltas, _ = linearized.gradients(column)
        return [
            deltas[number] ** 2
            if layers.capture.uses[number].num_positions == 1
            else _gram(_unit_gradients(linearized.inputs[number], deltas[number]), _PER_OUTPUT)
            for number in chosen
        ]

    columns = columns_fn(linearized.outputs, targets, rows).where(is_example)
    found = sum_over_columns(of_column, columns)
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


def is_pair(batch: Any) -> bool:
    """Tell whether a batch is inputs and targets."""
    return isinstance(batch, tuple | list) and len(batch) == 2
