"""Training a distribution of networks, one sample of which is sent as indices of known length.

A weight is `scale * z`, and a sender and a receiver share candidates z from the prior N(0, 1). The
posterior of z is `N(m, s^2)`, so narrow that its relative entropy to the prior is exactly its
budget: `kappa = (s^2 + m^2 - 1 - ln s^2)/2`, with

    m = sqrt(2 kappa) tanh(t),    s^2 = -W_0(-exp(m^2 - 2 kappa - 1)),

W_0 Lambert's function. Values are dealt out at random to blocks, each with as many nats as its
index has bits; within a block trained shares say where they go. Of 2^bits candidates of a block one
is chosen with a probability proportional to posterior over prior: nearly a sample of the posterior.

    code = random_code(params, index_bytes=1_000)
    posterior = initial_posterior(code, params)
    loss = loss_fn(sampled_weights(code, posterior, key), batch)        # by any optimizer
    coded = encode(code, posterior, key)
    params = decode(code, coded)

Blocks may be coded a few at a time, and what is not coded yet trained on: `sampled_weights` with
what `encode` has returned so far. Everything is pure and goes through `vmap` over seeds, whose
candidates are then the same.

Axes: `B` blocks, `W` places of a block, `K` candidates.

Sources: Lin, Flamich, Hernandez-Lobato, arXiv:2307.07816 (the budget as a parameter); Havasi,
Peharz, Hernandez-Lobato, arXiv:1810.00440 (coding); Chen, Wilson, Tyree, Weinberger, Chen,
arXiv:1504.04788 (weights that share values).
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxcomp.decoder import random_codes
from jaxcomp.decoder.random_codes import MOST_BLOCK_BITS, CodeLayout
from jaxcomp.numerics.checks import check_count
from jaxcomp.numerics.transformations import always_compiled, counted_loop, explicit_transfers
from jaxcomp.trees.paths import leaves_by_path
from jaxcomp.types import Params, PRNGKey

BITS_PER_VALUE = 4
"""Of weights that share values, if it is not said how many do."""

_SCALE_OF_ZEROS = 0.1  # of leaves that begin as zeros, such as biases
_LEAST_COLUMNS, _ENTRIES_AT_ONCE = 8, 1 << 20
_STEEPEST = 0.9  # tanh of the means at the start: beyond it they hardly move


class RandomCode(NamedTuple):
    """What encoder and decoder agree on before training; hashable, so that it can be static.

    Attributes:
        structure: of the network.
        layout: shapes, blocks, bits, seed.
    """

    structure: Any
    layout: CodeLayout


class Posterior(NamedTuple):
    """What is trained.

    Attributes:
        means: t, (B, W).
        shares: (B, W) logits of the shares of the budget of a block.
        log_scales: (leaves,) of the prior, one for each leaf.
    """

    means: Float[Array, "B W"]
    shares: Float[Array, "B W"]
    log_scales: Float[Array, " leaves"]


class Coded(NamedTuple):
    """What is sent, as far as it is decided.

    Attributes:
        indices: (B,) int32 of the candidates; -1 where a block is not coded yet.
        scales: (leaves,) float32, fixed when the first block is coded.
        deviates: (B, W) float32, the candidates chosen; follow from the indices.
        check_word: uint32, of seed and counts.
    """

    indices: Int[Array, " B"]
    scales: Float[Array, " leaves"]
    deviates: Float[Array, "B W"]
    check_word: Int[Array, ""]


def random_code(
    params: Params,
    *,
    index_bytes: int,
    block_bits: int = 12,
    seed: int = 0,
    sharing: int | None = None,
) -> RandomCode:
    """Return the code of a network in so many bytes.

    Args:
        params: a network of floating leaves; its shapes matter alone.
        index_bytes: of all indices; a few bits may be left over.
        block_bits: of an index, 1 to 16. Encoding takes 2^bits candidates of every block; short
            indices follow their posterior less closely.
        seed: of the candidates, which the decoder must have, from 0 to 2^32 - 1.
        sharing: weights of a leaf that have one value in common, with signs, at random: where
            there are many weights for few bytes, values of a fraction of a bit are mostly noise.
            None for as many as leave up to `BITS_PER_VALUE` bits to each value.

    Raises:
        ValueError: if a count is below 1, the budget is less than one index, there are more indices
            than values, or the seed or the bits are out of range.
        TypeError: if a leaf is not floating.
    """
    if not 1 <= block_bits <= MOST_BLOCK_BITS:
        raise ValueError(
            f"block_bits must be from 1 to {MOST_BLOCK_BITS}: a budget below one bit has no "
            f"candidate to choose, and more takes too many; got {block_bits}."
        )
    if not 0 <= seed < 1 << 32:
        raise ValueError(f"seed must lie between 0 and 2^32 - 1, got {seed}.")
    for path, leaf in leaves_by_path(params).items():
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"random codes are of floating arrays only, got {dtype or type(leaf).__name__} at "
                f"{path!r}; leave it out of the tree."
            )
    leaves, structure = jax.tree.flatten(params)
    shapes = tuple(tuple(jnp.shape(leaf)) for leaf in leaves)
    if sharing is None:
        # No index has fewer bits than a value.
        bits = min(BITS_PER_VALUE, block_bits) * sum(map(math.prod, shapes))
        sharing = max(bits // max(8 * index_bytes, 1), 1)
    check_count("sharing", sharing)
    layout = CodeLayout(shapes, int(8 * index_bytes // block_bits), block_bits, seed, sharing)
    if layout.num_blocks < 1:
        raise ValueError(
            f"index_bytes must hold at least one index of {block_bits} bits, got {index_bytes}."
        )
    if layout.num_blocks > layout.num_values:
        raise ValueError(
            f"{index_bytes:,} bytes are {layout.num_blocks:,} indices of {block_bits} bits, more "
            f"than the {layout.num_values:,} values of the network; choose at most "
            f"{layout.num_values * block_bits // 8:,} bytes, or more block_bits."
        )
    return RandomCode(structure, layout)


@always_compiled
@partial(jax.jit, static_argnames=("code",))
def initial_posterior(code: RandomCode, params: Params) -> Posterior:
    """Return where training begins: around a network, as closely as the budget allows.

    Shares go with squares of weights, and the scale of a leaf is the root mean square of it.

    Args:
        code: from `random_code`. Static.
        params: a network of these shapes, best one that was trained without a budget.

    Returns:
        Posterior, in float32.
    """
    layout = code.layout
    leaves = [jnp.asarray(leaf, jnp.float32) for leaf in jax.tree.leaves(params)]
    sizes = [jnp.sqrt(jnp.mean(leaf**2)) for leaf in leaves]
    scales = jnp.stack([jnp.where(own > 0, own, _SCALE_OF_ZEROS) for own in sizes])
    flat = jnp.concatenate([leaf.reshape(-1) / scales[n] for n, leaf in enumerate(leaves)])
    place, signs = random_codes.slots(layout)
    flat = flat if signs is None else flat * jnp.asarray(signs, jnp.float32)
    count = np.bincount(place, minlength=layout.num_blocks * layout.width)
    total = jnp.zeros(layout.num_blocks * layout.width, jnp.float32).at[place].add(flat)
    mean = (total / jnp.asarray(np.maximum(count, 1), jnp.float32)).reshape(layout.num_blocks, -1)
    shares = jnp.log(mean**2 + 0.1)
    reach = jnp.sqrt(2 * _budgets(layout, shares))
    means = jnp.arctanh(jnp.clip(mean / jnp.maximum(reach, 1e-6), -_STEEPEST, _STEEPEST))
    return Posterior(means, shares, jnp.log(scales))


def _budgets(layout: CodeLayout, shares: Array) -> Float[Array, "B W"]:
    """Return the nats of every value; none at places that hold no value."""
    is_used = random_codes.is_used(layout)
    nats = np.float32(layout.block_bits * math.log(2))
    return nats * jax.nn.softmax(jnp.where(is_used, shares, -jnp.inf), axis=1)


def _moments(layout: CodeLayout, posterior: Posterior) -> tuple[Array, Array]:
    """Return means of z, and minus logarithms of variances."""
    budgets = _budgets(layout, posterior.shares)
    # Twice the budget less the squared mean, without a difference.
    excess = 2 * budgets / jnp.cosh(posterior.means) ** 2
    # The root of zero has no derivative.
    reach = jnp.sqrt(jnp.maximum(2 * budgets, jnp.finfo(budgets.dtype).tiny))
    return reach * jnp.tanh(posterior.means), log_precision(excess)


@jax.custom_jvp
def log_precision(excess: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return v >= 0 with `v + exp(-v) - 1 = excess`: `-ln(-W_0(-exp(-1 - excess)))`.

    By Newton's method, which converges from above, since the function is convex. Its derivative is
    `1/(1 - exp(-v))`, infinite at 0.

    Args:
        excess: at least 0.
    """
    excess = jnp.asarray(excess)

    def step(_: Any, v: Array) -> Array:
        slope = jnp.maximum(-jnp.expm1(-v), jnp.finfo(excess.dtype).tiny)
        return jnp.maximum(v - (_convex(v) - excess) / slope, 0)

    start = jnp.minimum(jnp.sqrt(2 * excess) + excess / 2, excess + 1)
    return jnp.where(excess > 0, counted_loop(0, 5, step, start), 0)


