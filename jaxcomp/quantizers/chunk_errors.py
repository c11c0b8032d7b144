"""What became of a chunk of a tensor: its errors, and how often each code occurs.

On a CPU errors are added in float64, in one pass; elsewhere in units of the largest of them.

Axes: `N` points of a chunk.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcomp.numerics.scaling import group_exponent, normalise, restore, split
from jaxcomp.numerics.segments import segment_counts
from jaxcomp.numerics.sums import pairwise_sum
from jaxcomp.quantizers.bins import chunk_of, in_chunks
from jaxcomp.quantizers.problems import Chunk, Errors, Problem

# Exponents whose powers of two are normal numbers, with both signs.
_MOST_OCTAVES = 126

# Distortion, squared error and energy: m and e, the sums are `m * 2 ** e`.
Sums = tuple[Float[Array, "3"], Int[Array, "3"]]


def measured(chunk: Chunk, values: Float[Array, " points"], dtype: np.dtype) -> Sums:
    """Compare a chunk with what became of it: distortion, squared error and energy.

    Args:
        chunk: of the tensor.
        values: what it became, over its scales.
        dtype: in which the result is stored.

    Returns:
        The sums as numbers and powers of two.
    """
    if chunk.blocks is not None:
        return _measured_at_once(chunk, values, dtype)
    return jax.lax.platform_dependent(
        chunk,
        values,
        cpu=partial(_measured_in_order, dtype=dtype),
        default=partial(_measured_at_once, dtype=dtype),
    )


def _measured_in_order(chunk: Chunk, values: Float[Array, " points"], dtype: np.dtype) -> Sums:
    """As `measured`, without blocks, on CPU only: in one pass and in float64.

    No square is out of range there.
    """
    size = chunk.points.shape[0]
    own_scale = chunk.scale is not None and chunk.scale.shape[0] == size
    optional = (chunk.scale if own_scale else None, chunk.importance)
    arrays = [chunk.points, values, *(part for part in optional if part is not None)]

    def add(sums, numbers, is_new, points, values, *others):
        scales = others[:1] if own_scale else (() if chunk.scale is None else (chunk.scale,))
        for scale in scales:
            values = values * scale
        is_point = is_new & (numbers < size - chunk.num_padding)
        error = jnp.where(is_point, points - values.astype(dtype).astype(points.dtype), 0)
        before = jnp.where(is_point, points, 0)
        of_error, of_energy = (jnp.square(part.astype(jnp.float64)) for part in (error, before))
        squares = [of_error, of_energy]
        if chunk.importance is not None:
            squares = [others[-1].astype(jnp.float64) * of_error, *squares]
        return tuple(total + square for total, square in zip(sums, squares, strict=True))

    with jax.enable_x64(True):
        none = jnp.zeros((chunk_of(size),), jnp.float64)
        sums = in_chunks(add, (none,) * (2 if chunk.importance is None else 3), *arrays)
        sums = sums if chunk.importance is not None else (sums[0], *sums)
        return split(pairwise_sum(jnp.stack(sums)), chunk.points.dtype)


def _measured_at_once(chunk: Chunk, values: Float[Array, " points"], dtype: np.dtype) -> Sums:
    is_point = chunk.is_point()
    values = values if chunk.scale is None else values * chunk.scale
    stored = values.astype(dtype).astype(chunk.points.dtype)
    error = jnp.where(is_point, chunk.points - stored, 0)
    before = jnp.where(is_point, chunk.points, 0)
    squared_error, energy = _sum_of_squares(error), _sum_of_squares(before)
    if chunk.blocks is not None:
        return _joined(_quadratic_form(error, chunk.blocks), squared_error, energy)
    if chunk.importance is None:
        return _joined(squared_error, squared_error, energy)
    # The root before the square: neither is out of range in units of the largest.
    weighted = jnp.sqrt(chunk.importance) * error
    return _joined(_sum_of_squares(weighted), squared_error, energy)


def _joined(*sums: tuple[Float[Array, ""], Int[Array, ""]]) -> Sums:
    numbers, exponents = zip(*sums, strict=True)
    return jnp.stack(numbers), jnp.stack(exponents)


def _sum_of_squares(values: Float[Array, " points"]) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """As `sum_of_squares`, of what is so large that to multiply by a power of two is exact."""
    largest = jnp.max(jnp.abs(values))
    # What is infinite stays so: beyond, the power of two is no normal number.
    exponent = jnp.clip(group_exponent(largest, axis=()), -_MOST_OCTAVES, _MOST_OCTAVES)
    scale = restore(jnp.ones((), values.dtype), -exponent, axis=())
    return pairwise_sum(jnp.square(values * scale)), 2 * exponent


def _quadratic_form(
    error: Float[Array, " points"], blocks: Float[Array, "vectors m m"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Return `sum e^T H e` as a number and a power of two."""
    exponent = group_exponent(error)
    vectors = normalise(error, exponent).reshape(blocks.shape[:2])
    pull = jnp.einsum("vij,vj->vi", blocks, vectors, precision="highest")
    return jnp.maximum(pairwise_sum((vectors * pull).ravel()), 0), 2 * exponent


class Total:
    """Errors of chunks, added up in float64."""

    def __init__(self) -> None:
        self._sums = np.zeros(3)

    def add(self, sums: Sums) -> None:
        """Add what `measured` found."""
        numbers, exponents = sums
        self._sums += np.ldexp(np.asarray(numbers, np.float64), np.asarray(exponents))

    def errors(self, problem: Problem) -> Errors:
        """Return the errors of the whole tensor."""
        distortion, squared_error, energy = self._sums.tolist()
        return Errors(0.0 if problem.weighs_nothing else distortion, squared_error, energy)


def counts_of(chunk: Chunk, codes: Int[Array, " points"], num_codes: int) -> Int[Array, " codes"]:
    """Count how often each code occurs in a chunk."""
    return segment_counts(chunk.is_point(), codes.astype(jnp.int32), num_codes)
