"""Histograms of tensors of any size: one or two passes over chunks, and small tables in between.

As `histogram_moments` and `joint_moments`, but for a tensor that is dealt out (`problems`): a
sample gives the first bins, every chunk its sums over them, and the sums add up. What is compiled
depends on the number of bins alone. Sums of chunks are float32 of a few hundred thousand points,
made in float64 where there is a CPU; they are added in float64 on the host.

On a CPU a chunk of a large tensor is visited once (`one_pass`), for sums about one point that are
added up before anything is made of them. Where these do not say enough of the whole tensor, or its
bins have to be cut, it goes the general way from the start.

Axes: `B` bins; one group.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from jaxcomp.numerics.host import default_device
from jaxcomp.quantizers import cells as joint
from jaxcomp.quantizers.binning import (
    FEW,
    MOST_EXCESS,
    MOST_ROUNDS,
    CutBins,
    DensityBins,
    density_points,
    middle_of,
    needs_cut,
)
from jaxcomp.quantizers.bins import BinSums, PointBins, sums_of_bins
from jaxcomp.quantizers.cells import Levels, ValueBins, points_as_cells
from jaxcomp.quantizers.histograms import (
    LOG2_LARGEST,
    Moments,
    histogram_moments,
    moments_of_sums,
    normalised_once,
)
from jaxcomp.quantizers.one_pass import (
    Frame,
    as_words,
    bins_about_one,
    of_words,
    sums_about_one,
)
from jaxcomp.quantizers.placed_problems import PlacedProblem
from jaxcomp.quantizers.problems import CHUNK, SMALL_CHUNK, Chunk, Problem, fetched

# A tensor of so many times the points that give the density of a small one has so many times more.
_MANY_SAMPLES, _LARGE_SAMPLE = 32, 8


class _Unit(NamedTuple):
    """Powers of two of points and importances, and extremes in their units; (1,) each.

    Attributes:
        exponent: of the points.
        mass_exponent: of the importances.
        minimum: of the points.
        maximum: likewise.
        mean: of the importances.
        largest: likewise.
    """

    exponent: Int[Array, " groups"]
    mass_exponent: Int[Array, " groups"]
    minimum: Float[Array, " groups"]
    maximum: Float[Array, " groups"]
    mean: Float[Array, " groups"]
    largest: Float[Array, " groups"]


def histogram_of(problem: Problem, *, num_bins: int) -> Moments:
    """Return the moments of a tensor over its scales, as one group (1, B).

    Args:
        problem: the tensor.
        num_bins: B, the bins of the result.

    Source: see `binning`.
    """
    if problem.size <= num_bins:
        return _exact(problem.sample(num_bins), num_bins=num_bins)
    unit = _unit_of(problem)
    sample, is_part = _sample(problem, num_bins)

    def fill(rule: _Rule) -> tuple[BinSums, BinSums, Array]:
        sums, highest = _filled(problem, unit, rule, None, num_bins, 1)
        return sums, sums, highest

    first, middle = _density(sample, unit, num_bins=num_bins, is_part=is_part)
    frame = Frame(unit.exponent, unit.mass_exponent, unit.minimum, unit.maximum, middle)
    sums = _in_one_pass(problem, first, frame, num_bins)
    if sums is None:
        sums = _in_rounds(fill, first, MOST_EXCESS)
    return _moments(sums, unit)


def joint_histogram_of(problem: Problem, *, num_bins: int, num_levels: int) -> Moments:
    """Return the moments of cells of value and importance together, (1, `num_bins * num_levels`).

    Args:
        problem: the tensor; with importances or scales, else there are no levels to tell apart.
        num_bins: intervals of value.
        num_levels: intervals of importance.

    Source: `cells.joint_moments`.
    """
    num_cells = num_bins * num_levels
    unit = _unit_of(problem)
    if problem.size <= num_cells:
        return _exact_cells(problem.sample(num_cells), unit)
    sample, _ = _sample(problem, num_bins, of_few=True)
    levels = _levels(unit)

    def fill(rule: _Rule) -> tuple[BinSums, BinSums, Array]:
        sums, highest = _filled(problem, unit, rule, levels, num_bins, num_levels)
        return sums, *_over_levels(sums, highest, num_levels=num_levels)

    return _joint_moments(_in_rounds(fill, _even(sample, unit), joint.MOST_EXCESS), unit)


_Rule = DensityBins | ValueBins | CutBins


def _in_one_pass(
    problem: Problem, rule: DensityBins, frame: Frame, num_bins: int
) -> BinSums | None:
    """Fill the first bins as `one_pass` does.

    Returns:
        The sums; None where that is not enough, or no CPU is there to do it.
    """
    if not _is_for_one_pass(problem):
        return None
    total = np.zeros((4, num_bins))
    if isinstance(problem, PlacedProblem):
        parts = [problem.filled_about_one(rule, frame, num_bins=num_bins)]
    else:
        filled = (
            (places, _fill_about_one(chunk, rule, frame, num_bins=num_bins))
            for places, chunk in problem.chunks()
        )
        parts = (part for _, part in fetched(filled))
    for words, is_normal in parts:
        if not is_normal:
            return None
        total += words.view(np.float64)[..., 0]
    words = total.view(np.uint32).reshape(4, num_bins, 2)
    sums, is_enough = _bins_about_one(jax.device_put(words), frame)
    return sums if bool(is_enough) else None


def _is_for_one_pass(problem: Problem) -> bool:
    """Return whether one pass is likely to be enough, and a CPU there to make it."""
    if isinstance(problem, PlacedProblem):
        device = problem.where.mesh.devices.flat[0]
    else:
        device = default_device()
    # Of 128 values an octave most bins have one or none: nearly always they have to be cut again.
    is_coarse = problem.weights.dtype == jnp.bfloat16 and problem.scales is None
    is_single = problem.dtype == np.float32 and not is_coarse
    return problem.size >= CHUNK and is_single and device.platform == "cpu"


def _in_rounds(
    fill: Callable[[_Rule], tuple[BinSums, BinSums, Array]], rule: _Rule, most_excess: float
) -> BinSums:
    """Fill bins, and cut them again until they are even.

    Args:
        fill: `rule -> (sums, sums by value, largest point of every bin of value)`.
        rule: the first one.
        most_excess: see `needs_cut`.
    """
    sums, of_values, highest = fill(rule)
    is_pending, root = _needs_cut(of_values, None, most_excess=most_excess)
    for _ in range(MOST_ROUNDS):
        if not bool(is_pending[0]):
            break
        sums, of_values, highest = fill(_cut(of_values, highest))
        is_pending, root = _needs_cut(of_values, root, most_excess=most_excess)
    return sums


def _unit_of(problem: Problem) -> _Unit:
    """Visit the weights for their extremes, in the units in which they are quantized."""
    low, high, total, largest = problem.extremes()
    exponent = _exponent(max(abs(low), abs(high))) - LOG2_LARGEST
    mass_exponent = _exponent(largest)
    dtype = problem.dtype

    def in_units(value: float, exponent: int) -> Array:
        return jax.device_put(np.ldexp(np.asarray([value]), -exponent).astype(dtype))

    return _Unit(
        jax.device_put(np.asarray([exponent], np.int32)),
        jax.device_put(np.asarray([mass_exponent], np.int32)),
        in_units(low, exponent),
        in_units(high, exponent),
        in_units(total / problem.size, mass_exponent),
        in_units(largest, mass_exponent),
    )


def _exponent(value: float) -> int:
    return int(np.frexp(value)[1]) - 1 if value > 0 else 0


def _sample(problem: Problem, num_bins: int, *, of_few: bool = False) -> tuple[Chunk, bool]:
    """Return a sample, and whether there are weights beside it.

    Args:
        problem: the tensor.
        num_bins: B.
        of_few: whether small tensors have a size, and so a program, of their own.
    """
    size = 1 << (density_points(num_bins) - 1).bit_length()
    if of_few and problem.size <= SMALL_CHUNK:
        size = SMALL_CHUNK
    elif problem.size >= _MANY_SAMPLES * size:
        # Of heavy tails, whose bins would have to be cut in a further pass over all weights.
        size = _LARGE_SAMPLE * size
    return problem.sample(size), problem.size > size


def _in_units(chunk: Chunk, unit: _Unit) -> tuple[Array, Array | None]:
    points, weights = chunk.scaled()
    return _of_unit(points[None], None if weights is None else weights[None], unit)


def _of_unit(points: Array, weights: Array | None, unit: _Unit) -> tuple[Array, Array | None]:
    points = normalised_once(points, unit.exponent)
    return points, None if weights is None else normalised_once(weights, unit.mass_exponent)


@partial(jax.jit, static_argnames=("num_bins",))
def _exact(chunk: Chunk, *, num_bins: int) -> Moments:
    points, weights = chunk.scaled()
    return histogram_moments(
        points[None],
        None if weights is None else weights[None],
        num_bins=num_bins,
        num_padding=chunk.num_padding,
    )


@jax.jit
def _exact_cells(chunk: Chunk, unit: _Unit) -> Moments:
    points, weights = _in_units(chunk, unit)
    assert weights is not None
    return _of_cells(points_as_cells(points, weights, chunk.num_padding), unit)


@partial(jax.jit, static_argnames=("num_bins", "is_part"))
def _density(
    sample: Chunk, unit: _Unit, *, num_bins: int, is_part: bool
) -> tuple[DensityBins, Float[Array, ""]]:
    """Return the first bins, and a point from which most others are not far."""
    points, weights = _in_units(sample, unit)
    few = points[:, :: points.shape[1] // FEW]
    rule = DensityBins.of(
        points,
        weights,
        few,
        unit.minimum,
        unit.maximum,
        num_bins=num_bins,
        num_sampled=points.shape[1] - sample.num_padding,
        is_part=is_part,
    )
    return rule, middle_of(few)


@partial(jax.jit, static_argnames=("num_bins",))
def _fill_about_one(
    chunk: Chunk, rule: DensityBins, frame: Frame, *, num_bins: int
) -> tuple[UInt[Array, "4 bins 2"], Bool[Array, ""]]:
    """Return the sums of a chunk over every bin, in words, and whether they are sums of it."""
    points, weights = chunk.scaled()
    with jax.enable_x64(True):
        sums, is_normal = sums_about_one(
            points, weights, rule, frame, num_bins=num_bins, num_padding=chunk.num_padding
        )
        return as_words(sums), is_normal


@jax.jit
def _bins_about_one(
    words: UInt[Array, "4 bins 2"], frame: Frame
) -> tuple[BinSums, Bool[Array, ""]]:
    """Return what the sums of all chunks say, and whether that is enough: no bin need be cut."""
    with jax.enable_x64(True):
        sums, is_sound = bins_about_one(of_words(words), frame)
    is_pending, _ = needs_cut(sums, None, most_excess=MOST_EXCESS)
    return sums, is_sound & ~is_pending[0]


@jax.jit
def _even(sample: Chunk, unit: _Unit) -> ValueBins:
    points, _ = _in_units(sample, unit)
    number = (points.shape[1] - sample.num_padding).astype(points.dtype)
    return ValueBins.of(
        points, unit.minimum, unit.maximum, number=number, is_point=sample.is_point()
    )


@jax.jit
def _levels(unit: _Unit) -> Levels:
    return Levels.of(unit.mean, unit.largest)


@partial(jax.jit, static_argnames=("num_bins", "num_levels"))
def _fill(
    chunk: Chunk,
    unit: _Unit,
    rule: _Rule,
    levels: Levels | None,
    *,
    num_bins: int,
    num_levels: int,
) -> tuple[BinSums, Array]:
    """Return the sums of a chunk over every bin, and the largest point of each."""
    points, weights = _in_units(chunk, unit)
    index = _index(points, weights, rule, levels, num_bins, num_levels)
    bins = PointBins.of(index, num_bins * num_levels)
    return sums_of_bins(points, weights, bins, chunk.num_padding), bins.maximum(points)


def _index(
    points: Array,
    weights: Array | None,
    rule: _Rule,
    levels: Levels | None,
    num_bins: int,
    num_levels: int,
) -> Int[Array, "groups points"]:
    """Return the bin, or cell, of every point in units."""
    index = (
        rule.bins_of_values(points) if isinstance(rule, CutBins) else rule.bins_of(points, num_bins)
    )
    if levels is None:
        return index
    assert weights is not None
    return index * num_levels + levels.levels_of(weights, num_levels)


def _cells_of(
    points: Array,
    importance: Array | None,
    rules: tuple[_Unit, _Rule, Levels | None],
    *,
    num_bins: int,
    num_levels: int,
) -> tuple[Array, Array | None, Array]:
    """Return points and importances in units, and the cell of each."""
    unit, rule, levels = rules
    points, weights = _of_unit(points, importance, unit)
    return points, weights, _index(points, weights, rule, levels, num_bins, num_levels)


def _filled(
    problem: Problem,
    unit: _Unit,
    rule: _Rule,
    levels: Levels | None,
    num_bins: int,
    num_levels: int,
) -> tuple[BinSums, Array]:
    """Add up the sums of all chunks."""
    total = _Sums((1, num_bins * num_levels))
    if isinstance(problem, PlacedProblem):
        sizes = {"num_bins": num_bins, "num_levels": num_levels}
        num_cells = num_bins * num_levels
        for sums, highest in problem.filled(
            _cells_of, (unit, rule, levels), num_cells=num_cells, **sizes
        ):
            total.add(sums, highest)
        return total.result(problem.dtype)
    filled = (
        (places, _fill(chunk, unit, rule, levels, num_bins=num_bins, num_levels=num_levels))
        for places, chunk in problem.chunks()
    )
    for _, (sums, highest) in fetched(filled):
        total.add(sums, highest)
    return total.result(problem.dtype)


class _Sums:
    """Sums over bins so far, in float64, about the lowest point that each bin had at first."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._number = np.zeros(shape, np.int64)
        self._mass, self._first, self._second = np.zeros((3, *shape))
        self._base = np.zeros(shape)
        self._lowest, self._highest = np.full(shape, np.inf), np.full(shape, -np.inf)

    def add(self, sums: BinSums, highest: np.ndarray) -> None:
        """Add those of a chunk."""
        is_there = sums.num_points > 0
        self._base = np.where((self._number == 0) & is_there, sums.lowest, self._base)
        mass = np.asarray(sums.mass, np.float64)
        offset = np.where(is_there, sums.lowest - self._base, 0) + sums.mean
        self._number += sums.num_points
        self._mass += mass
        self._first += mass * offset
        self._second += mass * (np.asarray(sums.deviation, np.float64) ** 2 + offset * offset)
        self._lowest = np.where(is_there, np.minimum(self._lowest, sums.lowest), self._lowest)
        self._highest = np.where(is_there, np.maximum(self._highest, highest), self._highest)

    def result(self, dtype: np.dtype) -> tuple[BinSums, Array]:
        """Return the sums over all chunks, and the largest point of every bin."""
        has_mass = self._mass > 0
        divisor = np.where(has_mass, self._mass, 1)
        mean = self._first / divisor
        variance = np.maximum(self._second / divisor - mean * mean, 0)
        lowest = np.where(self._number > 0, self._lowest, self._base)
        sums = BinSums(
            jax.device_put(self._number.astype(np.int32)),
            jax.device_put(self._mass.astype(dtype)),
            jax.device_put(self._lowest.astype(dtype)),
            jax.device_put(np.where(has_mass, self._base + mean - lowest, 0).astype(dtype)),
            jax.device_put(np.sqrt(variance).astype(dtype)),
        )
        return sums, jax.device_put(self._highest.astype(dtype))


