"""Quantize a model of one's own: any pytree of weights in, codebooks and a size report out.

Every leaf that is selected is quantized on its own, as one group of weights (by channel where a
method has scales; layer by layer if it is a stack of them), by the array kernels of
`jaxcomp.quantizers`; everything else is kept as it is. The result is a pytree too, so that a
forward pass on `tree.dequantize()` can be jitted with the codebooks as arguments.

Results do not depend on the scale of the weights: where that is far from 1, they are quantized in
units of a power of two, and errors are always measured in such units, in which no square is out of
range. Axes: `layers` of a stack, absent for a leaf that is none.

Sizes are estimates (`jaxcomp.coding.sizes`): what an ideal order-0 entropy coder would need for the
assignments, plus the codebooks, plus the kept leaves at full precision. No file is written here;
what the report says and how it prints is in `jaxcomp.compressed.report`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped, UInt

from jaxcomp.coding import sizes
from jaxcomp.compressed.report import (
    LayerReport,
    Measures,
    Method,
    Report,
    brief_totals,
    layer_report,
)
from jaxcomp.curvature import CurvaturePolicy, DiagonalEstimate
from jaxcomp.curvature.estimate import check_positive_count
from jaxcomp.long_call import LongCall
from jaxcomp.numerics.checks import check_penalty, is_concrete
from jaxcomp.numerics.scaling import (
    group_exponent,
    is_negative,
    is_zero,
    normalise,
    restore,
)
from jaxcomp.numerics.transformations import always_compiled
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
from jaxcomp.quantizers.histograms import (
    accumulation_dtype,
    bins_for,
    sum_of_squares,
)
from jaxcomp.quantizers.scalar.diameter import PENALTY_FORMS, PenaltyForm
from jaxcomp.trees.leaves import (
    Constant,
    View,
    is_array,
    is_wide,
    memory_of,
    readable_leaves,
    view_between,
    warn_of_wide,
    with_readable_leaves,
)
from jaxcomp.trees.paths import leaves_by_path, matching_paths, shorten
from jaxcomp.trees.selection import Select, decide, stacked_paths
from jaxcomp.types import AnyArray, Params

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


# Octaves around 1 in which no square of a weight or an error is out of range, so that weights of
# such size are quantized as they are.
_ORDINARY_OCTAVES = 30


class KeptLeaf(NamedTuple):
    """A leaf that is not quantized, as it came; what is no array is held as a `Constant`."""

    value: Any


class ClusteredLeaf(NamedTuple):
    """A leaf quantized by `kmeans` or `uniform`: its weights are `centroids[assignments]`.

    Attributes:
        centroids: (clusters,) ascending, in the dtype of the weights; min(K, number of weights)
            of them, of which some may be without weights. Of a stack (layers, clusters): each
            layer has its own.
        assignments: shaped like the leaf, smallest unsigned dtype.
        counts: (clusters,) or (layers, clusters) int32, weights of each cluster.
        measures: error and diagnostics; (layers,) each, of a stack.
    """

    centroids: Float[AnyArray, "*layers clusters"]
    assignments: UInt[Array, "*shape"]
    counts: Int[Array, "*layers clusters"]
    measures: Measures


class RoundedLeaf(NamedTuple):
    """A leaf quantized by `round_to_nearest`: its weights are `codes * scales`.

    Attributes:
        codes: shaped like the leaf, int8.
        scales: (channels,), one for each index of the last axis; a single one for a leaf (or a
            layer of a stack) with less than two axes. Of a stack (layers, channels).
        counts: (2 ** num_bits,) int32, how often each code occurs, from -2 ** (num_bits - 1) on;
            of a stack (layers, 2 ** num_bits).
        measures: error and diagnostics; (layers,) each, of a stack.
    """

    codes: Int[Array, "*shape"]
    scales: Float[AnyArray, "*layers channels"]
    counts: Int[Array, "*layers codes"]
    measures: Measures


class PrunedLeaf(NamedTuple):
    """A leaf after `magnitude_pruning`.

    Attributes:
        values: shaped like the leaf, in its dtype: zeros and weights as they were.
        counts: (2,) int32, zeros and others; of a stack (layers, 2).
        measures: error and diagnostics; (layers,) each, of a stack.
    """

    values: Float[AnyArray, "*shape"]
    counts: Int[Array, "*layers 2"]
    measures: Measures


QuantizedLeaf: TypeAlias = ClusteredLeaf | RoundedLeaf | PrunedLeaf


class _LeafLayout(NamedTuple):
    """Static part of one leaf: where it stands (several paths if tied) and what it was.

    Of a kept leaf only paths and reason are set. `level` is K or the number of bits; 0 after
    pruning, so that trees of different sparsity share one compilation.
    """

    paths: tuple[str, ...]
    reason: str
    shape: tuple[int, ...] = ()
    dtype: np.dtype | None = None
    level: int = 0
    is_weighted: bool = False
    is_stack: bool = False


class _Slot(NamedTuple):
    """Where a leaf of the original tree is stored, and how it is seen there."""

    number: int
    view: View | None


class _Layout(NamedTuple):
    """Static part of a quantized tree; `slots` maps the leaves of `structure` to stored leaves."""

    method: Method
    structure: Any  # a PyTreeDef
    slots: tuple[_Slot, ...]
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

        Leaves that were one array are one array again, on the devices and with the sharding of
        the original. NumPy's float64 while JAX has 32 bits comes back as such outside `jit`.
        Tensors of PyTorch come back as arrays.
        """
        values = [
            _decode(leaf, layout)
            for leaf, layout in zip(self.leaves, self.layout.leaves, strict=True)
        ]
        return self.layout.structure.unflatten(
            [
                values[slot.number] if slot.view is None else slot.view.apply(values[slot.number])
                for slot in self.layout.slots
            ]
        )

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

    def centroids(self, path: str) -> Float[AnyArray, "*layers clusters"]:
        """Return the codebook of a leaf, ascending, in the dtype of the weights.

        Of a stack of layers (layers, clusters).

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
        reasons: dict[str, list[str]] = {}
        for leaf, layout in zip(self.leaves, self.layout.leaves, strict=True):
            if isinstance(leaf, KeptLeaf):
                kept.append(_array_bits(leaf.value))
                reasons.setdefault(layout.reason, []).append(layout.paths[0])
            else:
                layers.append(_report_layer(leaf, layout))
        return Report(
            self.method,
            tuple(layers),
            num_kept=len(kept),
            kept_bits=sum(kept),
            kept={reason: tuple(paths) for reason, paths in reasons.items()},
        )

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
    stacked: Select = None,
    diameter_penalty: float = 0.0,
    penalty_form: PenaltyForm = "monotone",
    num_iterations: int = 200,
    num_bins: int = 4096,
) -> QuantizedTree:
    """Quantize the weights of a model, each leaf with a codebook of its own.

    A leaf's *path* is its key path joined by `/`, such as `params/Dense_0/kernel`, or
    `blocks/0/kernel/value` in an NNX state. Arrays that stand at several paths (tied weights: the
    same array object, or views of NumPy or tensors of PyTorch that cover the same memory) are
    quantized, stored and counted once, if `select` names any of the paths. What is not floating or
    has fewer than 16 bits, empty leaves and random keys are kept as they are, whatever `select`
    says. A stack of layers (a leading axis of layers, as `nn.scan` makes it) gets a codebook for
    each layer.

    The solver compiles once for all leaves of a dtype and for each power of two that holds K; the
    passes over the weights compile for each distinct number of weights in a leaf. A terminal shows
    how far a long call is. For use outside `jit`.

    Args:
        params: any pytree: nested dicts, Linen variables, an NNX state or module, an Equinox
            module, lists, named tuples; with arrays of JAX or NumPy, tensors of PyTorch, and
            anything else among its leaves.
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
            several. By default weight matrices, kernels and embeddings: leaves with two axes or
            more that by name and shape are no bias, gain, statistic, position or token
            (`jaxcomp.trees.selection.compressible`); the report says what was kept and why.
        stacked: which leaves are stacks of layers along their leading axis, likewise; by default
            those whose names or biases show it (`jaxcomp.trees.selection.stacked_paths`). A stack
            that shows neither has to be named here.
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
            curvature that lacks a selected leaf or has another shape, two leaves with the same
            path.

    Warns:
        UserWarning: if leaves are float64 while JAX has 32 bits: computed in float32.

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
    params = with_readable_leaves(params)
    named = leaves_by_path(params)
    decisions = decide(params, select)
    groups, slots = _group_tied(named)
    chosen = [
        number
        for number, group in enumerate(groups)
        if any(decisions[path].is_compressed for path in group.paths)
    ]
    selected = [groups[number] for number in chosen]
    for group in selected:
        _check_known(group)
    warn_of_wide({group.paths[0]: group.value for group in selected})
    stacks = set(
        stacked_paths(params, stacked, [path for group in selected for path in group.paths])
    )
    levels = _level_by_leaf(level_name, level, [group.paths for group in selected])
    exponents = _exponents("params", {group.paths[0]: group.value for group in selected})
    importances = _importance_by_leaf(curvature, selected)

    leaves: list[QuantizedLeaf | KeptLeaf] = [_kept(group.value) for group in groups]
    layouts = [_LeafLayout(group.paths, decisions[group.paths[0]].reason) for group in groups]
    with LongCall(f"quantizing by {method}", len(chosen)) as report:
        for done, (number, group) in enumerate(zip(chosen, selected, strict=True)):
            report(done, len(chosen), shorten(group.paths, 1))
            importance, leaf_level = importances[done], levels[done]
            is_stack = group.paths[0] in stacks
            if is_stack:
                leaf = _quantize_stack(group, importance, leaf_level, encode=encode)
            else:
                leaf = _quantize_array(
                    group.value, importance, leaf_level, encode=encode, exponent=exponents[done]
                )
            leaves[number] = _placed(leaf, group.value)
            layouts[number] = _LeafLayout(
                paths=group.paths,
                reason=decisions[group.paths[0]].reason,
                shape=group.value.shape,
                dtype=np.dtype(group.value.dtype),
                level=0 if level_name == "sparsity" else int(leaf_level),
                is_weighted=importance is not None,
                is_stack=is_stack,
            )
    layout = _Layout(method, jax.tree.structure(params), tuple(slots), tuple(layouts))
    return QuantizedTree(tuple(leaves), layout)


