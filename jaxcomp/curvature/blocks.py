"""Diagonal blocks of a loss Hessian, for vector quantization, in nats per squared weight.

A group of m consecutive weights of a leaf (in row-major order) has an m x m block of the Hessian
as its curvature. `E[(H z)_b z_b^T] = H_bb` for the entries z_b of a probe: the products that give
Hutchinson's diagonal give the blocks as well, at m times the memory. Axes: `b` blocks of a leaf,
`m` weights of a block.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from jaxcomp.curvature.compilation import hint_if_compiled_again
from jaxcomp.curvature.estimate import (
    DiagonalEstimate,
    Estimator,
    SampleFn,
    Sampling,
    floating_leaves,
    shape_and_dtype,
)
from jaxcomp.curvature.functions import as_partial, open_params
from jaxcomp.curvature.hutchinson import (
    ProbeDistribution,
    check_distribution,
    check_lengths,
    number_of_block,
    probed_hessian,
    probed_products,
)
from jaxcomp.curvature.units import Exponents
from jaxcomp.numerics.checks import check_count
from jaxcomp.types import Batch, LossFn, Params, PRNGKey


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockSampler:
    """Samples the symmetric part of `(H z)_b z_b^T`; see `hutchinson_blocks`."""

    loss_fn: Partial
    params: Params
    key: PRNGKey
    block_size: int = field(metadata={"static": True})
    distribution: ProbeDistribution = field(metadata={"static": True})
    examples_per_probe: int | None = field(metadata={"static": True})
    examples_per_chunk: int | None = field(metadata={"static": True})
    first_block: Int[Array, ""] | int = 0
    exponents: Exponents = None

    def starting_at(self, example: int) -> "BlockSampler":
        """Return the sampler for a batch that starts at this example of the data set."""
        return replace(self, first_block=number_of_block(example, self.examples_per_probe))

    @property
    def sample_like(self) -> Params:
        """Shapes of the blocks of all leaves, in the dtypes of the weights."""

        def leaf(x: Any) -> jax.ShapeDtypeStruct:
            shape, dtype = shape_and_dtype(x)
            return jax.ShapeDtypeStruct(_block_shape(shape, self.block_size), dtype)

        return jax.tree.map(leaf, self.params)

    def evaluate(self, params: Params, batch: Batch) -> Any:
        """Return the loss."""
        return self.loss_fn(params, batch)

    def at(self, batch: Batch) -> SampleFn:
        """Linearise the gradient once, if all of the batch has the same probes."""
        hint_if_compiled_again("hutchinson_blocks", self.loss_fn.func, (self.params, batch))
        leaves = floating_leaves(self.params)
        products = probed_products(
            partial(_products, block_size=self.block_size),
            partial(
                probed_hessian,
                self.loss_fn,
                leaves,
                distribution=self.distribution,
                exponents=self.exponents,
            ),
            leaves,
            batch,
            self.examples_per_probe,
            self.examples_per_chunk,
            self.first_block,
        )
        like = jax.tree.leaves(self.sample_like)

        def sample(index: Int[Array, ""]) -> Params:
            blocks = [jnp.zeros(x.shape, jnp.float32) for x in like]
            found = products(jax.random.fold_in(self.key, index))
            for position, block in zip(leaves.positions, found, strict=True):
                blocks[position] = block
            return leaves.structure.unflatten(blocks)

        return sample


@dataclass(frozen=True, eq=False)
class HutchinsonBlocks(Estimator):
    """Hutchinson probing of diagonal blocks; the options are those of `hutchinson_blocks`."""

    loss_fn: LossFn
    params: Params
    key: PRNGKey = field(kw_only=True)
    num_probes: int = field(kw_only=True)
    block_size: int = field(kw_only=True)
    distribution: ProbeDistribution = field(default="rademacher", kw_only=True)
    examples_per_probe: int | None = field(default=None, kw_only=True)
    examples_per_chunk: int | None = field(default=None, kw_only=True)

    def sampling(self) -> Sampling:
        """Return the sampler, after a check of all options."""
        num_probes = check_count("num_probes", self.num_probes, least=2)
        block_size = check_count("block_size", self.block_size)
        check_distribution(self.distribution)
        lengths = check_lengths(self.examples_per_probe, self.examples_per_chunk)
        function, params = open_params(as_partial(self.loss_fn), self.params)
        sampler = BlockSampler(function, params, self.key, block_size, self.distribution, *lengths)
        return Sampling(sampler, num_probes)


def hutchinson_blocks(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    key: PRNGKey,
    *,
    num_probes: int,
    block_size: int,
    distribution: ProbeDistribution = "rademacher",
    examples_per_probe: int | None = None,
    examples_per_chunk: int | None = None,
) -> DiagonalEstimate:
    """Estimate the m x m diagonal blocks of the loss Hessian by Hutchinson probing.

    Costs what `hutchinson_diagonal` costs, whose probes (and so whose diagonal, for the same key)
    it shares; memory is O(m n). Entry (i, j), i != j, of one sample has, for probes of signs, the
    variance `1/4 (sum over k != i, j of (H_ik^2 + H_jk^2) + (H_ii + H_jj)^2)`: about half that of
    the diagonal. Blocks are symmetric to rounding, but seldom positive semi-definite: see
    `CurvaturePolicy.apply_blocks`. Pure; `jax.vmap` over `params`, `batch` or `key`;
    `over_batches` for data sets.

    Args:
        loss_fn: `(params, batch) -> scalar`, as for `hutchinson_diagonal`.
        params: any pytree; each leaf is cut, in row-major order, into groups of m weights.
        batch: pytree of arrays, passed on untouched.
        key: typed PRNG key, consumed here.
        num_probes: S >= 2, static.
        block_size: m >= 1, static.
        distribution: of a probe's entries, static.
        examples_per_probe: as for `hutchinson_diagonal`, static.
        examples_per_chunk: likewise.

    Returns:
        Mean and standard error over probes. The structure is that of `params`; a leaf of s weights
        has blocks of shape `(ceil(s / m), m, m)`, float32 (float64 for float64 leaves), in nats
        per squared weight. Rows and columns that are missing in a last block, and leaves that are
        not floating, are zero.

    Raises:
        ValueError: if `num_probes` is not an integer of at least 2, `block_size` not one of at
            least 1, `distribution` is not one of its names, numbers of examples are not as
            for `hutchinson_diagonal`, or the loss is no scalar.
        TypeError: if `loss_fn` is not callable, or a leaf of `params` complex.

    Source: Bekas, Kokiopoulou, Saad (2007), eq. 2, applied to blocks,
    doi:10.1016/j.apnum.2007.01.003.
    """
    return HutchinsonBlocks(
        loss_fn,
        params,
        key=key,
        num_probes=num_probes,
        block_size=block_size,
        distribution=distribution,
        examples_per_probe=examples_per_probe,
        examples_per_chunk=examples_per_chunk,
    )(batch)


def _block_shape(shape: tuple[int, ...], block_size: int) -> tuple[int, int, int]:
    size = 1
    for length in shape:
        size *= length
    return -(-size // block_size), block_size, block_size


def _products(
    z: Float[Array, "..."], hessian_z: Float[Array, "..."], block_size: int
) -> Float[Array, "b m m"]:
    """Multiply within blocks, `((H z)_i z_j + (H z)_j z_i)/2`; what is missing counts as zero."""
    num_blocks = _block_shape(z.shape, block_size)[0]

    def rows(x: Float[Array, "..."]) -> Float[Array, "b m"]:
        padded = jnp.pad(x.reshape(-1), (0, num_blocks * block_size - x.size))
        return padded.reshape(num_blocks, block_size)

    product = jnp.expand_dims(rows(hessian_z), 2) * jnp.expand_dims(rows(z), 1)
    return 0.5 * (product + jnp.swapaxes(product, 1, 2))
