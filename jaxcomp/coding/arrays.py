"""Arrays as streams: byte planes of what is kept bit for bit, codes with codebooks and scales.

The other end is `jaxcomp.decoder.arrays`; arrays come in the form in which it returns them, types
that NumPy lacks as their bits.
"""

import math

import numpy as np
from jaxtyping import Int, Shaped

from jaxcomp.coding.sizes import empirical_entropy_bits
from jaxcomp.coding.streams import Effort, StackWriter, write_symbols
from jaxcomp.coding.trellis import trellis_stream
from jaxcomp.decoder.arrays import DTYPES, Parts, bytes_of, columns_of
from jaxcomp.decoder.streams import BLOCK


def write_numbers(
    writer: StackWriter,
    values: Shaped[np.ndarray, "..."],
    dtype: str,
    columns: int,
    effort: Effort = "fast",
) -> None:
    """Write numbers of a dtype, bit for bit: byte planes, or short ones whole.

    Args:
        writer: of the stream.
        values: of any shape.
        dtype: a name among `jaxcomp.decoder.arrays.DTYPES`.
        columns: of a row, for contexts.
        effort: for numbers of fewer than eight bits; byte planes have static codes.
    """
    width, stored = DTYPES[dtype]
    flat = np.ascontiguousarray(values).reshape(-1)
    if width < 8:
        symbols = flat.astype(stored).view(np.uint8) & ((1 << width) - 1)
        write_symbols(writer, symbols, 1 << width, columns, effort)
        return
    planes = bytes_of(flat.astype(stored, copy=False)).reshape(flat.size, width // 8)
    coded = StackWriter()
    for plane in reversed(range(width // 8)):
        write_symbols(coded, planes[:, plane], 256, columns)
    if width > 8:
        is_plain = coded.size_bits >= width * flat.size
        writer.small(is_plain, 1)
        if is_plain:
            coded = StackWriter()
            for plane in reversed(range(width // 8)):
                coded.plain(planes[:, plane], 8)
            coded.bits_by_code["p"] = coded.size_bits
    writer.append(coded)


def write_parts(
    writer: StackWriter, parts: Parts, dtype: str, shape: tuple[int, ...], effort: Effort
) -> None:
    """Write what is stored of one array.

    Args:
        writer: of the stream.
        parts: what is stored; a codebook has the dtype of the array, or that of the scales, which
            is float32 or float64.
        dtype: of the array, a name among `jaxcomp.decoder.arrays.DTYPES`.
        shape: of the array.
        effort: see `write_symbols`.
    """
    if parts.codebook is None and parts.scales is None:
        writer.append(_kept(parts.codes, dtype, shape, effort))
        return
    has_codebook, floats, entry = parts.codebook is not None, dtype, 1
    writer.small(2 if has_codebook else 3, 2)
    writer.small(parts.is_stack, 1)
    writer.small(parts.scales is not None, 1)
    if parts.scales is not None and parts.rows is not None:
        floats = parts.scales.dtype.name
        has_channels, axis, group = parts.rows
        writer.small(floats == "float64", 1)
        writer.small(has_channels, 1)
        writer.number(axis)
        writer.number(group)
        write_numbers(writer, parts.scales, floats, BLOCK)
    writer.number(parts.num_codes)
    if parts.codebook is not None:
        entry = parts.codebook.shape[-1]
        writer.number(entry)
        write_numbers(writer, parts.codebook, floats, BLOCK)
    own = shape[1:] if parts.is_stack else shape
    kept = own if entry == 1 else (-(-math.prod(own) // entry),)
    codes = parts.codes.reshape(shape[0] if parts.is_stack else 1, math.prod(kept))
    if not has_codebook:
        layers = _along_paths(parts, codes, columns_of(kept), effort) if parts.order else None
        writer.small(0 if layers is None else parts.order, 2)
        if layers is not None:
            for layer in layers:
                writer.append(layer)
            return
    for layer in codes:
        symbols = layer if has_codebook else _as_symbols(layer, parts.num_codes)
        write_symbols(writer, symbols, parts.num_codes, columns_of(kept), effort)


def _as_symbols(integers: Int[np.ndarray, " n"], num_codes: int) -> Int[np.ndarray, " n"]:
    """Return integers around 0 as symbols, in the shortest dtype that holds them."""
    if num_codes > 256:
        return integers.astype(np.int32) + num_codes // 2
    # Modulo 256: what is negative becomes positive.
    return integers.astype(np.uint8) + np.uint8(num_codes // 2)


def _along_paths(
    parts: Parts, codes: Shaped[np.ndarray, "layers n"], columns: int, effort: Effort
) -> list[StackWriter] | None:
    """Write codes of a trellis; None where those of a layer are better written one by one."""
    found = []
    for layer in codes:
        own = trellis_stream(layer, parts.num_codes // 2, columns, parts.order, effort)
        if own is None:
            return None
        found.append(own)
    return found


def _kept(
    values: Shaped[np.ndarray, "..."], dtype: str, shape: tuple[int, ...], effort: Effort
) -> StackWriter:
    """Write an array as it is, or first where it is not zero, if that is shorter."""
    width, stored = DTYPES[dtype]
    flat = np.ascontiguousarray(values).reshape(-1).astype(stored, copy=False)
    planes = bytes_of(flat).reshape(flat.size, flat.dtype.itemsize)
    is_there = planes.any(axis=1)  # a negative zero is no zero
    sparse = StackWriter()
    if width >= 8 and not is_there.all():
        sparse.small(1, 2)
        write_symbols(sparse, np.asarray(is_there, np.uint8), 2, columns_of(shape), effort)
        write_numbers(sparse, flat[is_there], dtype, BLOCK)
        counts = np.stack([np.bincount(plane, minlength=256) for plane in planes.T])
        # Codes of byte planes are static: none is shorter than their entropies.
        if len(flat) * empirical_entropy_bits(counts).sum() >= sparse.size_bits:
            return sparse
    whole = StackWriter()
    whole.small(0, 2)
    write_numbers(whole, values, dtype, columns_of(shape), effort)
    has_both = sparse.size_bits > 0
    return min(whole, sparse, key=lambda one: one.size_bits) if has_both else whole