class _Group(NamedTuple):
    """One array (or other leaf) and all the places where it stands."""

    value: Any
    paths: tuple[str, ...]
    views: tuple[View | None, ...]


def _group_tied(named: Mapping[str, Any]) -> tuple[list[_Group], list[_Slot]]:
    """Join the paths of arrays that are one; also return where every leaf is stored."""
    groups: list[_Group] = []
    slots: list[_Slot] = []
    stored: dict[Any, tuple[int, tuple[int, ...]]] = {}
    for path, value in named.items():
        # Other leaves, such as small integers, may be one object without being tied.
        memory = memory_of(value)
        if memory is None or memory.key not in stored:
            if memory is not None:
                stored[memory.key] = (len(groups), memory.order)
            slots.append(_Slot(len(groups), None))
            groups.append(_Group(value, (path,), (None,)))
            continue
        number, order = stored[memory.key]
        group = groups[number]
        view = view_between(group.value, order, value, memory.order)
        groups[number] = _Group(group.value, (*group.paths, path), (*group.views, view))
        slots.append(_Slot(number, view))
    return groups, slots


def _kept(value: Any) -> KeptLeaf:
    return KeptLeaf(value if is_array(value) or not is_concrete(value) else Constant(value))


class _Importance(NamedTuple):
    """Importance of the weights of a leaf, in units of a power of two."""

    values: Float[Array, "*shape"]
    exponent: Int[Array, ""]

    def by_layer(self) -> "list[_Importance]":
        """The importances of the layers of a stack."""
        return [_Importance(layer, self.exponent) for layer in self.values]


