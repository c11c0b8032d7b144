"""Slow and plain counterparts of the decoder: stack coding by whole numbers of Python."""

from typing import Any

import numpy as np

from jaxcomp.coding.streams import StackWriter
from jaxcomp.decoder.streams import Stack

TOTAL = 1 << 24


class PlainStack(Stack):
    """A stream read by the formulas of `docs/format.md`, section 1, symbol by symbol."""

    def __init__(self, data: bytes, room: int = 1 << 40) -> None:
        self._words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").tolist()
        self._state = 0
        for _ in range(2):
            self._refill()
        self._bits, self._room = 1e300, room

    def _refill(self) -> None:
        if self._words:
            self._state = (self._state << 32) + self._words.pop()

    def symbol(self, ends: Any) -> int:
        """Pop a symbol by cumulative frequencies."""
        q = self._state % TOTAL
        symbol = int(np.searchsorted(ends, q, side="right"))
        start = int(ends[symbol - 1]) if symbol else 0
        self._state = (int(ends[symbol]) - start) * (self._state >> 24) + q - start
        if self._state < 1 << 32:
            self._refill()
        return symbol

    def small(self, width: int) -> int:
        """As `Stack.small`."""
        return self.symbol(np.arange(1, (1 << width) + 1) << (24 - width))

    def plain(self, width: int, count: int) -> np.ndarray:
        """As `Stack.plain`."""
        return np.asarray([self.small(width) for _ in range(count)], np.int64)

    def of_widths(self, widths: np.ndarray) -> np.ndarray:
        """As `Stack.of_widths`."""
        return np.asarray([self.small(int(width)) for width in widths], np.int64)

    def of_table(self, frequencies: np.ndarray, count: int) -> np.ndarray:
        """As `Stack.of_table`."""
        return self.pop(self.model(frequencies), count)

    def model(self, frequencies: np.ndarray) -> Any:
        """As `Stack.model`."""
        return np.cumsum(frequencies) if len(frequencies) > 1 else None

    def pop(self, model: Any, count: int) -> np.ndarray:
        """As `Stack.pop`."""
        symbols = [0 if model is None else self.symbol(model) for _ in range(count)]
        return np.asarray(symbols, np.int64)

    def decisions(self, ones: np.ndarray) -> np.ndarray:
        """As `Stack.decisions`."""
        return np.asarray([self.symbol([TOTAL - 256 * int(p), TOTAL]) for p in ones], np.int64)

    def finish(self) -> None:
        """As `Stack.finish`."""
        assert self._state == 0
        assert not self._words


def pushed(*pairs: tuple[int, int]) -> bytes:
    """The stream of numbers of so many bits."""
    writer = StackWriter()
    for value, width in pairs:
        writer.small(value, width)
    return writer.to_bytes()
