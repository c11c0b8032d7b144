"""Weights drawn from a posterior by decoding them from a stack of bits, and pushed back.

A stack that holds uniform bits is a source of randomness: decoding a symbol under a distribution
draws the symbol from it and takes `-log2` of its probability off the stack; encoding it puts the
same bits back. The coder's probabilities are multiples of 2^-24 and at least 1 of them, so a
support that is wide against the posterior would draw weights tens of deviations out: every weight
therefore has a support of its own, six to seven deviations to either side (2e-9 lies beyond),
and where a deviation spans more than 64 cells, powers of two of them are joined and the cell
within is drawn uniformly (at most 4e-5 nats from the Gaussian).

Many weights per call of the coder: those with supports of one size go together. Host, float64.

Axes: `N` weights.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from jaxcomp.coding.ans import stream_module
from jaxcomp.coding.tables import MAX_INDEX

SUPPORT_DEVIATIONS = 6.0

_CELLS_PER_DEVIATION = 64
# Chunks stay in the cache; a call of the coder for each size of support still has many weights.
_WEIGHTS_PER_CHUNK = 1 << 16

_MAX_SUPPORT = 1024
# Up to here a table of masses is faster than the coder's own search for a quantile.
_MAX_TABULATED = 6


def _support_sizes() -> Int[np.ndarray, "sizes"]:
    """Round the sizes of supports above 16 up to 16, 18, 20, ..., at most an eighth more."""
    sizes = np.arange(_MAX_SUPPORT)
    grain = np.maximum(1 << np.maximum(np.frexp(sizes / 16.0)[1], 0), 1)
    return -(-sizes // grain) * grain


_SUPPORT_SIZES = _support_sizes()


class _Plan(NamedTuple):
    """How one chunk of weights is coded, sorted by the size of support."""

    order: Int[np.ndarray, "N"]
    mean: Float[np.ndarray, "N"]
    """In joined cells from the first of the support, sorted."""
    scale: Float[np.ndarray, "N"]
    """In joined cells, sorted."""
    first: Int[np.ndarray, "N"]
    """Joined cell that the support begins with; not sorted."""
    width_bits: Int[np.ndarray, "N"]
    """int32: log2 of the cells in a joined one; not sorted."""
    groups: list[tuple[int, int, int]]
    """Size of support, begin and end in the sorted arrays."""


def _plan(mean: Float[np.ndarray, "N"], scale: Float[np.ndarray, "N"]) -> _Plan:
    width_bits = np.maximum(np.frexp(scale * (1.0 / _CELLS_PER_DEVIATION))[1], 0)
    if width_bits.any():
        # A joined cell j holds the cells j 2^b, ..., (j + 1) 2^b - 1.
        shrink = np.ldexp(1.0, -width_bits)
        mean = (mean + 0.5) * shrink - 0.5
        scale = scale * shrink
    reach = SUPPORT_DEVIATIONS * scale
    first = np.floor(mean - reach + 0.5)
    needed = (np.floor(mean + reach + 0.5) - first).astype(np.int16) + np.int16(1)
    size = _SUPPORT_SIZES.astype(np.int16)[needed]
    first -= (size - needed) >> 1
    order = np.argsort(size, kind="stable")
    sorted_mean = (mean - first)[order]
    ends = np.cumsum(np.bincount(size))
    present = np.flatnonzero(np.diff(ends, prepend=0))
    begins = np.append(0, ends[present])
    groups = list(zip(present.tolist(), begins.tolist(), ends[present].tolist(), strict=False))
    return _Plan(
        order,
        sorted_mean,
        scale[order],
        first.astype(np.int32),
        width_bits.astype(np.int32),
        groups,
    )


def draw(
    coder: Any, mean: Float[np.ndarray, "N"], scale: Float[np.ndarray, "N"]
) -> Int[np.ndarray, "N"]:
    """Draw cells from Gaussians by decoding them from the coder.

    Args:
        coder: stack coder that holds uniform bits; they are consumed.
        mean: in units of the step, |mean| + 8 scale <= 2^23.
        scale: in units of the step, positive.

    Returns:
        Index of the cell of every weight, int32.
    """
    index = np.empty(len(mean), np.int32)
    for start, stop in _chunks(len(mean)):
        index[start:stop] = _draw_chunk(coder, mean[start:stop], scale[start:stop])
    return index


def put_back(
    coder: Any,
    mean: Float[np.ndarray, "N"],
    scale: Float[np.ndarray, "N"],
    index: Int[np.ndarray, "N"],
) -> None:
    """Undo `draw`: encode the cells, so that the bits they were drawn from are on the coder again.

    Raises:
        ValueError: if a cell lies outside its support, so it was not drawn from these Gaussians.
    """
    for start, stop in reversed(_chunks(len(mean))):
        _put_back_chunk(coder, mean[start:stop], scale[start:stop], index[start:stop])


def _draw_chunk(coder: Any, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    model = stream_module().model
    plan = _plan(mean, scale)
    symbols = np.zeros(len(mean), np.int32)
    for size, begin, end in plan.groups:
        if size > 1:
            symbols[begin:end] = coder.decode(*_law(plan, size, begin, end))
    index = np.empty(len(mean), np.int32)
    index[plan.order] = symbols
    index += plan.first
    is_wide = plan.width_bits > 0
    if is_wide.any():
        bits = plan.width_bits[is_wide]
        index <<= plan.width_bits
        index[is_wide] += coder.decode(model.Uniform(), np.left_shift(np.int32(1), bits))
    return index


def _put_back_chunk(coder: Any, mean: np.ndarray, scale: np.ndarray, index: np.ndarray) -> None:
    model = stream_module().model
    plan = _plan(mean, scale)
    is_wide = plan.width_bits > 0
    if is_wide.any():
        sizes = np.left_shift(np.int32(1), plan.width_bits[is_wide])
        places = index[is_wide] & (sizes - 1)
        coder.encode_reverse(places, model.Uniform(), sizes)
        index = index >> plan.width_bits
    symbols = (index - plan.first)[plan.order]
    for size, begin, end in reversed(plan.groups):
        inside = symbols[begin:end]
        if inside.min() < 0 or inside.max() >= size:
            raise ValueError("A weight lies outside the support of its posterior.")
        if size > 1:
            coder.encode_reverse(inside, *_law(plan, size, begin, end))


def _law(plan: _Plan, size: int, begin: int, end: int) -> tuple[Any, ...]:
    """Return the coder's model of Gaussians on supports of one size, and its parameters."""
    model = stream_module().model
    mean, scale = plan.mean[begin:end], plan.scale[begin:end]
    if size > _MAX_TABULATED:
        return model.QuantizedGaussian(0, size - 1), mean, scale
    # Both ends of a support take in what lies beyond.
    cumulative = np.empty((end - begin, size + 1))
    cumulative[:, 0], cumulative[:, size] = 0.0, 1.0
    edges = np.arange(size - 1) + 0.5
    cumulative[:, 1:size] = special.ndtr((edges - mean[:, None]) / scale[:, None])
    return model.Categorical(perfect=False), np.diff(cumulative, axis=1)


def is_representable(mean: Float[np.ndarray, "N"], scale: Float[np.ndarray, "N"]) -> bool:
    """Tell whether all supports lie within the indices that a prior's table covers."""
    if not len(mean):
        return True
    return bool(max(mean.max(), -mean.min()) + 8 * scale.max() <= MAX_INDEX)


def _chunks(num_weights: int) -> list[tuple[int, int]]:
    starts = range(0, num_weights, _WEIGHTS_PER_CHUNK)
    return [(start, min(start + _WEIGHTS_PER_CHUNK, num_weights)) for start in starts]