@log_precision.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    v = log_precision(*primals)
    slope = jnp.maximum(-jnp.expm1(-v), jnp.finfo(v.dtype).tiny)
    return v, tangents[0] / slope


def _convex(v: Array) -> Array:
    """Return `v + exp(-v) - 1`, without the cancellation near 0."""
    series = 1 - v / 3 * (1 - v / 4 * (1 - v / 5 * (1 - v / 6 * (1 - v / 7))))
    return jnp.where(v < 0.3, v**2 / 2 * series, v + jnp.expm1(-v))


@always_compiled
@partial(jax.jit, static_argnames=("code",))
def kl_nats(code: RandomCode, posterior: Posterior) -> Float[Array, "B W"]:
    """Return relative entropies of the values to their prior, from means and variances.

    Args:
        code: from `random_code`. Static.
        posterior: as it is trained.

    Returns:
        Nats; the sum of each block is that of its index, `block_bits ln 2`.
    """
    mean, precision = _moments(code.layout, posterior)
    return (_convex(precision) + mean**2) / 2


@always_compiled
@partial(jax.jit, static_argnames=("code",))
def sampled_weights(
    code: RandomCode, posterior: Posterior, key: PRNGKey, coded: Coded | None = None
) -> Params:
    """Return a sample of the network, differentiable by the posterior.

    Args:
        code: from `random_code`. Static.
        posterior: as it is trained.
        key: consumed here.
        coded: blocks that are decided already; None for none.

    Returns:
        Weights, float32, structured like the network.
    """
    mean, precision = _moments(code.layout, posterior)
    deviates = mean + jnp.exp(-precision / 2) * jax.random.normal(key, mean.shape, mean.dtype)
    if coded is None:
        return _weights(code, deviates, jnp.exp(posterior.log_scales))
    deviates = jnp.where(coded.indices[:, None] < 0, deviates, coded.deviates)
    return _weights(code, deviates, _scales(posterior, coded))


