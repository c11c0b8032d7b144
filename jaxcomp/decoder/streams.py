"""Streams of symbols: stack coding by integer tables that both ends make alike.

Section 2 of `docs/format.md`. No float decides a table: all of them are made by whole numbers.
"""

import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

TOTAL, MOST_SYMBOLS, MOST_OF_CONTEXTS, BLOCK = 1 << 24, 1 << 16, 1 << 9, 256
NUM_STATES, LEAST_BITS = 32, 1 / 64  # of a trellis, and of an integer on its way
_MOST_COUNT, _REACH = 1023, 3071


class FormatError(ValueError):
    """A file that is damaged, cut, hostile or of another format; the message says how."""

    def __init__(self, what: str) -> None:
        super().__init__(f"The file is damaged, cut or none of jaxcomp: {what}.")
        self.what = what


def require(condition: Any, what: str) -> None:
    """Raise a `FormatError` unless a condition holds."""
    if not condition:
        raise FormatError(what)


def _powers() -> Iterator[int]:
    """2^38 2^(-i/256), i < 256, rounded down."""
    number = 1 << 62
    for _ in range(256):
        yield number >> 24
        number = number * 4599216278082138665 >> 62  # 2^62 2^(-1/256)


_POWERS = np.asarray(list(_powers()), np.int64)


def power(length: np.ndarray) -> np.ndarray:
    """2^38 2^(-length/256), rounded down."""
    length = np.minimum(length, (63 << 8) - 1)
    return _POWERS[length & 255] >> (length >> 8)


# Probabilities in 2^-16 of logarithmic odds from -3071 to 3071 in 1/256 bit, and the inverse for
# probabilities in 2^-12; half octaves of activities.
_UPPER = (1 << 54) // ((1 << 38) + power(np.arange(_REACH + 1)))
_CHANCE = np.clip(np.concatenate([(1 << 16) - _UPPER[:0:-1], _UPPER]), 16, (1 << 16) - 16)
_ODDS = np.clip(np.searchsorted(_CHANCE, 16 * np.arange(4096) + 8) - _REACH, -_REACH, _REACH)
_LEVEL = np.asarray(
    [
        min(2 * n.bit_length() - (n.bit_length() > 1 and not n >> n.bit_length() - 2 & 1), 15)
        for n in range(4096)
    ]
)


def whole_frequencies(weights: np.ndarray) -> np.ndarray:
    """Return positive integers with sum 2^24, in proportion to weights > 0 of at most 2^38."""
    found = weights * (TOTAL - len(weights) - 1) // weights.sum() + 1
    found[-1] += 1
    found[np.argmax(found)] += TOTAL - found.sum()
    return found


def parametric(size: int, centre: int, linear: int, square: int, peak: int) -> np.ndarray:
    """Return frequencies of symbols that fall with the distance from one of them."""
    distance = np.abs(np.arange(size, dtype=np.int64) - centre)
    length = 2048 + ((256 * linear * distance + square * distance**2) >> 12)
    length[centre] = 2048 - 16 * peak
    return whole_frequencies(power(length) + 1)


def probabilities(frequencies: np.ndarray) -> np.ndarray:
    """Return floats of which `constriction` makes exactly these frequencies.

    It gives every symbol one unit and rounds the cumulative rest down; half a unit of margin
    keeps that rounding away from any whole number.
    """
    free = frequencies - 1
    ends = np.concatenate([[0.0], np.cumsum(free)[:-1] + 0.5, [float(free.sum())]])
    return np.diff(ends) / free.sum()


def coders() -> Any:
    """Return `constriction.stream`, or say what to install."""
    try:
        return importlib.import_module("constriction").stream
    except ImportError as error:
        raise ImportError(
            "Files of compressed models need constriction, which is not installed; install "
            "jaxcomp[coding]."
        ) from error