class _Problem(NamedTuple):
    """The weights of a leaf or layer as they are quantized: in units of a power of two.

    Attributes:
        weights: in units of `2 ** exponent`; float32 for those that are wider than JAX has.
        exponent: 0 for weights of ordinary size, which are as they came.
        importance: of each weight, or None.
        original: the weights as they came.
    """

    weights: Float[Array, "*shape"]
    exponent: int
    importance: _Importance | None
    original: Float[AnyArray, "*shape"]

    def in_original_units(self, values: Float[Array, "*values"]) -> Float[AnyArray, "*values"]:
        """Return numbers in these units as ordinary ones, in the dtype of the weights."""
        if is_wide(self.original.dtype):
            return np.ldexp(np.asarray(values, self.original.dtype), self.exponent)
        if self.exponent == 0:
            return values
        return restore(values, jnp.int32(self.exponent), axis=_all_axes(values))

    def in_units(self, values: Float[AnyArray, "*values"]) -> Float[Array, "*values"]:
        """Undo it, after the rounding that it may have brought."""
        if is_wide(self.original.dtype):
            values = np.ldexp(np.asarray(values), -self.exponent)
            return jnp.asarray(values.astype(np.float32))
        if self.exponent == 0:
            return jnp.asarray(values)
        return normalise(jnp.asarray(values), jnp.int32(self.exponent), axis=_all_axes(values))


