"""The diagonal of the Gauss-Newton matrix, exact or by sampled labels, in nats per squared weight.

For a loss `l(f(w, x), y)` with the Jacobian J of the outputs and the Hessian `S S^T` of l with
respect to them, the Gauss-Newton matrix is the mean over examples of `J^T S S^T J`. It is positive
semi-definite, equals the Fisher matrix for softmax cross-entropy (and for the squared error), and
its diagonal is *equal* to that of the Hessian if the network is piecewise linear (ReLU, max
pooling, fixed batch norm): no unit's output then has a second derivative in any one weight.

The diagonal needs, for every column s of S, the gradient of `s . f` for one example, squared: see
`jaxcomp.curvature.per_example`.

Sources: Schraudolph (2002), doi:10.1162/08997660260028683; Dangel, Kunstner, Hennig, "BackPACK",
arXiv:1912.10985 (DiagGGN); Gao, Liu, Wang, Oh (2019), whose `E[(df)^2 / f]` is the same diagonal.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from jaxcomp.curvature.compilation import hint_if_compiled_again
from jaxcomp.curvature.estimate import (
    DiagonalEstimate,
    Estimator,
    SampleFn,
    Sampling,
    as_partial,
    count_examples,
    diagonal_dtype,
    floating_leaves,
    open_params,
)
from jaxcomp.curvature.independence import check_outputs_are_independent
from jaxcomp.curvature.per_example import open_layers, sum_of_squares
from jaxcomp.curvature.units import Exponents
from jaxcomp.numerics.checks import check_count
from jaxcomp.numerics.linear_algebra import eigh
from jaxcomp.types import Batch, Params, PredictFn, PRNGKey

OutputLoss = Callable[[Array, Any], Float[Array, ""]]
"""`(outputs, target) -> loss` of one example, in nats, convex in the outputs."""

Loss = Literal["softmax_cross_entropy", "squared_error"] | OutputLoss
LOSSES = ("softmax_cross_entropy", "squared_error")


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
                exponents=self.exponents,
            )
            return leaves.diagonal(tuple(x / num_examples for x in total))

        if self.num_label_samples is not None:
            return sample
        exact = sample(jnp.int32(0))
        return lambda index: exact


@dataclass(frozen=True, eq=False)
class GaussNewton(Estimator):
    """The Gauss-Newton diagonal; the options are those of `gauss_newton_diagonal`."""

    predict_fn: PredictFn
    params: Params
    loss: Loss = field(default="softmax_cross_entropy", kw_only=True)
    num_label_samples: int | None = field(default=None, kw_only=True)
    key: PRNGKey | None = field(default=None, kw_only=True)
    examples_per_chunk: int | None = field(default=None, kw_only=True)

    def sampling(self) -> Sampling:
        """Return the sampler, after a check of all options."""
        check_loss(self.loss)
        num_label_samples = self.num_label_samples
        examples_per_chunk = self.examples_per_chunk
        if num_label_samples is None and self.key is not None:
            raise ValueError(
                "key is for sampled labels: pass num_label_samples with it, or leave it out for "
                "the exact diagonal."
            )
        if num_label_samples is not None:
            num_label_samples = check_count("num_label_samples", num_label_samples, least=2)
            if self.key is None:
                raise ValueError(
                    "num_label_samples needs a key: pass key=jax.random.key(seed), or leave "
                    "num_label_samples out for the exact diagonal."
                )
        if examples_per_chunk is not None:
            examples_per_chunk = check_count("examples_per_chunk", examples_per_chunk)
        sampler = GaussNewtonSampler(
            *open_params(as_predict_fn(self.predict_fn), self.params),
            self.key,
            self.loss,
            num_label_samples,
            examples_per_chunk,
        )
        return Sampling(sampler, num_label_samples or 1)


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
            an example must not depend on the others (dropout off, batch statistics fixed), which
            is checked on a few examples unless values are not known (in `jit`, `vmap`). Called
            on batches of one example. Static or traced as `loss_fn` of `hutchinson_diagonal`.
        params: any pytree; leaves that are not floating are constants.
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
            key, a batch that is no pair of equal lengths, outputs that do not fit the loss, or
            outputs of an example that depend on the other examples.
        TypeError: if `predict_fn` is not callable or not hashable, or a leaf of `params` complex.
    """
    return GaussNewton(
        predict_fn,
        params,
        loss=loss,
        num_label_samples=num_label_samples,
        key=key,
        examples_per_chunk=examples_per_chunk,
    )(batch)


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
        values, vectors = eigh(hessian)
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
