"""The diagonal of the Gauss-Newton matrix, exact or by sampled labels, in nats per squared weight.

For a loss `l(f(w, x), y)` with the Jacobian J of the outputs and the Hessian `S S^T` of l with
respect to them, the Gauss-Newton matrix is the mean over examples of `J^T S S^T J`. It is positive
semi-definite, equals the Fisher matrix for softmax cross-entropy (and for the squared error), and
its diagonal is *equal* to that of the Hessian if the network is piecewise linear (ReLU, max
pooling, fixed batch norm): no unit's output then has a second derivative in any one weight.

The diagonal needs, for every column s of S, the gradient of `s . f` for one example, squared: see
`jaxcomp.curvature.per_example`. What S is, with a loss for every token too, and what the mean is
over: `jaxcomp.curvature.output_losses`.

Sources: Schraudolph (2002), doi:10.1162/08997660260028683; Dangel, Kunstner, Hennig, "BackPACK",
arXiv:1912.10985 (DiagGGN); Gao, Liu, Wang, Oh (2019), whose `E[(df)^2 / f]` is the same diagonal.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from jaxcomp.curvature.compilation import hint_if_compiled_again
from jaxcomp.curvature.estimate import (
    DiagonalEstimate,
    Estimator,
    SampleBlocks,
    SampleFn,
    Sampling,
    count_examples,
    diagonal_dtype,
    floating_leaves,
    shapes_of_one,
)
from jaxcomp.curvature.functions import (
    OfArguments,
    OfOutput,
    PickOutput,
    as_partial,
    check_one_output,
    open_params,
    pick_output,
)
from jaxcomp.curvature.independence import check_outputs_are_independent
from jaxcomp.curvature.output_losses import (
    MAX_COLUMNS,
    Loss,
    LossOfOutputs,
    OutputHessian,
    Reduction,
    checked_loss,
    output_hessian,
)
from jaxcomp.curvature.per_example import (
    Columns,
    ColumnsFn,
    OpenLayers,
    open_layers,
    sum_of_squares,
)
from jaxcomp.curvature.units import Exponents
from jaxcomp.numerics.checks import check_count
from jaxcomp.numerics.memory import chunk_bytes
from jaxcomp.types import Batch, OutputsFn, Params, PRNGKey


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussNewtonSampler:
    """The exact diagonal as a single sample, or one sample per drawn label."""

    predict_fn: Partial
    params: Params
    key: PRNGKey | None
    loss: LossOfOutputs
    num_label_samples: int | None = field(metadata={"static": True})
    examples_per_chunk: int | None = field(metadata={"static": True})
    first_example: Int[Array, ""] | int = 0
    exponents: Exponents = None

    def starting_at(self, example: int) -> "GaussNewtonSampler":
        """Return the sampler for a batch that starts at this example: labels are keyed by it."""
        return replace(self, first_example=example)

    def check(self, batch: Batch) -> None:
        """Refuse a model whose examples depend on each other."""
        check_outputs_are_independent(self.predict_fn, self.params, inputs_and_targets(batch)[0])

    def evaluate(self, params: Params, batch: Batch) -> Any:
        """Return the outputs."""
        return self.predict_fn(params, inputs_and_targets(batch)[0])

    def weight(self, batch: Batch) -> Float[Array, ""]:
        """Return how much a batch counts: its examples, or the weights of its positions."""
        inputs, targets = inputs_and_targets(batch)
        outputs = jax.eval_shape(self.predict_fn, self.params, shapes_of_one(inputs))
        shape = outputs.shape[1:]
        return self.loss.total_weight(shape, targets, count_examples(batch))

    def at(self, batch: Batch) -> SampleFn:
        """Lay the layers open once; a sample is one pass over the examples, chunk by chunk."""
        hint_of_functions("gauss_newton_diagonal", self.predict_fn, self.loss, (self.params, batch))
        inputs, targets = inputs_and_targets(batch)
        leaves = floating_leaves(self.params)
        layers = open_layers(self.predict_fn, leaves, inputs)
        is_exact = self.num_label_samples is None
        hessian = hessian_of_outputs(layers, self.loss, targets, is_exact=is_exact)
        total_weight = self.loss.total_weight(hessian.shape, targets, count_examples(batch))
        weight = jnp.where(total_weight > 0, total_weight, jnp.ones_like(total_weight))

        def squares(columns_fn: ColumnsFn, num_columns: int) -> tuple[Array, ...]:
            total = sum_of_squares(
                layers,
                columns_fn,
                (inputs, targets),
                numbers_per_example=hessian.num_held,
                num_columns=num_columns,
                examples_per_chunk=self.examples_per_chunk,
                inputs_of=lambda chunk: chunk[0],
                first_example=self.first_example,
                exponents=self.exponents,
                is_summed=is_exact,
            )
            return tuple(x / weight.astype(x.dtype) for x in total)

        if is_exact:
            num_columns = math.prod(hessian.shape)
            found = squares(lambda f, chunk, _: hessian.exact(f, chunk[1]), num_columns)
            exact = leaves.diagonal(found)
            return lambda index: exact

        # Samples that are computed together share the forward pass of every chunk of examples.
        def block(indices: Int[Array, " S"]) -> Params:
            def columns(outputs: Array, chunk: Any, numbers: Int[Array, " E"]) -> Columns:
                assert self.key is not None
                return hessian.drawn(outputs, chunk[1], self.key, indices, numbers)

            return jax.vmap(leaves.diagonal)(squares(columns, indices.size))

        # Each is held some four times (as it comes, in its sum, and what rounding took from that):
        # samples of large networks come one by one, in the memory of a gradient.
        num_bytes = sum(x.size * diagonal_dtype(x.dtype).itemsize for x in leaves.values)
        return SampleBlocks(block, max(chunk_bytes() // (16 * max(num_bytes, 1)), 1))


@dataclass(frozen=True, eq=False)
class GaussNewton(Estimator):
    """The Gauss-Newton diagonal; the options are those of `gauss_newton_diagonal`."""

    predict_fn: OutputsFn
    params: Params
    loss: Loss = field(default="softmax_cross_entropy", kw_only=True)
    reduction: Reduction = field(default="mean", kw_only=True)
    output: PickOutput | None = field(default=None, kw_only=True)
    num_label_samples: int | None = field(default=None, kw_only=True)
    key: PRNGKey | None = field(default=None, kw_only=True)
    examples_per_chunk: int | None = field(default=None, kw_only=True)
    max_columns: int = field(default=MAX_COLUMNS, kw_only=True)

    def sampling(self) -> Sampling:
        """Return the sampler, after a check of all options."""
        loss = checked_loss(self.loss, self.reduction, self.max_columns)
        num_label_samples = checked_label_samples(self.num_label_samples, self.key)
        examples_per_chunk = self.examples_per_chunk
        if examples_per_chunk is not None:
            examples_per_chunk = check_count("examples_per_chunk", examples_per_chunk)
        sampler = GaussNewtonSampler(
            *open_params(as_predict_fn(self.predict_fn, self.output), self.params),
            self.key,
            loss,
            num_label_samples,
            examples_per_chunk,
        )
        return Sampling(sampler, num_label_samples or 1)


def gauss_newton_diagonal(
    predict_fn: OutputsFn,
    params: Params,
    batch: Batch,
    *,
    loss: Loss = "softmax_cross_entropy",
    reduction: Reduction = "mean",
    output: PickOutput | None = None,
    num_label_samples: int | None = None,
    key: PRNGKey | None = None,
    examples_per_chunk: int | None = None,
    max_columns: int = MAX_COLUMNS,
) -> DiagonalEstimate:
    """Compute the diagonal of the Gauss-Newton matrix of a mean loss.

    Exact over all outputs by default: a forward pass, and for every output a backward pass through
    the upper layers, which for a classifier of few classes costs 1.5 to 2.4 gradients. With
    `num_label_samples` the labels are drawn from the model instead, one for every position (token,
    pixel): one gradient each, and the memory of a gradient, for any number of classes. Pure:
    `jax.vmap` over `params` or `batch`.

    Dense layers and convolutions are found in the jaxpr of `predict_fn`, whatever library it is
    written in, also in loops: stacked blocks that `lax.scan` takes one by one cost what they cost
    unrolled, and a recurrent network's weights meet an example once a step. All other weights
    (biases, embeddings, weights that are changed before they multiply) go through their gradient
    for every example and column: the same result at more memory (`find_layers` lists them, and
    says why).

    Args:
        predict_fn: `(params, inputs) -> outputs (batch, ...)` in evaluation mode: the outputs of
            an example must not depend on the others (dropout off, batch statistics fixed), which
            is checked on a few examples unless values are not known (in `jit`, `vmap`). Called
            on batches of one example. Static or traced as `loss_fn` of `hutchinson_diagonal`.
        params: any pytree; leaves that are not floating are constants.
        batch: `(inputs, targets)`, pytrees with leading axis B >= 1. Of the targets only a callable
            loss reads more than the weights of positions: a plain pair `(targets, weights)` has
            weights `(batch, *positions)`, not negative, such as a mask (booleans or numbers).
        loss: `"softmax_cross_entropy"` of logits `(batch, *positions, classes)`;
            `"squared_error"`, at each position the sum over the last axis of `(f - y)^2`, without a
            half; `(outputs, target) -> scalar` of one example, convex in the outputs (negative
            curvature of it is set to 0), whose independent positions are found in its jaxpr; or
            `PerPosition` of such a function of one position. Static or traced as `predict_fn`.
        reduction: `"mean"` over all positions of all examples by their weights, `"example_mean"`
            for the mean over examples of that within each, `"sum"` for the mean over examples of
            its sum over positions. Not for a function of a whole example. Static.
        output: which output the loss takes, if `predict_fn` returns a tree: the path of an array,
            such as `"logits"`, or a function of the tree. Static.
        num_label_samples: S >= 2 labels drawn for each position, static; None for the exact
            diagonal. Not every loss has labels: for the others, random signs combine the columns
            of the outputs' Hessian, which is as unbiased.
        key: typed PRNG key for the labels, consumed; required with `num_label_samples` alone.
        examples_per_chunk: examples a device holds at once, static; None chooses as many as
            fill `numerics.memory.chunk_bytes`.
        max_columns: how many outputs of an example the exact diagonal may have, and how many
            outputs of it a function may link, which takes a dense matrix of them. Static.

    Returns:
        The diagonal as `mean`, shaped like `params`, float32 (float64 for float64 leaves), never
        negative, in nats per squared weight; zeros for leaves that are not floating.
        `standard_error` is that over the drawn labels, zeros for the exact diagonal. Values that
        are not finite pass through: see `check_finite`. Zeros if all weights are zero.

    Raises:
        ValueError: for an unknown loss, reduction or output, a count that is not positive, labels
            to sample without a key, a batch that is no pair of equal lengths, outputs or weights
            that do not fit the loss, more than `max_columns`, or outputs of an example that depend
            on the other examples.
        TypeError: if `predict_fn` is not callable, or a leaf of `params` complex.
    """
    return GaussNewton(
        predict_fn,
        params,
        loss=loss,
        reduction=reduction,
        output=output,
        num_label_samples=num_label_samples,
        key=key,
        examples_per_chunk=examples_per_chunk,
        max_columns=max_columns,
    )(batch)


def as_predict_fn(predict_fn: OutputsFn, output: PickOutput | None = None) -> Partial:
    """Return a model's function as a pytree, see `as_partial`; of one of its outputs alone."""
    function = as_partial(predict_fn, name="predict_fn", signature="(params, inputs) -> outputs")
    return pick_output(function, output)