def _scales(posterior: Posterior, coded: Coded) -> Float[Array, " leaves"]:
    """Return scales: trained ones, until the first block is coded and fixes them."""
    return jnp.where(jnp.any(coded.indices >= 0), coded.scales, jnp.exp(posterior.log_scales))


def _weights(code: RandomCode, deviates: Array, scales: Array) -> Params:
    """Return the network of values: to their places, times their signs and scales."""
    place, signs = random_codes.slots(code.layout)
    flat = deviates.reshape(-1)[jnp.asarray(place)]
    flat = flat if signs is None else flat * jnp.asarray(signs, jnp.float32)
    ends = np.cumsum(code.layout.sizes)[:-1].tolist()
    parts = zip(jnp.split(flat, ends), code.layout.shapes, strict=True)
    return code.structure.unflatten(
        [(own * scales[number]).reshape(shape) for number, (own, shape) in enumerate(parts)]
    )


@always_compiled
@partial(jax.jit, static_argnames=("code",))
def nothing_coded(code: RandomCode, posterior: Posterior) -> Coded:
    """Return the state before the first block is coded.

    Args:
        code: from `random_code`. Static.
        posterior: as it is trained.
    """
    layout = code.layout
    return Coded(
        jnp.full(layout.num_blocks, -1, jnp.int32),
        jnp.exp(posterior.log_scales),
        jnp.zeros((layout.num_blocks, layout.width), jnp.float32),
        jnp.uint32(layout.check_word),
    )


def encode(
    code: RandomCode,
    posterior: Posterior,
    key: PRNGKey,
    coded: Coded | None = None,
    *,
    start: Int[Array, ""] | int = 0,
    stop: Int[Array, ""] | int | None = None,
) -> Coded:
    """Choose candidates of some blocks, or of all.

    One of K candidates is chosen with a probability proportional to posterior over prior, as the
    largest of logarithms of weights plus Gumbel noise. It takes K W counters a block.

    Args:
        code: from `random_code`. Static.
        posterior: as it is trained.
        key: consumed here; the same for all parts of a network, as each block has its own of it.
        coded: what has been decided before; None for nothing.
        start: the first block to code. Traced.
        stop: the block after the last one; None for all. Traced.

    Returns:
        What is sent.
    """
    if coded is None:
        coded = nothing_coded(code, posterior)
    stop = code.layout.num_blocks if stop is None else stop
    return _encode(code, posterior, key, coded, jnp.int32(start), jnp.int32(stop))


