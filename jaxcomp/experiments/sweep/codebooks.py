"""The codebooks of a whole grid of variants, for one network.

A layer meets scalar quantizers as moments only, so that layers of different sizes share one solve
for the whole grid, vmapped over variants and layers; vectors are solved on the weights themselves.
How many bits every layer gets is decided here too, on the curves of rate and distortion that the
layers' own codebooks make: exact ones, of the raw weights.

Axes: `C` variants, `L` layers, `K` clusters, `B` bins, `M` codebooks of a layer.
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
from jaxcomp.experiments.sweep.variants import VECTOR_SIZE, Variant
from jaxcomp.quantizers import (
    Moments,
    Solution,
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
        rows: position of each variant's id along the first axis of the arrays.
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
        rows: position of each variant's id along the first axis of the arrays.
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
        rows: position of each variant's id along the first axis of the arrays.
        centroids: `(C, L, K, m)`, padded by the last one.
        num_clusters: `(C,)`.
        converged: `(C, L)`, whether the iteration reached a fixed point.
    """

    rows: dict[str, int]
    centroids: np.ndarray
    num_clusters: np.ndarray
    converged: np.ndarray


class Codebooks(NamedTuple):
    """Codebooks of every quantized variant of a sweep, for one network.

    Attributes:
        intervals: of K-means, optimal and uniform variants.
        entropy_codes: of entropy-constrained variants.
        vectors: of vector variants.
        importance: of every weight, by name and path, where an assignment depends on it.
    """

    intervals: Intervals
    entropy_codes: EntropyCodes
    vectors: VectorCodes
    importance: dict[str, Layers]

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all variants with a codebook."""
        return (*self.intervals.rows, *self.entropy_codes.rows, *self.vectors.rows)

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return named arrays and plain metadata that a file can hold; `from_arrays` reads them."""
        arrays, variants = {}, {}
        for name in _PARTS:
            fields = getattr(self, name)._asdict()
            variants[name] = list(fields.pop("rows"))
            arrays |= {f"{name}/{field}": array for field, array in fields.items()}
        for name, layers in self.importance.items():
            for path, weight in layers.items():
                arrays[f"importance/{name}/{path}"] = np.asarray(weight)
        return arrays, {"variants": variants}

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
                rows = {variant: row for row, variant in enumerate(metadata["variants"][name])}
                fields = {field: arrays[f"{name}/{field}"] for field in kind._fields[1:]}
                parts[name] = kind(rows, **fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"stored codebooks lack {error}; run the sweep again.") from error
        importance: dict[str, Layers] = {}
        for name, array in arrays.items():
            if name.startswith("importance/"):
                _, of, path = name.split("/", 2)
                importance.setdefault(of, {})[path] = jnp.asarray(array)
        return cls(**parts, importance=importance)


_PARTS: dict[str, Any] = {
    "intervals": Intervals,
    "entropy_codes": EntropyCodes,
    "vectors": VectorCodes,
}


def codebook_variant(variant: Variant) -> Variant:
    """The variant whose codebooks this one uses: of all layers, and plain K-means for noise."""
    if variant.method == "gaussian_noise":
        return Variant("compressed", "kmeans", "none", num_clusters=variant.num_clusters)
    return replace(variant, kind="compressed", layer="")


def solve_codebooks(
    layers: Layers,
    importance: Mapping[str, Layers | None],
    variants: Sequence[Variant],
    *,
    num_bins: int,
    num_iterations: int,
    layer_weight: Mapping[str, float] | None = None,
    key: jax.Array | None = None,
) -> Codebooks:
    """Solve the codebooks of all variants that have one: few jitted calls for the whole grid.

    Args:
        layers: weights by path.
        importance: by the name that variants give it and by path; None for equal ones.
        variants: those with a codebook are solved; noise needs the distortion of plain K-means.
        num_bins: B, bins of the histogram of moments.
        num_iterations: iterations at most, of those methods that iterate.
        layer_weight: mean curvature of each layer, >= 0. What a squared error in one layer counts
            against one in another where bits are shared without an importance; None for 1.
        key: for the random start of vector codebooks; consumed.
    """
    solver = _Solver(layers, importance, num_bins, num_iterations, layer_weight, key)
    by_id = {(needed := codebook_variant(variant)).id: needed for variant in variants}
    of = partial(_of_method, list(by_id.values()))
    entropy, vector = of("entropy_constrained"), of("vector")
    stored = {variant.importance for variant in (*entropy, *vector)}
    return Codebooks(
        solver.intervals(of("kmeans", "uniform"), of("optimal")),
        solver.entropy_codes(entropy),
        solver.vectors(vector),
        {name: weights for name in stored if (weights := importance[name]) is not None},
    )


