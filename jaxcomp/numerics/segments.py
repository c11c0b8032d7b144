"""Counts, sums and extremes of the numbers that belong to one index, on every platform.

A CPU scatters: it visits the numbers one after the other, in order. An accelerator would add with
atomic operations, in any order, and TPUs visit scattered numbers one by one; so elsewhere

- counts and sums over many numbers are matrix products with the indicators of the indices
  (`counts_by_products`, `sums_by_products`),
- extremes, and sums over few numbers, such as the bins of a histogram, compare every index with
  every number (`extremes_by_comparison`, `segment_sum`), which is one fused pass.

Integers are exact on both ways, floats the same to rounding, and the same on every run.

Axes: `groups`, `N` numbers, `B` indices (bins, symbols, clusters).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxcomp.numerics.memory import chunk_bytes

# Numbers of all groups in one matrix product, and the least of one group. Products are added up
# in float32: more numbers at once would cost digits, so that a larger memory takes more products.
_PRODUCT_BLOCK, _LEAST_OF_GROUP = 1 << 14, 1 << 8

# A CPU counts so many numbers at once, by all their indices together, where there are so few
# counters then, and many more numbers; and increases counters in turns: to read what was written
# just now takes longer.
_TOGETHER, _MOST_COUNTERS, _NUMBERS_PER_COUNTER, _TURNS = 3, 1 << 13, 8, 16


def segment_sum(
    values: Shaped[Array, " N"], index: Int[Array, " N"], number: int
) -> Shaped[Array, " B"]:
    """Sum numbers by their index, which may be out of range: those do not count.

    Meant for few numbers (N times B at most 2^30): bins, cells, symbols.

    Args:
        values: (N,) floating or integer.
        index: (N,).
        number: B, static.
    """
    return lax.platform_dependent(
        values,
        index,
        cpu=lambda values, index: jax.ops.segment_sum(values, index, number),
        default=lambda values, index: jnp.sum(
            jnp.where(_is_own(index, number), values[:, None], jnp.zeros((), values.dtype)),
            axis=0,
            dtype=values.dtype,
        ),
    )


def segment_counts(
    is_counted: Bool[Array, " N"], index: Int[Array, " N"], number: int
) -> Int[Array, " B"]:
    """Count how often each index occurs, int32; of many numbers.

    Args:
        is_counted: (N,).
        index: (N,) from 0 to B - 1.
        number: B, static.
    """

    def by_products(is_counted: Array, index: Array) -> Array:
        return counts_by_products(index[None], number, is_counted[None])[0]

    def by_scatter(is_counted: Array, index: Array) -> Array:
        # One more index, of what is not counted.
        base, most = number + 1, min(_MOST_COUNTERS, index.shape[0] // _NUMBERS_PER_COUNTER)
        together = max([m for m in range(1, _TOGETHER + 1) if base**m <= most], default=1)
        turns = min(_TURNS, max(1, most // base**together))
        length = -(-index.shape[0] // together)
        own = jnp.where(is_counted, index.astype(jnp.int32), number)
        own = jnp.pad(own, (0, together * length - own.shape[0]), constant_values=number)
        place = jnp.arange(length, dtype=jnp.int32) % turns
        for part in range(together):
            place = place + own[part * length :][:length] * (turns * base**part)
        counts = jnp.zeros((base**together * turns,), jnp.int32)
        counts = counts.at[place].add(1, mode="promise_in_bounds", wrap_negative_indices=False)
        # The last axis is of turns, the others each of a part.
        table = counts.reshape(*(base,) * together, turns)
        axes = range(together + 1)
        each = [
            jnp.sum(table, axis=tuple(axis for axis in axes if axis != part), dtype=jnp.int32)
            for part in range(together)
        ]
        return sum(each[1:], start=each[0])[:number]

    return lax.platform_dependent(is_counted, index, cpu=by_scatter, default=by_products)


def segment_min(
    values: Float[Array, " N"], index: Int[Array, " N"], number: int
) -> Float[Array, " B"]:
    """Return the least number of each index, which is in range; infinite where there is none."""
    return _segment_extreme(values, index, number, is_least=True)


def segment_max(
    values: Float[Array, " N"], index: Int[Array, " N"], number: int
) -> Float[Array, " B"]:
    """Return the largest number of each index; minus infinity where there is none."""
    return _segment_extreme(values, index, number, is_least=False)


def _segment_extreme(values: Array, index: Array, number: int, *, is_least: bool) -> Array:
    by_scatter = jax.ops.segment_min if is_least else jax.ops.segment_max
    return lax.platform_dependent(
        values,
        index,
        cpu=lambda values, index: by_scatter(values, index, number),
        default=lambda values, index: extremes_by_comparison(
            values[None], index[None], number, is_least=is_least
        )[0],
    )


@jax.custom_jvp
def look_up(table: Float[Array, " B"], index: Int[Array, "..."]) -> Float[Array, "..."]:
    """Return entries of a table, `table[index]`; the derivative adds up over equal indices.

    In reverse mode that is a sum over many numbers: on a CPU a scatter, elsewhere matrix products.

    Args:
        table: (B,) floating.
        index: (...) from 0 to B - 1.
    """
    return table[index]


@look_up.defjvp
def _look_up_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    table, index = primals
    return look_up(table, index), look_up_tangents(tangents[0], index)


def look_up_tangents(table: Float[Array, " B"], index: Int[Array, "..."]) -> Float[Array, "..."]:
    """As `look_up`, of tangents: what is transposed is a product where there are no scatters."""
    return lax.platform_dependent(
        table, index, cpu=lambda table, index: table[index], default=_look_up_by_products
    )


def _look_up_by_products(table: Float[Array, " B"], index: Int[Array, "..."]) -> Array:
    """Look up by matrix products, block after block."""
    length, number = index.size, table.shape[0]
    num_columns, num_rows = _rows_and_columns(number)
    block = _evenly(length, chunk_bytes() // (4 * (num_rows + num_columns)))
    matrix = jnp.pad(table, (0, num_rows * num_columns - number)).reshape(num_rows, num_columns)

    # Indicators are made again for the derivative: they take more memory than the indices.
    @jax.checkpoint
    def of_block(matrix: Array, index: Array) -> Array:
        rows = jax.nn.one_hot(index // num_columns, num_rows, dtype=table.dtype)
        columns = jax.nn.one_hot(index % num_columns, num_columns, dtype=table.dtype)
        return jnp.einsum("nr,rc,nc->n", rows, matrix, columns, precision=lax.Precision.HIGHEST)

    blocks = jnp.pad(index.ravel(), (0, -length % block)).reshape(-1, block)
    found = lax.map(partial(of_block, matrix), blocks)
    return found.ravel()[:length].reshape(index.shape)


def _rows_and_columns(number: int) -> tuple[int, int]:
    """Return columns, a power of two, and rows of a table of so many entries."""
    num_columns = 1 << (max(number - 1, 1).bit_length() + 1) // 2
    return num_columns, -(-number // num_columns)


def _is_own(index: Int[Array, "..."], number: int) -> Bool[Array, "... B"]:
    each = jnp.arange(number, dtype=index.dtype).reshape(*(1,) * index.ndim, number)
    return index[..., None] == each


def counts_by_products(
    index: Int[Array, "groups N"],
    number: int,
    is_counted: Bool[Array, "groups N"] | None = None,
) -> Int[Array, "groups B"]:
    """Count by matrix products of zeros and ones in bfloat16, which are exact.

    A product adds up to 2^14 of them, far below 2^24; counts of all products are int32.

    Args:
        index: (groups, N) from 0 to B - 1.
        number: B.
        is_counted: (groups, N); None for all.
    """
    is_one = jnp.ones(index.shape, bool) if is_counted is None else is_counted

    def of_block(is_one: Array, rows: Array, columns: Array) -> Array:
        product = jnp.einsum(
            "sgnr,sgnc->sgrc",
            rows * is_one[..., None],
            columns,
            preferred_element_type=jnp.float32,
        )
        return jnp.sum(product.astype(jnp.int32), axis=0, dtype=jnp.int32)

    return _by_products(is_one, index, number, jnp.bfloat16, jnp.int32, of_block)


def sums_by_products(
    values: Float[Array, "groups N"], index: Int[Array, "groups N"], number: int
) -> Float[Array, "groups B"]:
    """Sum by matrix products in the dtype of the values, whatever the default precision is.

    Args:
        values: (groups, N) floating.
        index: (groups, N) from 0 to B - 1.
        number: B.
    """

    def of_block(values: Array, rows: Array, columns: Array) -> Array:
        product = jnp.einsum(
            "sgnr,sgnc->sgrc",
            rows * values[..., None],
            columns,
            precision=lax.Precision.HIGHEST,
        )
        return jnp.sum(product, axis=0, dtype=values.dtype)

    return _by_products(values, index, number, values.dtype, values.dtype, of_block)


def _by_products(
    values: Shaped[Array, "groups N"],
    index: Int[Array, "groups N"],
    number: int,
    dtype: Any,
    total_dtype: Any,
    of_block: Callable[[Array, Array, Array], Array],
) -> Array:
    """Add up what `(values, rows, columns) -> (groups, rows, columns)` finds in every block.

    An index is a pair (row, column), so that indicators of B indices take the memory of two roots
    of B.
    """
    num_groups, length = index.shape
    num_columns, num_rows = _rows_and_columns(number)
    block = min(max(_PRODUCT_BLOCK // num_groups, _LEAST_OF_GROUP), length)
    bytes_of_block = num_groups * block * (num_rows + num_columns) * jnp.dtype(dtype).itemsize
    side_by_side = _evenly(-(-length // block), chunk_bytes() // bytes_of_block)
    extra = -length % (block * side_by_side)

    def blocks(array: Array) -> Array:
        padded = jnp.pad(array, [(0, 0), (0, extra)])
        padded = padded.reshape(num_groups, -1, side_by_side, block)
        return jnp.moveaxis(padded, 0, 2)

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        own, place = part
        rows = jax.nn.one_hot(place // num_columns, num_rows, dtype=dtype)
        columns = jax.nn.one_hot(place % num_columns, num_columns, dtype=dtype)
        return total + of_block(own.astype(dtype), rows, columns), None

    start = jnp.zeros((num_groups, num_rows, num_columns), total_dtype)
    total, _ = lax.scan(add, start, (blocks(values), blocks(index)))
    return total.reshape(num_groups, -1)[:, :number]


def extremes_by_comparison(
    values: Float[Array, "groups N"], index: Int[Array, "groups N"], number: int, *, is_least: bool
) -> Float[Array, "groups B"]:
    """Return the least or the largest number of each index, infinite where there is none.

    Blocks of numbers are compared with all indices; a block is so small that not even unfused
    comparisons would fill the memory.

    Args:
        values: (groups, N).
        index: (groups, N).
        number: B.
        is_least: static.
    """
    num_groups, length = index.shape
    block = _evenly(length, chunk_bytes() // (4 * num_groups * number))
    extra = -length % block
    none = jnp.asarray(jnp.inf if is_least else -jnp.inf, values.dtype)
    reduce, join = (jnp.min, jnp.minimum) if is_least else (jnp.max, jnp.maximum)

    def blocks(array: Array, filler: Any) -> Array:
        padded = jnp.pad(array, [(0, 0), (0, extra)], constant_values=filler)
        return jnp.moveaxis(padded.reshape(num_groups, -1, block), 1, 0)

    def add(found: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        own, place = part
        compared = jnp.where(_is_own(place, number), own[..., None], none)
        return join(found, reduce(compared, axis=1)), None

    start = jnp.full((num_groups, number), none)
    found, _ = lax.scan(add, start, (blocks(values, none), blocks(index, 0)))
    return found


def _evenly(length: int, most: int) -> int:
    """Return the size of equal parts, at most so large, which are filled up least."""
    num_parts = -(-length // max(min(most, length), 1))
    return -(-length // num_parts)
