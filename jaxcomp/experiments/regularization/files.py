"""A network in as few bytes as the format of files takes: whole multiples of a step, in one stream.

Both ends know the shapes, so that nothing else is in it. In the words of `docs/format.md`, sections
1 and 2: t (a `number`) of the step 2^-t; a flag, whether arrays have codes of their own, in their
order, or are one after the other; then for each the lowest multiple (a `number`, 2 |k| or 2 |k| - 1
for k > 0), the number K of multiples from there on (a `number`), and `symbols(K, n, C)`, C the last
axis of an array of two axes or more, else 256. Such a stream ends in no zero byte, but does not say
where it ends.
"""

import math

import jax
import numpy as np
from jaxtyping import Int

from jaxcomp.coding.ans import cell_centres, cell_indices
from jaxcomp.coding.streams import Effort, StackWriter, write_symbols
from jaxcomp.decoder.arrays import columns_of
from jaxcomp.decoder.streams import BLOCK, FormatError, Stack, symbols
from jaxcomp.types import Params

# More multiples than float32 tells apart.
_MOST_MULTIPLES = 1 << 25


def write_rounded(params: Params, exponent: int, *, effort: Effort = "fast") -> bytes:
    """Return the file of a network that is rounded to multiples of `2 ** -exponent`.

    Args:
        params: pytree of floating arrays, finite.
        exponent: t >= 1.
        effort: "best" looks for contexts too; see `jaxcomp.coding.streams`.

    Raises:
        ValueError: if the step is finer than 2^-23 of the largest weight.
    """
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    indices = [cell_indices(array, 2.0**-exponent).astype(np.int64) for array in arrays]
    apart = StackWriter()
    for index, array in zip(indices, arrays, strict=True):
        _write(apart, index, columns_of(array.shape), effort)
    joined = StackWriter()
    _write(joined, np.concatenate(indices), BLOCK, "fast")
    is_apart = apart.size_bits < joined.size_bits
    writer = StackWriter()
    writer.number(exponent)
    writer.small(is_apart, 1)
    writer.append(apart if is_apart else joined)
    return writer.to_bytes()


def read_rounded(data: bytes, like: Params) -> Params:
    """Read a network from its file.

    Args:
        data: from `write_rounded`.
        like: pytree of arrays of its shapes and dtypes.

    Returns:
        The rounded weights, NumPy arrays in the pytree `like`.

    Raises:
        FormatError: if the file is not one of such a network.
    """
    leaves, structure = jax.tree.flatten(like)
    sizes = [math.prod(np.shape(leaf)) for leaf in leaves]
    stack = Stack(data, 2 * sum(sizes) + 1024)
    exponent, is_apart = stack.number(), stack.small(1)
    if exponent > 64:
        raise FormatError("its step is none")
    if is_apart:
        columns = [columns_of(np.shape(leaf)) for leaf in leaves]
        indices = [_read(stack, *own) for own in zip(sizes, columns, strict=True)]
    else:
        indices = np.split(_read(stack, sum(sizes), BLOCK), np.cumsum(sizes)[:-1])
    stack.finish()
    return structure.unflatten(
        [
            cell_centres(index, 2.0**-exponent, leaf)
            for index, leaf in zip(indices, leaves, strict=True)
        ]
    )


def _write(writer: StackWriter, index: Int[np.ndarray, " n"], columns: int, effort: Effort) -> None:
    lowest, highest = (int(index.min()), int(index.max())) if len(index) else (0, 0)
    writer.number(2 * lowest - 1 if lowest > 0 else -2 * lowest)
    writer.number(highest - lowest + 1)
    write_symbols(writer, index - lowest, highest - lowest + 1, columns, effort)


def _read(stack: Stack, count: int, columns: int) -> Int[np.ndarray, " n"]:
    folded, size = stack.number(), stack.number()
    if not 0 < size <= _MOST_MULTIPLES or folded > 2 * _MOST_MULTIPLES:
        raise FormatError("its multiples are none")
    lowest = (folded + 1) // 2 if folded % 2 else -folded // 2
    return lowest + symbols(stack, size, count, columns).astype(np.int64)