@always_compiled
@partial(jax.jit, static_argnames=("code",))
def _encode(
    code: RandomCode, posterior: Posterior, key: PRNGKey, coded: Coded, start: Array, stop: Array
) -> Coded:
    mean, precision = _moments(code.layout, posterior)
    # Logarithm of posterior over prior: `square z^2 + linear z`, up to what all candidates share.
    square, linear = -jnp.expm1(precision) / 2, mean * jnp.exp(precision)
    columns = random_codes.counters(code.layout.width)
    num_candidates = 1 << code.layout.block_bits
    step = max(_LEAST_COLUMNS, min(columns, _ENTRIES_AT_ONCE // (4 * num_candidates)))
    padding = ((0, 0), (0, 4 * columns - code.layout.width))
    indices = jnp.arange(num_candidates, dtype=jnp.int32)

    def in_columns(values: Array) -> Float[Array, "B 4 columns"]:
        own = jnp.pad(values, padding).reshape(len(values), 4, columns)
        return jnp.pad(own, ((0, 0), (0, 0), (0, -columns % step)))

    square, linear = in_columns(square), in_columns(linear)

    def of_block(block: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        def add(part: Array, total: Array) -> Array:
            first = part * step
            z = _deviates(code.layout, block, indices, first, step)
            own, other = (
                lax.dynamic_slice(values, (block, 0, first), (1, 4, step))[0]
                for values in (square, linear)
            )
            return total + jnp.einsum("kqc,qc->k", z**2, own) + jnp.einsum("kqc,qc->k", z, other)

        zero = jnp.zeros(num_candidates, jnp.float32)
        logarithms = counted_loop(0, square.shape[2] // step, add, zero)
        noise = jax.random.gumbel(jax.random.fold_in(key, block), (num_candidates,))
        best = jnp.argmax(logarithms + noise).astype(jnp.int32)
        chosen = _deviates(code.layout, block, best[None], jnp.int32(0), columns)
        row = chosen.reshape(-1)[: code.layout.width]
        return state[0].at[block].set(best), state[1].at[block].set(row)

    found = counted_loop(start, stop, of_block, (coded.indices, coded.deviates))
    return coded._replace(indices=found[0], deviates=found[1], scales=_scales(posterior, coded))


def _deviates(
    layout: CodeLayout, block: Array, indices: Int[Array, " K"], first: Array, count: int
) -> Float[Array, "K 4 columns"]:
    """Return some columns of candidates: two words each, two deviates a word."""
    columns = (first + jnp.arange(count, dtype=jnp.int32)).astype(jnp.uint32)
    counter = indices.astype(jnp.uint32)[:, None], columns[None, :]
    words = random_codes.threefry((layout.seed, block.astype(jnp.uint32)), counter)
    halves = [part for word in words for part in (word & np.uint32(0xFFFF), word >> np.uint32(16))]
    places = jnp.stack(halves, axis=1).astype(jnp.int32)
    return jnp.asarray(random_codes.normal_table())[places]


@explicit_transfers
def decode(code: RandomCode, coded: Coded) -> Params:
    """Return the network that is sent, of indices and scales alone.

    Args:
        code: from `random_code`, of the same seed and counts as that of the encoder.
        coded: from `encode`, all blocks.

    Returns:
        Weights, float32; the same bits as those of `jaxcomp.decoder.random_codes`.

    Raises:
        ValueError: if seed or counts are not those of the encoder, or a block is not coded.
    """
    if int(np.asarray(coded.check_word)) != code.layout.check_word:
        raise ValueError(
            f"the indices were encoded with another seed, or other counts, than those of seed "
            f"{code.layout.seed}; decode with the code that they were encoded with."
        )
    if np.any(np.asarray(coded.indices) < 0):
        raise ValueError("some blocks have no index yet; encode them all before decoding.")
    return _decode(code, coded)


@always_compiled
@partial(jax.jit, static_argnames=("code",))
def _decode(code: RandomCode, coded: Coded) -> Params:
    columns = random_codes.counters(code.layout.width)

    def of_block(block: Array, index: Array) -> Array:
        return _deviates(code.layout, block, index[None], jnp.int32(0), columns).reshape(-1)

    blocks = jnp.arange(code.layout.num_blocks, dtype=jnp.int32)
    deviates = jax.vmap(of_block)(blocks, coded.indices)[:, : code.layout.width]
    return _weights(code, deviates, coded.scales)
