"""Real streams of quantized weights: entropy coding under a prior, on the host.

Stack coding (asymmetric numeral systems) by `constriction`, with the integer tables of
`jaxcomp.coding.tables`. A stream is an array of 32-bit words: a mark with the version, a checksum
of all that follows, a checksum of the cells, the step of every leaf, and the coded cells. A
stream that was cut or altered, or is read with another prior or other shapes, is an error.

The pieces `push_cells` and `pop_cells` code one leaf on a coder that holds other things as well,
which is how bits back uses them.
"""

import importlib
import math
import zlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt32

from jaxcomp.coding.distributions import (
    PriorTree,
    StepTree,
    check_weights,
    matched_priors,
    matched_steps,
)
from jaxcomp.coding.grid import grid_step, leaf_dtype, nearest_index
from jaxcomp.coding.tables import MAX_INDEX, CellTable, cell_table
from jaxcomp.types import Params

# Chunks stay in the cache.
_WEIGHTS_PER_CHUNK = 1 << 16

_MARK = 0x4A435001  # "JCP" and the version of the format


def encode(weights: Params, prior: PriorTree, *, step: StepTree) -> UInt32[np.ndarray, "words"]:
    """Code weights, rounded to the step, under a prior.

    The stream is as long as `code_length_bits` says, within the rounding of the tables (less than
    0.001 bit per weight for weights that the prior expects; a cell less likely than 2^-24 costs
    24 bits and its place) and a constant: 3 words, 2 words per leaf, at most 2 words of the coder.

    Args:
        weights: floating array or pytree of them, finite.
        prior: one for all leaves, or a pytree with one for each.
        step: positive; one number, or a pytree with one for each leaf.

    Returns:
        The stream. Shapes, dtypes and the prior are not in it: both ends know them.

    Raises:
        ImportError: without `constriction` (install `jaxcomp[coding]`).
        TypeError: if a leaf is not floating or the prior is not one.
        ValueError: if a weight is not finite, a step is not positive or finer than 2^-23 of the
            largest weight, or priors or steps do not fit the weights.
    """
    leaves = jax.tree.leaves(weights)
    priors, steps = matched_priors(prior, weights), scalar_steps(step, weights)
    coder = new_coder()
    indices = [cell_indices(leaf, own) for leaf, own in zip(leaves, steps, strict=True)]
    # A stack: the last leaf goes in first.
    for index, own, own_step in reversed(list(zip(indices, priors, steps, strict=True))):
        push_cells(coder, index, cell_table(own, own_step))
    steps_as_words = np.asarray(steps, "<f8").view("<u4")
    body = np.concatenate([[checksum(*indices)], steps_as_words, coder.get_compressed()])
    body = body.astype(np.uint32)
    return np.concatenate([np.asarray([_MARK, checksum(body)], np.uint32), body])


def decode(words: UInt32[np.ndarray, "words"], prior: PriorTree, *, like: Params) -> Params:
    """Read weights from a stream.

    Args:
        words: from `encode`, uint32.
        prior: the one it was coded under.
        like: pytree of arrays (or `jax.ShapeDtypeStruct`) with the shapes and dtypes of the
            weights.

    Returns:
        The quantized weights, exactly: NumPy arrays in the pytree `like`.

    Raises:
        ImportError: without `constriction`.
        ValueError: if the stream is not one of this format, was cut or altered, or does not fit
            the prior or the shapes.
    """
    leaves, structure = jax.tree.flatten(like)
    priors = matched_priors(prior, like)
    words = checked_words(words)
    num_header = 3 + 2 * len(leaves)
    if len(words) < 2 or words[0] != _MARK:
        raise ValueError("words must be a stream made by jaxcomp.coding.encode, got another one.")
    if checksum(words[2:]) != words[1]:
        raise ValueError("The stream was cut or altered: its checksum does not match.")
    if len(words) < num_header:
        raise ValueError(f"The stream holds fewer leaves than the {len(leaves)} of `like`.")
    steps = words[3:num_header].astype("<u4").view("<f8").tolist()
    coder = new_coder(words[num_header:])
    indices = []
    try:
        for leaf, own, step in zip(leaves, priors, steps, strict=True):
            indices.append(pop_cells(coder, leaf_size(leaf), cell_table(own, step)))
        is_exact = coder.is_empty() and checksum(*indices) == words[2]
    except (ValueError, AssertionError, FloatingPointError):
        is_exact = False
    if not is_exact:
        raise ValueError(
            "The stream was coded under another prior or has weights of other shapes than `like`: "
            "pass those that it was encoded with."
        )
    return jax.tree.unflatten(
        structure,
        [
            cell_centres(index, step, leaf)
            for index, step, leaf in zip(indices, steps, leaves, strict=True)
        ],
    )