def _all_axes(values: Shaped[AnyArray, "..."]) -> tuple[int, ...]:
    return tuple(range(values.ndim))


def _quantize_array(
    value: Float[AnyArray, "*shape"],
    importance: _Importance | None,
    level: Any,
    *,
    encode: Callable[[_Problem, Any], QuantizedLeaf],
    exponent: int,
) -> QuantizedLeaf:
    if is_wide(value.dtype):
        units = np.ldexp(np.asarray(value), -exponent).astype(np.float32)
        return encode(_Problem(jnp.asarray(units), exponent, importance, value), level)
    # As few octaves as are needed: an outlier far away must not push the others out of range.
    shift = exponent - min(max(exponent, -_ORDINARY_OCTAVES), _ORDINARY_OCTAVES)
    weights = jnp.asarray(value)
    problem = _Problem(weights, shift, importance, weights)
    return encode(problem._replace(weights=problem.in_units(weights)), level)


def _quantize_stack(
    group: _Group,
    importance: _Importance | None,
    level: Any,
    *,
    encode: Callable[[_Problem, Any], QuantizedLeaf],
) -> QuantizedLeaf:
    """Quantize a stack layer by layer; what is stored gets a leading axis of layers."""
    layers = {f"{group.paths[0]}[{number}]": layer for number, layer in enumerate(group.value)}
    parts = [None] * len(layers) if importance is None else importance.by_layer()
    stored = [
        _quantize_array(layer, part, level, encode=encode, exponent=exponent)
        for layer, part, exponent in zip(
            layers.values(), parts, _exponents("params", layers), strict=True
        )
    ]

    def join(*parts: Any) -> Any:
        return np.stack(parts) if isinstance(parts[0], np.ndarray) else jnp.stack(parts)

    return jax.tree.map(join, *stored)


def _placed(leaf: QuantizedLeaf, value: Any) -> QuantizedLeaf:
    """Give what is shaped like the weights their sharding, if they are spread over devices."""
    if not isinstance(value, jax.Array) or len(value.sharding.device_set) < 2:
        return leaf
    match leaf:
        case ClusteredLeaf():
            return leaf._replace(assignments=jax.device_put(leaf.assignments, value.sharding))
        case RoundedLeaf():
            return leaf._replace(codes=jax.device_put(leaf.codes, value.sharding))
        case PrunedLeaf():
            return leaf._replace(values=jax.device_put(leaf.values, value.sharding))


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
) -> Callable[[_Problem, Any], QuantizedLeaf]:
    """Check the options; return `(problem, level) -> what is stored for a leaf`."""
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
    num_iterations = check_positive_count("num_iterations", num_iterations)
    num_bins = check_positive_count("num_bins", num_bins)
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


