"""Quantize a model of one's own: any pytree of weights in, codebooks and a size report out.

Every leaf that is selected is quantized on its own, as one group of weights (by channel where a
method has scales), by the array kernels of `jaxcomp.quantizers`; everything else is kept as it is.
The result is a pytree too, so that a forward pass on `tree.dequantize()` can be jitted with the
codebooks as arguments.

Sizes are estimates (`jaxcomp.rate`): what an ideal order-0 entropy coder would need for the
assignments, plus the codebooks, plus the kept leaves at full precision. No file is written here;
what the report says and how it prints is in `jaxcomp.tree_report`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt

from jaxcomp import rate
from jaxcomp.curvature import CurvaturePolicy, DiagonalEstimate
from jaxcomp.curvature.estimate import check_positive_count, count_not_finite
from jaxcomp.paths import Select, is_floating, leaves_by_path, selected_paths, shorten
from jaxcomp.quantizers import (
    Codebook,
    Moments,
    assign,
    histogram_moments,
    pad_bins,
    prune_by_magnitude,
    round_to_nearest,
    solve_kmeans,
    solve_uniform,
)
from jaxcomp.quantizers.checks import check_penalty, is_concrete
from jaxcomp.quantizers.diameter import PENALTY_FORMS, PenaltyForm
from jaxcomp.quantizers.moments import accumulation_dtype, pairwise_sum
from jaxcomp.transformations import always_compiled
from jaxcomp.tree_report import (
    LayerReport,
    Measures,
    Method,
    Report,
    brief_totals,
    layer_report,
)
from jaxcomp.types import Params

METHODS: tuple[str, ...] = get_args(Method)

LevelName: TypeAlias = Literal["num_clusters", "num_bits", "sparsity"]

# The one number that says how far a method goes, and its default.
_LEVEL_NAMES: dict[str, LevelName] = {
    "kmeans": "num_clusters",
    "uniform": "num_clusters",
    "round_to_nearest": "num_bits",
    "magnitude_pruning": "sparsity",
}
_LEVEL_DEFAULTS: dict[LevelName, int | None] = {"num_clusters": 16, "num_bits": 8, "sparsity": None}


class KeptLeaf(NamedTuple):
    """A leaf that is not quantized, as it came."""

    value: Any


class ClusteredLeaf(NamedTuple):
    """A leaf quantized by `kmeans` or `uniform`: its weights are `centroids[assignments]`.

    Attributes:
        centroids: (clusters,) ascending, in the dtype of the weights; min(K, number of weights)
            of them, of which some may be without weights.
        assignments: shaped like the leaf, smallest unsigned dtype.
        counts: (clusters,) int32, weights of each cluster.
        measures: error and diagnostics.
    """

    centroids: Float[Array, " clusters"]
    assignments: UInt[Array, "*shape"]
    counts: Int[Array, " clusters"]
    measures: Measures


class RoundedLeaf(NamedTuple):
    """A leaf quantized by `round_to_nearest`: its weights are `codes * scales`.

    Attributes:
        codes: shaped like the leaf, int8.
        scales: (channels,), one for each index of the last axis; a single one for a leaf with
            less than two axes.
        counts: (2 ** num_bits,) int32, how often each code occurs, from -2 ** (num_bits - 1) on.
        measures: error and diagnostics.
    """

    codes: Int[Array, "*shape"]
    scales: Float[Array, " channels"]
    counts: Int[Array, " codes"]
    measures: Measures


class PrunedLeaf(NamedTuple):
    """A leaf after `magnitude_pruning`.

    Attributes:
        values: shaped like the leaf, in its dtype: zeros and weights as they were.
        counts: (2,) int32, zeros and others.
        measures: error and diagnostics.
    """

    values: Float[Array, "*shape"]
    counts: Int[Array, " 2"]
    measures: Measures


QuantizedLeaf: TypeAlias = ClusteredLeaf | RoundedLeaf | PrunedLeaf


class _LeafLayout(NamedTuple):
    """Static part of one leaf: where it stands (several paths if tied) and what it was.

    Of a kept leaf only the paths are set. `level` is K or the number of bits; 0 after pruning,
    so that trees of different sparsity share one compilation.
    """

    paths: tuple[str, ...]
    shape: tuple[int, ...] = ()
    dtype: np.dtype | None = None
    level: int = 0
    is_weighted: bool = False


class _Layout(NamedTuple):
    """Static part of a quantized tree; `slots` maps the leaves of `structure` to stored leaves."""

    method: Method
    structure: Any  # a PyTreeDef
    slots: tuple[int, ...]
    leaves: tuple[_LeafLayout, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class QuantizedTree:
    """Weights after `quantize`: codebooks and assignments of some leaves, the others as they were.

    A pytree of its arrays: pass it through `jax.jit` and call `dequantize` inside; two trees of
    the same model, method and level share one compilation.

    Attributes:
        leaves: one `ClusteredLeaf`, `RoundedLeaf`, `PrunedLeaf` or `KeptLeaf` for each distinct
            leaf of the original tree.
        layout: structure, paths, shapes and dtypes; static.
    """

    leaves: tuple[QuantizedLeaf | KeptLeaf, ...]
    layout: _Layout = field(metadata={"static": True})

    @property
    def method(self) -> Method:
        """How the leaves were quantized."""
        return self.layout.method

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all quantized leaves, every place of a tied one."""
        return tuple(
            path
            for leaf, layout in zip(self.leaves, self.layout.leaves, strict=True)
            if not isinstance(leaf, KeptLeaf)
            for path in layout.paths
        )

    @always_compiled
    def dequantize(self) -> Params:
        """Return weights in the structure, shapes and dtypes of the original; works in `jit`.

        Leaves that were one array are one array again.
        """
        values = [
            _decode(leaf, layout)
            for leaf, layout in zip(self.leaves, self.layout.leaves, strict=True)
        ]
        return self.layout.structure.unflatten([values[slot] for slot in self.layout.slots])

    def leaf(self, path: str) -> QuantizedLeaf:
        """Return what is stored for the quantized leaf at `path`.

        Raises:
            ValueError: if there is no leaf at `path`, or it was kept as it was.
        """
        for leaf, layout in zip(self.leaves, self.layout.leaves, strict=True):
            if path in layout.paths:
                if isinstance(leaf, KeptLeaf):
                    raise ValueError(
                        f"the leaf {path!r} was not quantized; it is kept as it was, see "
                        "dequantize()."
                    )
                return leaf
        raise ValueError(f"there is no leaf {path!r}; quantized leaves are {shorten(self.paths)}.")

    def assignments(self, path: str) -> UInt[Array, "*shape"]:
        """Return the cluster of every weight of a leaf, shaped like it, smallest unsigned dtype.

        Raises:
            ValueError: if the leaf was not quantized by clusters.
        """
        return self._clustered(path).assignments

    def centroids(self, path: str) -> Float[Array, " clusters"]:
        """Return the codebook of a leaf, ascending, in the dtype of the weights.

        Raises:
            ValueError: if the leaf was not quantized by clusters.
        """
        return self._clustered(path).centroids

    def _clustered(self, path: str) -> ClusteredLeaf:
        leaf = self.leaf(path)
        if not isinstance(leaf, ClusteredLeaf):
            raise ValueError(
                f"the leaf {path!r} has no clusters after {self.method}; leaf(path) returns what "
                "is stored for it."
            )
        return leaf

    @always_compiled
    def report(self) -> Report:
        """Return size, error and diagnostics by layer, and in total.

        Raises:
            ValueError: inside `jit`, where the numbers are not known.
        """
        if not self._is_concrete():
            raise ValueError(
                "report and sizes need arrays with known values; ask for them outside jit and vmap."
            )
        layers, kept = [], []
        for leaf, layout in zip(self.leaves, self.layout.leaves, strict=True):
            if isinstance(leaf, KeptLeaf):
                kept.append(_array_bits(leaf.value))
            else:
                layers.append(_report_layer(leaf, layout))
        return Report(self.method, tuple(layers), num_kept=len(kept), kept_bits=sum(kept))

    @property
    def size_bits(self) -> float:
        """Estimated size: order-0 entropy of the assignments, codebooks, kept leaves in full.

        Of a rounded leaf the entropy of its integer codes and its scales; of a pruned leaf the
        entropy of the mask and the weights left at full precision. Kept leaves include integers
        and random keys; tied leaves count once.
        """
        return self.report().size_bits

    @property
    def original_bits(self) -> int:
        """Size of all leaves before quantization, tied ones once."""
        return self.report().original_bits

    @property
    def ratio(self) -> float:
        """Estimated compression ratio, `original_bits / size_bits`, kept leaves in both."""
        return self.report().ratio

    def _is_concrete(self) -> bool:
        return all(
            isinstance(value, jax.Array | np.ndarray | np.generic | bool) and is_concrete(value)
            for leaf in self.leaves
            if not isinstance(leaf, KeptLeaf)
            for value in jax.tree.leaves(leaf)
        )

    def __repr__(self) -> str:
        num_quantized = sum(not isinstance(leaf, KeptLeaf) for leaf in self.leaves)
        parts = [self.method, f"{num_quantized} of {len(self.leaves)} leaves quantized"]
        if self._is_concrete():
            parts += brief_totals(self.report())
        return f"QuantizedTree({', '.join(parts)})"


