"""The diagonal of the empirical Fisher matrix, in nats per squared weight.

The mean over examples of the squared gradient of one example's loss, at the labels of the data.
Never negative and free of probes, it is a stand-in for the diagonal of the Hessian, not an
estimate of it: the two agree in expectation where the model's probabilities are the true ones,
and the Fisher diagonal vanishes on a network that fits its data perfectly. For a loss in nats its
unit, squared nats per squared weight, is that of a Hessian, since a nat is a number.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jaxcomp.curvature.compilation import hint_if_compiled_again
from jaxcomp.curvature.estimate import (
    DiagonalEstimate,
    Estimator,
    SampleFn,
    Sampling,
    count_examples,
    floating_leaves,
    scalar_loss,
)
from jaxcomp.curvature.functions import as_partial, open_params
from jaxcomp.curvature.independence import check_losses_are_independent
from jaxcomp.curvature.per_example import Columns, open_function, sum_of_squares
from jaxcomp.curvature.units import Exponents
from jaxcomp.numerics.checks import check_count
from jaxcomp.types import Batch, LossFn, Params


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["loss_fn", "params", "exponents"],
    meta_fields=["examples_per_chunk"],
)
@dataclass(frozen=True)
class FisherSampler:
    """The exact mean of squared per-example gradients: a single sample; see `fisher_diagonal`."""

    loss_fn: Partial
    params: Params
    examples_per_chunk: int | None
    exponents: Exponents = None

    def check(self, batch: Batch) -> None:
        """Refuse a loss whose examples depend on each other."""
        check_losses_are_independent(self.loss_fn, self.params, batch)

    def evaluate(self, params: Params, batch: Batch) -> Any:
        """Return the loss."""
        return self.loss_fn(params, batch)

    def at(self, batch: Batch) -> SampleFn:
        """Sum the squares over chunks of examples; the sample is the same for every index."""
        hint_if_compiled_again("fisher_diagonal", self.loss_fn.func, (self.params, batch))
        leaves = floating_leaves(self.params)
        num_examples = count_examples(batch)

        def loss(values: tuple[Array, ...], example: Batch) -> Float[Array, "1"]:
            return scalar_loss(self.loss_fn, leaves, example)(values).reshape(1)

        total = sum_of_squares(
            open_function(loss, leaves, batch),
            lambda losses, chunk, numbers: Columns(1, lambda index: jnp.ones_like(losses)),
            batch,
            num_columns=1,
            numbers_per_example=1,
            examples_per_chunk=self.examples_per_chunk,
            exponents=self.exponents,
        )
        mean = leaves.diagonal(tuple(x / num_examples for x in total))
        return lambda index: mean


@dataclass(frozen=True, eq=False)
class Fisher(Estimator):
    """The empirical Fisher diagonal, exactly; the options are those of `fisher_diagonal`."""

    loss_fn: LossFn
    params: Params
    examples_per_chunk: int | None = field(default=None, kw_only=True)

    def sampling(self) -> Sampling:
        """Return the sampler, after a check of all options."""
        examples_per_chunk = self.examples_per_chunk
        if examples_per_chunk is not None:
            examples_per_chunk = check_count("examples_per_chunk", examples_per_chunk)
        function, params = open_params(as_partial(self.loss_fn), self.params)
        return Sampling(FisherSampler(function, params, examples_per_chunk), 1)


def fisher_diagonal(
    loss_fn: LossFn, params: Params, batch: Batch, *, examples_per_chunk: int | None = None
) -> DiagonalEstimate:
    """Compute the diagonal of the empirical Fisher matrix, exactly.

    Entry i is `(1/B) sum over examples b of (d loss_b / d w_i)^2`, at the labels of the data (the
    true Fisher matrix would draw them from the model). Layers are found as in
    `gauss_newton_diagonal`, so that for dense layers it costs little more than a gradient of the
    batch; other weights go through the gradient of each example, some of them at a time. Pure:
    `jax.vmap` over `params` or `batch`.

    Args:
        loss_fn: `(params, batch) -> scalar`, the mean loss of the batch in nats; called on
            batches of one example (leading axis 1), so the loss of an example must not depend on
            the others (fixed batch statistics), which is checked on a few examples unless values
            are not known (in `jit`, `vmap`). Static or traced as in `hutchinson_diagonal`.
        params: any pytree; leaves that are not floating are constants of the loss.
        batch: pytree of arrays with leading axis B >= 1.
        examples_per_chunk: examples a device holds at once, static; None chooses as many as
            fill `numerics.memory.chunk_bytes`.

    Returns:
        The diagonal as `mean`, shaped like `params`, float32 (float64 for float64 leaves), in
        nats per squared weight, zeros for leaves that are not floating; `standard_error` is zero,
        since nothing is drawn. Values that are not finite pass through: see `check_finite`.

    Raises:
        ValueError: if the leaves of `batch` differ in their leading axis or it is empty, if
            `examples_per_chunk` is not a positive integer, the loss is no scalar, or that of an
            example depends on the other examples.
        TypeError: if `loss_fn` is not callable, or a leaf of `params` complex.

    Source: Kunstner, Balles, Hennig (2019), "Limitations of the empirical Fisher approximation",
    eq. 3 (there a sum, here a mean over examples), arXiv:1905.12558.
    """
    return Fisher(loss_fn, params, examples_per_chunk=examples_per_chunk)(batch)