class Stack:
    """A stream, read from its end; `room` is how many symbols it may have in all."""

    def __init__(self, data: bytes, room: int) -> None:
        require(data[-1:] != b"\0", "a stream ends in a zero byte")
        words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        self._models, self._coder = coders().model, coders().stack.AnsCoder(words)
        self._bits, self._room = 16.0 * len(data) + 1024, room

    def claim(self, count: int, bits: float) -> None:
        """Refuse numbers that are too many, or cannot be in so few bytes."""
        self._room -= count
        self._bits -= bits
        require(self._room >= 0, "it declares more numbers than the limit on its size allows")
        require(self._bits >= 0, "it declares more numbers than its bytes can hold")

    def small(self, width: int) -> int:
        """Pop one number of so many bits."""
        return int(self._coder.decode(self._models.Uniform(1 << width)))

    def number(self) -> int:
        """Pop a whole number, three bits at a time, the lowest first."""
        value = 0
        for shift in range(0, 63, 3):
            part = self.small(4)
            value |= (part & 7) << shift
            if part < 8:
                return value
        raise FormatError("a number has no end")

    def rough(self) -> int:
        """Pop a number of five significant bits."""
        exponent = self.small(5)
        return min((16 + self.small(4)) << exponent >> 5, 1 << 26)

    def plain(self, width: int, count: int) -> np.ndarray:
        """Pop numbers of so many bits."""
        self.claim(count, count * width)
        return self.pop(self._models.Uniform(1 << width), count)

    def of_widths(self, widths: np.ndarray) -> np.ndarray:
        """Pop numbers of as many bits as each has, at least one."""
        return self._coder.decode(self._models.Uniform(), (1 << widths).astype(np.int32))

    def of_table(self, frequencies: np.ndarray, count: int) -> np.ndarray:
        """Pop symbols by their frequencies."""
        self.claim(count, count * math.log2(TOTAL / int(frequencies.max())))
        return self.pop(self.model(frequencies), count)

    def model(self, frequencies: np.ndarray) -> Any:
        """Return what pops symbols by their frequencies."""
        if len(frequencies) == 1:
            return None
        return self._models.Categorical(probabilities(frequencies), perfect=False)

    def pop(self, model: Any, count: int) -> np.ndarray:
        """Pop numbers by a model; zeros where there is nothing to tell."""
        if model is not None and count <= 1 << 16:
            return self._coder.decode(model, count)
        found = np.zeros(count, np.uint16)
        for start in range(0, count if model is not None else 0, 1 << 16):
            some = found[start : start + (1 << 16)]
            some[:] = self._coder.decode(model, len(some))
        return found

    def decisions(self, ones: np.ndarray) -> np.ndarray:
        """Pop zeros and ones, given probabilities of ones in 2^-16."""
        return self._coder.decode(self._models.Bernoulli(perfect=True), ones / 65536.0)

    def finish(self) -> None:
        """Refuse what is left."""
        require(self._coder.is_empty(), "a stream does not end where its numbers do")