@always_compiled
def quantize(
    params: Params,
    *,
    method: Method = "kmeans",
    num_clusters: int | Mapping[str, int] | None = None,
    num_bits: int | Mapping[str, int] | None = None,
    sparsity: float | Mapping[str, float] | None = None,
    curvature: DiagonalEstimate | PyTree | None = None,
    select: Select = None,
    diameter_penalty: float = 0.0,
    penalty_form: PenaltyForm = "monotone",
    num_iterations: int = 200,
    num_bins: int = 4096,
) -> QuantizedTree:
    """Quantize the weights of a model, each leaf with a codebook of its own.

    A leaf's *path* is its key path joined by `/`, such as `params/Dense_0/kernel`, or
    `blocks/0/kernel/value` in an NNX state. Arrays that stand at several paths (tied weights: the
    same array object) are quantized, stored and counted once, if `select` names any of the paths.
    Integer, boolean and empty leaves and random keys are kept as they are, whatever `select`
    says. The solver compiles once for all leaves of a dtype and for each power of two that holds K;
    the passes over the weights compile for each distinct number of weights in a leaf. For use
    outside `jit`.

    Args:
        params: any pytree of arrays: nested dicts, Linen variables, an NNX state or module,
            lists, named tuples.
        method: `kmeans` (weighted, with an optional diameter penalty), `uniform` (equal cells,
            reconstructed at centroids), `round_to_nearest` (symmetric integers, one scale for
            each index of the last axis) or `magnitude_pruning` (the smallest weights become 0).
        num_clusters: K >= 1 for `kmeans` and `uniform`, 16 by default; a leaf with fewer
            distinct weights uses fewer, see `report()`. A mapping from glob patterns of paths to
            K sets it by leaf: the first pattern that matches counts, and `"*"`, wherever it stands,
            covers the rest.
        num_bits: 2 to 8 for `round_to_nearest`, 8 by default; by leaf likewise.
        sparsity: fraction in [0, 1] of a leaf's weights that `magnitude_pruning` sets to 0; by
            leaf likewise.
        curvature: importance h of each weight, a pytree with a non-negative real array of the
            leaf's shape at the path of every selected leaf (other leaves may be None or
            missing), or a `DiagonalEstimate`, whose mean goes through the default
            `CurvaturePolicy`. None weighs all alike. At the places of a tied leaf curvatures add
            up, unless they are one array as well. It moves the centroids of `kmeans` and
            `uniform`; for the other methods it only weighs the reported distortion.
        select: which leaves: a predicate `(path, leaf) -> bool`, a glob pattern of paths or
            several; by default floating-point leaves with two axes or more.
        diameter_penalty: for `kmeans`, strength relative to the leaf's total importance, >= 0.
        penalty_form: for `kmeans`: monotone, published, linear or none; see
            `jaxcomp.quantizers.solve_kmeans`.
        num_iterations: most updates of the centroids of `kmeans`, >= 1.
        num_bins: bins of the histogram of moments that `kmeans` and `uniform` work on, >= 1.

    Returns:
        The quantized tree: `dequantize()` gives weights back, `report()` says what it cost.

    Raises:
        TypeError: inside `jit`; or if an argument has a wrong type.
        ValueError: on an unknown method or form, a level out of range or of another method, a
            leaf that no pattern of a mapping covers, a pattern that matches nothing, NaN or
            infinite weights or curvature, negative curvature or none but zeros in a leaf,
            curvature that lacks a selected leaf or has another shape, weights of a precision that
            is not supported (float8, or float64 while JAX has only 32 bits), two leaves with the
            same path.

    Source: Choi, El-Khamy, Lee, arXiv:1612.01543 (curvature-weighted K-means); Bu et al.,
    arXiv:1901.09421 (diameter penalty).
    """
    level_name, level = _level_of(
        method, num_clusters=num_clusters, num_bits=num_bits, sparsity=sparsity
    )
    encode = _encoder(
        method,
        diameter_penalty=diameter_penalty,
        penalty_form=penalty_form,
        num_iterations=num_iterations,
        num_bins=num_bins,
    )
    structure = jax.tree.structure(params)
    named = leaves_by_path(params)
    if len(named) != structure.num_leaves:
        raise ValueError(
            f"params has {structure.num_leaves} leaves but only {len(named)} distinct paths; "
            "rename the keys that contain '/'."
        )
    groups, slots = _group_tied(named)
    selected = set(selected_paths(params, select))
    chosen = [
        slot
        for slot, group in enumerate(groups)
        if selected.intersection(group.paths) and is_floating(group.value) and group.value.size
    ]
    for slot in chosen:
        _check_dtype(groups[slot])
    _check_finite("params", {groups[slot].paths[0]: groups[slot].value for slot in chosen})
    levels = _level_by_leaf(level_name, level, [groups[slot].paths for slot in chosen])
    importances = _importance_by_leaf(curvature, [groups[slot] for slot in chosen])

    leaves: list[QuantizedLeaf | KeptLeaf] = [KeptLeaf(group.value) for group in groups]
    layouts = [_LeafLayout(group.paths) for group in groups]
    for slot, leaf_level, importance in zip(chosen, levels, importances, strict=True):
        weights = jnp.asarray(groups[slot].value)
        leaves[slot] = encode(weights, importance, leaf_level)
        layouts[slot] = _LeafLayout(
            paths=groups[slot].paths,
            shape=weights.shape,
            dtype=weights.dtype,
            level=0 if level_name == "sparsity" else int(leaf_level),
            is_weighted=importance is not None,
        )
    return QuantizedTree(tuple(leaves), _Layout(method, structure, tuple(slots), tuple(layouts)))


