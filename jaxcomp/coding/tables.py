"""Integer probability tables for the cells of a prior, made on the host.

The coder works with whole frequencies that add up to 2^24, so a table has far fewer symbols than
a fine step has cells. Neighbouring cells are therefore joined into groups of 2^l, as long as the
density hardly changes within one; a weight is coded as its group, then l plain bits for the cell
within it. Where cells are wide, every group is one cell. A table depends on prior and step only,
never on the weights, and covers every index up to 2^23.

Host, float64; frequencies are integers, so that coder and decoder agree on every bit.

Axes: `G` groups on either side of zero, `S = 2 G + 1` symbols, `N` weights.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from jaxcomp.coding.distributions import Gaussian, Laplace, Prior, ScaleMixture, SpikeAndSlab
from jaxcomp.numerics.integers import largest_magnitude

PRECISION = 24
"""Frequencies add up to 2^24."""

MAX_INDEX = 1 << 23
"""Largest index of a cell: a float32 cannot tell finer multiples of a step apart."""

# Within a group the density may fall by this many nats: coding its cells as equally likely then
# costs less than 0.05^2 / 24 nats, one ten-thousandth of a nat.
_FLATNESS_NATS = 0.05
_LEAST_MASS = 2.0**-PRECISION
# All mass in the cell of zero; next to none within the cells of the table.
_SCALE_RANGE = (2.0**-40, 2.0**80)


class CellTable(NamedTuple):
    """Groups of cells of one prior and step, with integer frequencies."""

    starts: Int[np.ndarray, "G"]
    """int64, ascending from 1: first cell of every group, as its distance from zero."""
    width_bits: Int[np.ndarray, "G"]
    """int64: l, the group has 2^l cells."""
    frequencies: Int[np.ndarray, "S"]
    """int64, at least 1, with sum 2^24: of the positive groups, the negative ones, and cell 0."""

    def lookup(self, index: Int[np.ndarray, "N"]) -> Int[np.ndarray, "distances"]:
        """Return the number of the group (int32) for every distance from 0 to the largest.

        A lookup is several times as fast as a search, and rarely long. Distance 0 has group 0.
        """
        top = largest_magnitude(index)
        bounds = np.append(self.starts, MAX_INDEX + 1)
        lengths = np.clip(np.minimum(bounds[1:], top + 1) - bounds[:-1], 0, None)
        lengths[0] += 1
        return np.repeat(np.arange(len(self.starts), dtype=np.int32), lengths)

    def symbols(
        self, index: Int[np.ndarray, "N"], lookup: Int[np.ndarray, "distances"]
    ) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"] | None, Int[np.ndarray, "N"] | None]:
        """Return symbol, width bits and place within the group (int32; None if none is wide)."""
        num_groups = len(self.starts)
        distance = np.abs(index)
        group = lookup[distance]
        symbol = group + (index < 0) * np.int32(num_groups)
        is_zero = distance == 0
        symbol[is_zero] = 2 * num_groups
        if not self.width_bits[: lookup[-1] + 1].any():
            return symbol, None, None
        width_bits = self.width_bits.astype(np.int32)[group]
        place = distance - self.starts.astype(np.int32)[group]
        width_bits[is_zero] = 0
        place[is_zero] = 0
        return symbol, width_bits, place

    def widths(self, symbol: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
        """Return the width bits (int32) of symbols."""
        both = np.concatenate([self.width_bits, self.width_bits, np.zeros(1, np.int64)])
        return both.astype(np.int32)[symbol]

    def cells(
        self, symbol: Int[np.ndarray, "N"], place: Int[np.ndarray, "N"]
    ) -> Int[np.ndarray, "N"]:
        """Return the index of the cell (int32)."""
        first = np.concatenate([self.starts, -self.starts, np.zeros(1, np.int64)])
        sign = np.where(np.arange(len(first)) < len(self.starts), 1, -1)
        return first.astype(np.int32)[symbol] + sign.astype(np.int32)[symbol] * place

    def coded_bits(self, index: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
        """Return what the coder spends on every cell: log2 of integer frequencies, plain bits."""
        index = np.asarray(index, np.int32)
        symbol, width_bits, _ = self.symbols(index, self.lookup(index))
        bits = PRECISION - np.log2(self.frequencies)[symbol]
        return bits if width_bits is None else bits + width_bits

    def probabilities(self) -> Float[np.ndarray, "S"]:
        """Return floats that `constriction` turns into exactly these frequencies.

        It gives every symbol one unit and rounds the cumulative rest down; half a unit of margin
        keeps that rounding away from any whole number.
        """
        free = self.frequencies - 1
        cumulative = np.cumsum(free)[:-1] + 0.5
        ends = np.concatenate([[0.0], cumulative, [float(free.sum())]])
        return np.diff(ends) / free.sum()


def cell_table(prior: Prior, step: float) -> CellTable:
    """Return the table of a prior and a step; the last few are kept.

    Args:
        prior: with known parameters.
        step: positive.
    """
    fields = [np.atleast_1d(np.asarray(field, np.float64)) for field in prior]
    # In units of a power of two near the step, so that a table depends on ratios only. A prior
    # that is wider or narrower against the step than these bounds has the table of the bound.
    mantissa, exponent = math.frexp(step)
    with np.errstate(over="ignore", under="ignore"):
        fields[-1] = np.clip(np.ldexp(fields[-1], -exponent), *_SCALE_RANGE)
    return _cell_table(type(prior), tuple(tuple(field.tolist()) for field in fields), mantissa)


@lru_cache(maxsize=64)
def _cell_table(
    family: type[Prior], fields: tuple[tuple[float, ...], ...], step: float
) -> CellTable:
    parts: list[Any] = [
        np.asarray(field) if family is ScaleMixture else field[0] for field in fields
    ]
    prior = family(*parts)
    starts, width_bits = _groups(prior, step)
    edges = (np.append(starts, MAX_INDEX + 1) - 0.5) * step
    # The mass beyond the last edge belongs to the last group.
    above = upper_tail(prior, edges)
    above[-1] = 0.0
    side = above[:-1] - above[1:]
    mass = np.concatenate([side, side, [max(1 - 2 * above[0], 0.0)]])
    return CellTable(starts, width_bits, _whole_frequencies(mass))


def _groups(prior: Prior, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Halve the range of distances until every group is flat, light, or one cell."""
    starts = np.ones(1, np.int64)
    finished = []
    for bits in range(23, -1, -1):
        low, high = starts * step, (starts + (1 << bits) - 1) * step
        mass = upper_tail(prior, low - 0.5 * step) - upper_tail(prior, high + 0.5 * step)
        fall = _log_density(prior, low) - _log_density(prior, high)
        is_done = (mass < _LEAST_MASS) | (fall < _FLATNESS_NATS) | (bits == 0)
        finished.append((starts[is_done], np.full(np.count_nonzero(is_done), bits)))
        left = starts[~is_done]
        starts = np.concatenate([left, left + (1 << bits >> 1)])
    all_starts, all_bits = (np.concatenate(part) for part in zip(*finished, strict=True))
    order = np.argsort(all_starts)
    return all_starts[order], all_bits[order].astype(np.int64)


