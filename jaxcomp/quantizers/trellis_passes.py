"""Trellis-coded quantization of tensors of any size: a sample for the prices, a pass for the codes.

As everywhere, a tensor is dealt out in parts of few sizes: steps of its chains, so many at a time,
and chains in groups. Of the steps before, the pass keeps four bytes a weight, the way back.

Axes: `T` steps, `P` chains, `K` magnitudes.
"""

import math
import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcomp.decoder.arrays import columns_of
from jaxcomp.decoder.streams import chains_of
from jaxcomp.quantizers.problems import Problem
from jaxcomp.quantizers.scalar.trellis import (
    Design,
    Weights,
    backward,
    design,
    forward,
    starting_costs,
)

# Steps and chains of a sample, on which prices are found; steps of a part, most chains of a group.
_SAMPLE, _STEPS, _MOST_CHAINS, _LEAST_CHAINS = (64, 256), 64, 512, 128
# The largest integer.
MOST = (1 << 15) - 1


def design_on_sample(
    problem: Problem, step: float, slope: float
) -> tuple[Design, Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Return prices for a tensor, and how they fared on a sample of it.

    Args:
        problem: the tensor.
        step: over the scales.
        slope: distortion over the mean importance that a bit is worth.

    Returns:
        The design; of each weight of the sample, its value over the scale and its importance.
    """
    size = min(problem.size, _SAMPLE[0] * _SAMPLE[1])
    values, importance = problem.scaled(problem.spread(size))
    found = design(
        _weights(values / step, importance, problem.moments.importance, _SAMPLE[1], *_SAMPLE),
        jnp.float32(slope / step**2),
    )
    mass = np.ones_like(values) if importance is None else importance
    return found, values, mass


def codes_in_chains(
    problem: Problem, step: float, price: Float[np.ndarray, " K"], order: int
) -> Int[np.ndarray, " points"]:
    """Return the integers of a tensor, int16.

    Args:
        problem: the tensor.
        step: over the scales.
        price: of a design.
        order: of the chains, 1 or 2, see `jaxcomp.coding.trellis.in_order`.
    """
    row, unit = num_chains(problem.shape, order), problem.moments.importance
    groups = list(_groups(row))
    price = jax.device_put(np.asarray(price, np.float32))
    starts = range(0, problem.size, _STEPS * row)

    def parts(start: int) -> Iterator[tuple[slice, Any]]:
        places = _places(problem, start, start + _STEPS * row, order)
        values, importance = problem.scaled(places)
        for chains, size in groups:
            own = _weights(values / step, importance, unit, row, _STEPS, size, chains)
            yield chains, own

    costs = [starting_costs(size) for _, size in groups]
    pointers = _Pointers(len(starts), [(_STEPS, size) for _, size in groups])
    for place, start in enumerate(starts):
        for number, (_, own) in enumerate(parts(start)):
            costs[number], found = forward(costs[number], own, price)
            pointers.put(place, number, found)
    states = [jnp.argmin(own, axis=0).astype(jnp.int32) for own in costs]
    codes = np.empty(problem.size, np.int16)
    for place, start in reversed(list(enumerate(starts))):
        number = min(_STEPS * row, problem.size - start)
        found, way = np.zeros((_STEPS, row), np.int16), pointers.pop(place)
        for group, (chains, own) in enumerate(parts(start)):
            states[group], integers = _backward(
                states[group], jax.device_put(way[group]), own, price
            )
            found[:, chains] = np.asarray(integers)[:, : chains.stop - chains.start]
        codes[_places(problem, start, start + number, order)] = found.reshape(-1)[:number]
    return codes


class _Pointers:
    """Ways back through all parts of a tensor, whose memory is given back part by part.

    Args:
        number: of parts.
        shapes: of what each group has in a part.
    """

    def __init__(self, number: int, shapes: Sequence[tuple[int, int]]) -> None:
        ends = np.cumsum([4 * math.prod(shape) for shape in shapes]).tolist()
        # Whole pages.
        self._size = -(-ends[-1] // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self._memory = mmap.mmap(-1, number * self._size)
        self._groups = list(zip([0, *ends[:-1]], ends, shapes, strict=True))

    def put(self, place: int, group: int, pointers: Array) -> None:
        """Keep those of a group in a part."""
        self._view(place, group)[:] = np.asarray(pointers)

    def pop(self, place: int) -> list[np.ndarray]:
        """Return those of a part, the last one that is there."""
        found = [self._view(place, group).copy() for group in range(len(self._groups))]
        if hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED, place * self._size, self._size)
        return found

    def _view(self, place: int, group: int) -> np.ndarray:
        start, stop, shape = self._groups[group]
        number = (stop - start) // 4
        offset = place * self._size + start
        return np.frombuffer(self._memory, np.uint32, number, offset).reshape(shape)


@jax.jit
def _backward(
    states: Int[Array, " P"], pointers: Array, weights: Weights, price: Float[Array, " K"]
) -> tuple[Array, Array]:
    before, integers = backward(states, pointers, weights, price)
    return before, integers.astype(jnp.int16)


def num_chains(shape: tuple[int, ...], order: int) -> int:
    """Return how many chains a tensor of a shape has, in one of the two orders."""
    columns = columns_of(shape)
    return chains_of(columns if order == 1 else math.prod(shape) // columns)


def _groups(row: int) -> Iterator[tuple[slice, int]]:
    """Return the chains of groups, and the size to which each is filled up: few sizes."""
    for begin in range(0, row, _MOST_CHAINS):
        number = min(row - begin, _MOST_CHAINS)
        shift = max((number - 1).bit_length() - 3, 0)
        yield slice(begin, begin + number), max(-(-number >> shift) << shift, _LEAST_CHAINS)


def _places(
    problem: Problem, start: int, stop: int, order: int
) -> slice | Int[np.ndarray, " places"]:
    """Return places in the flattened tensor of consecutive weights in their order."""
    stop = min(stop, problem.size)
    if order == 1:
        return slice(start, stop)
    columns = columns_of(problem.shape)
    rows = problem.size // columns
    numbers = np.arange(start, stop)
    return numbers % rows * columns + numbers // rows


def _weights(
    values: Float[np.ndarray, " points"],
    importance: Float[np.ndarray, " points"] | None,
    unit: float,
    row: int,
    num_steps: int,
    num_chains: int,
    chains: slice = slice(None),
) -> Weights:
    """Return consecutive weights as steps of some chains, filled up.

    Args:
        values: over the step, in the order of the chains.
        importance: of each; None for 1.
        unit: of the importances.
        row: chains in all.
        num_steps: to which they are filled up.
        num_chains: likewise.
        chains: which of them.
    """

    def filled(flat: np.ndarray) -> np.ndarray:
        whole = np.zeros(num_steps * row, np.float32)
        whole[: len(flat)] = flat
        own = whole.reshape(num_steps, row)[:, chains]
        return np.pad(own, [(0, 0), (0, num_chains - own.shape[1])])

    steps = np.zeros(num_chains, np.int32)
    own = (len(values) - np.arange(row) + row - 1)[chains] // row
    steps[: len(own)] = own
    mass = np.ones((1, 1), np.float32) if importance is None else filled(importance / unit)
    return Weights(*(jax.device_put(part) for part in (filled(values), mass, steps)))
