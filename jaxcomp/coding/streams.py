"""Streams of symbols, written: of each array the shortest of several codes, by its real length.

The other end is `jaxcomp.decoder.streams`; `docs/format.md` specifies both. Codes: as plain
numbers; by a table of frequencies; by frequencies that fall with the distance from a symbol, in
three numbers; by contexts of earlier rows, decision by decision.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxcomp.decoder.streams import (
    MOST_OF_CONTEXTS,
    MOST_SYMBOLS,
    TOTAL,
    Chains,
    coders,
    contexts,
    parametric,
    probabilities,
    whole_frequencies,
)

Effort = Literal["fast", "best"]
"""Static codes only, or contexts as well."""

_CHUNK, _COUNTED = 1 << 16, 1 << 20
# The format has no contexts of more symbols; of fewer bits there is nothing to save.
MOST_IN_CONTEXTS, LEAST_BITS_OF_CONTEXTS = 1 << 24, 256
_LARGEST_PARAMETRIC = 1 << 12
# Kind, centre, two slopes and the peak, at the least.
_PARAMETERS_BITS = 2 + 4 + 2 * 9 + 8
_ALL_MODELS = 15
# Bits after the first of the counts in a table; numbers of tables of several precisions at once.
_NUM_PRECISIONS, _TOGETHER = 12, 1 << 13
_ROUGH = np.asarray([min((16 + m) << e >> 5, 1 << 26) for e in range(32) for m in range(16)])


class _Step(NamedTuple):
    """What is pushed at once: numbers, the model, and parameters of its numbers if they differ."""

    values: Int[np.ndarray, " numbers"]
    model: Callable[[Any], Any]
    parameters: np.ndarray | None = None


class StackWriter:
    """A stream in the order in which it is read; pushed in reverse once it is whole."""

    def __init__(self, code: str = "") -> None:
        self.code = code
        self._steps: list[_Step] = []
        self.size_bits = 0.0
        """Length so far; the stream has up to 31 bits more, by its first symbol."""
        self.bits_by_code: dict[str, float] = {}
        """Bits of symbols by their code, a letter: plain, table, distance, contexts."""

    def append(self, other: "StackWriter") -> None:
        """Go on with all of another stream."""
        self._steps += other._steps
        self.size_bits += other.size_bits
        for code, bits in other.bits_by_code.items():
            self.bits_by_code[code] = self.bits_by_code.get(code, 0.0) + bits

    def small(self, value: int, width: int) -> None:
        """Write one number of so many bits."""
        self.plain(np.asarray([value]), width)

    def number(self, value: int) -> None:
        """Write a whole number, three bits at a time."""
        while value >= 8:
            self.small(8 | (value & 7), 4)
            value >>= 3
        self.small(value, 4)

    def plain(self, values: Int[np.ndarray, " numbers"], width: int) -> None:
        """Write numbers of so many bits, 1 to 16."""
        self._steps.append(_Step(values, lambda models: models.Uniform(1 << width)))
        self.size_bits += width * len(values)

    def of_widths(self, values: Int[np.ndarray, " n"], widths: Int[np.ndarray, " n"]) -> None:
        """Write numbers of as many bits as each has, at least one."""
        sizes = np.left_shift(1, widths).astype(np.int32)
        self._steps.append(_Step(values, lambda models: models.Uniform(), sizes))
        self.size_bits += float(widths.sum())

    def of_table(
        self,
        values: Int[np.ndarray, " n"],
        frequencies: Int[np.ndarray, " k"],
        counts: Int[np.ndarray, " k"] | None = None,
    ) -> None:
        """Write symbols by frequencies that sum to 2^24; `counts` of them, if they are known."""
        if len(frequencies) > 1:
            floats = probabilities(frequencies)
            self.of_model(values, lambda models: models.Categorical(floats, perfect=False))
            counts = counts_of(values, len(frequencies)) if counts is None else counts
            self.size_bits += table_bits(counts, frequencies)

    def of_model(self, values: Int[np.ndarray, " n"], model: Callable[[Any], Any]) -> None:
        """Write symbols by what makes a model of the coder; the caller counts their bits."""
        self._steps.append(_Step(values, model))

    def decisions(self, bits: Int[np.ndarray, " n"], ones: Int[np.ndarray, " n"]) -> None:
        """Write zeros and ones, given probabilities of ones in 2^-16."""
        chance = ones / 65536.0
        self._steps.append(_Step(bits, lambda models: models.Bernoulli(perfect=True), chance))
        self.size_bits -= float(np.log2(np.where(bits == 1, chance, 1 - chance)).sum())

    def num_bytes(self) -> int:
        """Return the length of the stream; without `constriction` up to four bytes more."""
        try:
            coders()
        except ImportError:
            return math.ceil((self.size_bits + 32) / 8)
        return len(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the stream."""
        coder, models = coders().stack.AnsCoder(), coders().model
        for step in reversed(self._steps):
            model = step.model(models)
            for start in reversed(range(0, len(step.values), _CHUNK)):
                part = slice(start, start + _CHUNK)
                values = step.values[part].astype(np.int32)
                own = () if step.parameters is None else (step.parameters[part],)
                coder.encode_reverse(values, model, *own)
        return coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