def _whole_frequencies(mass: Float[np.ndarray, "S"]) -> Int[np.ndarray, "S"]:
    total = 1 << PRECISION
    # One unit for every symbol, and one more for the last: see `CellTable.probabilities`.
    free = total - len(mass) - 1
    frequencies = np.floor(mass / mass.sum() * free).astype(np.int64) + 1
    frequencies[-1] += 1
    frequencies[np.argmax(frequencies)] += total - frequencies.sum()
    return frequencies


def upper_tail(prior: Any, x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return P(w > x), x >= 0, from the survival function."""
    match prior:
        case Gaussian(scale):
            return _gaussian_tail(x, scale)
        case Laplace(scale):
            return 0.5 * np.exp(-x / scale)
        case SpikeAndSlab(spike, scale):
            return (1 - spike) * _gaussian_tail(x, scale)
        case ScaleMixture(shares, scales):
            shares = np.asarray(shares) / np.sum(shares)
            return _gaussian_tail(x[..., None], np.asarray(scales)) @ shares
    raise TypeError(f"There are no cells for a {type(prior).__name__}.")


def _log_density(prior: Any, x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return log p(x), x > 0, up to a constant."""
    match prior:
        case Gaussian(scale) | SpikeAndSlab(_, scale):
            return -0.5 * (x / scale) ** 2
        case Laplace(scale):
            return -x / scale
        case ScaleMixture(shares, scales):
            shares, scales = np.asarray(shares), np.asarray(scales)
            exponents = -0.5 * (x[..., None] / scales) ** 2
            return np.asarray(special.logsumexp(exponents, axis=-1, b=shares / scales))
    raise TypeError(f"There are no cells for a {type(prior).__name__}.")


def _gaussian_tail(x: Any, scale: Any) -> Any:
    return 0.5 * special.erfc(x / (scale * np.sqrt(2.0)))
