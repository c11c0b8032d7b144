"""Trellis-coded quantization of tensors of any size: a sample for the prices, a pass for the codes.

As everywhere, a tensor is dealt out in parts of few sizes: steps of its chains, so many at a time,
and chains in groups. Of the steps before, the pass keeps a byte a weight, the way back.

Axes: `T` steps, `P` chains, `K` magnitudes.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcomp.decoder.streams import BLOCK
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


class Moments(NamedTuple):
    """What a tensor is like over its scales.

    Attributes:
        importance: mean h, of what is divided by the scales.
        variance: `sum h (w - mean)^2` over `sum h`.
        largest: magnitude.
    """

    importance: float
    variance: float
    largest: float


def moments_of(problem: Problem) -> Moments:
    """Return the moments of a tensor."""
    sums, largest = np.zeros(3), 0.0
    for places in problem.parts():
        values, importance = _scaled(problem, places)
        wide = values.astype(np.float64)
        mass = np.ones(1) if importance is None else importance.astype(np.float64)
        sums += [
            values.size if importance is None else mass.sum(),
            np.sum(mass * wide),
            np.sum(mass * wide * wide),
        ]
        largest = max(largest, float(np.abs(values).max()))
    mass, first, second = sums.tolist()
    variance = max(second - first * first / mass, 0.0) / mass if mass > 0 else 0.0
    return Moments(mass / problem.size, variance, largest)


def design_on_sample(
    problem: Problem, moments: Moments, step: float, slope: float
) -> tuple[Design, Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Return prices for a tensor, and how they fared on a sample of it.

    Args:
        problem: the tensor.
        moments: of it.
        step: over the scales.
        slope: distortion over the mean importance that a bit is worth.

    Returns:
        The design; of each weight of the sample, its value over the scale and its importance.
    """
    size = min(problem.size, _SAMPLE[0] * _SAMPLE[1])
    places = np.arange(size, dtype=np.int64) * problem.size // size
    values, importance = _scaled(problem, places)
    found = design(
        _weights(values / step, importance, moments.importance, _SAMPLE[1], *_SAMPLE),
        jnp.float32(slope / step**2),
    )
    mass = np.ones_like(values) if importance is None else importance
    return found, values, mass


def codes_in_chains(
    problem: Problem, moments: Moments, step: float, price: Float[np.ndarray, " K"], order: int
) -> Int[np.ndarray, " points"]:
    """Return the integers of a tensor, int16.

    Args:
        problem: the tensor.
        moments: of it.
        step: over the scales.
        price: of a design.
        order: of the chains, 1 or 2, see `jaxcomp.coding.trellis.in_order`.
    """
    width = num_columns(problem.shape) if order == 1 else num_rows(problem.shape)
    row = width * max(1, BLOCK // width)
    groups = list(_groups(row))
    price = jax.device_put(np.asarray(price, np.float32))
    starts = range(0, problem.size, _STEPS * row)

    def parts(start: int) -> Iterator[tuple[slice, Any]]:
        places = _places(problem, start, start + _STEPS * row, order)
        values, importance = _scaled(problem, places)
        for chains, size in groups:
            own = _weights(values / step, importance, moments.importance, row, _STEPS, size, chains)
            yield chains, own

    costs = [starting_costs(size) for _, size in groups]
    pointers: list[list[Array]] = []
    for start in starts:
        pointers.append([])
        for number, (_, own) in enumerate(parts(start)):
            costs[number], found = forward(costs[number], own, price)
            pointers[-1].append(found)
    states = [jnp.argmin(own, axis=0).astype(jnp.int32) for own in costs]
    codes = np.empty(problem.size, np.int16)
    for start in reversed(starts):
        number = min(_STEPS * row, problem.size - start)
        found, way = np.zeros((_STEPS, row), np.int16), pointers.pop()
        for group, (chains, own) in enumerate(parts(start)):
            states[group], integers = _backward(states[group], way[group], own, price)
            found[:, chains] = np.asarray(integers)[:, : chains.stop - chains.start]
        codes[_places(problem, start, start + number, order)] = found.reshape(-1)[:number]
    return codes


@jax.jit
def _backward(
    states: Int[Array, " P"], pointers: Array, weights: Weights, price: Float[Array, " K"]
) -> tuple[Array, Array]:
    before, integers = backward(states, pointers, weights, price)
    return before, integers.astype(jnp.int16)


def num_columns(shape: tuple[int, ...]) -> int:
    """Return how many weights a row has for codes that go row by row."""
    return shape[-1] if len(shape) > 1 else BLOCK


def num_rows(shape: tuple[int, ...]) -> int:
    """Return how many rows there are; 1 where they are none."""
    return int(np.prod(shape[:-1])) if len(shape) > 1 else 1


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
    rows, columns = num_rows(problem.shape), num_columns(problem.shape)
    numbers = np.arange(start, stop)
    return numbers % rows * columns + numbers // rows


def _scaled(problem: Problem, places: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Return weights over their scales, and what their squared errors count."""
    values, importance = problem.points(places), problem.importance_of(places)
    if problem.scales is None or problem.scales.size == 1:
        return values, importance
    scale = problem.scale_of(places)
    assert scale is not None
    squared = scale * scale
    return values / scale, squared if importance is None else importance * squared


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