def push_cells(coder: Any, index: Int[np.ndarray, "N"], table: CellTable) -> None:
    """Push the cells of one leaf onto a coder."""
    model, plain = _categorical(table), stream_module().model.Uniform()
    lookup = table.lookup(index)
    for start in reversed(range(0, len(index), _WEIGHTS_PER_CHUNK)):
        part = index[start : start + _WEIGHTS_PER_CHUNK]
        symbol, width_bits, place = table.symbols(part, lookup)
        if width_bits is not None and place is not None:
            is_wide = width_bits > 0
            sizes = np.left_shift(np.int32(1), width_bits[is_wide])
            coder.encode_reverse(place[is_wide], plain, sizes)
        coder.encode_reverse(symbol, model)


def pop_cells(coder: Any, num_weights: int, table: CellTable) -> Int[np.ndarray, "N"]:
    """Pop the cells of one leaf from a coder, int32."""
    model, plain = _categorical(table), stream_module().model.Uniform()
    index = np.empty(num_weights, np.int32)
    for start in range(0, num_weights, _WEIGHTS_PER_CHUNK):
        stop = min(start + _WEIGHTS_PER_CHUNK, num_weights)
        symbol = coder.decode(model, stop - start)
        width_bits = table.widths(symbol)
        place = np.zeros(stop - start, np.int32)
        is_wide = width_bits > 0
        if is_wide.any():
            sizes = np.left_shift(np.int32(1), width_bits[is_wide])
            place[is_wide] = coder.decode(plain, sizes)
        index[start:stop] = table.cells(symbol, place)
    return index


def _categorical(table: CellTable) -> Any:
    return stream_module().model.Categorical(table.probabilities(), perfect=False)


def new_coder(words: UInt32[np.ndarray, "words"] | None = None, *, seal: bool = False) -> Any:
    """Return a stack coder of `constriction`, empty or with content."""
    coder = stream_module().stack.AnsCoder
    if words is None:
        return coder()
    return coder(np.ascontiguousarray(words, np.uint32), seal=seal)


def stream_module() -> Any:
    """Return `constriction.stream`.

    Raises:
        ImportError: if `constriction` is not installed.
    """
    try:
        return importlib.import_module("constriction").stream
    except ImportError as error:
        raise ImportError(
            "Coding weights needs constriction, which is not installed; install jaxcomp[coding]."
        ) from error


def cell_indices(weights: Any, step: float) -> Int[np.ndarray, "N"]:
    """Round weights to cells, as `quantize` does; flat, int32.

    Raises:
        ValueError: if an index is out of range: the step is finer than the weights' dtype.
    """
    check_weights(weights)
    values = np.asarray(weights, np.float64).ravel()
    index = nearest_index(values, step, dtype=leaf_dtype(weights))
    if np.max(np.abs(index), initial=0.0) > MAX_INDEX:
        raise ValueError(
            f"step must be at least the largest weight / 2^23 = "
            f"{np.max(np.abs(values)) / MAX_INDEX:.3g}, got {step:g}."
        )
    return index.astype(np.int32)


def cell_centres(index: Int[np.ndarray, "N"], step: float, like: Any) -> np.ndarray:
    """Return the centres of cells, as `quantize` rounds them, in the shape and dtype of a leaf."""
    dtype = leaf_dtype(like)
    centres = index.astype(np.float64) * step
    if dtype != np.float64:
        centres = centres.astype(np.float32).astype(dtype)
    return centres.reshape(np.shape(like))


def leaf_size(leaf: Any) -> int:
    """Return how many weights a leaf has."""
    return math.prod(np.shape(leaf))


def checksum(*arrays: np.ndarray) -> int:
    """Return the CRC-32 of integer arrays, little-endian, 32 bits each."""
    value = 0
    for array in arrays:
        if array.dtype != np.uint32:
            array = array.astype(np.int64).astype(np.uint32)
        value = zlib.crc32(array.astype("<u4", copy=False).tobytes(), value)
    return value


def checked_words(words: Any) -> UInt32[np.ndarray, "words"]:
    """Return a stream as an array, refuse what is not one axis of uint32."""
    words = np.asarray(words)
    if words.dtype.kind != "u" or words.dtype.itemsize != 4 or words.ndim != 1:
        raise ValueError(
            f"words must be one axis of uint32, got shape {words.shape} and {words.dtype}."
        )
    # What was read from a file in the other order of bytes has the same values.
    return words.astype(np.uint32, copy=False)


def scalar_steps(step: StepTree, weights: Params) -> list[float]:
    """Return one step for every leaf, as `grid_step` rounds it; refuse arrays."""
    steps = matched_steps(step, weights)
    if any(np.ndim(own) for own in steps):
        raise ValueError("step must be one number for each leaf: a stream carries no more.")
    return [
        float(grid_step(np.float64(own), dtype=leaf_dtype(leaf)))
        for own, leaf in zip(steps, jax.tree.leaves(weights), strict=True)
    ]
