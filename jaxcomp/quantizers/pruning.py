"""Magnitude pruning: the smallest weights become 0, the others stay.

Source: Han, Pool, Tran, Dally, arXiv:1506.02626 (one-shot, per array, without retraining).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, UInt

from jaxcomp.numerics import across
from jaxcomp.numerics.checks import check_finite, check_floating, is_concrete
from jaxcomp.numerics.precision import in_float64
from jaxcomp.numerics.transformations import always_compiled, counted_loop
from jaxcomp.quantizers import placed


@always_compiled
def prune_by_magnitude(
    weights: Float[Array, "..."], sparsity: Float[Array, ""] | float
) -> Float[Array, "..."]:
    """Set the smallest magnitudes of an array to 0.

    Exact, without sorting: exactly round(`sparsity` * N) weights are pruned, the smallest ones; of
    equal magnitudes those that come first. Weights that were 0 before are among the smallest. The
    product is that of float64; a `sparsity` that is a float32 array counts with its own digits.

    Args:
        weights: N entries in any shape, floating, finite; fewer than 2^32.
        sparsity: fraction to prune, 0 to 1. Traced: changing it compiles nothing.

    Returns:
        The weights, pruned; shape and dtype unchanged.

    Raises:
        TypeError: if the weights are not floating.
        ValueError: on NaN or infinite weights or a `sparsity` outside 0 to 1, which are checked
            only outside `jit` and `vmap`, or on too many weights.
    """
    weights = check_floating(weights, "weights")
    check_finite(weights, "weights")
    if is_concrete(sparsity) and not 0 <= float(sparsity) <= 1:
        raise ValueError(f"sparsity must lie between 0 and 1, got {float(sparsity):g}.")
    if weights.size >= 1 << 32:
        raise ValueError(f"weights must hold fewer than 2^32 entries, got {weights.size}.")
    num_pruned = _num_pruned(sparsity, num_weights=weights.size)
    spread = placed.spread_of(weights, as_one_group=True)
    if spread is None:
        return _prune(weights, num_pruned)
    return placed.run_on_parts(_prune, spread, (weights,), (num_pruned,), cuts=spread.cuts)


@in_float64("num_weights")
def _num_pruned(sparsity: Float[Array, ""], *, num_weights: int) -> UInt[Array, ""]:
    # float32 would count no further than 2^24.
    return jnp.clip(jnp.round(sparsity * num_weights), 0, num_weights).astype(jnp.uint32)


@partial(jax.jit, static_argnames=("cuts",))
def _prune(
    weights: Float[Array, "..."],
    num_pruned: UInt[Array, ""],
    *,
    cuts: tuple[placed.Axes, ...] = (),
) -> Float[Array, "..."]:
    num_bits = 8 * weights.dtype.itemsize
    # Bit patterns of non-negative floats are in the order of their values.
    bits = lax.bitcast_convert_type(jnp.abs(weights), f"uint{num_bits}")
    # The smallest pattern that at least `num_pruned` weights do not exceed.
    limit = _smallest(
        lambda pattern: _number(bits <= pattern) >= num_pruned,
        bits.dtype,
        num_bits,
    )
    is_tied = bits == limit
    num_ties = num_pruned - _number(bits < limit)
    place = across.flat_places(weights.shape, cuts, np.dtype(np.uint32))
    # Likewise the place up to which the ties go; a cumulative sum would cost ten times as much.
    last = _smallest(
        lambda end: _number(is_tied & (place < end)) >= num_ties,
        jnp.dtype(jnp.uint32),
        32,
    )
    is_pruned = (bits < limit) | (is_tied & (place < last))
    return jnp.where(is_pruned, jnp.zeros_like(weights), weights)


def _number(is_so: Bool[Array, "..."]) -> UInt[Array, ""]:
    return across.total(jnp.sum(is_so, dtype=jnp.uint32))


def _smallest(is_enough, dtype: np.dtype, num_bits: int) -> Array:
    """Return the smallest unsigned integer that is enough, by bisection from the top bit."""

    def refine(step, prefix):
        bit = jnp.left_shift(jnp.ones((), dtype), (num_bits - 1 - step).astype(dtype))
        # With this bit 0 and all below it 1: enough means the bit can stay 0.
        return jnp.where(is_enough(prefix | (bit - jnp.ones((), dtype))), prefix, prefix | bit)

    return counted_loop(0, num_bits, refine, jnp.zeros((), dtype))