class _Group(NamedTuple):
    """One array (or other leaf) and all the places where it stands."""

    value: Any
    paths: tuple[str, ...]


def _group_tied(named: Mapping[str, Any]) -> tuple[list[_Group], list[int]]:
    """Join the paths of arrays that are one object; also return the group of every path."""
    groups: list[_Group] = []
    slots: list[int] = []
    slot_of: dict[int, int] = {}
    for path, value in named.items():
        # Other leaves, such as small integers, may be one object without being tied.
        slot = slot_of.get(id(value)) if isinstance(value, jax.Array | np.ndarray) else None
        if slot is None:
            slot = slot_of[id(value)] = len(groups)
            groups.append(_Group(value, (path,)))
        else:
            groups[slot] = _Group(value, (*groups[slot].paths, path))
        slots.append(slot)
    return groups, slots


def _level_of(method: Method, **levels: Any) -> tuple[LevelName, Any]:
    """Return the name and value of the one level that the method has."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
    name = _LEVEL_NAMES[method]
    for other, value in levels.items():
        if other != name and value is not None:
            raise ValueError(
                f"{other} does not apply to method {method!r}, got {value!r}; pass {name} instead."
            )
    level = _LEVEL_DEFAULTS[name] if levels[name] is None else levels[name]
    if level is None:
        raise ValueError(
            f"{name} is required by method {method!r}: the fraction of weights to set to 0."
        )
    return name, level


def _encoder(
    method: Method,
    *,
    diameter_penalty: float,
    penalty_form: PenaltyForm,
    num_iterations: int,
    num_bins: int,
) -> Callable[[Array, Array | None, Any], QuantizedLeaf]:
    """Check the options; return `(weights, importance, level) -> what is stored for a leaf`."""
    if penalty_form not in PENALTY_FORMS:
        raise ValueError(f"penalty_form must be one of {PENALTY_FORMS}, got {penalty_form!r}.")
    check_penalty(float(diameter_penalty))  # one number, where the kernels take arrays
    if diameter_penalty > 0 and method != "kmeans":
        raise ValueError(
            f"diameter_penalty applies to method 'kmeans' only, got {diameter_penalty!r} with "
            f"{method!r}; leave it at 0."
        )
    if diameter_penalty > 0 and penalty_form == "none":
        raise ValueError(
            f"diameter_penalty must be 0 with penalty_form 'none', got {diameter_penalty!r}; "
            "choose another form, such as 'monotone'."
        )
    check_positive_count("num_iterations", num_iterations)
    check_positive_count("num_bins", num_bins)
    match method:
        case "kmeans":
            solve = partial(
                solve_kmeans,
                diameter_penalty=diameter_penalty,
                penalty_form=penalty_form,
                num_iterations=num_iterations,
            )
            is_exact = diameter_penalty == 0
            return partial(_cluster, solve=solve, num_bins=num_bins, keep_distinct=is_exact)
        case "uniform":
            return partial(_cluster, solve=solve_uniform, num_bins=num_bins, keep_distinct=False)
        case "round_to_nearest":
            return _round
        case "magnitude_pruning":
            return _prune


def _check_dtype(group: _Group) -> None:
    """Refuse weights that JAX would change before anything is measured."""
    path, value = group.paths[0], group.value
    if not is_concrete(value):
        raise TypeError(
            f"quantize needs known weights, but the leaf {path!r} is traced; call it outside jit, "
            "and dequantize() inside."
        )
    if jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype:
        raise ValueError(
            f"the leaf {path!r} is {value.dtype}, which JAX now cuts to 32 bits; convert it, or "
            "enable jax_enable_x64."
        )
    if value.dtype.itemsize < 2:
        raise ValueError(
            f"the leaf {path!r} is {value.dtype}, but weights must have 16 bits or more; convert "
            "it to bfloat16, or leave it out by select."
        )


def _check_finite(name: str, values: Mapping[str, Any]) -> None:
    counts = jax.device_get(count_not_finite([jnp.asarray(value) for value in values.values()]))
    for (path, value), count in zip(values.items(), counts, strict=True):
        if count:
            raise ValueError(
                f"{name} must be finite, got {int(count)} NaN or infinite among the {value.size} "
                f"entries of {path!r}."
            )


def _level_by_leaf(name: LevelName, level: Any, leaves: list[tuple[str, ...]]) -> list[Any]:
    """Return the level of every leaf, given by all its paths; first matching pattern wins."""
    if not isinstance(level, Mapping):
        _check_level(name, level, label=name)
        return [level] * len(leaves)
    for pattern, value in level.items():
        if not isinstance(pattern, str):
            raise TypeError(f"the keys of {name} must be glob patterns of paths, got {pattern!r}.")
        _check_level(name, value, label=f"{name}[{pattern!r}]")
        if pattern != "*" and not any(_matches(paths, pattern) for paths in leaves):
            raise ValueError(
                f"the pattern {pattern!r} in {name} matches no selected leaf: they are "
                f"{shorten(paths[0] for paths in leaves)}."
            )
    # The default stands behind all others, so that none is shadowed.
    ordered = sorted(level.items(), key=lambda item: item[0] == "*")
    levels = []
    for paths in leaves:
        matching = [value for pattern, value in ordered if _matches(paths, pattern)]
        if not matching:
            raise ValueError(
                f"{name} has no pattern that matches the selected leaf {paths[0]!r}; add one, or "
                "'*' for all others."
            )
        levels.append(matching[0])
    return levels


def _matches(paths: Sequence[str], pattern: str) -> bool:
    return any(fnmatchcase(path, pattern) for path in paths)


def _check_level(name: LevelName, value: Any, *, label: str) -> None:
    if name == "sparsity":
        is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= 1:
            raise ValueError(f"{label} must be a fraction from 0 to 1, got {value!r}.")
        return
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{label} must be an integer, got {value!r}.")
    if name == "num_clusters" and value < 1:
        raise ValueError(f"{label} must be at least 1, got {value}.")
    if name == "num_bits" and not 2 <= value <= 8:
        raise ValueError(f"{label} must be from 2 to 8, got {value}.")


def _importance_by_leaf(
    curvature: DiagonalEstimate | PyTree | None, groups: list[_Group]
) -> list[Array | None]:
    """Return the importance of every leaf, None where it says nothing; all of it checked."""
    if curvature is None:
        return [None] * len(groups)
    is_estimate = isinstance(curvature, DiagonalEstimate)
    named = leaves_by_path(curvature.mean if is_estimate else curvature)
    found = {
        path: _curvature_at(named, path, group.value.shape)
        for group in groups
        for path in group.paths
    }
    _check_finite("curvature", found)
    importances: list[Array | None] = []
    for group in groups:
        # The loss changes through every place of a tied array.
        places = {id(named[path]): found[path] for path in group.paths}
        dtype = accumulation_dtype(group.value.dtype)
        importance = sum(
            (place.astype(dtype) for place in places.values()),
            start=jnp.zeros(group.value.shape, dtype),
        )
        if is_estimate:
            result = CurvaturePolicy().apply(importance)
            importances.append(None if bool(result.report.is_fallback) else result.importance)
            continue
        _check_importance(group.paths[0], importance)
        importances.append(importance)
    return importances


def _curvature_at(named: Mapping[str, Any], path: str, shape: tuple[int, ...]) -> Array:
    if path not in named:
        raise ValueError(
            f"curvature has no leaf {path!r}, which is quantized: it has {shorten(named)}; give "
            "it the structure of params."
        )
    value = named[path]
    if jnp.shape(value) != shape:
        raise ValueError(
            f"curvature at {path!r} must have the shape of the weights, {shape}, got "
            f"{jnp.shape(value)}."
        )
    array = jnp.asarray(value)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"curvature at {path!r} must be real numbers, got {array.dtype}.")
    return array


def _check_importance(path: str, importance: Array) -> None:
    num_negative = int(jnp.sum(importance < 0, dtype=jnp.int32))
    if num_negative:
        raise ValueError(
            f"curvature must be at least 0, got {num_negative} negative among the "
            f"{importance.size} entries of {path!r}; pass "
            "jaxcomp.curvature.CurvaturePolicy().apply(curvature).importance, or the "
            "DiagonalEstimate itself."
        )
    if not bool(jnp.any(importance > 0)):
        raise ValueError(
            f"curvature is 0 throughout the leaf {path!r}, so it cannot weigh anything; pass "
            "jaxcomp.curvature.CurvaturePolicy().apply(curvature).importance, which weighs such a "
            "leaf alike, or leave it out by select."
        )


def _cluster(
    weights: Float[Array, "*shape"],
    importance: Float[Array, "*shape"] | None,
    num_clusters: int,
    *,
    solve: Callable[..., Codebook],
    num_bins: int,
    keep_distinct: bool,
) -> ClusteredLeaf:
    points = weights.reshape(-1)
    point_weights = None if importance is None else importance.reshape(-1)
    size = min(num_clusters, points.size)
    distinct = _few_distinct(points, size) if keep_distinct else None
    if distinct is not None:
        # Exact, where bins of a histogram might join two values: nothing changes a second time.
        padding = (0, size - distinct.size)
        centroids = jnp.asarray(np.pad(distinct, padding, mode="edge"))
        thresholds = jnp.asarray(np.pad(distinct[:-1], padding, constant_values=np.inf))
        converged = jnp.asarray(True)
    else:
        # Moments of one size, and a codebook whose static size is a power of two: leaves of all
        # sizes and nearly all K share one compilation of the solver.
        moments = _moments(points, point_weights, num_bins=num_bins)
        codebook = solve(
            moments,
            size,
            max_clusters=_power_of_two(num_clusters),
            centroid_dtype=weights.dtype,
        )
        centroids, thresholds = codebook.centroids[:size], codebook.thresholds[: size - 1]
        converged = codebook.converged
    leaf = _encode(points, point_weights, centroids, thresholds, converged)
    return leaf._replace(assignments=leaf.assignments.reshape(weights.shape))


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


@partial(jax.jit, static_argnames=("num_bins",))
def _moments(
    points: Float[Array, " points"],
    importance: Float[Array, " points"] | None,
    *,
    num_bins: int,
) -> Moments:
    return pad_bins(histogram_moments(points, importance, num_bins=num_bins), num_bins)


@jax.jit
def _encode(
    points: Float[Array, " points"],
    importance: Float[Array, " points"] | None,
    centroids: Float[Array, " clusters"],
    thresholds: Float[Array, " clusters-1"],
    converged: Bool[Array, ""],
) -> ClusteredLeaf:
    assignments = assign(points, thresholds)
    index = assignments.astype(jnp.int32)
    counts = jax.ops.segment_sum(jnp.ones_like(index), index, centroids.shape[0])
    measures = _measure(points, centroids[index], importance, converged)
    return ClusteredLeaf(centroids, assignments, counts, measures)


def _few_distinct(points: Float[Array, " points"], limit: int) -> np.ndarray | None:
    """Return the distinct values, ascending, if there are at most `limit`; otherwise None."""
    values = np.asarray(points)
    stride = max(values.size // (4 * limit), 1)
    if np.unique(values[::stride]).size > limit:  # settles it for nearly all layers, at no cost
        return None
    distinct = np.unique(values)
    return distinct if distinct.size <= limit else None


def _round(
    weights: Float[Array, "*shape"], importance: Float[Array, "*shape"] | None, num_bits: int
) -> RoundedLeaf:
    # Each weight of a vector would be a channel of its own.
    matrix = weights if weights.ndim >= 2 else weights.reshape(-1, 1)
    rounded = round_to_nearest(matrix, num_bits=num_bits)
    codes = rounded.codes.reshape(weights.shape)
    shifted = np.asarray(codes).astype(np.int64).ravel() + 2 ** (num_bits - 1)
    counts = jnp.asarray(np.bincount(shifted, minlength=2**num_bits).astype(np.int32))
    measures = _measure(weights, rounded.values, importance, jnp.asarray(True))
    return RoundedLeaf(codes, rounded.scales, counts, measures)


def _prune(
    weights: Float[Array, "*shape"], importance: Float[Array, "*shape"] | None, sparsity: float
) -> PrunedLeaf:
    values = prune_by_magnitude(weights, sparsity)
    num_left = int(jnp.count_nonzero(values))
    counts = jnp.asarray([values.size - num_left, num_left], jnp.int32)
    return PrunedLeaf(values, counts, _measure(weights, values, importance, jnp.asarray(True)))


@jax.jit
def _measure(
    weights: Float[Array, "*shape"],
    values: Float[Array, "*shape"],
    importance: Float[Array, "*shape"] | None,
    converged: Bool[Array, ""],
) -> Measures:
    dtype = accumulation_dtype(weights.dtype)
    before, after = weights.astype(dtype).ravel(), values.astype(dtype).ravel()
    squares = (before - after) ** 2
    squared_error = pairwise_sum(squares)
    if importance is None:
        distortion = squared_error
    else:
        distortion = pairwise_sum(importance.astype(dtype).ravel() * squares)
    return Measures(distortion, squared_error, pairwise_sum(before * before), converged)


def _decode(leaf: QuantizedLeaf | KeptLeaf, layout: _LeafLayout) -> Any:
    match leaf:
        case KeptLeaf(value):
            return value
        case ClusteredLeaf():
            return _look_up(leaf.centroids, leaf.assignments)
        case RoundedLeaf():
            return _rescale(leaf.codes, leaf.scales, layout.dtype)
        case PrunedLeaf():
            return leaf.values


@jax.jit
def _look_up(
    centroids: Float[Array, " clusters"], assignments: UInt[Array, "*shape"]
) -> Float[Array, "*shape"]:
    return centroids[assignments.astype(jnp.int32)]


@partial(jax.jit, static_argnames=("dtype",))
def _rescale(
    codes: Int[Array, "*shape"], scales: Float[Array, " channels"], dtype: np.dtype | None
) -> Float[Array, "*shape"]:
    return (codes.astype(scales.dtype) * jnp.broadcast_to(scales, codes.shape)).astype(dtype)


def _report_layer(leaf: QuantizedLeaf, layout: _LeafLayout) -> LayerReport:
    assert layout.dtype is not None
    weight_bits = 8 * layout.dtype.itemsize
    counts = np.asarray(leaf.counts)
    level, num_used = layout.level, int(np.count_nonzero(counts))
    match leaf:
        case ClusteredLeaf():
            size = rate.code_size(counts, num_clusters=counts.size, centroid_bits=weight_bits)
        case RoundedLeaf():
            size = rate.rounded_size(
                counts,
                num_bits=layout.level,
                num_scales=leaf.scales.size,
                scale_bits=8 * leaf.scales.dtype.itemsize,
            )
        case PrunedLeaf():
            num_zeros, num_used = counts.tolist()
            size = rate.pruned_size(num_zeros + num_used, num_used, value_bits=weight_bits)
            level = num_zeros / (num_zeros + num_used)
    return layer_report(
        size,
        leaf.measures,
        paths=layout.paths,
        shape=layout.shape,
        dtype=layout.dtype,
        level=level,
        num_used=num_used,
        is_weighted=layout.is_weighted,
    )


def _array_bits(value: Any) -> int:
    """Size of a kept leaf in bits; 0 for what is not an array."""
    return 8 * value.size * value.dtype.itemsize if hasattr(value, "dtype") else 0
