"""Two checkpoints, tensor by tensor: which are the same, and how far the others are apart."""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from jaxcomp.checkpoints.tensors import Checkpoint, Tensor

Kind = Literal["same", "values", "dtype", "shape", "only in the first", "only in the second"]

# Numbers of a tensor that are compared at once.
_CHUNK = 1 << 22


class Difference(NamedTuple):
    """What became of one tensor.

    Attributes:
        path: of the tensor.
        kind: "same", if all numbers are equal; "values", if some differ; "dtype", if equal numbers
            stand in another dtype; "shape"; or which of the two has it.
        first: dtype and shape in the first checkpoint, None if it is not there.
        second: likewise.
        relative_error: `sqrt(sum (a - b)^2 / sum a^2)`, a of the first; infinite if a is zero, or
            numbers that differ are not finite; NaN where it has no meaning.
        largest: of `|a - b|`.
        num_different: numbers that differ.
    """

    path: str
    kind: Kind
    first: tuple[str, tuple[int, ...]] | None
    second: tuple[str, tuple[int, ...]] | None
    relative_error: float = math.nan
    largest: float = math.nan
    num_different: int = 0


def differences(first: Checkpoint, second: Checkpoint) -> Iterator[Difference]:
    """Yield the difference of every tensor, those of the first checkpoint in order, then others."""
    for path, tensor in first.tensors.items():
        if path in second.tensors:
            found = compare(path, tensor, second.tensors[path])
            first.release()
            second.release()
            yield found
        else:
            yield Difference(path, "only in the first", tensor[:2], None)
    for path, tensor in second.tensors.items():
        if path not in first.tensors:
            yield Difference(path, "only in the second", None, tensor[:2])


def compare(path: str, first: Tensor, second: Tensor) -> Difference:
    """Compare two tensors; NaN equals NaN."""
    told = (first.dtype, first.shape), (second.dtype, second.shape)
    if first.shape != second.shape:
        return Difference(path, "shape", *told)
    a, b = (np.asarray(one.read()).reshape(-1) for one in (first, second))
    noise = energy = largest = 0.0
    number = 0
    for start in range(0, a.size, _CHUNK):
        here, there = a[start : start + _CHUNK], b[start : start + _CHUNK]
        if first.dtype == second.dtype and np.array_equal(_bytes(here), _bytes(there)):
            energy += _square_sum(_numbers(here))
            continue
        x, y = _numbers(here), _numbers(there)
        # Whole numbers of 64 bits are compared as such.
        unequal = here != there if first.dtype == second.dtype else x != y
        differs = unequal & ~(np.isnan(x) & np.isnan(y))
        number += int(np.count_nonzero(differs))
        with np.errstate(all="ignore"):
            apart = np.where(differs, np.abs(x - y), 0.0)
        apart[np.isnan(apart)] = math.inf
        noise += _square_sum(apart)
        energy += _square_sum(x)
        largest = max(largest, float(apart.max(initial=0.0)))
    if noise == 0:
        error = 0.0
    elif energy > 0 and math.isfinite(noise):
        error = math.sqrt(noise / energy)
    else:
        error = math.inf
    kind: Kind = "values" if number else "same" if first.dtype == second.dtype else "dtype"
    return Difference(path, kind, *told, error, largest, number)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint8)


def _numbers(values: np.ndarray) -> np.ndarray:
    wide = np.complex128 if values.dtype.kind == "c" else np.float64
    return values.astype(wide)


def _square_sum(values: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        return float(np.nansum(np.abs(values) ** 2))
