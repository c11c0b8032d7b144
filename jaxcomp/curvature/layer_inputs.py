"""What the layers of a model get as inputs from calibration data, also where others are changed.

Layers are those of any function (`jaxcomp.curvature.capture`). Their inputs enter as moments over
examples and positions: of the original network, x, and of one whose earlier layers are compressed
already, xh. A part of the data is held out, so that what is fitted to the rest can be checked.

Axes: `E` examples of a chunk, `G` groups of a convolution and layers of a stack, `P` positions,
`I` inputs, `O` outputs.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from jaxcomp.curvature.batches import (
    AutomaticBatches,
    check_iterable_again,
    over_batches,
    sized_batches,
)
from jaxcomp.curvature.capture import MatrixUse
from jaxcomp.curvature.estimate import (
    CompensatedSum,
    DiagonalEstimate,
    check_finite,
    diagonal_dtype,
    floating_leaves,
)
from jaxcomp.curvature.functions import PickOutput, open_params
from jaxcomp.curvature.gauss_newton import GaussNewton
from jaxcomp.curvature.independence import check_outputs_are_independent
from jaxcomp.curvature.layer_units import input_units
from jaxcomp.curvature.layers import as_function, is_pair
from jaxcomp.curvature.layouts import MatrixLayout
from jaxcomp.curvature.output_losses import MAX_COLUMNS, Loss, Reduction
from jaxcomp.curvature.per_example import OpenLayers, open_layers, sum_over_chunks
from jaxcomp.curvature.units import lost_leaves
from jaxcomp.numerics.checks import check_count
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
from jaxcomp.trees.paths import leaves_by_path
from jaxcomp.types import Batch, OutputsFn, Params, PRNGKey

# Examples whose gradients tell which bias belongs to which layer, and how far they may differ.
_NUM_COMPARED, _TOLERANCE = 8, 1e-3


class InputMoments(NamedTuple):
    """Moments of a layer's inputs over a data set: x originally, xh of the rounded network.

    Those of an `OpenNetwork` are in its units.

    Attributes:
        second: E[xh xh^T] (G, I, I).
        mean: E[xh] (G, I).
        cross: E[xh x^T] (G, I, I), None if xh = x.
        original_mean: E[x] (G, I), None if xh = x.
    """

    second: Float[Array, "G I I"]
    mean: Float[Array, "G I"]
    cross: Float[Array, "G I I"] | None = None
    original_mean: Float[Array, "G I"] | None = None


class SplitMoments(NamedTuple):
    """Moments over examples and positions of two parts of the data.

    Attributes:
        fitted: of the larger part.
        held_out: of the other; None if there are too few examples for two.
        share: of the examples that are in the larger part.
    """

    fitted: InputMoments
    held_out: InputMoments | None
    share: float

    def joined(self) -> InputMoments:
        """Return the moments of all examples."""
        other, share = self.held_out, self.share
        if other is None:
            return self.fitted
        return jax.tree.map(lambda a, b: share * a + (1 - share) * b, self.fitted, other)


class LayerUse(NamedTuple):
    """A weight that only enters matrix products or convolutions of one form.

    Attributes:
        layout: as matrices (G, I, O).
        bias: path of a leaf of G O numbers that is added to the layer's outputs; None if there is
            none.
    """

    layout: MatrixLayout
    bias: str | None


@dataclass(frozen=True, eq=False)
class Layers:
    """Calibration data of a model: what its layers get as inputs, and what their outputs matter.

    Attributes:
        predict_fn: `(params, inputs) -> outputs` in evaluation mode, called on batches of one
            example; or a Flax module.
        batches: of `(inputs, targets)`, an iterable that can be passed over several times. A batch
            that is no pair is all inputs; targets are for the weights of positions and for losses
            that read them. Some hundred to ten thousand examples that the model was made for.
        loss: what makes the errors of outputs comparable, by its Gauss-Newton matrix, as in
            `gauss_newton_diagonal`; so are those that follow. None counts the relative squared
            errors of the outputs of all layers alike.
        reduction: what the mean loss is a mean of.
        output: which of several outputs the loss takes.
        num_label_samples: labels drawn for each position; None for all columns, exactly.
        key: typed PRNG key for the labels.
        max_columns: how many outputs of an example the exact matrix may have.
        num_stages: how many groups of layers are compressed one after the other, in the order of
            evaluation. Each group gets the inputs of a network whose earlier groups are compressed
            already (of that of the original, if there is one group only). None: a group for each
            layer. Every layer takes a pass over the batches.
        held_out: share of the examples that nothing is fitted to.
    """

    predict_fn: OutputsFn | Any
    batches: Iterable[Batch]
    loss: Loss | None = field(default="softmax_cross_entropy", kw_only=True)
    reduction: Reduction = field(default="mean", kw_only=True)
    output: PickOutput | None = field(default=None, kw_only=True)
    num_label_samples: int | None = field(default=None, kw_only=True)
    key: PRNGKey | None = field(default=None, kw_only=True)
    max_columns: int = field(default=MAX_COLUMNS, kw_only=True)
    num_stages: int | None = field(default=None, kw_only=True)
    held_out: float = field(default=0.2, kw_only=True)

    def __post_init__(self) -> None:
        check_iterable_again(self.batches)
        if self.num_stages is not None:
            check_count("num_stages", self.num_stages)
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be from 0 to below 1, got {self.held_out!r}.")

    def open(self, params: Params) -> "OpenNetwork":
        """Find the layers of a model with such weights."""
        function = as_function(self.predict_fn, params, self.output)
        function, opened = open_params(function, params)
        with automatic_axes(function, opened):
            return self._opened(*to_automatic((function, opened)))

    def _opened(self, function: Partial, opened: Params) -> "OpenNetwork":
        batches = AutomaticBatches(self.batches)
        first = next(sized_batches(batches), None)
        if first is None:
            raise ValueError("batches is empty; pass at least one batch.")
        inputs = _inputs_of(first[0])
        check_outputs_are_independent(function, opened, inputs)
        leaves = floating_leaves(opened)
        found = open_layers(function, leaves, inputs, is_differentiated=False)
        names = list(leaves_by_path(opened))
        path_of = [names[position] for position in leaves.positions]
        biases = _biases(function, opened, found, inputs)
        uses = sorted(found.capture.uses, key=lambda use: use.order)
        return OpenNetwork(
            self,
            function,
            opened,
            batches,
            {path: number for number, path in enumerate(path_of)},
            {
                path_of[use.position]: LayerUse(
                    use.layout,
                    None if biases.get(use.position) is None else path_of[biases[use.position]],
                )
                for use in uses
            },
        )


@dataclass(frozen=True, eq=False)
class OpenNetwork:
    """A model with its layers laid open.

    Attributes:
        layers: the data.
        function: of the model.
        params: original weights, without leaves that no compiled function takes.
        batches: of the data; like the weights over automatic axes, if over a mesh.
        numbers: path of a floating leaf -> its number among them.
        uses: path -> layer, in the order of evaluation.
        units: path -> u (G,), of layers whose moments were asked for: the inputs of a group count
            `2^u` times. 0, but for inputs of extreme size, whose squares are out of range.
    """

    layers: Layers
    function: Partial
    params: Params
    batches: AutomaticBatches
    numbers: dict[str, int]
    uses: dict[str, LayerUse]
    units: dict[str, Int[np.ndarray, " G"]] = field(default_factory=dict)

    def stages(self, paths: Iterable[str]) -> list[list[str]]:
        """Return layers in the groups that are rounded one after the other."""
        chosen = set(paths)
        ordered = [path for path in self.uses if path in chosen]
        number = self.layers.num_stages
        number = len(ordered) if number is None else min(number, len(ordered))
        cuts = np.linspace(0, len(ordered), number + 1).round().astype(int)
        return [ordered[a:b] for a, b in pairwise(cuts)]

    def importance(self) -> DiagonalEstimate | None:
        """Return the Gauss-Newton diagonal of the loss in all weights; None without a loss."""
        own = self.layers
        if own.loss is None:
            return None
        estimator = GaussNewton(
            self.function,
            self.params,
            loss=own.loss,
            reduction=own.reduction,
            num_label_samples=own.num_label_samples,
            key=own.key,
            max_columns=own.max_columns,
        )
        return over_batches(estimator, self.batches)

    def moments(self, path: str, changed: Mapping[str, Array]) -> SplitMoments:
        """Gather moments of the inputs of a layer, in one pass.

        Args:
            path: of its weight.
            changed: what other weights have become, by path; empty if nothing has.
        """
        leaves = floating_leaves(self.params)
        values = list(leaves.values)
        for name, value in changed.items():
            values[self.numbers[name]] = to_automatic(jnp.asarray(value))
        new = tuple(values) if changed else None
        sums: list[Any] = [None, None]
        counts = [0, 0]
        position = self.numbers[path]
        layout = self.uses[path].layout
        zeros = partial(_zero_moments, layout, leaves.values[position], new)
        for inputs, place in self._parts():
            size = len(jax.tree.leaves(inputs)[0])
            if sums[place] is None:
                sums[place] = CompensatedSum.empty(zeros())
            # One batch after the other: else all of them would be on the device at once.
            jax.block_until_ready(sums[place])
            is_first = path not in self.units
            self.units.setdefault(path, np.zeros(layout.num_groups, np.int32))
            sums[place] = self._added(sums[place], path, new, inputs)
            if is_first and any(lost_leaves(sums[place].total.second)):
                found = input_units(self.function, self.params, inputs, (position,))
                self.units[path] = found[0]
                sums[place] = self._added(CompensatedSum.empty(zeros()), path, new, inputs)
            counts[place] += size
        parts = [
            None if total is None else jax.tree.map(partial(jnp.multiply, 1 / count), total.value())
            for total, count in zip(sums, counts, strict=True)
        ]
        if parts[0] is None:
            parts, counts = parts[::-1], counts[::-1]
        fitted, held_out = parts
        assert fitted is not None
        check_finite({path: fitted})
        return SplitMoments(fitted, held_out, counts[0] / sum(counts))

    def _added(
        self, total: CompensatedSum, path: str, changed: tuple[Array, ...] | None, inputs: Any
    ) -> CompensatedSum:
        units = self.units[path]
        with automatic_axes():
            return _add_moments(
                total,
                self.function,
                self.params,
                changed,
                inputs,
                units if np.any(units) else None,
                position=self.numbers[path],
                placement=placement_of((), inputs),
            )

    def _parts(self) -> Iterator[tuple[Any, int]]:
        """Give inputs and 0, or 1 for those that are held out: the last ones of every batch."""
        debt = 0.0
        for batch, size in sized_batches(self.batches):
            inputs = _inputs_of(batch)
            debt += self.layers.held_out * size
            number = min(int(debt + 1e-9), size)
            debt -= number
            for part, place in ((slice(size - number), 0), (slice(size - number, None), 1)):
                some = jax.tree.map(lambda x, part=part: x[part], inputs)
                if len(jax.tree.leaves(some)[0]):
                    yield some, place


def _inputs_of(batch: Batch) -> Any:
    return batch[0] if is_pair(batch) else batch


def _zero_moments(layout: MatrixLayout, weight: Array, changed: Any) -> InputMoments:
    dtype = diagonal_dtype(weight.dtype)
    mean = jnp.zeros((layout.num_groups, layout.num_inputs), dtype)
    second = jnp.zeros((*mean.shape, layout.num_inputs), dtype)
    if changed is None:
        return InputMoments(second, mean)
    return InputMoments(second, mean, second, mean)


@partial(jax.jit, static_argnames=("position", "placement"), donate_argnames=("total",))
def _add_moments(
    total: CompensatedSum,
    function: Partial,
    params: Params,
    changed: tuple[Array, ...] | None,
    inputs: Any,
    units: Int[Array, " G"] | None,
    *,
    position: int,
    placement: Placement | None,
) -> CompensatedSum:
    """Add the sums over the examples of a batch of means over positions."""
    leaves = floating_leaves(params)
    original = open_layers(function, leaves, inputs, is_differentiated=False)
    original = original._replace(others=())
    positions = [use.position for use in original.capture.uses]
    number = positions.index(position)
    use = original.capture.uses[number]
    num_examples = len(jax.tree.leaves(inputs)[0])

    def sums(chunk: Any, rows: Int[Array, " E"], is_example: Bool[Array, " E"]) -> InputMoments:
        del rows
        keep = is_example.astype(jnp.float32).reshape(-1, 1, 1, 1) / use.num_positions

        def of(layers: OpenLayers) -> Array:
            a = layers.inputs_of_uses(chunk)[number]
            return a if units is None else restore(a, units, axis=(0, 2, 3))

        x = of(original)
        weighed = x * keep.astype(x.dtype)
        if changed is None:
            return InputMoments(_gram(weighed, x), jnp.sum(weighed, axis=(0, 2)))
        new = of(original._replace(leaves=leaves._replace(values=changed)))
        weighed_new = new * keep.astype(x.dtype)
        return InputMoments(
            _gram(weighed_new, new),
            jnp.sum(weighed_new, axis=(0, 2)),
            _gram(weighed_new, x),
            jnp.sum(weighed, axis=(0, 2)),
        )

    with jax.default_matmul_precision("highest"):
        num_chunks = _num_chunks(original, use, num_examples)
        summed = partial(sum_over_chunks, sums, total.total, num_chunks=num_chunks)
        with placed(placement):
            return total.add(quick_on_cpu(summed)(inputs))


def _gram(rows: Float[Array, "E G P I"], others: Float[Array, "E G P I"]) -> Float[Array, "G I I"]:
    return jnp.einsum("egpi,egpj->gij", rows, others)


def _num_chunks(layers: OpenLayers, use: MatrixUse, num_examples: int) -> int:
    numbers = 2 * layers.capture.num_activations
    numbers += 4 * use.num_positions * use.layout.num_groups * use.layout.num_inputs
    chunk_size = int(np.clip(chunk_bytes() // (4 * numbers), 1, num_examples))
    return -(-num_examples // chunk_size)


def _biases(function: Partial, params: Params, layers: OpenLayers, inputs: Any) -> dict[int, int]:
    """Return which leaf is added to the outputs of which layer, by position.

    Adding d to a bias is adding d to the outputs of its layer at all positions, whatever comes
    after it: so both have the same gradient, of any function of the outputs.
    """
    outputs = layers.capture.outputs
    leaves = layers.leaves
    sizes = {use.layout.num_groups * use.layout.num_outputs for use in layers.capture.uses}
    others = tuple(p for p in layers.others if leaves.values[p].size in sizes)
    if not others or not isinstance(outputs, jax.ShapeDtypeStruct):
        return {}
    few = jax.tree.map(lambda x: jnp.asarray(x[:_NUM_COMPARED]), inputs)
    deltas, gradients = _gradients(function, params, few, others)
    found: dict[int, int] = {}
    for use, delta in zip(layers.capture.uses, deltas, strict=True):
        for position, gradient in zip(others, gradients, strict=True):
            if gradient[0].size != delta[0].size or position in found.values():
                continue
            own = np.asarray(gradient, np.float64).reshape(delta.shape)
            most = np.max(np.abs(own), initial=0.0)
            if most > 0 and np.max(np.abs(own - np.asarray(delta))) <= _TOLERANCE * most:
                found[use.position] = position
                break
    return found


@partial(jax.jit, static_argnames=("others",))
def _gradients(
    function: Partial, params: Params, inputs: Any, others: tuple[int, ...]
) -> tuple[list[Float[Array, "E G O"]], list[Float[Array, "E ..."]]]:
    """Return gradients of a random function of the outputs: in those of layers, and in leaves."""
    # As the layers were found: of all of them, also where a derivative rule is not the derivative.
    layers = open_layers(function, floating_leaves(params), inputs, is_differentiated=False)
    layers = layers._replace(others=others)
    linearized = layers.linearize(inputs)
    shape, dtype = linearized.outputs.shape, linearized.outputs.dtype
    column = jax.random.normal(jax.random.key(0), shape, jnp.float32).astype(dtype)
    deltas, gradients = linearized.gradients(column)
    return [jnp.sum(delta, axis=2) for delta in deltas], gradients
