"""The codebooks of a whole grid of cells, for one network.

A layer meets scalar quantizers as moments only, so that layers of different sizes share one solve
for the whole grid, vmapped over cells and layers; vectors are solved on the weights themselves.
How many bits every layer gets is decided here too, on the curves of rate and distortion that the
layers' own codebooks make: exact ones, of the raw weights.

Axes: `C` cells, `L` layers, `K` clusters, `B` bins, `M` codebooks of a layer.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcomp.coding import sizes
from jaxcomp.experiments.sweep.cells import VECTOR_SIZE, Cell
from jaxcomp.quantizers import (
    Codebook,
    Moments,
    allocate_rates,
    histogram_moments,
    joint_moments,
    pad_bins,
    solve_entropy_constrained,
    solve_kmeans,
    solve_optimal,
    solve_optimal_diameter,
    solve_uniform,
    split_vectors,
    vector_kmeans,
)
from jaxcomp.quantizers.assignment import nearest_thresholds

Layers = dict[str, Array]

# Bins of the histogram that the diameter penalty is solved on globally.
DIAMETER_BINS = 512
# Values and importances told apart by the entropy-constrained solve, and its symbols.
ENTROPY_BINS, ENTROPY_LEVELS, ENTROPY_SYMBOLS = 512, 8, 128
# Bits shared between layers may give one of them this many times the clusters of the largest K.
SHARED_FACTOR = 2
# More updates of vector centres change the distortion by less than a per cent.
VECTOR_ITERATIONS = 20


class Intervals(NamedTuple):
    """Codebooks whose clusters are intervals.

    Attributes:
        rows: position of each cell's id along the first axis of the arrays.
        centroids: `(C, L, K)`, ascending, padded by the last one.
        thresholds: `(C, L, K - 1)`; a weight belongs to cluster `#{t : weight > t}`.
        num_clusters: `(C, L)`, clusters of each layer.
        converged: `(C, L)`, whether the iteration reached a fixed point.
    """

    rows: dict[str, int]
    centroids: np.ndarray
    thresholds: np.ndarray
    num_clusters: np.ndarray
    converged: np.ndarray


class EntropyCodes(NamedTuple):
    """Codebooks of entropy-constrained quantizers.

    Attributes:
        rows: position of each cell's id along the first axis of the arrays.
        centroids: `(C, L, K)`.
        length_bits: `(C, L, K)`, what a symbol costs; infinite if it must not be used.
        multiplier: `(C, L)`, weighted distortion per bit, absolute.
        converged: `(C, L)`, whether the iteration reached a fixed point.
    """

    rows: dict[str, int]
    centroids: np.ndarray
    length_bits: np.ndarray
    multiplier: np.ndarray
    converged: np.ndarray


class VectorCodes(NamedTuple):
    """Codebooks of vectors of consecutive weights.

    Attributes:
        rows: position of each cell's id along the first axis of the arrays.
        centroids: `(C, L, K, m)`, padded by the last one.
        num_clusters: `(C,)`.
        converged: `(C, L)`, whether the iteration reached a fixed point.
    """

    rows: dict[str, int]
    centroids: np.ndarray
    num_clusters: np.ndarray
    converged: np.ndarray


class Codebooks(NamedTuple):
    """Codebooks of every quantized cell of a sweep, for one network.

    Attributes:
        intervals: of K-means, optimal and uniform cells.
        entropy_codes: of entropy-constrained cells.
        vectors: of vector cells.
        importance: of every weight, by weighting and path, where an assignment depends on it.
    """

    intervals: Intervals
    entropy_codes: EntropyCodes
    vectors: VectorCodes
    importance: dict[str, Layers]

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all cells with a codebook."""
        return (*self.intervals.rows, *self.entropy_codes.rows, *self.vectors.rows)

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return named arrays and plain metadata that a file can hold; `from_arrays` reads them."""
        arrays, cells = {}, {}
        for name in _PARTS:
            fields = getattr(self, name)._asdict()
            cells[name] = list(fields.pop("rows"))
            arrays |= {f"{name}/{field}": array for field, array in fields.items()}
        for weighting, layers in self.importance.items():
            for path, weight in layers.items():
                arrays[f"importance/{weighting}/{path}"] = np.asarray(weight)
        return arrays, {"cells": cells}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
    ) -> "Codebooks":
        """Return the codebooks that `to_arrays` took apart.

        Raises:
            ValueError: if something is missing.
        """
        parts: dict[str, Any] = {}
        try:
            for name, kind in _PARTS.items():
                rows = {cell: row for row, cell in enumerate(metadata["cells"][name])}
                fields = {field: arrays[f"{name}/{field}"] for field in kind._fields[1:]}
                parts[name] = kind(rows, **fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"stored codebooks lack {error}; run the sweep again.") from error
        importance: dict[str, Layers] = {}
        for name, array in arrays.items():
            if name.startswith("importance/"):
                _, weighting, path = name.split("/", 2)
                importance.setdefault(weighting, {})[path] = jnp.asarray(array)
        return cls(**parts, importance=importance)


_PARTS: dict[str, Any] = {
    "intervals": Intervals,
    "entropy_codes": EntropyCodes,
    "vectors": VectorCodes,
}


def codebook_cell(cell: Cell) -> Cell:
    """The cell whose codebooks this one uses: of all layers, and plain K-means for noise."""
    if cell.method == "gaussian_noise":
        return Cell("compressed", "kmeans", "none", num_clusters=cell.num_clusters)
    return replace(cell, kind="compressed", layer="")


def solve_codebooks(
    layers: Layers,
    importance: Mapping[str, Layers | None],
    cells: Sequence[Cell],
    *,
    num_bins: int,
    num_iterations: int,
    layer_weight: Mapping[str, float] | None = None,
    key: jax.Array | None = None,
) -> Codebooks:
    """Solve the codebooks of all cells that have one: few jitted calls for the whole grid.

    Args:
        layers: weights by path.
        importance: for each weighting of the cells its importance by path, None for equal.
        cells: those with a codebook are solved; noise needs the distortion of plain K-means.
        num_bins: B, bins of the histogram of moments.
        num_iterations: iterations at most, of those methods that iterate.
        layer_weight: mean curvature of each layer, >= 0. What a squared error in one layer counts
            against one in another where bits are shared without an importance; None for 1.
        key: for the random start of vector codebooks; consumed.
    """
    solver = _Solver(layers, importance, num_bins, num_iterations, layer_weight, key)
    by_id = {(needed := codebook_cell(cell)).id: needed for cell in cells}
    of = partial(_of_method, list(by_id.values()))
    entropy, vector = of("entropy_constrained"), of("vector")
    stored = {cell.weighting for cell in (*entropy, *vector)}
    return Codebooks(
        solver.intervals(of("kmeans", "uniform"), of("optimal")),
        solver.entropy_codes(entropy),
        solver.vectors(vector),
        {name: weights for name in stored if (weights := importance[name]) is not None},
    )


def importance_of(codebooks: Codebooks, weighting: str, layers: Layers) -> Layers:
    """Importance of every weight; 1 where the weighting has none."""
    known = codebooks.importance.get(weighting)
    return _ones(layers) if known is None else known


def _of_method(cells: Sequence[Cell], *methods: str) -> list[Cell]:
    return [cell for cell in cells if cell.method in methods]


def _ones(layers: Layers) -> Layers:
    return {path: jnp.ones(weights.shape, jnp.float32) for path, weights in layers.items()}


class _Solver:
    """One network's layers, and how their codebooks are found."""

    def __init__(
        self,
        layers: Layers,
        importance: Mapping[str, Layers | None],
        num_bins: int,
        num_iterations: int,
        layer_weight: Mapping[str, float] | None,
        key: jax.Array | None,
    ):
        self.layers = layers
        self.importance = importance
        self.num_bins = num_bins
        self.num_iterations = num_iterations
        self.key = key
        # Centres are rounded to what the layers store before the last assignment. Layers of
        # several dtypes share one solve in float32, and are rounded after it.
        dtypes = {weights.dtype for weights in layers.values()}
        self.centroid_dtype = dtypes.pop() if len(dtypes) == 1 else jnp.dtype(jnp.float32)
        self._layer_weight = layer_weight

    def layer_weight(self, weighting: str) -> np.ndarray:
        """What a unit of distortion counts in each layer, positive."""
        if self.importance[weighting] is not None or self._layer_weight is None:
            return np.ones(len(self.layers))
        weight = np.array([float(self._layer_weight[path]) for path in self.layers])
        # A layer the loss does not depend on still has to have some weight.
        largest = weight.max(initial=0.0)
        return np.maximum(weight, 1e-9 * largest) if largest > 0 else np.ones(len(weight))

    def intervals(self, cells: Sequence[Cell], optimal: Sequence[Cell]) -> Intervals:
        """Solve scalar codebooks with the same K in every layer, then share bits between them."""
        everything = [*cells, *optimal]
        if not everything:
            empty = np.zeros((0, len(self.layers), 1), np.float32)
            number = np.zeros((0, len(self.layers)), np.int32)
            return Intervals({}, empty, empty[..., :0], number, number.astype(bool))
        moments = {
            weighting: _stacked(self.layers, weights, _histogram(self.num_bins), self.num_bins)
            for weighting, weights in self.importance.items()
        }
        max_clusters = max(cell.num_clusters for cell in everything)
        # Where a layer may have any size, the largest budget is shared too.
        is_shared = any(cell.allocation == "optimal" for cell in optimal)
        max_solved = max_clusters * SHARED_FACTOR if is_shared else max_clusters
        found = _Found(self.layers, max_solved)
        self._iterate(cells, moments, max_clusters, found)
        if optimal:
            self._solve_all_sizes(optimal, moments, max_clusters, max_solved, found)
        for method in ("kmeans", "optimal"):
            for weighting in self.importance:
                allocated = [
                    cell
                    for cell in everything
                    if (cell.method, cell.weighting) == (method, weighting)
                    and cell.allocation == "optimal"
                ]
                if allocated:
                    self._allocate(allocated, found)
        return found.intervals({cell.id for cell in everything})

    def _iterate(
        self,
        cells: Sequence[Cell],
        moments: Mapping[str, Moments],
        max_clusters: int,
        found: "_Found",
    ) -> None:
        """K-means and uniform grids, in one call per weighting and penalty form."""
        equal = [replace(cell, allocation="equal") for cell in cells]
        groups: dict[tuple[str, str], list[Cell]] = {}
        for cell in {cell.id: cell for cell in equal}.values():
            # Plain K-means is the monotone form at penalty zero, to the last bit.
            form = "uniform" if cell.method == "uniform" else cell.penalty_form
            key = (cell.weighting, "monotone" if form == "none" else form)
            groups.setdefault(key, []).append(cell)
        size = max((len(group) for group in groups.values()), default=0)
        for (weighting, form), group in groups.items():
            padded = group + [group[-1]] * (size - len(group))
            clusters = jnp.array([cell.num_clusters for cell in padded], jnp.int32)
            penalty = jnp.array([cell.diameter_penalty for cell in padded], jnp.float32)
            if form == "uniform":
                codebooks = _solve_uniform(
                    moments["none"],
                    clusters,
                    max_clusters=max_clusters,
                    centroid_dtype=self.centroid_dtype,
                )
            else:
                codebooks = _solve_kmeans(
                    moments[weighting],
                    clusters,
                    penalty,
                    max_clusters=max_clusters,
                    penalty_form=form,
                    num_iterations=self.num_iterations,
                    centroid_dtype=self.centroid_dtype,
                )
            found.add(group, codebooks)

    def _solve_all_sizes(
        self,
        cells: Sequence[Cell],
        moments: Mapping[str, Moments],
        max_clusters: int,
        max_solved: int,
        found: "_Found",
    ) -> None:
        """Globally optimal codebooks: every K of a weighting from one solve."""
        for weighting in dict.fromkeys(cell.weighting for cell in cells):
            members = [cell for cell in cells if cell.weighting == weighting]
            plain = [cell for cell in members if cell.diameter_penalty == 0]
            if plain:
                every_size = _solve_optimal(
                    moments[weighting],
                    max_clusters=max_solved,
                    centroid_dtype=self.centroid_dtype,
                )
                sizes = range(1, max_solved + 1)
                if not any(cell.allocation == "optimal" for cell in plain):
                    sizes = sorted({cell.num_clusters for cell in plain})
                found.add(
                    [Cell("compressed", "optimal", weighting, num_clusters=k) for k in sizes],
                    [np.asarray(leaf)[np.array(sizes) - 1] for leaf in every_size],
                )
            penalised = [cell for cell in members if cell.diameter_penalty > 0]
            if penalised:
                bins = min(DIAMETER_BINS, self.num_bins)
                coarse = _stacked(self.layers, self.importance[weighting], _histogram(bins), bins)
                codebooks = _solve_diameter(
                    coarse,
                    jnp.array([cell.num_clusters for cell in penalised], jnp.int32),
                    jnp.array([cell.diameter_penalty for cell in penalised], jnp.float32),
                    max_clusters=max_clusters,
                    centroid_dtype=self.centroid_dtype,
                )
                found.add(penalised, codebooks)

    def _allocate(self, cells: Sequence[Cell], found: "_Found") -> None:
        """Give every layer the size at which it uses the bits of all layers best."""
        method, weighting = cells[0].method, cells[0].weighting
        rows = found.equal_rows(method, weighting)
        codebook_sizes = list(rows)
        places = list(rows.values())
        rates, distortions = [], []
        for number, (path, weights) in enumerate(self.layers.items()):
            importance = self.importance[weighting]
            counts, distortion = measure_intervals(
                weights,
                None if importance is None else importance[path],
                found.centroids[places, number],
                found.thresholds[places, number],
            )
            size = sizes.code_size(counts, num_clusters=np.array(codebook_sizes))
            rates.append(size.entropy_bits + size.codebook_bits)
            distortions.append(distortion)
        curves, costs = np.stack(rates), np.stack(distortions)
        equal = np.array([codebook_sizes.index(cell.num_clusters) for cell in cells])
        layer_weight = self.layer_weight(weighting)
        chosen = allocate_rates(
            curves, costs, budget_bits=curves[:, equal].sum(axis=0), layer_weight=layer_weight
        )
        # What is left of a budget is spent step by step, which the same size everywhere may beat.
        is_better = chosen.total_distortion <= layer_weight @ costs[:, equal]
        found.add_mixed(
            cells, np.array(places)[np.where(is_better[:, None], chosen.places, equal[:, None])]
        )

    def entropy_codes(self, cells: Sequence[Cell]) -> EntropyCodes:
        """Solve the entropy-constrained codebooks, in one call per weighting."""
        num_layers = len(self.layers)
        if not cells:
            empty = np.zeros((0, num_layers, 1), np.float32)
            return EntropyCodes({}, empty, empty, empty[..., 0], empty[..., 0].astype(bool))
        build = partial(joint_moments, num_bins=ENTROPY_BINS, num_levels=ENTROPY_LEVELS)
        rows: dict[str, int] = {}
        parts = []
        for weighting in dict.fromkeys(cell.weighting for cell in cells):
            members = [cell for cell in cells if cell.weighting == weighting]
            importance = self.importance[weighting]
            moments = _stacked(
                self.layers,
                _ones(self.layers) if importance is None else importance,
                build,
                ENTROPY_BINS * ENTROPY_LEVELS,
            )
            multiplier = self._multipliers(members, moments)
            curve = solve_entropy_constrained(
                moments,
                jnp.asarray(multiplier, jnp.float32),
                multiplier_scale="absolute",
                max_clusters=ENTROPY_SYMBOLS,
                num_iterations=self.num_iterations,
                centroid_dtype=self.centroid_dtype,
            )
            leaves = (_wide(curve.centroids), curve.length_bits, curve.multiplier, curve.converged)
            parts.append([np.moveaxis(np.asarray(leaf), 1, 0) for leaf in leaves])
            for cell in members:
                rows[cell.id] = len(rows)
        return EntropyCodes(rows, *(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _multipliers(
        self, cells: Sequence[Cell], moments: Moments
    ) -> Float[np.ndarray, "layers cells"]:
        """Distortion per bit in every layer.

        The same one in all layers is their optimal allocation. It is relative to the distortion
        per weight of a single centre, of each layer or of all of them.
        """
        mass, position = (np.asarray(part, np.float64) for part in (moments.mass, moments.position))
        total = mass.sum(axis=1)
        mean = (mass * position).sum(axis=1) / np.where(total > 0, total, 1)
        inner = np.asarray(moments.deviation, np.float64) ** 2
        spread = (mass * ((position - mean[:, None]) ** 2 + inner)).sum(axis=1)
        spread = np.ldexp(spread, np.asarray(2 * moments.exponent + moments.mass_exponent))
        number = np.array([weights.size for weights in self.layers.values()], np.float64)
        layer_weight = self.layer_weight(cells[0].weighting)
        pooled = (layer_weight @ spread) / number.sum() / layer_weight
        scale = {"equal": spread / number, "optimal": pooled}
        return np.stack([cell.parameter * scale[cell.allocation] for cell in cells], axis=1)

    def vectors(self, cells: Sequence[Cell]) -> VectorCodes:
        """Solve vector codebooks on the weights themselves, cell by cell."""
        if not cells:
            empty = np.zeros((0, len(self.layers), 1, VECTOR_SIZE), np.float32)
            number = np.zeros((0, len(self.layers)), np.int32)
            return VectorCodes({}, empty, number[:, 0], number.astype(bool))
        assert self.key is not None
        max_clusters = max(cell.num_clusters for cell in cells)
        centroids, converged = [], []
        for cell in cells:
            importance = self.importance[cell.weighting]
            solved = _solve_vectors(
                list(self.layers.values()),
                list((_ones(self.layers) if importance is None else importance).values()),
                jnp.int32(cell.num_clusters),
                jnp.int32(min(self.num_iterations, VECTOR_ITERATIONS)),
                self.key,
                max_clusters=max_clusters,
            )
            centroids.append(np.asarray(solved[0]))
            converged.append(np.asarray(solved[1]))
        return VectorCodes(
            {cell.id: row for row, cell in enumerate(cells)},
            np.stack(centroids),
            np.array([cell.num_clusters for cell in cells], np.int32),
            np.stack(converged),
        )


class _Found:
    """Scalar codebooks found so far, of all layers."""

    def __init__(self, layers: Layers, max_clusters: int):
        self.num_layers = len(layers)
        self.max_clusters = max_clusters
        self.cells: list[Cell] = []
        self.parts: list[list[np.ndarray]] = []

    @property
    def centroids(self) -> np.ndarray:
        """(C, L, K)."""
        return np.concatenate([part[0] for part in self.parts])

    @property
    def thresholds(self) -> np.ndarray:
        """(C, L, K - 1)."""
        return np.concatenate([part[1] for part in self.parts])

    def add(self, cells: Sequence[Cell], codebooks: Sequence[Any]) -> None:
        """Take the first codebooks of (C, L) as those of the cells."""
        clusters = np.array([cell.num_clusters for cell in cells], np.int32)
        clusters = np.broadcast_to(clusters[:, None], (len(cells), self.num_layers))
        centroids, thresholds, converged = (np.asarray(leaf)[: len(cells)] for leaf in codebooks)
        padding = [(0, 0), (0, 0), (0, self.max_clusters - centroids.shape[-1])]
        centroids = np.pad(centroids, padding, mode="edge")
        thresholds = np.pad(thresholds, padding, constant_values=np.inf)
        self.cells += cells
        self.parts.append([centroids, thresholds, clusters, converged])

    def add_mixed(self, cells: Sequence[Cell], rows: Int[np.ndarray, "cells layers"]) -> None:
        """Take every layer's codebook from a row of its own."""
        layers = np.arange(self.num_layers)
        mixed = [np.concatenate(part)[rows, layers] for part in zip(*self.parts, strict=True)]
        self.cells += cells
        self.parts.append(mixed)

    def equal_rows(self, method: str, weighting: str) -> dict[int, int]:
        """Rows of the unpenalised codebooks of a method with the same K everywhere, by K."""
        return {
            cell.num_clusters: row
            for row, cell in enumerate(self.cells)
            if (cell.method, cell.weighting) == (method, weighting)
            and cell.diameter_penalty == 0
            and cell.allocation == "equal"
        }

    def intervals(self, ids: Collection[str]) -> Intervals:
        """The codebooks of these cells."""
        chosen = [row for row, cell in enumerate(self.cells) if cell.id in ids]
        rows = {self.cells[place].id: row for row, place in enumerate(chosen)}
        parts = zip(*self.parts, strict=True)
        return Intervals(rows, *(np.concatenate(part)[chosen] for part in parts))


def measure_intervals(
    weights: Array,
    importance: Array | None,
    centroids: Float[np.ndarray, "codebooks clusters"],
    thresholds: Float[np.ndarray, "codebooks clusters-1"],
) -> tuple[Int[np.ndarray, "codebooks clusters"], Float[np.ndarray, " codebooks"]]:
    """Return counts and distortion of one layer under many codebooks, on the raw weights.

    The weights are sorted once, whatever the number of codebooks; sums in float64.
    """
    wide = np.float64 if weights.dtype == jnp.float64 else np.float32
    points = np.asarray(weights, wide).ravel()
    order = np.argsort(points, kind="stable")
    points = points[order]
    value = points.astype(np.float64)
    mass = np.ones_like(value) if importance is None else np.asarray(importance).ravel()[order]
    mass = mass.astype(np.float64)
    # About the mean, so that little cancels.
    centre = value.mean()
    value -= centre
    sums = np.cumsum(np.stack([mass, mass * value, mass * value * value]), axis=1)
    sums = np.concatenate([np.zeros((3, 1)), sums], axis=1)
    ends = np.searchsorted(points, thresholds.astype(wide), side="right")
    edge = np.full((len(ends), 1), len(points))
    bounds = np.concatenate([0 * edge, ends, edge], axis=1)
    s0, s1, s2 = sums[:, bounds[:, 1:]] - sums[:, bounds[:, :-1]]
    c = centroids.astype(np.float64) - centre
    distortion = np.sum(s2 - 2 * c * s1 + c * c * s0, axis=1)
    return np.diff(bounds, axis=1), np.maximum(distortion, 0.0)


def _histogram(num_bins: int) -> Callable[..., Moments]:
    return partial(histogram_moments, num_bins=num_bins)


def _stacked(
    layers: Layers, importance: Layers | None, build: Callable[..., Moments], num_bins: int
) -> Moments:
    moments = []
    for path, weights in layers.items():
        weight = None if importance is None else importance[path].ravel()
        moments.append(pad_bins(build(weights.ravel(), weight), num_bins))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *moments)


@partial(
    jax.jit, static_argnames=("max_clusters", "penalty_form", "num_iterations", "centroid_dtype")
)
def _solve_kmeans(
    moments: Moments,
    num_clusters: Int[Array, " C"],
    diameter_penalty: Float[Array, " C"],
    *,
    max_clusters: int,
    penalty_form: str,
    num_iterations: int,
    centroid_dtype: jnp.dtype,
) -> tuple[Array, Array, Array]:
    solve = partial(
        solve_kmeans,
        max_clusters=max_clusters,
        penalty_form=penalty_form,
        num_iterations=num_iterations,
        # The published method is Lloyd's iteration; `optimal` and `entropy_constrained` do better.
        start="quantiles",
        centroid_dtype=centroid_dtype,
    )
    over_layers = jax.vmap(solve, in_axes=(0, None, None))
    return _parts(
        jax.vmap(over_layers, in_axes=(None, 0, 0))(moments, num_clusters, diameter_penalty)
    )


@partial(jax.jit, static_argnames=("max_clusters", "centroid_dtype"))
def _solve_uniform(
    moments: Moments,
    num_clusters: Int[Array, " C"],
    *,
    max_clusters: int,
    centroid_dtype: jnp.dtype,
) -> tuple[Array, Array, Array]:
    solve = partial(solve_uniform, max_clusters=max_clusters, centroid_dtype=centroid_dtype)
    over_layers = jax.vmap(solve, in_axes=(0, None))
    return _parts(jax.vmap(over_layers, in_axes=(None, 0))(moments, num_clusters))


@partial(jax.jit, static_argnames=("max_clusters", "centroid_dtype"))
def _solve_optimal(
    moments: Moments, *, max_clusters: int, centroid_dtype: jnp.dtype
) -> tuple[Array, Array, Array]:
    """Return the best codebooks of K = 1..max_clusters, (K, L, max_clusters)."""
    # No bound is read here: without its search the solve takes half of the time.
    best = solve_optimal(
        moments,
        max_clusters=max_clusters,
        centroid_dtype=centroid_dtype,
        has_one_value_per_bin=True,
    )
    table = jnp.moveaxis(best.centroid_table[:, 1:], 1, 0)
    # The padding is the last centre to the bit, so that no weight can belong to it.
    place = jnp.arange(max_clusters, dtype=jnp.int32)
    last = jnp.minimum(place[None, :], place[:, None])[:, None, :]
    return _rounded_parts(jnp.take_along_axis(table, last, axis=-1))


@partial(jax.jit, static_argnames=("max_clusters", "centroid_dtype"))
def _solve_diameter(
    moments: Moments,
    num_clusters: Int[Array, " C"],
    diameter_penalty: Float[Array, " C"],
    *,
    max_clusters: int,
    centroid_dtype: jnp.dtype,
) -> tuple[Array, Array, Array]:
    solver = solve_optimal_diameter(moments, max_clusters=max_clusters)
    found = solver.solve(num_clusters[:, None], diameter_penalty[:, None]).codebook
    centroids, thresholds, _ = _rounded_parts(found.centroids.astype(centroid_dtype))
    return centroids, thresholds, found.converged


@partial(jax.jit, static_argnames=("max_clusters",))
def _solve_vectors(
    layers: list[Array],
    importance: list[Array],
    num_clusters: Int[Array, ""],
    num_iterations: Int[Array, ""],
    key: jax.Array,
    *,
    max_clusters: int,
) -> tuple[Array, Array]:
    found = [
        vector_kmeans(
            split_vectors(weights, VECTOR_SIZE),
            split_vectors(weight, VECTOR_SIZE),
            num_clusters=num_clusters,
            max_clusters=max_clusters,
            key=jax.random.fold_in(key, number),
            penalty_form="none",
            num_iterations=num_iterations,
        )
        for number, (weights, weight) in enumerate(zip(layers, importance, strict=True))
    ]
    centroids = jnp.stack([_wide(layer.centroids) for layer in found])
    return centroids, jnp.stack([layer.converged for layer in found])


def _parts(codebook: Codebook) -> tuple[Array, Array, Array]:
    return _wide(codebook.centroids), codebook.thresholds, codebook.converged


def _rounded_parts(centroids: Float[Array, "C L K"]) -> tuple[Array, Array, Array]:
    """Return centroids as stored with their exact thresholds; everything counts as converged."""
    stored = _wide(centroids)
    thresholds = jnp.vectorize(nearest_thresholds, signature="(k)->(j)")(stored)
    return stored, thresholds, jnp.ones(stored.shape[:2], bool)


def _wide(centroids: Array) -> Array:
    # Files know no bfloat16, and float32 holds it exactly.
    return centroids.astype(jnp.promote_types(centroids.dtype, jnp.float32))