def _check_known(group: _Group) -> None:
    if not is_concrete(group.value):
        raise TypeError(
            f"quantize needs known weights, but the leaf {group.paths[0]!r} is traced; call it "
            "outside jit, and dequantize() inside."
        )


def _exponents(name: str, values: Mapping[str, Any]) -> list[int]:
    """Return e with `2 ** e <= max |values| < 2 ** (e + 1)` of every array; all must be finite."""
    found: dict[str, Any] = {}
    # Arrays of other devices cannot meet in one program.
    by_devices: dict[Any, list[str]] = {}
    for path, value in values.items():
        if is_wide(value.dtype):
            wide = np.asarray(value)
            num_bad = int(np.count_nonzero(~np.isfinite(wide)))
            largest = np.max(np.abs(wide), initial=0.0) if num_bad == 0 else np.zeros(())
            found[path] = (num_bad, int(np.frexp(largest)[1]) - 1 if largest else 0)
        else:
            devices = value.sharding.device_set if isinstance(value, jax.Array) else ()
            by_devices.setdefault(frozenset(devices), []).append(path)
    for paths in by_devices.values():
        surveyed = _survey([jnp.asarray(values[path]) for path in paths])
        found |= dict(zip(paths, surveyed, strict=True))
    exponents = []
    for path, value in values.items():
        num_bad, exponent = (int(number) for number in found[path])
        if num_bad:
            raise ValueError(
                f"{name} must be finite, got {num_bad} NaN or infinite among the {value.size} "
                f"entries of {path!r}."
            )
        exponents.append(exponent)
    return exponents


@jax.jit
def _survey(leaves: list[Array]) -> list[tuple[Int[Array, ""], Int[Array, ""]]]:
    """Count the entries of each array that are not finite, and find its power of two."""
    return [
        (
            jnp.sum(~jnp.isfinite(leaf), dtype=jnp.int32),
            group_exponent(leaf, axis=tuple(range(leaf.ndim))),
        )
        for leaf in leaves
    ]


def _level_by_leaf(name: LevelName, level: Any, leaves: list[tuple[str, ...]]) -> list[Any]:
    """Return the level of every leaf, given by all its paths; first matching pattern wins."""
    if not isinstance(level, Mapping):
        _check_level(name, level, label=name)
        return [level] * len(leaves)
    all_paths = [path for paths in leaves for path in paths]
    for pattern, value in level.items():
        if not isinstance(pattern, str):
            raise TypeError(f"the keys of {name} must be glob patterns of paths, got {pattern!r}.")
        _check_level(name, value, label=f"{name}[{pattern!r}]")
        if pattern != "*" and not matching_paths(all_paths, pattern):
            raise ValueError(
                f"the pattern {pattern!r} in {name} matches no selected leaf: they are "
                f"{shorten(paths[0] for paths in leaves)}."
            )
    # The default stands behind all others, so that none is shadowed.
    ordered = sorted(level.items(), key=lambda item: item[0] == "*")
    matched = [(set(matching_paths(all_paths, pattern)), value) for pattern, value in ordered]
    levels = []
    for paths in leaves:
        matching = [value for found, value in matched if found.intersection(paths)]
        if not matching:
            raise ValueError(
                f"{name} has no pattern that matches the selected leaf {paths[0]!r}; add one, or "
                "'*' for all others."
            )
        levels.append(matching[0])
    return levels


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
) -> list[_Importance | None]:
    """Return the importance of every leaf, None where it says nothing; all of it checked."""
    if curvature is None:
        return [None] * len(groups)
    is_estimate = isinstance(curvature, DiagonalEstimate)
    named = readable_leaves(curvature.mean if is_estimate else curvature)
    shapes = {
        path: group.value.shape if view is None else view.shape
        for group in groups
        for path, view in zip(group.paths, group.views, strict=True)
    }
    found = {path: _curvature_at(named, path, shape) for path, shape in shapes.items()}
    exponents = dict(zip(found, _exponents("curvature", found), strict=True))
    importances: list[_Importance | None] = []
    for group in groups:
        # The loss changes through every place of a tied array; one array is one curvature.
        places = {id(named[path]): path for path in group.paths}
        exponent = max(exponents[path] for path in places.values())
        dtype = accumulation_dtype(group.value.dtype)
        parts = []
        for path in places.values():
            view = group.views[group.paths.index(path)]
            units = _importance_in_units(found[path], exponent, dtype)
            if isinstance(group.value, jax.Array):
                units = jax.device_put(units, group.value.sharding)
            parts.append(units if view is None else view.undo(units))
        importance = sum(parts[1:], start=parts[0])
        if is_estimate:
            result = CurvaturePolicy().apply(importance)
            values = None if bool(result.report.is_fallback) else result.importance
        else:
            _check_importance(group.paths[0], importance)
            values = importance
        importances.append(None if values is None else _Importance(values, jnp.int32(exponent)))
    return importances


