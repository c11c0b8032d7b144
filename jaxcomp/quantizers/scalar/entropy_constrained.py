"""Entropy-constrained scalar quantization: distortion against the bits of an ideal entropy coder.

Minimises `sum_i h_i (w_i - c_{a(i)})^2 + multiplier * sum_i -log2 p_{a(i)}` over centroids and
assignments, p the frequencies of the symbols: of *numbers* of weights, not of their importances.
A large h buys a near centre, a small one takes a cheap symbol, so that the points of a cluster are
no interval, and clusters die. Swept over the multiplier this gives the operational rate-distortion
curve of a group of weights; its unit is distortion per bit, so that one multiplier in several
groups is the optimal allocation between them.

Two methods share the interface. "uniform" is the strong baseline of the literature: equal cells
around zero with a wider one in the middle (dead zone), reconstruction at the weighted centroids,
the best step and dead zone for every multiplier. "lagrangian" starts there (or from symbols
spread out by mass, if that costs less) and iterates.

Everything runs on cells: points that agree in value and in importance up to the resolution of a
two-dimensional histogram (`joint_moments`), or the points themselves where they are few. A cell
goes whole to one symbol, so that rate and distortion on the curve are those of a real quantizer of
the raw points. Against a multiplier per point nothing is lost but the variation of h in a cell.

Axes: `...` groups, `N` points, `B` cells, `M` multipliers, `K` symbols.

Sources: Chou, Lookabaugh, Gray, IEEE Trans. ASSP 37 (1989), for the iteration; Gish and Pierce,
IEEE Trans. Inf. Theory 14 (1968), for uniform cells at high rate; Sullivan, IEEE Trans. Inf.
Theory 42 (1996), for the dead zone; Choi, El-Khamy, Lee, arXiv:1612.01543, section 4.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt

from jaxcomp.numerics import across
from jaxcomp.numerics.checks import check_floating, check_points, is_concrete
from jaxcomp.numerics.scaling import normalise, restore, restore_as
from jaxcomp.numerics.segments import segment_sum
from jaxcomp.numerics.sums import (
    pairwise_sum,
    running_maximum,
    running_sum,
)
from jaxcomp.numerics.transformations import always_compiled, vectorized, without_derivative
from jaxcomp.quantizers import placed
from jaxcomp.quantizers.assignment import assignment_dtype
from jaxcomp.quantizers.cells import joint_moments
from jaxcomp.quantizers.histograms import (
    MOMENTS_SIGNATURE,
    Moments,
    about_one,
    accumulation_dtype,
    importance_in_units,
)

EntropyMethod = Literal["lagrangian", "uniform"]
ENTROPY_METHODS: tuple[str, ...] = get_args(EntropyMethod)
MultiplierScale = Literal["relative", "absolute"]
MULTIPLIER_SCALES: tuple[str, ...] = get_args(MultiplierScale)

# Steps of the uniform grids that are tried, from twice the largest weight to a 256th of the spread.
_NUM_STEPS = 64
# Half-widths of the middle cell in steps: 0.5 is a uniform grid.
_DEAD_ZONES = (0.5, 0.57, 0.65, 0.75)
_UNROLL = 4


class RateDistortionCurve(NamedTuple):
    """Quantizers of one group of weights, one for each multiplier (leading axes for many groups).

    Attributes:
        rate_bits: (..., M) entropy of the symbols, bits per weight, codebook not included.
        distortion: (..., M) `sum h (w - c)^2` of the group.
        multiplier: (..., M) absolute, distortion per bit.
        objective: (..., M) distortion + multiplier * N * rate_bits.
        centroids: (..., M, K) ascending, rounded to the dtype they are stored in; the `num_used`
            symbols that occur come first, the last one of them is repeated.
        length_bits: (..., M, K) `-log2` of the frequency of a symbol, +inf if it does not occur.
        counts: (..., M, K) int32, weights of each symbol.
        num_used: (..., M) int32, symbols that occur.
        num_iterations: (..., M) int32, updates of centroids and lengths done.
        converged: (..., M) bool, whether the last update changed no assignment.
    """

    rate_bits: Float[Array, "... multipliers"]
    distortion: Float[Array, "... multipliers"]
    multiplier: Float[Array, "... multipliers"]
    objective: Float[Array, "... multipliers"]
    centroids: Float[Array, "... multipliers symbols"]
    length_bits: Float[Array, "... multipliers symbols"]
    counts: Int[Array, "... multipliers symbols"]
    num_used: Int[Array, "... multipliers"]
    num_iterations: Int[Array, "... multipliers"]
    converged: Bool[Array, "... multipliers"]


class _Cells(NamedTuple):
    """Cells of one group in order of value, in units of powers of two near the largest."""

    position: Float[Array, " cells"]
    num_points: Int[Array, " cells"]
    mass: Float[Array, " cells"]
    importance: Float[Array, " cells"]  # mean h of the cell
    second: Float[Array, ""]  # inner distortion of all cells, whatever the quantizer


class _Code(NamedTuple):
    """Symbols of one quantizer and what they cost."""

    centroids: Float[Array, " symbols"]
    length_bits: Float[Array, " symbols"]


def default_multipliers() -> Float[np.ndarray, " 15"]:
    """Return relative multipliers whose rates run from about 6 bits per weight down to 0.

    `2 ln 2 * 4^-R` for R = 6, 5.5, ..., -1: at high rate a quantizer of rate R has this slope.
    """
    return 2 * np.log(2) * 4.0 ** -np.arange(6, -1.5, -0.5)


@always_compiled
@without_derivative
def entropy_constrained(
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None = None,
    *,
    multipliers: Float[Array, "... multipliers"] | None = None,
    multiplier_scale: MultiplierScale = "relative",
    method: EntropyMethod = "lagrangian",
    max_clusters: int = 128,
    num_iterations: Int[Array, ""] | int = 50,
    num_bins: int = 1024,
    num_levels: int = 16,
) -> RateDistortionCurve:
    """Return the operational rate-distortion curve of every group of points, with its quantizers.

    Quantize the points of one group at one place of the curve with `assign_by_cost`. All results
    are constants under differentiation.

    Args:
        points: (..., N) floating, finite.
        importance: h >= 0, broadcastable to `points`; None means 1. Every group needs some.
        multipliers: (M,) or (..., M), >= 0, traced; by default `default_multipliers()`.
        multiplier_scale: "relative" multiplies them by the distortion per weight of a single
            centre, `sum h (w - mean)^2 / N`, so that one grid serves groups of any size and
            spread; "absolute" takes them as they are.
        method: "lagrangian" or "uniform".
        max_clusters: K, most symbols, static; far weights share the outermost ones.
        num_iterations: most updates of the Lagrangian iteration, traced.
        num_bins: intervals of value of the histogram, static.
        num_levels: intervals of importance, static; without `importance` they subdivide the
            values instead. Up to `num_bins * num_levels` points are cells of their own.

    Returns:
        The curve, one place for each multiplier, in their order.

    Raises:
        TypeError: if the points or multipliers are not floating.
        ValueError: as `kmeans` on unusable points and weights; on negative, NaN or infinite
            multipliers, none at all, an unknown option or a size below 1. Values are checked only
            where they are known, outside `jit` and `vmap`.
    """
    points, importance = check_points(points, importance)
    if multipliers is None:
        multipliers = jnp.asarray(default_multipliers(), accumulation_dtype(points.dtype))
    multipliers = check_floating(multipliers, "multipliers")
    if multipliers.ndim == 0 or multipliers.shape[-1] == 0:
        raise ValueError(
            f"multipliers must have at least one entry along the last axis, got shape "
            f"{multipliers.shape}."
        )
    if is_concrete(multipliers):
        values = np.asarray(multipliers, np.float64)
        if not np.all(np.isfinite(values) & (values >= 0)):
            raise ValueError(f"multipliers must be finite and at least 0, got {np.min(values):g}.")
    for name, size in (
        ("max_clusters", max_clusters),
        ("num_bins", num_bins),
        ("num_levels", num_levels),
    ):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")
    solve = placed.over_groups(_entropy_constrained, points, whole_up_to=num_bins * num_levels)
    return solve(
        points,
        importance,
        (multipliers, 1),
        (jnp.asarray(num_iterations, jnp.int32), 0),
        num_bins=num_bins,
        num_levels=num_levels,
        multiplier_scale=multiplier_scale,
        method=method,
        max_clusters=max_clusters,
    )


def _entropy_constrained(
    points, importance, multipliers, num_iterations, *, num_bins, num_levels, **options
):
    return solve_entropy_constrained(
        joint_moments(points, importance, num_bins=num_bins, num_levels=num_levels),
        multipliers,
        num_iterations=num_iterations,
        centroid_dtype=points.dtype,
        **options,
    )


@partial(jax.jit, static_argnames=("multiplier_scale", "method", "max_clusters", "centroid_dtype"))
@without_derivative
def solve_entropy_constrained(
    moments: Moments,
    multipliers: Float[Array, "... multipliers"],
    *,
    multiplier_scale: MultiplierScale = "relative",
    method: EntropyMethod = "lagrangian",
    max_clusters: int = 128,
    num_iterations: Int[Array, ""] | int = 50,
    centroid_dtype: jnp.dtype | None = None,
) -> RateDistortionCurve:
    """Return the curve of every group of moments; see `entropy_constrained`.

    Args:
        moments: of (...) groups: from `joint_moments`, which tells importances apart, or from
            `histogram_moments`, where all points of a bin count with its mean importance.
        multipliers: (M,) or (..., M), >= 0, traced; leading axes broadcast.
        multiplier_scale: "relative" or "absolute".
        method: "lagrangian" or "uniform".
        max_clusters: K, static.
        num_iterations: most updates, traced.
        centroid_dtype: dtype the centroids are stored in; by default that of the moments.

    Raises:
        ValueError: while tracing, on an unknown option or `max_clusters < 1`.
    """
    if method not in ENTROPY_METHODS:
        raise ValueError(f"method must be one of {ENTROPY_METHODS}, got {method!r}.")
    if multiplier_scale not in MULTIPLIER_SCALES:
        raise ValueError(
            f"multiplier_scale must be one of {MULTIPLIER_SCALES}, got {multiplier_scale!r}."
        )
    if max_clusters < 1:
        raise ValueError(f"max_clusters must be at least 1, got {max_clusters}.")
    solve = partial(
        _solve_group,
        num_iterations=jnp.asarray(num_iterations, jnp.int32),
        multiplier_scale=multiplier_scale,
        method=method,
        max_clusters=max_clusters,
        centroid_dtype=jnp.dtype(centroid_dtype or moments.position.dtype),
    )
    signature = f"{MOMENTS_SIGNATURE},(m)->(m),(m),(m),(m),(m,k),(m,k),(m,k),(m),(m),(m)"
    multipliers = jnp.asarray(multipliers).astype(moments.position.dtype)
    return RateDistortionCurve(
        *vectorized(solve, signature=signature)(*about_one(moments), multipliers)
    )


@always_compiled
def assign_by_cost(
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None,
    centroids: Float[Array, "... symbols"],
    length_bits: Float[Array, "... symbols"],
    multiplier: Float[Array, "..."],
) -> UInt[Array, "... points"]:
    """Give every point the symbol with the lowest `h (w - c)^2 + multiplier * length_bits`.

    The last step for raw points, each with its own importance: pass the centroids, lengths and
    multiplier of one place of a `RateDistortionCurve`. Ties go to the lowest symbol. Memory is that
    of the points, for any K.

    Args:
        points: (..., N) floating.
        importance: h >= 0, broadcastable to `points`; None means 1.
        centroids: (..., K); leading axes broadcast against those of `points`.
        length_bits: (..., K), +inf for symbols that must not be used.
        multiplier: (...), distortion per bit.

    Returns:
        (..., N) in the smallest unsigned dtype that can hold K - 1.
    """
    points = jnp.asarray(points)
    dtype = accumulation_dtype(points.dtype)
    weights = None if importance is None else jnp.asarray(importance)
    codebook = (jnp.asarray(part).astype(dtype) for part in (centroids, length_bits, multiplier))
    spread = placed.spread_of(points)
    if spread is None:
        return _assign_by_cost(points, weights, *codebook)
    arguments = zip(codebook, (1, 1, 0), strict=True)
    return placed.run(
        _assign_by_cost, spread, points, weights, *arguments, whole_up_to=0, result="points"
    )


@jax.jit
def _assign_by_cost(points, weights, centroids, length_bits, multiplier):
    values = points.astype(centroids.dtype)
    exponent = across.exponent_of_all(values)
    values = normalise(values, exponent)
    if weights is None:
        weights, mass_exponent = jnp.ones_like(values), jnp.zeros_like(exponent)
    else:
        weights, mass_exponent = importance_in_units(weights, points)
    largest = jnp.finfo(multiplier.dtype).max / 2**20

    def assign_group(values, weights, exponent, mass_exponent, centroids, length_bits, multiplier):
        price = normalise(multiplier, 2 * exponent + mass_exponent, axis=())
        units = normalise(centroids, exponent)
        return cheapest_symbols(values, weights, units, length_bits, jnp.minimum(price, largest))

    index = vectorized(assign_group, signature="(n),(n),(),(),(k),(k),()->(n)")(
        values, weights, exponent, mass_exponent, centroids, length_bits, multiplier
    )
    return index.astype(assignment_dtype(centroids.shape[-1]))


def _solve_group(
    *arguments: Array,
    num_iterations: Int[Array, ""],
    multiplier_scale: MultiplierScale,
    method: EntropyMethod,
    max_clusters: int,
    centroid_dtype: jnp.dtype,
) -> tuple[Array, ...]:
    *fields, multipliers = arguments
    moments = Moments(*fields)
    mass, exponent = moments.mass, moments.exponent
    number = jnp.maximum(moments.num_points, 1).astype(mass.dtype)
    # Bins without points are moved onto the next one below, where they make no symbol.
    position = jnp.where(moments.num_points > 0, moments.position, moments.minimum)
    position = running_maximum(position)
    cells = _Cells(
        position=position,
        num_points=moments.num_points,
        mass=mass,
        importance=mass / number,
        second=pairwise_sum(mass * moments.deviation * moments.deviation),
    )
    unit = 2 * exponent + moments.mass_exponent

    def in_units(value: Array) -> Array:
        return restore(value, jnp.broadcast_to(unit, value.shape), axis=())

    # What is reported refers to centroids as they are stored.
    def store(centroids: Array) -> tuple[Array, Array]:
        stored = restore_as(centroids, exponent, centroid_dtype)
        return stored, normalise(stored.astype(position.dtype), exponent)

    total_points = pairwise_sum(moments.num_points).astype(mass.dtype)
    total_mass = pairwise_sum(mass)
    mean = pairwise_sum(mass * position) / jnp.where(total_mass > 0, total_mass, 1)
    deviation = position - mean
    variance = pairwise_sum(mass * deviation * deviation) + cells.second
    if multiplier_scale == "relative":
        scaled = multipliers * (variance / total_points)
    else:
        largest = jnp.finfo(multipliers.dtype).max / 2**60
        scaled = normalise(multipliers, jnp.broadcast_to(unit, multipliers.shape), axis=())
        scaled = jnp.minimum(scaled, largest)

    rate_bits, distortion, *others = _solve_cells(
        cells,
        mean,
        scaled,
        num_iterations,
        store,
        method=method,
        max_clusters=max_clusters,
    )
    distortion, absolute = in_units(distortion), in_units(scaled)
    return (
        rate_bits,
        distortion,
        absolute,
        distortion + absolute * total_points * rate_bits,
        *others,
    )


def _solve_cells(
    cells: _Cells,
    mean: Float[Array, ""],
    multipliers: Float[Array, " multipliers"],
    num_iterations: Int[Array, ""],
    store: Callable[[Array], tuple[Array, Array]],
    *,
    method: EntropyMethod,
    max_clusters: int,
) -> tuple[Array, ...]:
    """Return rate, distortion, code and diagnostics of every multiplier, in units."""
    total_points = pairwise_sum(cells.num_points).astype(cells.mass.dtype)
    grids = _uniform_grids(cells, mean, max_clusters)
    costs = (
        grids.distortion[None, :] + (multipliers * total_points)[:, None] * grids.rate_bits[None, :]
    )
    best = jnp.argmin(costs, axis=1)

    start = jnp.full((max_clusters,), mean, cells.position.dtype)

    # Symbols at equal shares of the cube root of the mass, as for the best fine quantizer.
    root = jnp.cbrt(cells.mass)
    share = (running_sum(root) - 0.5 * root) / pairwise_sum(root)
    spread_out = jnp.clip((share * max_clusters).astype(jnp.int32), 0, max_clusters - 1)

    def on_grid(grid: Array) -> tuple[_Code, Array]:
        index = _uniform_index(cells, mean, grids.step[grid], grids.dead_zone[grid], max_clusters)
        return _describe(cells, index, start), index

    def solve_uniform(multiplier: Array, grid: Array) -> tuple[Array, ...]:
        del multiplier
        return *_finish(cells, *on_grid(grid), store), jnp.int32(0), jnp.asarray(True)

    def solve_lagrangian(multiplier: Array, grid: Array) -> tuple[Array, ...]:
        def objective(code: _Code, index: Array) -> Array:
            rate_bits, distortion = _measure(cells, code, index)
            return distortion + multiplier * total_points * rate_bits

        # For few points, or few symbols and a heavy tail, no uniform grid is a good start.
        starts = on_grid(grid), (_describe(cells, spread_out, start), spread_out)
        is_better = objective(*starts[1]) < objective(*starts[0])
        code, index = jax.tree.map(partial(jnp.where, is_better), starts[1], starts[0])
        code, index, *diagnostics = _iterate(cells, code, index, multiplier, num_iterations)
        return *_finish(cells, code, index, store), *diagnostics

    solve = solve_lagrangian if method == "lagrangian" else solve_uniform
    return jax.vmap(solve)(multipliers, best)


class _Grids(NamedTuple):
    """Uniform grids that were tried, (G,) each."""

    step: Float[Array, " grids"]
    dead_zone: Float[Array, " grids"]
    rate_bits: Float[Array, " grids"]
    distortion: Float[Array, " grids"]


def _uniform_grids(cells: _Cells, mean: Float[Array, ""], max_clusters: int) -> _Grids:
    """Rate and distortion of all steps and dead zones."""
    dtype = cells.position.dtype
    total_mass, largest = pairwise_sum(cells.mass), jnp.max(jnp.abs(cells.position))
    deviation = cells.position - mean
    variance = pairwise_sum(cells.mass * deviation * deviation) + cells.second
    spread = jnp.sqrt(variance / jnp.where(total_mass > 0, total_mass, 1))
    # A little more than twice the largest: with the widest step all points share the middle cell.
    widest, narrowest = 2.01 * jnp.where(largest > 0, largest, 1), spread / 256
    narrowest = jnp.where(narrowest > 0, narrowest, widest)
    fraction = jnp.arange(_NUM_STEPS, dtype=dtype) / (_NUM_STEPS - 1)
    steps = widest * (narrowest / widest) ** fraction
    step = jnp.repeat(steps, len(_DEAD_ZONES))
    dead_zone = jnp.tile(jnp.asarray(_DEAD_ZONES, dtype), _NUM_STEPS)

    def measure(grid: tuple[Array, Array]) -> tuple[Array, Array]:
        index = _uniform_index(cells, mean, *grid, max_clusters)
        start = jnp.full((max_clusters,), mean, dtype)
        code = _describe(cells, index, start)
        return _measure(cells, code, index)

    return _Grids(step, dead_zone, *lax.map(measure, (step, dead_zone)))


def _uniform_index(
    cells: _Cells,
    mean: Float[Array, ""],
    step: Float[Array, ""],
    dead_zone: Float[Array, ""],
    max_clusters: int,
) -> Int[Array, " cells"]:
    """Number the occupied intervals of a grid around 0 from 0 on; those far from the mean join."""

    def interval(values: Array) -> Array:
        return jnp.sign(values) * jnp.ceil(jnp.maximum(jnp.abs(values) / step - dead_zone, 0))

    middle, reach = interval(mean), (max_clusters - 1) // 2
    number = jnp.clip(interval(cells.position), middle - reach, middle + reach)
    is_new = (number[1:] != number[:-1]).astype(jnp.int32)
    return jnp.pad(running_sum(is_new), (1, 0))


def _describe(
    cells: _Cells, index: Int[Array, " cells"], centroids: Float[Array, " symbols"]
) -> _Code:
    """Return the centroids and code lengths of an assignment; symbols without mass keep theirs."""
    num_symbols = centroids.shape[0]
    counts = segment_sum(cells.num_points, index, num_symbols)
    mass = segment_sum(cells.mass, index, num_symbols)
    # About the old centroid, so that a symbol at its mean is not moved by rounding.
    offset = cells.mass * (cells.position - centroids[index])
    moment = segment_sum(offset, index, num_symbols)
    moved = centroids + moment / jnp.where(mass > 0, mass, 1)
    return _Code(moved, _length_bits(counts, moved.dtype))


def _length_bits(counts: Int[Array, " symbols"], dtype: jnp.dtype) -> Float[Array, " symbols"]:
    number = counts.astype(dtype)
    length = jnp.log2(jnp.sum(number) / jnp.where(counts > 0, number, 1))
    return jnp.where(counts > 0, jnp.maximum(length, 0), jnp.inf)


def _measure(
    cells: _Cells, code: _Code, index: Int[Array, " cells"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return bits per point under the lengths of the code, and the distortion."""
    deviation = cells.position - code.centroids[index]
    distortion = pairwise_sum(cells.mass * deviation * deviation) + cells.second
    number = cells.num_points.astype(deviation.dtype)
    bits = jnp.where(cells.num_points > 0, number * code.length_bits[index], 0)
    return pairwise_sum(bits) / pairwise_sum(number), distortion


