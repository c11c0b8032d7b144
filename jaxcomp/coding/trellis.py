"""Integers of trellis-coded quantization, written: what their parities do not say already.

The other end is `jaxcomp.decoder.streams.trellis`; `docs/format.md` specifies both.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxcomp.coding.streams import (
    LEAST_BITS_OF_CONTEXTS,
    MOST_IN_CONTEXTS,
    Effort,
    StackWriter,
    counts_of,
    table_bits,
    table_head,
    write_contexts,
)
from jaxcomp.decoder.streams import (
    LEAST_BITS,
    MOST_OF_CONTEXTS,
    Chains,
    chains_of,
    probabilities,
)
from jaxcomp.numerics.integers import largest_magnitude

_AT_ONCE = 1 << 18
# Models to mix: dense weights are told by the activity of their columns alone, others by all.
_MASKS = (1, 15)


class Path(NamedTuple):
    """Integers as a trellis leads to them.

    Attributes:
        numbers: (n,) what is coded of each, given its parity.
        parities: (n,) 0 or 1.
        row: numbers of a row, one for each chain.
    """

    numbers: Int[np.ndarray, " n"]
    parities: Int[np.ndarray, " n"]
    row: int


def in_order(
    integers: Int[np.ndarray, " n"], columns: int, order: int
) -> tuple[Int[np.ndarray, " n"], int]:
    """Return integers in the order of their trellises, and how many are a row of it.

    Args:
        integers: row by row.
        columns: of a row.
        order: 1 for row by row, 2 for column by column.
    """
    if order == 1:
        return integers, columns
    rows = len(integers) // columns
    return integers.reshape(rows, columns).T.reshape(-1), rows


def path_of(integers: Int[np.ndarray, " n"], width: int) -> Path | None:
    """Return the numbers that lead to some integers; None if no path does.

    Args:
        integers: in their order.
        width: of a row.
    """
    largest = largest_magnitude(integers)
    short = np.int8 if largest < 1 << 6 else np.int16 if largest < 1 << 14 else np.int32
    own, row = integers.astype(short), chains_of(width)
    rows = -(-len(own) // row)
    # What `advance` says of all steps at once: parities are sums by 2 of digits before.
    bits = np.zeros((2, rows + 5, row), np.uint8)
    for digit in range(2):
        for part in _parts(len(own)):
            bits[digit, 5:].reshape(-1)[part] = own[part] >> digit & 1
    parity, second = bits
    for part in _parts(rows, max(1, _AT_ONCE // row)):
        expected = parity[3:-2][part] ^ parity[:-5][part] ^ second[2:-3][part]
        there = slice(len(own) - part.start * row)
        if not np.array_equal(expected.reshape(-1)[there], parity[5:][part].reshape(-1)[there]):
            return None
    parities = parity[5:].reshape(-1)[: len(own)].copy()
    del bits, parity, second
    for part in _parts(len(own)):
        # Halves towards infinity: odd integers lie between the multiples of two.
        away = np.sign(own[part])
        away *= parities[part]
        own[part] += away
        own[part] >>= 1
    return Path(own, parities, row)


def _parts(size: int, number: int = _AT_ONCE) -> Iterator[slice]:
    """Yield places, so many at a time: what is made of them is wider than they are."""
    for start in range(0, size, number):
        yield slice(start, min(start + number, size))


def symbol_counts(integers: Int[np.ndarray, " n"]) -> Int[np.ndarray, " symbols"]:
    """Count how often 0, 1, -1, 2, -2, ... occur, int64.

    Returns:
        Counts up to the magnitude 2^m - 1 that no integer exceeds: few sizes, since what is
        compiled for a tree depends on them.
    """
    largest = largest_magnitude(integers)
    most = (1 << largest.bit_length()) - 1
    counts, flat = np.zeros(2 * most + 1, np.int64), integers.reshape(-1)
    for part in _parts(flat.size):
        counts += np.bincount(flat[part].astype(np.int64) + most, minlength=2 * most + 1)
    found = counts.copy()
    found[0], found[1::2], found[2::2] = counts[most], counts[most + 1 :], counts[:most][::-1]
    return found


def trellis_stream(
    integers: Int[np.ndarray, " n"], most: int, columns: int, order: int, effort: Effort = "fast"
) -> StackWriter | None:
    """Write integers that obey a trellis, by the shorter of two codes.

    Args:
        integers: (n,) row by row.
        most: largest magnitude that there may be.
        columns: of a row.
        order: see `in_order`.
        effort: "best" tries contexts.

    Returns:
        The stream; None if they obey none, or need fewer bits than its decoder believes.
    """
    if not len(integers) or most == 0:
        return None
    values, width = in_order(integers, columns, order)
    path = path_of(values, width)
    if path is None:
        return None
    half = (most + 1) // 2
    found = _by_tables(path, half)
    is_fit = half < MOST_OF_CONTEXTS and len(values) <= MOST_IN_CONTEXTS
    if effort == "best" and is_fit and found.size_bits >= LEAST_BITS_OF_CONTEXTS:
        others = (_by_contexts(path, half, width, mask) for mask in _MASKS)
        found = min(found, *others, key=lambda one: one.size_bits)
    found.bits_by_code[found.code] = found.size_bits
    return found if found.size_bits > LEAST_BITS * len(values) else None


def _by_tables(path: Path, half: int) -> StackWriter:
    """Write numbers by a table for each parity."""
    writer, models, tables = StackWriter("t"), [], []
    writer.small(0, 1)
    size = 2 * half + 1
    short = np.int16 if size < 1 << 14 else np.int32

    def symbols_of(part: slice) -> Int[np.ndarray, " part"]:
        symbols = path.parities[part].astype(short)
        symbols *= short(size)
        symbols += path.numbers[part].astype(short, copy=False)
        symbols += short(half)
        return symbols

    of_both = np.zeros((2, size), np.int64)
    for part in _parts(len(path.numbers)):
        of_both += counts_of(symbols_of(part), 2 * size).reshape(2, size)
    chosen = [np.empty(number, np.uint16) for number in of_both.sum(axis=1)]
    for parity, counts in enumerate(of_both):
        is_used = counts.any()
        if not is_used:  # no table is empty
            counts[half + parity] = 1
        head, place, frequencies = table_head(counts)
        writer.append(head)
        if is_used:
            writer.size_bits += table_bits(counts[counts > 0], frequencies)
        tables.append(place)
        models.append(_model_of(frequencies) if len(frequencies) > 1 else None)
    both, begins = np.concatenate(tables).astype(np.uint16), [0, 0]
    for part in _parts(len(path.numbers)):
        places, is_odd = both.take(symbols_of(part)), path.parities[part].view(np.bool_)
        for parity, own in enumerate((places[~is_odd], places[is_odd])):
            chosen[parity][begins[parity] : begins[parity] + len(own)] = own
            begins[parity] += len(own)
    starts = np.arange(0, len(path.numbers), path.row)
    of_rows = np.minimum(path.row, len(path.numbers) - starts)
    num_odd = np.empty(len(starts), np.int64)
    for part in _parts(len(starts), max(1, _AT_ONCE // path.row)):
        own = path.parities[
            starts[part.start] : starts[part.start] + path.row * (part.stop - part.start)
        ]
        num_odd[part] = np.add.reduceat(own, starts[part] - starts[part.start], dtype=np.int64)
    begins = [0, 0]
    for row in np.stack([of_rows - num_odd, num_odd], axis=1).tolist():
        for parity, (model, number) in enumerate(zip(models, row, strict=True)):
            begin = begins[parity]
            begins[parity] += number
            if model is not None:
                writer.of_model(chosen[parity][begin : begin + number], model)
    return writer


def _model_of(frequencies: Int[np.ndarray, " k"]) -> Callable[[Any], Any]:
    """Return what makes a model once, however many rows are coded by it."""
    floats = probabilities(frequencies)
    return cache(lambda models: models.Categorical(floats, perfect=False))


def _by_contexts(path: Path, half: int, width: int, mask: int) -> StackWriter:
    """Write numbers by contexts, of which their parities are a part."""
    writer = StackWriter("c")
    writer.small(1, 1)
    writer.small(mask, 4)
    chains = Chains(len(path.numbers), width)
    # Sums of neighbours do not fit into eight bits.
    numbers = path.numbers.astype(np.int16) if path.numbers.itemsize == 1 else path.numbers
    write_contexts(writer, numbers, width, half, mask, chains)
    return writer