@partial(jax.jit, static_argnames=("most_excess",))
def _needs_cut(
    sums: BinSums, root: Float[Array, " groups"] | None, *, most_excess: float
) -> tuple[Bool[Array, " groups"], Float[Array, " groups"]]:
    return needs_cut(sums, root, most_excess=most_excess)


@jax.jit
def _cut(sums: BinSums, highest: Float[Array, "groups bins"]) -> CutBins:
    return CutBins.of(sums, highest).in_order()


@partial(jax.jit, static_argnames=("num_levels",))
def _over_levels(
    sums: BinSums, highest: Float[Array, "groups cells"], *, num_levels: int
) -> tuple[BinSums, Array]:
    """Join the cells of every value."""

    def of_bins(values: Array) -> Array:
        return values.reshape(1, -1, num_levels)

    number, mass, lowest, mean, deviation = (of_bins(part) for part in sums)
    least = jnp.min(lowest, axis=-1, keepdims=True)
    total = jnp.sum(mass, axis=-1, keepdims=True)
    offset = jnp.where(number > 0, lowest - least, 0) + mean
    share = mass / jnp.where(total > 0, total, 1)
    middle = jnp.sum(share * offset, axis=-1, keepdims=True)
    # The root of a sum of squares, none of which is out of range in units of the largest.
    parts = jnp.concatenate([deviation, offset - middle], axis=-1)
    unit = jnp.max(jnp.abs(parts), axis=-1, keepdims=True)
    squares = jnp.square(parts / jnp.where(unit > 0, unit, 1))
    weighted = squares * jnp.concatenate([share, share], axis=-1)
    variance = jnp.sum(weighted, axis=-1, keepdims=True)
    joined = BinSums(
        jnp.sum(number, axis=-1, dtype=jnp.int32),
        total[..., 0],
        least[..., 0],
        middle[..., 0],
        (unit * jnp.sqrt(variance))[..., 0],
    )
    return joined, jnp.max(of_bins(highest), axis=-1)


@jax.jit
def _moments(sums: BinSums, unit: _Unit) -> Moments:
    found = moments_of_sums(sums, unit.minimum, unit.maximum)
    return found._replace(exponent=unit.exponent, mass_exponent=unit.mass_exponent)


@jax.jit
def _joint_moments(sums: BinSums, unit: _Unit) -> Moments:
    return _of_cells(joint.cells_of_sums(sums, unit.maximum), unit)


def _of_cells(cells: joint.CellSums, unit: _Unit) -> Moments:
    return Moments(
        position=cells.position,
        num_points=cells.num_points,
        mass=cells.mass,
        deviation=cells.deviation,
        minimum=unit.minimum,
        maximum=unit.maximum,
        exponent=unit.exponent,
        mass_exponent=unit.mass_exponent,
    )