def _importance_in_units(value: Any, exponent: int, dtype: np.dtype) -> Float[Array, "*shape"]:
    """Return curvature divided by a power of two."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return jnp.asarray(np.ldexp(value, -exponent).astype(dtype))
    if value.dtype.itemsize < 2 or not jnp.issubdtype(value.dtype, jnp.floating):
        value = jnp.asarray(value).astype(jnp.float32)
    array = jnp.asarray(value)
    return normalise(array, jnp.int32(exponent), axis=_all_axes(array)).astype(dtype)


def _curvature_at(named: Mapping[str, Any], path: str, shape: tuple[int, ...]) -> Any:
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
    array = value if isinstance(value, jax.Array | np.ndarray) else np.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.integer):
        return array.astype(np.float32)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"curvature at {path!r} must be real numbers, got {array.dtype}.")
    return array.astype(np.float32) if array.dtype.itemsize < 2 else array


def _check_importance(path: str, importance: Array) -> None:
    num_negative = int(jnp.sum(is_negative(importance), dtype=jnp.int32))
    if num_negative:
        raise ValueError(
            f"curvature must be at least 0, got {num_negative} negative among the "
            f"{importance.size} entries of {path!r}; pass "
            "jaxcomp.curvature.CurvaturePolicy().apply(curvature).importance, or the "
            "DiagonalEstimate itself."
        )
    if bool(jnp.all(is_zero(importance))):
        raise ValueError(
            f"curvature is 0 throughout the leaf {path!r}, so it cannot weigh anything; pass "
            "jaxcomp.curvature.CurvaturePolicy().apply(curvature).importance, which weighs such a "
            "leaf alike, or leave it out by select."
        )


def _cluster(
    problem: _Problem,
    num_clusters: int,
    *,
    solve: Callable[..., Codebook],
    num_bins: int,
    keep_distinct: bool,
) -> ClusteredLeaf:
    num_clusters = int(num_clusters)
    points = problem.weights.reshape(-1)
    importance = None if problem.importance is None else problem.importance.values.reshape(-1)
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
        max_clusters = _power_of_two(size)
        num_bins = bins_for(num_bins, max_clusters)
        codebook = solve(
            _moments(points, importance, num_bins=num_bins),
            size,
            max_clusters=max_clusters,
            centroid_dtype=points.dtype,
        )
        centroids, thresholds = codebook.centroids[:size], codebook.thresholds[: size - 1]
        converged = codebook.converged
    stored = problem.in_original_units(centroids)
    assignments, counts, rounded = _encode(points, problem.in_units(stored), thresholds)
    return ClusteredLeaf(
        stored,
        assignments.reshape(problem.weights.shape),
        counts,
        _measure(problem, rounded.reshape(problem.weights.shape), converged),
    )


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
    centroids: Float[Array, " clusters"],
    thresholds: Float[Array, " clusters-1"],
) -> tuple[UInt[Array, " points"], Int[Array, " clusters"], Float[Array, " points"]]:
    """Assign points to clusters; also return how many each has, and the points rounded."""
    assignments = assign(points, thresholds)
    index = assignments.astype(jnp.int32)
    counts = jax.ops.segment_sum(jnp.ones_like(index), index, centroids.shape[0])
    return assignments, counts, centroids[index]


def _few_distinct(points: Float[Array, " points"], limit: int) -> np.ndarray | None:
    """Return the distinct values, ascending, if there are at most `limit`; otherwise None."""
    values = np.asarray(points)
    stride = max(values.size // (4 * limit), 1)
    if np.unique(values[::stride]).size > limit:  # settles it for nearly all layers, at no cost
        return None
    distinct = np.unique(values)
    return distinct if distinct.size <= limit else None


def _round(problem: _Problem, num_bits: int) -> RoundedLeaf:
    weights, num_bits = problem.weights, int(num_bits)
    # Each weight of a vector would be a channel of its own.
    matrix = weights if weights.ndim >= 2 else weights.reshape(-1, 1)
    rounded = round_to_nearest(matrix, num_bits=num_bits)
    codes = rounded.codes.reshape(weights.shape)
    shifted = np.asarray(codes).astype(np.int64).ravel() + 2 ** (num_bits - 1)
    counts = jnp.asarray(np.bincount(shifted, minlength=2**num_bits).astype(np.int32))
    scales = problem.in_original_units(rounded.scales)
    measures = _measure(problem, rounded.values.reshape(weights.shape), jnp.asarray(True))
    return RoundedLeaf(codes, scales, counts, measures)


def _prune(problem: _Problem, sparsity: float) -> PrunedLeaf:
    weights = prune_by_magnitude(problem.weights, float(sparsity))
    is_zeroed = np.asarray(is_zero(weights))
    num_zeros = int(np.count_nonzero(is_zeroed))
    counts = jnp.asarray([num_zeros, weights.size - num_zeros], jnp.int32)
    original = problem.original
    if isinstance(original, np.ndarray):
        values = np.where(is_zeroed, np.zeros((), original.dtype), original)
    else:
        values = jnp.where(is_zeroed, jnp.zeros((), original.dtype), original)
    return PrunedLeaf(values, counts, _measure(problem, weights, jnp.asarray(True)))


def _measure(
    problem: _Problem, values: Float[Array, "*shape"], converged: Bool[Array, ""]
) -> Measures:
    """Compare weights with what became of them, both in the units of the problem."""
    importance = problem.importance
    sums = _measured(problem.weights, values, None if importance is None else importance.values)
    (distortion, of_distortion), (squared_error, of_error), (energy, of_energy) = sums
    weighing = jnp.int32(0) if importance is None else importance.exponent
    # Sums of squares: twice the power of two.
    shift = 2 * jnp.int32(problem.exponent)
    return Measures(
        distortion,
        squared_error,
        energy,
        converged,
        distortion_exponent=of_distortion + shift + weighing,
        error_exponent=of_error + shift,
        energy_exponent=of_energy + shift,
    )


@jax.jit
def _measured(
    weights: Float[Array, "*shape"],
    values: Float[Array, "*shape"],
    importance: Float[Array, "*shape"] | None,
) -> list[tuple[Float[Array, ""], Int[Array, ""]]]:
    """Return distortion, squared error and energy, each a number times a power of two."""
    dtype = accumulation_dtype(weights.dtype)
    before, after = weights.astype(dtype).ravel(), values.astype(dtype).ravel()
    error = before - after
    # The root before the square: neither is out of range in units of the largest.
    weighted = error
    if importance is not None:
        weighted = jnp.sqrt(importance.astype(dtype).ravel()) * error
    return [sum_of_squares(None, part) for part in (weighted, error, before)]


def _decode(leaf: QuantizedLeaf | KeptLeaf, layout: _LeafLayout) -> Any:
    match leaf:
        case KeptLeaf(value):
            return value.value if isinstance(value, Constant) else value
        case ClusteredLeaf():
            return _like(leaf.assignments, _cluster_values(leaf, layout))
        case RoundedLeaf():
            return _like(leaf.codes, _rounded_values(leaf, layout))
        case PrunedLeaf():
            return leaf.values


def _like(stored: Any, values: Any) -> Any:
    """Give weights the sharding of their codes, if those are spread over devices."""
    is_known = isinstance(values, jax.Array) and isinstance(stored, jax.Array)
    if not is_known or not is_concrete(values) or len(stored.sharding.device_set) < 2:
        return values
    return jax.device_put(values, stored.sharding)


def _cluster_values(leaf: ClusteredLeaf, layout: _LeafLayout) -> Float[AnyArray, "*shape"]:
    centroids, assignments = leaf.centroids, leaf.assignments
    if isinstance(centroids, np.ndarray) and is_concrete(assignments):
        if not layout.is_stack:
            return centroids[np.asarray(assignments)]
        pairs = zip(centroids, np.asarray(assignments), strict=True)
        return np.stack([row[layer] for row, layer in pairs])
    if not layout.is_stack:
        return _look_up(jnp.asarray(centroids), assignments)
    return jax.vmap(_look_up)(jnp.asarray(centroids), assignments)


@jax.jit
def _look_up(
    centroids: Float[Array, " clusters"], assignments: UInt[Array, "*shape"]
) -> Float[Array, "*shape"]:
    return centroids[assignments.astype(jnp.int32)]


def _rounded_values(leaf: RoundedLeaf, layout: _LeafLayout) -> Float[AnyArray, "*shape"]:
    scales = leaf.scales
    if layout.is_stack:
        # (layers, 1, ..., channels) against (layers, ..., channels)
        inner = (1,) * (leaf.codes.ndim - 2)
        scales = scales.reshape(scales.shape[0], *inner, scales.shape[-1])
    if isinstance(scales, np.ndarray) and is_concrete(leaf.codes):
        return (np.asarray(leaf.codes) * scales).astype(layout.dtype)
    return _rescale(leaf.codes, scales, layout.dtype)


@partial(jax.jit, static_argnames=("dtype",))
def _rescale(
    codes: Int[Array, "*shape"], scales: Float[Array, "*channels"], dtype: np.dtype | None
) -> Float[Array, "*shape"]:
    # In units of the largest scale: the product of a code and a subnormal scale would be 0.
    exponent = group_exponent(scales, axis=_all_axes(scales))
    units = jnp.broadcast_to(normalise(scales, exponent, axis=_all_axes(scales)), codes.shape)
    values = codes.astype(scales.dtype) * units
    return restore(values, exponent, axis=_all_axes(values)).astype(dtype)


def _report_layer(leaf: QuantizedLeaf, layout: _LeafLayout) -> LayerReport:
    assert layout.dtype is not None
    weight_bits = 8 * layout.dtype.itemsize
    counts = np.asarray(leaf.counts)
    counts = counts.reshape(-1, counts.shape[-1])  # (layers, symbols), one layer if it is no stack
    level, used = layout.level, np.count_nonzero(counts, axis=-1)
    match leaf:
        case ClusteredLeaf():
            num_used = int(used.min())
            size = sizes.code_size(counts, num_clusters=counts.shape[-1], centroid_bits=weight_bits)
        case RoundedLeaf():
            num_used = int(used.max())
            size = sizes.rounded_size(
                counts,
                num_bits=layout.level,
                num_scales=leaf.scales.shape[-1],
                scale_bits=8 * leaf.scales.dtype.itemsize,
            )
        case PrunedLeaf():
            num_zeros, num_used = counts.sum(axis=0).tolist()
            size = sizes.pruned_size(counts.sum(axis=-1), counts[:, 1], value_bits=weight_bits)
            level = num_zeros / (num_zeros + num_used)
    return layer_report(
        sizes.CodeSize(*(np.sum(part) for part in size)),
        leaf.measures,
        paths=layout.paths,
        shape=layout.shape,
        dtype=layout.dtype,
        level=level,
        num_used=num_used,
        num_codebooks=len(counts),
        is_weighted=layout.is_weighted,
    )


def _array_bits(value: Any) -> int:
    """Size of a kept leaf in bits; 0 for what is not an array."""
    value = value.value if isinstance(value, Constant) else value
    return 8 * value.size * value.dtype.itemsize if hasattr(value, "dtype") else 0
