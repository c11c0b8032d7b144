"""The diagonal of a loss Hessian by Hutchinson probing, in nats per squared weight.

A probe z has independent entries of mean 0 and variance 1, signs or Gaussian numbers;
`E[z * (H z)] = diag(H)`, and one Hessian-vector product costs about 1.3 gradients. Entry i of one
sample has the variance `sum over j != i of H_ij^2`, for Gaussian probes `2 H_ii^2` more: the
coupling between the weights, not noise in the data, decides how many probes are needed, and an
estimate of a small curvature is often negative (see `CurvaturePolicy`).

A probe is one vector for the whole data set, keyed by its index alone: the same probe meets every
batch, so that the products of the batches add up to the product of the data set. Or, if asked
for, every fixed block of examples has probes of its own, keyed by the number of the block: what
blocks have in common, which is most of the noise, then averages out over the blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from jaxcomp.curvature.compilation import hint_if_compiled_again
from jaxcomp.curvature.estimate import (
    DiagonalEstimate,
    Estimator,
    FloatingLeaves,
    SampleFn,
    Sampling,
    count_examples,
    diagonal_dtype,
    floating_leaves,
    scalar_loss,
)
from jaxcomp.curvature.functions import as_partial, open_params
from jaxcomp.curvature.units import Exponents, in_units
from jaxcomp.numerics.checks import check_count
from jaxcomp.numerics.placement import placed_examples
from jaxcomp.types import Batch, LossFn, Params, PRNGKey

ProbeDistribution: TypeAlias = Literal["rademacher", "gaussian"]
"""Entries of a probe: -1 and +1 with equal chances, or standard normal numbers."""

PROBE_DISTRIBUTIONS: tuple[str, ...] = get_args(ProbeDistribution)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HutchinsonSampler:
    """Samples `z * (H z)` of diag(H); see `hutchinson_diagonal`."""

    loss_fn: Partial
    params: Params
    key: PRNGKey
    distribution: ProbeDistribution = field(metadata={"static": True})
    examples_per_probe: int | None = field(metadata={"static": True})
    examples_per_chunk: int | None = field(metadata={"static": True})
    first_block: Int[Array, ""] | int = 0
    exponents: Exponents = None

    def starting_at(self, example: int) -> "HutchinsonSampler":
        """Return the sampler for a batch that starts at this example of the data set."""
        return replace(self, first_block=number_of_block(example, self.examples_per_probe))

    def evaluate(self, params: Params, batch: Batch) -> Any:
        """Return the loss."""
        return self.loss_fn(params, batch)

    def at(self, batch: Batch) -> SampleFn:
        """Linearise the gradient once, if all of the batch has the same probes."""
        hint_if_compiled_again("hutchinson_diagonal", self.loss_fn.func, (self.params, batch))
        leaves = floating_leaves(self.params)
        products = probed_products(
            jnp.multiply,
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
        return lambda index: leaves.diagonal(products(jax.random.fold_in(self.key, index)))


@dataclass(frozen=True, eq=False)
class Hutchinson(Estimator):
    """Hutchinson probing of the diagonal; the options are those of `hutchinson_diagonal`."""

    loss_fn: LossFn
    params: Params
    key: PRNGKey = field(kw_only=True)
    num_probes: int = field(kw_only=True)
    distribution: ProbeDistribution = field(default="rademacher", kw_only=True)
    examples_per_probe: int | None = field(default=None, kw_only=True)
    examples_per_chunk: int | None = field(default=None, kw_only=True)

    def sampling(self) -> Sampling:
        """Return the sampler, after a check of all options."""
        num_probes = check_count("num_probes", self.num_probes, least=2)
        check_distribution(self.distribution)
        lengths = check_lengths(self.examples_per_probe, self.examples_per_chunk)
        function, params = open_params(as_partial(self.loss_fn), self.params)
        sampler = HutchinsonSampler(function, params, self.key, self.distribution, *lengths)
        return Sampling(sampler, num_probes)


def hutchinson_diagonal(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    key: PRNGKey,
    *,
    num_probes: int,
    distribution: ProbeDistribution = "rademacher",
    examples_per_probe: int | None = None,
    examples_per_chunk: int | None = None,
) -> DiagonalEstimate:
    """Estimate the diagonal of the loss Hessian by Hutchinson probing.

    Each probe costs one Hessian-vector product (forward over reverse, the gradient linearised
    once). Memory is O(n) + what the derivative of the gradient of the whole batch needs, which
    for transformers is many times the weights, whatever `jax.checkpoint` says; with
    `examples_per_chunk` it is that of a gradient of so many examples. Pure: `jax.vmap` over
    `params`, `batch` or `key` estimates many models at once.

    For a ReLU network the off-diagonal coupling is large: expect a relative error of several
    hundred per cent at 64 probes, and 30-45 % negative entries. With `examples_per_probe` it is
    several times less: on small tanh and ReLU networks (1,000 digits, 64 probes) 0.32 and 0.25
    with probes of their own for every 100 examples, 0.87 and 0.80 without. Every block adds work
    of O(n) to a probe (LeNet-300-100, 2,000 images in batches of 100: 2.5 gradients for a probe,
    0.9 for all images at once), so that 0.5 to 0.6 of the error remains at the same cost.

    Evaluate the loss in evaluation mode (dropout off, batch statistics fixed): the diagonal is
    that of a fixed function.

    Args:
        loss_fn: `(params, batch) -> scalar`, the mean loss of the batch in nats. A function is
            static (pass the same object each time, a fresh lambda compiles again); the arrays in
            a `jax.tree_util.Partial` are traced, so that a fresh one compiles nothing, and so are
            those of an object without a hash that is called, or whose method is.
        params: any pytree, n floating entries in all. The probe of a bfloat16 or float16
            leaf has its dtype; leaves that are not floating are constants of the loss.
        batch: pytree of arrays, passed on untouched.
        key: typed PRNG key, consumed here.
        num_probes: S >= 2, static.
        distribution: of a probe's entries, static. Signs have the least variance of all
            (`sum over j != i of H_ij^2`); Gaussian entries add `2 H_ii^2` and take longer to draw.
        examples_per_probe: every block of this many consecutive examples, counted from the first
            of the data set, gets probes of its own; static. Without bias, and with up to as many
            times less variance as there are blocks. A block costs one gradient more per probe,
            unless it is a whole batch; in `over_batches` all batches but the last must have a
            multiple of this length. None: all examples share their probes.
        examples_per_chunk: examples whose products are computed at once, by a device, static; a
            divisor of `examples_per_probe`, if there is one. The loss must then be the mean over
            examples of losses that do not depend on other examples. Nothing is kept between
            probes, and a function under `jax.checkpoint` is evaluated again, as in training: less
            memory for one gradient more per probe. None: the whole batch.

    Returns:
        Mean and standard error over probes, shaped like `params`, float32 (float64 for float64
        leaves), in nats per squared weight; zeros for leaves that are not floating. The error
        covers the probes, not the choice of the data. Values that are not finite pass through:
        see `check_finite`.

    Raises:
        ValueError: if `num_probes` is not an integer of at least 2, `distribution` is not one of
            its names, a number of examples not positive, chunks do not divide the examples of a
            probe, or the loss is no scalar.
        TypeError: if `loss_fn` is not callable, or a leaf of `params` complex.

    Source: Bekas, Kokiopoulou, Saad (2007), eq. 2, doi:10.1016/j.apnum.2007.01.003.
    """
    return Hutchinson(
        loss_fn,
        params,
        key=key,
        num_probes=num_probes,
        distribution=distribution,
        examples_per_probe=examples_per_probe,
        examples_per_chunk=examples_per_chunk,
    )(batch)


class ProbeAndProduct(NamedTuple):
    """A probe z and the product H z: the floating leaves, in the dtype of the diagonal."""

    probe: tuple[Array, ...]
    product: tuple[Array, ...]


def probed_hessian(
    loss_fn: Partial,
    leaves: FloatingLeaves,
    batch: Batch,
    *,
    distribution: ProbeDistribution,
    exponents: Exponents,
    is_for_many: bool,
) -> Callable[[Key[Array, ""]], ProbeAndProduct]:
    """Return the function from a key to (z, H z) at `batch`.

    With `exponents` e, H is the Hessian in the weights divided by `2^e`. `is_for_many` probes the
    gradient is linearised once, which keeps all that its derivative needs; for one, value and
    derivative are computed side by side, and what is not needed any more is given up.
    """
    gradient = jax.grad(scalar_loss(loss_fn, leaves, batch))
    if is_for_many:
        _, hessian_product = jax.linearize(gradient, leaves.values)
    else:

        def hessian_product(probe: tuple[Array, ...]) -> tuple[Array, ...]:
            return jax.jvp(gradient, (leaves.values,), (probe,))[1]

    draw = _rademacher_like if distribution == "rademacher" else _gaussian_like

    def probed(key: Key[Array, ""]) -> ProbeAndProduct:
        probe = draw(key, leaves.values)
        product = in_units(hessian_product(tuple(in_units(probe, exponents))), exponents)
        return ProbeAndProduct(tuple(map(_widen, probe)), tuple(map(_widen, product)))

    return probed


def probed_products(
    multiply: Callable[[Array, Array], Array],
    probed_at: Callable[..., Callable[[Key[Array, ""]], ProbeAndProduct]],
    leaves: FloatingLeaves,
    batch: Batch,
    examples_per_probe: int | None,
    examples_per_chunk: int | None,
    first_block: Int[Array, ""] | int,
) -> Callable[[Key[Array, ""]], tuple[Array, ...]]:
    """Return the function from the key of a probe to `multiply(z, H z)` of every leaf.

    Pieces of the batch (chunks, or blocks of examples with probes of their own) are summed one by
    one, weighted by examples; a ragged last one stands apart.

    Args:
        multiply: of one leaf; bilinear.
        probed_at: `probed_hessian` but for the batch and `is_for_many`.
        leaves: the weights.
        batch: the examples.
        examples_per_probe: length of the blocks; None if all examples share the probe.
        examples_per_chunk: length of the chunks, a divisor of that of the blocks; None for whole
            blocks.
        first_block: number of the batch's first block within the data set.
    """

    def multiplied(pair: ProbeAndProduct) -> tuple[Array, ...]:
        return tuple(map(multiply, *pair))

    def of_block(key: Key[Array, ""], number: Int[Array, ""] | int) -> Key[Array, ""]:
        if examples_per_probe is None:
            return key
        return jax.random.fold_in(key, first_block + number)

    if examples_per_probe is None and examples_per_chunk is None:
        probed = probed_at(batch, is_for_many=True)
        return lambda key: multiplied(probed(key))
    num_examples = count_examples(batch)
    if examples_per_chunk is None and num_examples <= (examples_per_probe or num_examples):
        probed = probed_at(batch, is_for_many=True)
        return lambda key: multiplied(probed(of_block(key, 0)))
    pieces = _cut(batch, examples_per_chunk, examples_per_probe)
    like = [jnp.zeros(x.shape, diagonal_dtype(x.dtype)) for x in leaves.values]

    def weighted(key: Key[Array, ""], number: Int[Array, ""], piece: Batch) -> tuple[Array, ...]:
        pair = probed_at(piece, is_for_many=False)(of_block(key, number))
        weight = count_examples(piece) / num_examples
        return tuple(x * weight for x in multiplied(pair))

    def products(key: Key[Array, ""]) -> tuple[Array, ...]:
        def step(total: tuple[Array, ...], row: tuple[Array, Batch]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, weighted(key, *row)), None

        total = tuple(multiply(zeros, zeros) for zeros in like)
        if len(pieces.blocks):
            total, _ = lax.scan(step, total, (jnp.asarray(pieces.blocks), pieces.whole))
        if pieces.left is not None:
            last = weighted(key, jnp.int32(pieces.last_block), pieces.left)
            total = jax.tree.map(jnp.add, total, last)
        return total

    return products


class _Pieces(NamedTuple):
    """A batch in pieces of one length.

    Attributes:
        whole: the pieces, stacked.
        blocks: number of the block of each, of those that the batch has.
        left: what is left, fewer examples; None if nothing is.
        last_block: number of its block.
    """

    whole: Batch
    blocks: Int[np.ndarray, " pieces"]
    left: Batch | None
    last_block: int


def _cut(batch: Batch, examples_per_chunk: int | None, examples_per_probe: int | None) -> _Pieces:
    """Cut a batch into chunks, or into blocks; chunks that share a probe lie within shards."""
    num_examples = count_examples(batch)
    placement = placed_examples() if examples_per_probe is None else None
    num_shards = 1 if placement is None else placement.num_shards
    length = examples_per_chunk or examples_per_probe or num_examples
    num_pieces, num_left = divmod(num_examples // num_shards, length)

    def part(start: int, stop: int, shape: tuple[int, ...]) -> Batch:
        def leaf(x: Array) -> Array:
            if placement is None:
                return x[start:stop].reshape(*shape, *x.shape[1:])
            shards = placement.like_examples(x.reshape(num_shards, -1, *x.shape[1:]))
            shards = shards[:, start:stop].reshape(num_shards, *shape, *x.shape[1:])
            # Pieces first, each with examples of all devices.
            pieces = jnp.moveaxis(shards, 0, len(shape) - 1)
            return pieces.reshape(*shape[:-1], num_shards * shape[-1], *x.shape[1:])

        return jax.tree.map(leaf, batch)

    num_whole = num_pieces * length
    blocks = np.arange(num_pieces, dtype=np.int32) * length // (examples_per_probe or num_examples)
    return _Pieces(
        part(0, num_whole, (num_pieces, length)),
        blocks.astype(np.int32),
        part(num_whole, num_whole + num_left, (num_left,)) if num_left else None,
        num_whole // (examples_per_probe or num_examples),
    )


def check_lengths(
    examples_per_probe: int | None, examples_per_chunk: int | None
) -> tuple[int | None, int | None]:
    """Return lengths of the blocks that share a probe and of the chunks that are computed at once.

    Raises:
        ValueError: if one is not positive, or chunks do not divide blocks.
    """
    if examples_per_probe is not None:
        examples_per_probe = check_count("examples_per_probe", examples_per_probe)
    if examples_per_chunk is not None:
        examples_per_chunk = check_count("examples_per_chunk", examples_per_chunk)
    if examples_per_probe and examples_per_chunk and examples_per_probe % examples_per_chunk:
        raise ValueError(
            "examples_per_chunk must divide examples_per_probe, got "
            f"{examples_per_chunk} and {examples_per_probe}; choose one of its divisors."
        )
    return examples_per_probe, examples_per_chunk


def number_of_block(example: int, examples_per_probe: int | None) -> np.int32:
    """Return the number of the block of examples that starts at this example of the data set.

    Raises:
        ValueError: if none starts there.
    """
    if examples_per_probe is None:
        return np.int32(0)
    number, into_block = divmod(example, examples_per_probe)
    if into_block:
        raise ValueError(
            f"examples_per_probe is {examples_per_probe}, but a batch starts at example {example} "
            "of the data set, in the middle of a block; pass batches, but the last, whose lengths "
            f"are multiples of {examples_per_probe}."
        )
    return np.int32(number)


def check_distribution(distribution: str) -> None:
    """Check the name of a distribution of probes.

    Raises:
        ValueError: if it is none.
    """
    if distribution not in PROBE_DISTRIBUTIONS:
        raise ValueError(
            f"distribution must be one of {PROBE_DISTRIBUTIONS}, got {distribution!r}."
        )


def _rademacher_like(
    key: Key[Array, ""], leaves: tuple[Float[Array, "..."], ...]
) -> tuple[Float[Array, "..."], ...]:
    """Draw +1 and -1 for every entry, in the dtype of its leaf.

    One random bit each, where `jax.random.rademacher` spends 32 and takes 8 times as long; one
    draw for all leaves, where a subkey per leaf would double the time to compile.
    """
    num_words = [-(-leaf.size // 32) for leaf in leaves]
    words = jax.random.bits(key, (sum(num_words), 1), jnp.uint32)
    shifts = jnp.arange(32, dtype=jnp.uint32).reshape(1, 32)
    signs = []
    first = 0
    for leaf, count in zip(leaves, num_words, strict=True):
        bits = jnp.bitwise_and(jnp.right_shift(words[first : first + count], shifts), 1)
        flat = (1 - 2 * bits.astype(jnp.int8)).reshape(-1)
        signs.append(flat[: leaf.size].reshape(leaf.shape).astype(leaf.dtype))
        first += count
    return tuple(signs)


def _gaussian_like(
    key: Key[Array, ""], leaves: tuple[Float[Array, "..."], ...]
) -> tuple[Float[Array, "..."], ...]:
    """Draw standard normal entries, rounded to the dtype of their leaf; one draw per dtype.

    Rounding changes neither the mean nor, beyond eps^2, the variance of an entry.
    """
    draws: dict[Any, Array] = {}
    sizes = {diagonal_dtype(leaf.dtype): 0 for leaf in leaves}
    for leaf in leaves:
        sizes[diagonal_dtype(leaf.dtype)] += leaf.size
    for number, (dtype, size) in enumerate(sizes.items()):
        draws[dtype] = jax.random.normal(jax.random.fold_in(key, number), (size,), dtype)
    entries = []
    for leaf in leaves:
        dtype = diagonal_dtype(leaf.dtype)
        entries.append(draws[dtype][: leaf.size].reshape(leaf.shape).astype(leaf.dtype))
        draws[dtype] = draws[dtype][leaf.size :]
    return tuple(entries)


def _widen(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Convert to the dtype of the diagonal before the product is taken."""
    return x.astype(diagonal_dtype(x.dtype))