def cheapest_symbols(
    position: Float[Array, " cells"],
    importance: Float[Array, " cells"],
    centroids: Float[Array, " symbols"],
    length_bits: Float[Array, " symbols"],
    multiplier: Float[Array, ""],
) -> Int[Array, " cells"]:
    """Return the symbol of every cell as `assign_by_cost`, for numbers of ordinary size.

    Ties go to the lowest symbol.
    """

    def visit(best, symbol):
        lowest, index = best
        centroid, price, number = symbol
        deviation = position - centroid
        cost = importance * deviation * deviation + price
        is_better = cost < lowest
        return (jnp.where(is_better, cost, lowest), jnp.where(is_better, number, index)), None

    is_used = jnp.isfinite(length_bits)
    price = jnp.where(is_used, multiplier * jnp.where(is_used, length_bits, 0), jnp.inf)
    start = (jnp.full_like(position, jnp.inf), jnp.zeros(position.shape, jnp.int32))
    numbers = jnp.arange(price.shape[0], dtype=jnp.int32)
    (_, index), _ = lax.scan(visit, start, (centroids, price, numbers), unroll=_UNROLL)
    return index


def _iterate(
    cells: _Cells,
    code: _Code,
    index: Int[Array, " cells"],
    multiplier: Float[Array, ""],
    num_iterations: Int[Array, ""],
) -> tuple[_Code, Int[Array, " cells"], Int[Array, ""], Bool[Array, ""]]:
    """Alternate assignment by cost with centroids and lengths; no step raises the objective."""

    def step(state):
        code, index, iteration, _ = state
        new = cheapest_symbols(
            cells.position, cells.importance, code.centroids, code.length_bits, multiplier
        )
        code = _describe(cells, new, code.centroids)
        return code, new, iteration + 1, jnp.all(new == index)

    return lax.while_loop(
        lambda state: ~state[3] & (state[2] < num_iterations),
        step,
        (code, index, jnp.int32(0), jnp.asarray(False)),
    )


def _finish(
    cells: _Cells,
    code: _Code,
    index: Int[Array, " cells"],
    store: Callable[[Array], tuple[Array, Array]],
) -> tuple[Array, ...]:
    """Round the centroids, put the symbols that occur first and in order, measure."""
    num_symbols = code.centroids.shape[0]
    stored, rounded = store(code.centroids)
    is_used = jnp.isfinite(code.length_bits)
    order = jnp.argsort(jnp.where(is_used, rounded, jnp.inf), stable=True)
    num_used = jnp.sum(is_used, dtype=jnp.int32)
    order = order[jnp.minimum(jnp.arange(num_symbols, dtype=jnp.int32), num_used - 1)]
    counts = segment_sum(cells.num_points, index, num_symbols)
    is_live = jnp.arange(num_symbols, dtype=jnp.int32) < num_used
    rate_bits, distortion = _measure(cells, _Code(rounded, code.length_bits), index)
    return (
        rate_bits,
        distortion,
        stored[order],
        jnp.where(is_live, code.length_bits[order], jnp.inf),
        jnp.where(is_live, counts[order], 0),
        num_used,
    )