def importance_of(codebooks: Codebooks, name: str, layers: Layers) -> Layers:
    """Importance of every weight; 1 where there is none of that name."""
    known = codebooks.importance.get(name)
    return _ones(layers) if known is None else known


def _of_method(variants: Sequence[Variant], *methods: str) -> list[Variant]:
    return [variant for variant in variants if variant.method in methods]


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

    def layer_weight(self, name: str) -> np.ndarray:
        """What a unit of distortion counts in each layer, positive."""
        if self.importance[name] is not None or self._layer_weight is None:
            return np.ones(len(self.layers))
        weight = np.array([float(self._layer_weight[path]) for path in self.layers])
        # A layer the loss does not depend on still has to have some weight.
        largest = weight.max(initial=0.0)
        return np.maximum(weight, 1e-9 * largest) if largest > 0 else np.ones(len(weight))

    def intervals(self, variants: Sequence[Variant], optimal: Sequence[Variant]) -> Intervals:
        """Solve scalar codebooks with the same K in every layer, then share bits between them."""
        everything = [*variants, *optimal]
        if not everything:
            empty = np.zeros((0, len(self.layers), 1), np.float32)
            number = np.zeros((0, len(self.layers)), np.int32)
            return Intervals({}, empty, empty[..., :0], number, number.astype(bool))
        moments = {
            name: _stacked(self.layers, weights, _histogram(self.num_bins), self.num_bins)
            for name, weights in self.importance.items()
        }
        max_clusters = max(variant.num_clusters for variant in everything)
        # Where a layer may have any size, the largest budget is shared too.
        is_shared = any(variant.allocation == "optimal" for variant in optimal)
        max_solved = max_clusters * SHARED_FACTOR if is_shared else max_clusters
        found = _Found(self.layers, max_solved)
        self._iterate(variants, moments, max_clusters, found)
        if optimal:
            self._solve_all_sizes(optimal, moments, max_clusters, max_solved, found)
        for method in ("kmeans", "optimal"):
            for name in self.importance:
                allocated = [
                    variant
                    for variant in everything
                    if (variant.method, variant.importance) == (method, name)
                    and variant.allocation == "optimal"
                ]
                if allocated:
                    self._allocate(allocated, found)
        return found.intervals({variant.id for variant in everything})

    def _iterate(
        self,
        variants: Sequence[Variant],
        moments: Mapping[str, Moments],
        max_clusters: int,
        found: "_Found",
    ) -> None:
        """K-means and uniform grids, in one call per importance and penalty form."""
        equal = [replace(variant, allocation="equal") for variant in variants]
        groups: dict[tuple[str, str], list[Variant]] = {}
        for variant in {variant.id: variant for variant in equal}.values():
            # Plain K-means is the monotone form at penalty zero, to the last bit.
            form = "uniform" if variant.method == "uniform" else variant.penalty_form
            key = (variant.importance, "monotone" if form == "none" else form)
            groups.setdefault(key, []).append(variant)
        size = max((len(group) for group in groups.values()), default=0)
        for (name, form), group in groups.items():
            padded = group + [group[-1]] * (size - len(group))
            clusters = jnp.array([variant.num_clusters for variant in padded], jnp.int32)
            penalty = jnp.array([variant.diameter_penalty for variant in padded], jnp.float32)
            if form == "uniform":
                codebooks = _solve_uniform(
                    moments["none"],
                    clusters,
                    max_clusters=max_clusters,
                    centroid_dtype=self.centroid_dtype,
                )
            else:
                codebooks = _solve_kmeans(
                    moments[name],
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
        variants: Sequence[Variant],
        moments: Mapping[str, Moments],
        max_clusters: int,
        max_solved: int,
        found: "_Found",
    ) -> None:
        """Globally optimal codebooks: every K of an importance from one solve."""
        for name in dict.fromkeys(variant.importance for variant in variants):
            members = [variant for variant in variants if variant.importance == name]
            plain = [variant for variant in members if variant.diameter_penalty == 0]
            if plain:
                every_size = _solve_optimal(
                    moments[name],
                    max_clusters=max_solved,
                    centroid_dtype=self.centroid_dtype,
                )
                sizes = range(1, max_solved + 1)
                if not any(variant.allocation == "optimal" for variant in plain):
                    sizes = sorted({variant.num_clusters for variant in plain})
                found.add(
                    [Variant("compressed", "optimal", name, num_clusters=k) for k in sizes],
                    [np.asarray(leaf)[np.array(sizes) - 1] for leaf in every_size],
                )
            penalised = [variant for variant in members if variant.diameter_penalty > 0]
            if penalised:
                bins = min(DIAMETER_BINS, self.num_bins)
                coarse = _stacked(self.layers, self.importance[name], _histogram(bins), bins)
                codebooks = _solve_diameter(
                    coarse,
                    jnp.array([variant.num_clusters for variant in penalised], jnp.int32),
                    jnp.array([variant.diameter_penalty for variant in penalised], jnp.float32),
                    max_clusters=max_clusters,
                    centroid_dtype=self.centroid_dtype,
                )
                found.add(penalised, codebooks)

    def _allocate(self, variants: Sequence[Variant], found: "_Found") -> None:
        """Give every layer the size at which it uses the bits of all layers best."""
        method, name = variants[0].method, variants[0].importance
        rows = found.equal_rows(method, name)
        codebook_sizes = list(rows)
        places = list(rows.values())
        rates, distortions = [], []
        for number, (path, weights) in enumerate(self.layers.items()):
            importance = self.importance[name]
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
        equal = np.array([codebook_sizes.index(variant.num_clusters) for variant in variants])
        layer_weight = self.layer_weight(name)
        chosen = allocate_rates(
            curves, costs, budget_bits=curves[:, equal].sum(axis=0), layer_weight=layer_weight
        )
        # What is left of a budget is spent step by step, which the same size everywhere may beat.
        is_better = chosen.total_distortion <= layer_weight @ costs[:, equal]
        found.add_mixed(
            variants, np.array(places)[np.where(is_better[:, None], chosen.places, equal[:, None])]
        )

    def entropy_codes(self, variants: Sequence[Variant]) -> EntropyCodes:
        """Solve the entropy-constrained codebooks, in one call per importance."""
        num_layers = len(self.layers)
        if not variants:
            empty = np.zeros((0, num_layers, 1), np.float32)
            return EntropyCodes({}, empty, empty, empty[..., 0], empty[..., 0].astype(bool))
        build = partial(joint_moments, num_bins=ENTROPY_BINS, num_levels=ENTROPY_LEVELS)
        rows: dict[str, int] = {}
        parts = []
        for name in dict.fromkeys(variant.importance for variant in variants):
            members = [variant for variant in variants if variant.importance == name]
            importance = self.importance[name]
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
            for variant in members:
                rows[variant.id] = len(rows)
        return EntropyCodes(rows, *(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _multipliers(
        self, variants: Sequence[Variant], moments: Moments
    ) -> Float[np.ndarray, "layers variants"]:
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
        layer_weight = self.layer_weight(variants[0].importance)
        pooled = (layer_weight @ spread) / number.sum() / layer_weight
        scale = {"equal": spread / number, "optimal": pooled}
        return np.stack(
            [variant.parameter * scale[variant.allocation] for variant in variants], axis=1
        )

    def vectors(self, variants: Sequence[Variant]) -> VectorCodes:
        """Solve vector codebooks on the weights themselves, variant by variant."""
        if not variants:
            empty = np.zeros((0, len(self.layers), 1, VECTOR_SIZE), np.float32)
            number = np.zeros((0, len(self.layers)), np.int32)
            return VectorCodes({}, empty, number[:, 0], number.astype(bool))
        assert self.key is not None
        max_clusters = max(variant.num_clusters for variant in variants)
        centroids, converged = [], []
        for variant in variants:
            importance = self.importance[variant.importance]
            solved = _solve_vectors(
                list(self.layers.values()),
                list((_ones(self.layers) if importance is None else importance).values()),
                jnp.int32(variant.num_clusters),
                jnp.int32(min(self.num_iterations, VECTOR_ITERATIONS)),
                self.key,
                max_clusters=max_clusters,
            )
            centroids.append(np.asarray(solved[0]))
            converged.append(np.asarray(solved[1]))
        return VectorCodes(
            {variant.id: row for row, variant in enumerate(variants)},
            np.stack(centroids),
            np.array([variant.num_clusters for variant in variants], np.int32),
            np.stack(converged),
        )


class _Found:
    """Scalar codebooks found so far, of all layers."""

    def __init__(self, layers: Layers, max_clusters: int):
        self.num_layers = len(layers)
        self.max_clusters = max_clusters
        self.variants: list[Variant] = []
        self.parts: list[list[np.ndarray]] = []

    @property
    def centroids(self) -> np.ndarray:
        """(C, L, K)."""
        return np.concatenate([part[0] for part in self.parts])

    @property
    def thresholds(self) -> np.ndarray:
        """(C, L, K - 1)."""
        return np.concatenate([part[1] for part in self.parts])

    def add(self, variants: Sequence[Variant], codebooks: Sequence[Any]) -> None:
        """Take the first codebooks of (C, L) as those of the variants."""
        clusters = np.array([variant.num_clusters for variant in variants], np.int32)
        clusters = np.broadcast_to(clusters[:, None], (len(variants), self.num_layers))
        centroids, thresholds, converged = (np.asarray(leaf)[: len(variants)] for leaf in codebooks)
        padding = [(0, 0), (0, 0), (0, self.max_clusters - centroids.shape[-1])]
        centroids = np.pad(centroids, padding, mode="edge")
        thresholds = np.pad(thresholds, padding, constant_values=np.inf)
        self.variants += variants
        self.parts.append([centroids, thresholds, clusters, converged])

    def add_mixed(
        self, variants: Sequence[Variant], rows: Int[np.ndarray, "variants layers"]
    ) -> None:
        """Take every layer's codebook from a row of its own."""
        layers = np.arange(self.num_layers)
        mixed = [np.concatenate(part)[rows, layers] for part in zip(*self.parts, strict=True)]
        self.variants += variants
        self.parts.append(mixed)

    def equal_rows(self, method: str, name: str) -> dict[int, int]:
        """Rows of the unpenalised codebooks of a method with the same K everywhere, by K."""
        return {
            variant.num_clusters: row
            for row, variant in enumerate(self.variants)
            if (variant.method, variant.importance) == (method, name)
            and variant.diameter_penalty == 0
            and variant.allocation == "equal"
        }

    def intervals(self, ids: Collection[str]) -> Intervals:
        """The codebooks of these variants."""
        chosen = [row for row, variant in enumerate(self.variants) if variant.id in ids]
        rows = {self.variants[place].id: row for row, place in enumerate(chosen)}
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
    found = solver.solve(num_clusters[:, None], diameter_penalty[:, None]).solution
    centroids, thresholds, _ = _rounded_parts(found.codebook.centroids.astype(centroid_dtype))
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


def _parts(solution: Solution) -> tuple[Array, Array, Array]:
    codebook = solution.codebook
    return _wide(codebook.centroids), codebook.thresholds, solution.converged


def _rounded_parts(centroids: Float[Array, "C L K"]) -> tuple[Array, Array, Array]:
    """Return centroids as stored with their exact thresholds; everything counts as converged."""
    stored = _wide(centroids)
    thresholds = jnp.vectorize(nearest_thresholds, signature="(k)->(j)")(stored)
    return stored, thresholds, jnp.ones(stored.shape[:2], bool)


def _wide(centroids: Array) -> Array:
    # Files know no bfloat16, and float32 holds it exactly.
    return centroids.astype(jnp.promote_types(centroids.dtype, jnp.float32))