def checked_label_samples(num_label_samples: int | None, key: PRNGKey | None) -> int | None:
    """Check how many labels are drawn, and that there is a key if they are.

    Raises:
        ValueError: for one without the other, or fewer than two.
    """
    if num_label_samples is None and key is not None:
        raise ValueError(
            "key is for sampled labels: pass num_label_samples with it, or leave it out for the "
            "exact diagonal."
        )
    if num_label_samples is None:
        return None
    num_label_samples = check_count("num_label_samples", num_label_samples, least=2)
    if key is None:
        raise ValueError(
            "num_label_samples needs a key: pass key=jax.random.key(seed), or leave "
            "num_label_samples out for the exact diagonal."
        )
    return num_label_samples


def hessian_of_outputs(
    layers: OpenLayers, loss: LossOfOutputs, targets: Any, *, is_exact: bool
) -> OutputHessian:
    """Return the Hessian of a loss in the outputs of a model; see `output_hessian`."""
    outputs = layers.capture.outputs
    check_one_output(outputs)
    example = jax.ShapeDtypeStruct(outputs.shape[1:], outputs.dtype)
    return output_hessian(loss, example, targets, is_exact=is_exact)


def hint_of_functions(
    kernel: str, predict_fn: Partial, loss: LossOfOutputs, arguments: Any
) -> None:
    """Warn of functions, new each time, that make a kernel compile; see `compilation`."""
    hint_if_compiled_again(kernel, predict_fn.func, arguments)
    if loss.function is not None:
        hint_if_compiled_again(kernel, loss.function.func, arguments)
    picked = predict_fn.func
    picked = picked.function if isinstance(picked, OfArguments) else picked
    if isinstance(picked, OfOutput) and callable(picked.output):
        hint_if_compiled_again(kernel, picked.output, arguments)


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