def symbols(stack: Stack, size: int, count: int, columns: int) -> np.ndarray:
    """Pop symbols below `size`; `columns` are those of a row, for contexts."""
    if size > MOST_SYMBOLS:
        low = symbols(stack, MOST_SYMBOLS, count, columns).astype(np.int64)
        high = symbols(stack, -(-size // MOST_SYMBOLS), count, columns).astype(np.int64)
        found = low + (high << 16)
    elif size == 1 or count == 0:
        stack.claim(count, 0)
        return np.zeros(count, np.uint8)
    elif (kind := stack.small(2)) == 0:
        found = stack.plain((size - 1).bit_length(), count)
    elif kind == 1:
        weights = table(stack, size)
        used = np.flatnonzero(weights).astype(np.uint16)
        found = used[stack.of_table(whole_frequencies(weights[used]), count)]
    else:
        centre = stack.number()
        require(centre < size, "a centre is not among its symbols")
        if kind == 2:
            shape = stack.rough(), stack.rough(), stack.small(8) - 128
            found = stack.of_table(parametric(size, centre, *shape), count)
        else:
            found = centre + _of_contexts(stack, max(centre, size - 1 - centre), count, columns)
    is_inside = int(found.min()) >= 0 and int(found.max()) < size
    require(is_inside, "a symbol is not of its alphabet")
    return found


def table(stack: Stack, size: int) -> np.ndarray:
    """Pop how often symbols occur: bits of each count by their differences, then leading ones."""
    precision, ones = stack.small(4), np.full(size, (2 * stack.small(4) + 1) << 11)
    change, active = np.zeros(size, np.int64), np.arange(size)
    while len(active) and change.max() <= 50:
        active = active[stack.decisions(ones[active]) == 1]
        change[active] += 1
        ones[:] = 1 << 15
    length = np.cumsum(np.where(change & 1, (change + 1) >> 1, -(change >> 1)))
    require(length.min() >= 0 and 0 < length.max() <= 25, "a table of frequencies is wrong")
    width = np.clip(length - 1, 0, precision)
    leading = (length > 0).astype(np.int64) << width
    leading[width > 0] += stack.of_widths(width[width > 0])
    return leading << np.maximum(length - 1 - width, 0)


def _of_contexts(
    stack: Stack, most: int, count: int, columns: int, chains: Any = None
) -> np.ndarray:
    """Pop numbers of magnitudes up to `most` by contexts, perhaps column by column."""
    mask, is_turned = stack.small(4), 0 if chains else stack.small(1)
    require(mask and most < MOST_OF_CONTEXTS and count <= 1 << 24, "its contexts are wrong")
    rows = count // columns
    require(not is_turned or rows * columns == count, "its rows are not whole")
    stack.claim(0 if chains else count, 0)

    def exchange(_: np.ndarray, __: int, ones: np.ndarray) -> np.ndarray:
        stack.claim(0, len(ones) / 4096)  # the least that decisions cost
        return stack.decisions(ones)

    width, top = rows if is_turned else columns, most.bit_length()
    found = contexts(count, width, top, mask, exchange, chains)
    return found.reshape(columns, rows).T.reshape(-1) if is_turned else found


def contexts(
    count: int, width: int, top: int, mask: int, exchange: Callable, chains: Any = None
) -> np.ndarray:
    """Go through numbers of `top` binary digits and a sign, block by block, decision by decision.

    Args:
        count: of the numbers.
        width: of a row; contexts are of whole earlier rows.
        top: most digits of a magnitude.
        mask: which of four models are mixed.
        exchange: `(places, step, ones) -> bits`: which decisions are ones, given probabilities in
            2^-16; read from a stream, or known and written. Step 31 asks whether all numbers from
            the first place to before the second are zero.
        chains: `Chains`, whose parities are contexts too.
    """
    models = [model for model in range(4) if mask >> model & 1]
    row, nodes = chains_of(width), 16 + (1 << top)
    found = np.zeros(2 * row + 2 + count, np.int64)
    activity, last, is_empty, empty = np.zeros(width, np.int64), 0, 0, [[0, 0], [0, 0]]
    span, parities = 256 if chains is None else 512, 0
    counts = np.zeros(2 * span * nodes * len(models), np.int64)
    weights = [[(1 << 16) // len(models)] * len(models) for _ in range(32)]
    squares = [[1 << 36] * len(models) for _ in range(32)]
    start, length, number = 0, 16, 0

    def decide(places: np.ndarray, node: Any, step: int) -> np.ndarray:
        index = context.take(places, axis=1) + 2 * node
        ones = counts.take(index + 1)
        total = counts.take(index) + ones
        odds = _ODDS.take(((2 * ones + 1) << 11) // (total + 1))
        mixed = np.asarray(weights[step]) @ odds >> 16
        chance = _CHANCE.take(mixed + _REACH, mode="clip")
        bits = exchange(start + places, step, chance).astype(np.int64)
        gains = odds @ ((bits << 16) - chance)
        spread = (odds * odds) @ (chance * ((1 << 16) - chance) >> 16)
        for model, (gain, square) in enumerate(zip(gains.tolist(), spread.tolist(), strict=True)):
            squares[step][model] += square - (squares[step][model] >> 4)
            moved = weights[step][model] + gain * 24204406 // (len(models) * squares[step][model])
            weights[step][model] = min(max(moved, -(1 << 20)), 1 << 20)
        np.add.at(counts, (index + bits).reshape(-1), 1)
        full = index[total >= _MOST_COUNT]
        counts[full], counts[full + 1] = (counts[full] + 1) >> 1, (counts[full + 1] + 1) >> 1
        return bits

    while start < count:
        stop = min(start + length, (start // row + 1) * row, count)
        begin, end, column = 2 * row + 1 + start, 2 * row + 1 + stop, np.arange(start, stop) % width
        seen = empty[is_empty]
        ones = min(max((2 * seen[1] + 1) * 32768 // (sum(seen) + 1), 16), (1 << 16) - 16)
        is_empty = int(exchange(np.asarray([start, stop]), 31, np.asarray([ones]))[0])
        seen[is_empty] += 1
        if not is_empty:
            before = {
                far: np.abs(found[begin - far : end - far])
                for far in (row - 1, row, row + 1, 2 * row)
            }
            near = 4 * before[row] + 2 * before[2 * row] + before[row - 1] + before[row + 1]
            busy = _LEVEL[np.minimum(activity, 4095)][column]
            both = 4 * np.minimum(before[row], 3) + np.minimum(before[2 * row], 3)
            kinds = busy, _LEVEL[np.minimum(near, 4095)], 16 * busy + _LEVEL[min(last, 4095)], both
            if chains is not None:
                parities = 256 * chains.parities(start, stop)
            context = np.stack([span * place + kinds[model] for place, model in enumerate(models)])
            context = 2 * nodes * (parities + context)
            found[begin:end] = _block(stop - start, top, decide)
        if chains is not None:
            chains.follow(start, found[begin:end])
        magnitudes = np.abs(found[begin:end])
        times = np.bincount(column, minlength=width)
        mean = 16 * np.bincount(column, magnitudes, width).astype(np.int64) // np.maximum(times, 1)
        activity += np.where(times > 0, mean - activity, 0) * max(24, 256 // (number + 2)) >> 8
        last = int(16 * magnitudes.sum()) // (stop - start)
        start, length, number = stop, min(2 * length, row), number + 1
    return found[2 * row + 1 : -1]


def advance(state: Any, integer: Any) -> Any:
    """Return the state of a trellis after an integer; its lowest digit is that of the next one."""
    return (state >> 1) ^ (18 * (state & 1)) ^ (2 * (integer & 2))


def chains_of(width: int) -> int:
    """Return how many numbers are coded at once: whole rows, at least a block of them together."""
    return width * max(1, BLOCK // width)


class Chains:
    """Trellises of the places of rows, and the integers for which their numbers stand."""

    def __init__(self, count: int, width: int) -> None:
        self.row = chains_of(width)
        self._states, self.integers = np.zeros(self.row, np.int64), np.zeros(count, np.int32)

    def parities(self, start: int, stop: int) -> np.ndarray:
        """Return those of the integers at places of one row."""
        return self._states[start % self.row :][: stop - start] & 1

    def follow(self, start: int, numbers: np.ndarray) -> None:
        """Go on by the numbers that begin at a place."""
        states = self._states[start % self.row :][: len(numbers)]
        found = 2 * numbers - np.sign(numbers) * (states & 1)
        require(np.array_equal(found & 1, states & 1), "an integer is not of its parity")
        self.integers[start : start + len(numbers)] = found
        states[:] = advance(states, found)


def _of_two_tables(stack: Stack, half: int, chains: Chains) -> None:
    """Pop integers by a table for each parity, row by row."""
    models, values, first = [], [], [0]
    for parity in range(2):
        weights = table(stack, 2 * half + 1)
        used = np.flatnonzero(weights)
        models.append(stack.model(whole_frequencies(weights[used])))
        values.append(2 * (used - half) - np.sign(used - half) * parity)
        first.append(len(used))
    integer = np.concatenate(values)
    require(np.array_equal(integer & 1, np.arange(len(integer)) >= first[1]), "a table is wrong")
    # Beside each integer what it does to the state: one look-up for both.
    both = (integer << 8 | advance(integer & 1, integer)).astype(np.int32)
    tables = both[: first[1]], both[first[1] :]
    states, found = np.zeros(chains.row, np.int32), chains.integers
    for start in range(0, len(found), chains.row):
        own = states[: len(found) - start]
        is_odd = (own & 1).astype(np.bool_)
        entries = np.empty(len(own), np.int32)
        for chosen, model, entry in zip((~is_odd, is_odd), models, tables, strict=True):
            (places,) = chosen.nonzero()
            entries[places] = entry.take(stack.pop(model, len(places)))
        found[start : start + len(own)] = entries >> 8
        own[:] = (own >> 1) ^ (entries & 255)


def trellis(stack: Stack, most: int, count: int, width: int) -> np.ndarray:
    """Pop integers of magnitudes up to `most` that trellises of their columns lead to."""
    stack.claim(count, count * LEAST_BITS)
    chains, half = Chains(count, width), (most + 1) // 2
    if stack.small(1):
        _of_contexts(stack, half, count, width, chains)
    else:
        _of_two_tables(stack, half, chains)
    require(np.abs(chains.integers).max(initial=0) <= most, "an integer is not of its alphabet")
    return chains.integers


def _block(length: int, top: int, decide: Callable) -> np.ndarray:
    """Decide about the numbers of a block: zero? negative? how many digits? which?"""
    found = np.zeros(length, np.int64)
    there = np.flatnonzero(decide(np.arange(length), 0, 0))
    is_negative = decide(there, 1, 1)
    digits, size, alive = np.ones_like(there), np.ones_like(there), np.arange(len(there))
    for step in range(2, top + 1):
        alive = alive[decide(there[alive], step, step) == 1]
        digits[alive] += 1
    for step in range(16, 15 + int(digits.max(initial=1))):
        alive = np.flatnonzero(digits > step - 15)
        node = 16 + (1 << (digits[alive] - 1)) + size[alive]
        size[alive] = 2 * size[alive] + decide(there[alive], node, step)
    found[there] = np.where(is_negative, -size, size)
    return found
