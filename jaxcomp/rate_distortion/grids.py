"""Grids one twice as fine as another: interpolation, its transpose, and Fourier transforms.

Float64 on the host; a grid of n points has one of 2 n - 1 below it.
"""

import os
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import fft

_Array = Float[np.ndarray, "..."]

# Transforms that are worth threads.
_THREADED = 4096
# A cubic at -1 from its values at 0, 1, 2, 3.
_BEYOND = np.array([4.0, -6.0, 4.0, -1.0])


def transformed(values: _Array, size: int) -> Any:
    """Fourier-transform the last axis, filled up with zeros."""
    return fft.rfft(values, size, axis=-1, workers=_num_threads(size))


def back(spectrum: Any, size: int) -> Any:
    """Undo it."""
    return fft.irfft(spectrum, size, axis=-1, workers=_num_threads(size))


def _num_threads(size: int) -> int:
    """Short transforms are over before a thread starts."""
    return min(4, os.cpu_count() or 1) if size > _THREADED else 1


def blurred(values: _Array) -> _Array:
    """Average every point with its two neighbours, by halves and quarters."""
    return np.convolve(values, [0.25, 0.5, 0.25], "same")


def restricted(fine: _Array) -> _Array:
    """Transpose of `prolonged`: probabilities handed to the grid twice as coarse."""
    coarse = fine[::2].copy()
    odd = fine[1::2]
    coarse[:-1] += 0.5625 * odd
    coarse[1:] += 0.5625 * odd
    if odd.size > 1:
        coarse[2:] -= 0.0625 * odd[:-1]
        coarse[:-2] -= 0.0625 * odd[1:]
    coarse[:4] -= 0.0625 * odd[0] * _BEYOND
    coarse[-4:] -= 0.0625 * odd[-1] * _BEYOND[::-1]
    return coarse


def prolonged(coarse: _Array) -> _Array:
    """Interpolate to the grid twice as fine, by cubics."""
    fine = np.empty(2 * coarse.size - 1)
    fine[::2] = coarse
    # The cubics of the ends go on to the point that is missing.
    ends = coarse[:4] @ _BEYOND, coarse[-4:] @ _BEYOND[::-1]
    padded = np.concatenate([ends[:1], coarse, ends[1:]])
    fine[1::2] = 0.5625 * (padded[1:-2] + padded[2:-1]) - 0.0625 * (padded[:-3] + padded[3:])
    return fine


def finely_prolonged(coarse: _Array) -> _Array:
    """Interpolate to the grid twice as fine, by polynomials of degree 5."""
    if coarse.size < 6:
        return prolonged(coarse)
    fine = np.empty(2 * coarse.size - 1)
    fine[::2] = coarse
    # Beyond the ends the polynomial of the last six points goes on.
    weights = np.array([6.0, -15.0, 20.0, -15.0, 6.0, -1.0])
    first = [float(weights @ coarse[:6])]
    first = [float(weights @ np.append(first, coarse[:5])), *first]
    last = [float(weights @ coarse[::-1][:6])]
    last = [*last, float(weights @ np.append(last, coarse[::-1][:5]))]
    padded = np.concatenate([first, coarse, last])
    n = coarse.size - 1
    fine[1::2] = (
        150 * (padded[2 : n + 2] + padded[3 : n + 3])
        - 25 * (padded[1 : n + 1] + padded[4 : n + 4])
        + 3 * (padded[:n] + padded[5 : n + 5])
    ) / 256
    return fine