def counts_of(values: Int[np.ndarray, " n"], size: int) -> Int[np.ndarray, " size"]:
    """Count how often each of so many symbols occurs; a chunk at a time is widened."""
    counts = np.zeros(size, np.int64)
    for start in range(0, len(values), _COUNTED):
        counts += np.bincount(values[start : start + _COUNTED], minlength=size)
    return counts


def table_bits(counts: Int[np.ndarray, " k"], frequencies: Int[np.ndarray, " k"]) -> float:
    """Return what symbols that occur so often cost by frequencies that sum to 2^24."""
    return float(counts @ np.log2(TOTAL / frequencies))


def write_symbols(
    writer: StackWriter,
    values: Int[np.ndarray, " n"],
    size: int,
    columns: int,
    effort: Effort = "fast",
) -> None:
    """Write symbols by the code that is shortest.

    Args:
        writer: of the stream.
        values: (n,) integers in [0, size).
        size: of the alphabet.
        columns: of a row, for contexts.
        effort: "best" tries contexts.
    """
    if size > MOST_SYMBOLS:
        write_symbols(writer, values % MOST_SYMBOLS, MOST_SYMBOLS, columns, effort)
        high = values // MOST_SYMBOLS
        write_symbols(writer, high, -(-size // MOST_SYMBOLS), columns, effort)
    elif size > 1 and len(values):
        found = min(_static_candidates(values, size), key=_size)
        is_fit = size <= MOST_OF_CONTEXTS and len(values) <= MOST_IN_CONTEXTS
        if effort == "best" and is_fit and found.size_bits >= LEAST_BITS_OF_CONTEXTS:
            found = min(found, *_of_contexts(values, size, columns), key=_size)
        found.bits_by_code[found.code] = found.size_bits
        writer.append(found)


def _size(writer: StackWriter) -> float:
    return writer.size_bits


def _static_candidates(values: Int[np.ndarray, " n"], size: int) -> Iterator[StackWriter]:
    """Return codes that do not adapt, as far as they may be the shortest."""
    plain = StackWriter("p")
    plain.small(0, 2)
    plain.plain(values, (size - 1).bit_length())
    yield plain
    counts = counts_of(values, size)
    used = counts[counts > 0]
    # What suits the counts by chance, half a bit of each, no law of a few numbers has.
    least = float(used @ np.log2(counts.sum() / used)) + 0.5 * len(used)
    shortest = plain.size_bits
    if least + 0.5 * len(used) < shortest and least + _rough_table_bits(counts) < shortest:
        table = _of_table(values, counts)
        shortest = min(shortest, table.size_bits)
        yield table
    is_likely = size <= _LARGEST_PARAMETRIC and least + 40 < shortest
    if is_likely and _least_parametric_bits(counts) < shortest:
        yield _parametric(values, counts)


def _rough_table_bits(counts: Int[np.ndarray, " k"]) -> float:
    """Return about four fifths of what a table of counts takes at its lowest precision.

    What it takes for certain: which counts have other digits than the one before, and how many.
    """
    difference = np.diff(_bit_lengths(counts), prepend=0)
    num_changes = np.count_nonzero(difference)
    share = num_changes / len(counts)
    flags = 0.0
    if 0 < share < 1:
        flags = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    return 0.8 * (8 + len(counts) * flags + 2 * float(np.abs(difference).sum()) - num_changes)


def _least_parametric_bits(counts: Int[np.ndarray, " k"]) -> float:
    """Return what no frequencies take less than that fall with the distance from a symbol.

    Those of the highest likelihood: neighbours in distance that would not fall share one frequency
    (isotonic regression, by pooling).
    """
    centre = int(np.argmax(counts))
    distance = np.abs(np.arange(len(counts)) - centre)
    found = np.bincount(distance, counts).astype(np.int64)
    members = np.bincount(distance)
    pools: list[tuple[int, int]] = []
    # The centre itself may be rarer than its neighbours. Zeros side by side are one from the start.
    starts = 1 + np.flatnonzero(
        (found[1:] > 0) | np.append(True, found[1:-1] > 0)[: found.size - 1]
    )
    together = (np.add.reduceat(own, starts).tolist() for own in (found, members))
    for pool in zip(*together, strict=True) if starts.size else ():
        while pools and pool[0] * pools[-1][1] >= pools[-1][0] * pool[1]:
            last = pools.pop()
            pool = last[0] + pool[0], last[1] + pool[1]
        pools.append(pool)
    total, pools = int(counts.sum()), [(int(found[0]), 1), *pools]
    bits = sum(number * math.log2(total * size / number) for number, size in pools if number)
    return bits + _PARAMETERS_BITS


def _of_table(values: Int[np.ndarray, " n"], counts: Int[np.ndarray, " k"]) -> StackWriter:
    """Write symbols by a table of the precision that is shortest in all."""
    found = StackWriter("t")
    found.small(1, 2)
    head, place, frequencies = table_head(counts)
    found.append(head)
    found.of_table(place[values], frequencies, counts[counts > 0])
    return found


def table_head(
    counts: Int[np.ndarray, " k"],
) -> tuple[StackWriter, Int[np.ndarray, " k"], Int[np.ndarray, " used"]]:
    """Write a table of the precision that is shortest in all.

    Args:
        counts: how often each symbol occurs, at least one of them.

    Returns:
        What is written; the place of each symbol among those that occur; their frequencies.
    """
    shift = max(int(counts.max()).bit_length() - 24, 0)
    counts = np.where(counts > 0, np.maximum(counts >> shift, 1), 0)
    used = np.flatnonzero(counts)
    # As short as it can be: there will be one for each symbol that is written.
    place = np.zeros(len(counts), np.min_scalar_type(max(len(used) - 1, 0)))
    place[used] = np.arange(len(used))
    best, num_worse = None, 0
    for precision, (size_bits, own) in enumerate(_tables(counts, used)):
        bits = size_bits + table_bits(counts[used] << shift, own)
        if best is None or bits < best[0]:
            best, num_worse = (bits, precision, own), 0
        elif (num_worse := num_worse + 1) == 2:
            break
    assert best is not None
    _, precision, frequencies = best
    head = StackWriter()
    _write_table(head, counts, precision)
    return head, place, frequencies


def _tables(
    counts: Int[np.ndarray, " k"], used: Int[np.ndarray, " used"]
) -> Iterator[tuple[float, Int[np.ndarray, " used"]]]:
    """Yield for every precision the bits of a table, and the frequencies that it gives.

    Those of short tables all at once: that takes as many calls of NumPy as one.
    """
    together = min(max(_TOGETHER // len(counts), 1), _NUM_PRECISIONS)
    for start in range(0, _NUM_PRECISIONS, together):
        table = _rounded(counts, np.arange(start, min(start + together, _NUM_PRECISIONS)))
        changes = np.count_nonzero(table.change, axis=-1).tolist()
        others = (np.sum(table.change, axis=-1) + np.sum(table.width, axis=-1)).tolist()
        for number, more, read in zip(changes, others, table.read[:, used], strict=True):
            ones = ((2 * _chance(number, len(counts)) + 1) << 11) / 65536
            flags = number * math.log2(ones) + (len(counts) - number) * math.log2(1 - ones)
            yield 8 + more - flags, whole_frequencies(read)


class _Rounded(NamedTuple):
    """Counts below 2^24 with so many bits after the first, for every precision."""

    leading: Int[np.ndarray, "precisions k"]
    width: Int[np.ndarray, "precisions k"]
    change: Int[np.ndarray, "precisions k"]
    read: Int[np.ndarray, "precisions k"]


def _rounded(counts: Int[np.ndarray, " k"], precisions: Int[np.ndarray, " p"]) -> _Rounded:
    """Round counts; `change` tells how a length differs from the one before, `read` is what is."""
    length = _bit_lengths(counts)
    width = np.minimum(np.maximum(length - 1, 0), precisions[:, None])
    drop = np.maximum(length - 1 - width, 0)
    leading = (counts + (1 << drop >> 1)) >> drop
    is_over = leading >> width > 1
    leading, length = leading >> is_over, length + is_over
    difference = length.copy()
    difference[:, 1:] -= length[:, :-1]
    change = np.maximum(2 * difference - 1, -2 * difference)
    return _Rounded(leading, width, change, leading << np.maximum(length - 1 - width, 0))


def _chance(number: int, size: int) -> int:
    """Return in which of sixteen classes the share of lengths is that change."""
    return min(max(round((32 * (number / size) - 1) / 2), 0), 15)


def _write_table(writer: StackWriter, counts: Int[np.ndarray, " k"], precision: int) -> None:
    """Write counts below 2^24 with so many bits after the first."""
    leading, width, change, _ = (rows[0] for rows in _rounded(counts, np.asarray([precision])))
    chance = _chance(int(np.count_nonzero(change)), len(change))
    writer.small(precision, 4)
    writer.small(chance, 4)
    writer.decisions((change > 0).astype(np.int64), np.full(len(change), (2 * chance + 1) << 11))
    rounds, active = [], change[change > 0] - 1
    while len(active):
        rounds.append(active > 0)
        active = active[active > 0] - 1
    if rounds:
        bits = np.concatenate(rounds).astype(np.int64)
        writer.decisions(bits, np.full(len(bits), 1 << 15))
    has_more = width > 0
    writer.of_widths((leading - (1 << width))[has_more], width[has_more])


def _bit_lengths(numbers: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    return np.frexp(numbers.astype(np.float64))[1].astype(np.int64)


def _parametric(values: Int[np.ndarray, " n"], counts: Int[np.ndarray, " k"]) -> StackWriter:
    """Write symbols by the best frequencies of three numbers."""
    centre = int(np.argmax(counts))
    slopes, peak = _fit(counts, centre, (0, 1))
    if not slopes.all():
        slopes, peak = _fit(counts, centre, (0,) if slopes[0] else (1,))
    places = np.searchsorted(_ROUGH, slopes * [1 << 12, 1 << 20])
    places = np.minimum(places, len(_ROUGH) - 1).tolist()
    steps = min(max(round(16 * peak), -128), 127)
    linear, square = (int(_ROUGH[place]) for place in places)
    frequencies = parametric(len(counts), centre, linear, square, steps)
    writer = StackWriter("d")
    writer.small(2, 2)
    writer.number(centre)
    for place in places:
        writer.small(place >> 4, 5)
        writer.small(place & 15, 4)
    writer.small(steps + 128, 8)
    writer.of_table(values, frequencies, counts)
    return writer


def _fit(
    counts: Int[np.ndarray, " k"], centre: int, terms: tuple[int, ...]
) -> tuple[Float[np.ndarray, "2"], float]:
    """Fit `log2 p = const - slopes . (d, d^2) - peak [d > 0]` by Newton's method.

    The likelihood is concave; a slope that would be negative is 0.
    """
    distance = np.abs(np.arange(len(counts)) - centre).astype(np.float64)
    unit = max(float(counts @ distance) / max(counts.sum(), 1), 1e-3)
    scaled = distance / unit
    features = np.stack([*(-(scaled ** (term + 1)) for term in terms), -1.0 * (distance > 0)])
    shares = counts / counts.sum()
    target, found = features @ shares, np.zeros(len(features))
    found[: len(terms)] = 1.0
    for _ in range(30):
        logits = found @ features
        odds = np.exp(logits - logits.max())
        odds /= odds.sum()
        mean = features @ odds
        hessian = (features * odds) @ features.T - np.outer(mean, mean)
        move = np.linalg.solve(hessian + 1e-9 * np.eye(len(found)), target - mean)
        before = found
        found = found + move * min(1.0, 2.0 / max(np.abs(move).max(), 1e-12))
        found[: len(terms)] = np.clip(found[: len(terms)], 0, 40)
        found[-1] = np.clip(found[-1], -6, 6)
        if np.abs(found - before).max() < 1e-4:
            break
    slopes = np.zeros(2)
    for place, term in enumerate(terms):
        slopes[term] = found[place] / unit ** (term + 1) / math.log(2)
    return slopes, float(found[-1]) / math.log(2)


def _of_contexts(values: Int[np.ndarray, " n"], size: int, columns: int) -> Iterator[StackWriter]:
    """Write symbols by contexts, row by row or column by column, all models mixed."""
    centre = int(np.argmax(np.bincount(values, minlength=size)))
    rows = len(values) // columns
    signed = values.astype(np.int64) - centre
    orders = [(0, columns, signed)]
    if rows > 1 and columns > 1 and rows * columns == len(values):
        orders.append((1, rows, signed.reshape(rows, columns).T.reshape(-1)))
    most = max(centre, size - 1 - centre)
    for order in orders:
        yield _by_contexts(*order, centre, most, _ALL_MODELS)


def _by_contexts(
    is_turned: int,
    width: int,
    signed: Int[np.ndarray, " n"],
    centre: int,
    most: int,
    mask: int,
) -> StackWriter:
    writer = StackWriter("c")
    writer.small(3, 2)
    writer.number(centre)
    writer.small(mask, 4)
    writer.small(is_turned, 1)
    write_contexts(writer, signed, width, most, mask)
    return writer


def write_contexts(
    writer: StackWriter,
    signed: Int[np.ndarray, " n"],
    width: int,
    most: int,
    mask: int,
    chains: Chains | None = None,
) -> None:
    """Write numbers decision by decision.

    Args:
        writer: of the stream.
        signed: the numbers.
        width: of a row.
        most: largest magnitude that there may be.
        mask: which models are mixed.
        chains: whose parities are contexts too.
    """
    magnitude = np.abs(signed)
    digits = _bit_lengths(magnitude)

    def exchange(
        places: Int[np.ndarray, " n"], step: int, ones: Int[np.ndarray, " n"]
    ) -> Int[np.ndarray, " n"]:
        if step == 31:
            bits = np.asarray([not magnitude[places[0] : places[1]].any()])
        elif step == 0:
            bits = magnitude[places] > 0
        elif step == 1:
            bits = signed[places] < 0
        elif step < 16:
            bits = digits[places] >= step
        else:
            bits = magnitude[places] >> (digits[places] - 1 - (step - 15)) & 1
        writer.decisions(bits.astype(np.int64), ones)
        return bits.astype(np.int64)

    contexts(len(signed), width, most.bit_length(), mask, exchange, chains)
