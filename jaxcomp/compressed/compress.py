"""Compress a model of one's own: any pytree of weights in, a compressed tree or its curves out.

Every leaf that is selected is compressed on its own (layer by layer if it is a stack of them) by a
method of `jaxcomp.quantizers.methods`; everything else is kept as it is. First statistics of the
weights make curves of operating points; a budget picks a point of each; the weights are visited
once more to be given their codes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from jaxcomp.compressed.budgets import Budget, budget_of, choose
from jaxcomp.compressed.importance import Importance, exponents_of, importance_by_leaf
from jaxcomp.compressed.tensors import (
    CompressedTensor,
    KeptLayout,
    KeptLeaf,
    TensorLayout,
    on_device,
    packed,
    size_of,
    tensor_of,
)
from jaxcomp.compressed.tree import CompressedTree, TreeLayout, kept_bits
from jaxcomp.curvature import CurvaturePolicy, DiagonalEstimate
from jaxcomp.long_call import LongCall
from jaxcomp.numerics.checks import is_concrete
from jaxcomp.numerics.transformations import all_transfers, always_compiled
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.methods import EntropyConstrained, Method, Vector
from jaxcomp.quantizers.problems import Problem, energy, problem_of
from jaxcomp.trees.leaves import Constant, is_array, is_wide, warn_of_wide, with_readable_leaves
from jaxcomp.trees.paths import leaves_by_path, matching_paths, shorten
from jaxcomp.trees.selection import Select, decide, stacked_paths
from jaxcomp.trees.tied import Group, group_tied
from jaxcomp.types import AnyArray, Params

# What keeps most without data, by `benchmarks/methods.py`.
DEFAULT = EntropyConstrained()
POLICY = CurvaturePolicy()

# How often a choice is repeated to keep to a budget that the first one missed.
_MOST_CHOICES = 6
# A choice that uses this share of a budget is not repeated to use more.
_SPENT = 0.99


@always_compiled
@all_transfers
def compress(
    params: Params,
    method: Method | Mapping[str, Method] = DEFAULT,
    *,
    importance: DiagonalEstimate | PyTree | None = None,
    policy: CurvaturePolicy = POLICY,
    bits_per_weight: float | None = None,
    size_bytes: float | None = None,
    ratio: float | None = None,
    max_distortion: float | None = None,
    select: Select = None,
    stacked: Select = None,
) -> CompressedTree:
    """Compress the weights of a model, each leaf with codes of its own.

    A leaf's *path* is its key path joined by `/`, such as `params/Dense_0/kernel`, or
    `blocks/0/kernel/value` in an NNX state. Arrays that stand at several paths (tied weights: the
    same array object, or views of NumPy or tensors of PyTorch that cover the same memory) are
    compressed, stored and counted once, if `select` names any of the paths. What is not floating or
    has fewer than 16 bits, empty leaves and random keys are kept as they are, whatever `select`
    says. A stack of layers (a leading axis of layers, as `nn.scan` makes it) gets a codebook for
    each layer, at one operating point for all of them.

    A terminal shows how far a long call is. For use outside `jit`.

    Args:
        params: any pytree: nested dicts, Linen variables, an NNX state or module, an Equinox
            module, lists, named tuples; with arrays of JAX or NumPy, tensors of PyTorch, and
            anything else among its leaves.
        method: one of `jaxcomp.quantizers` (`KMeans(16)`, `RoundToNearest(8)`, ...), or a mapping
            from glob patterns of paths to methods: the first pattern that matches counts, and
            `"*"`, wherever it stands, covers the rest. A method without its parameter, such as
            `KMeans()`, leaves it to the budget, or to its default. By default entropy-constrained
            quantization with one codebook a leaf, about 4 bits per weight without a budget. Of
            what was measured without data it lost least: at 3 bits per weight the embeddings of
            MiniLM keep a cosine of 0.969; of integers, 0.960 (`benchmarks/README.md`).
        importance: importance h of each weight, a pytree with a non-negative real array of the
            leaf's shape at the path of every selected leaf (other leaves may be None or missing),
            or a `DiagonalEstimate`, whose mean goes through the `policy`. For
            `Vector` also the Hessian blocks (ceil(n / m), m, m) of a leaf's vectors. None,
            without data, weighs the weights of a layer alike, and a budget in bits lets the
            relative errors `sum (w - c)^2 / sum w^2` of all layers count alike. (An array of ones
            lets the errors of all weights count alike: there 0.916.) Give it a budget: much of
            what an importance brings is how bits are shared between leaves. On MiniLM and a model
            of characters it helped at equal bytes, and the mean of each leaf,
            `jax.tree.map(lambda h: jnp.full_like(h, h.mean()), h)`, did as well at 3 bits or
            better (`benchmarks/weightings.md`). At the places of a tied leaf
            importances add up, unless they are one array as well. A leaf with importance 0 for over
            half of its weights is named by the report, which says what these weigh.
        policy: what becomes of negative and vanishing entries of a `DiagonalEstimate`: by default
            zeros that are over half of a leaf weigh as the mean of the leaf.
        bits_per_weight: budget: codes and side bits (codebooks, scales) of the compressed leaves
            over their weights, shared between leaves by one slope. Estimated by entropy, as all
            sizes here.
        size_bytes: budget: estimated size of the whole tree, kept leaves included.
        ratio: budget: original over estimated size of the whole tree, kept leaves in both.
        max_distortion: budget: `sum h (w - c)^2` over the tree; the bits are least.
        select: which leaves: a predicate `(path, leaf) -> bool`, a glob pattern of paths or
            several. By default weight matrices, kernels and embeddings: leaves with two axes or
            more that by name and shape are no bias, gain, statistic, position or token
            (`jaxcomp.trees.selection.compressible`); the report says what was kept and why.
        stacked: which leaves are stacks of layers along their leading axis, likewise; by default
            those whose names or biases show it (`jaxcomp.trees.selection.stacked_paths`). A stack
            that shows neither has to be named here.

    Returns:
        The compressed tree: `params()` gives weights back, `report()` says what it cost.

    Raises:
        TypeError: inside `jit`; or if an argument has a wrong type.
        ValueError: on a leaf that no pattern of a mapping covers, a pattern that matches nothing,
            two budgets or one that cannot be met, NaN or infinite weights or importance, negative
            importance or none but zeros in a leaf, importance that lacks a selected leaf or has
            another shape, two leaves with the same path.

    Warns:
        UserWarning: if leaves are float64 while JAX has 32 bits: computed in float32.

    Source: Choi, El-Khamy, Lee, arXiv:1612.01543 (weighted and entropy-constrained quantization of
    networks); Shoham and Gersho, IEEE Trans. ASSP 36 (1988) (one slope for all).
    """
    selected = _select(params, method, (importance, policy), select, stacked)
    tensors = list(selected.tensors.values())
    bits_of_kept = sum(kept_bits(leaf) for leaf, _ in selected.kept.values())
    budget = budget_of(
        {
            "bits_per_weight": bits_per_weight,
            "size_bytes": size_bytes,
            "ratio": ratio,
            "max_distortion": max_distortion,
        },
        num_weights=sum(tensor.num_weights for tensor in tensors),
        original_bits=bits_of_kept + sum(tensor.original_bits for tensor in tensors),
        kept_bits=bits_of_kept,
    )
    names = sorted({tensor.method.name for tensor in tensors})
    total = len(tensors) * (1 if budget is None else 3)
    with LongCall(f"compressing by {' and '.join(names)}", total) as report:
        if budget is None:
            found = []
            parameters = _own_parameters(tensors, shared=importance is None)
            for done, (tensor, parameter) in enumerate(zip(tensors, parameters, strict=True)):
                report(done, total, shorten(tensor.paths, 1))
                found.append(tensor.apply(tensor.points(parameter)))
        else:
            is_relative = importance is None and budget.bits is not None
            found = _within(tensors, budget, is_relative, report)
    stored: dict[int, tuple[Any, TensorLayout | KeptLayout]] = dict(selected.kept)
    for number, leaf in zip(selected.tensors, found, strict=True):
        stored[number] = leaf, selected.tensors[number].layout
    in_order = [stored[number] for number in sorted(stored)]
    layout = TreeLayout(
        jax.tree.structure(selected.params), selected.slots, tuple(own for _, own in in_order)
    )
    return CompressedTree(tuple(leaf for leaf, _ in in_order), layout)


@always_compiled
@all_transfers
def curve(
    params: Params,
    method: Method | Mapping[str, Method] = DEFAULT,
    *,
    importance: DiagonalEstimate | PyTree | None = None,
    policy: CurvaturePolicy = POLICY,
    select: Select = None,
    stacked: Select = None,
) -> dict[str, Curve]:
    """Return every operating point of every leaf that `compress` would compress; apply none.

    Args:
        params: as in `compress`.
        method: likewise; a method with its parameter has one point.
        importance: likewise.
        policy: likewise.
        select: likewise.
        stacked: likewise.

    Returns:
        The curves by path (the first of a tied leaf), all layers of a stack together. Rates and
        distortions are those of the histogram that codebooks are solved on.

    Raises:
        TypeError, ValueError: as `compress`.
    """
    selected = _select(params, method, (importance, policy), select, stacked)
    tensors = list(selected.tensors.values())
    found = {}
    with LongCall("measuring curves", len(tensors)) as report:
        for done, tensor in enumerate(tensors):
            report(done, len(tensors), shorten(tensor.paths, 1))
            found[tensor.paths[0]] = tensor.joined(tensor.curves())
    return found


class _Tensor(NamedTuple):
    """A leaf to be compressed: its layers (one, if it is no stack) as problems."""

    problems: list[Problem]
    method: Method
    layout: TensorLayout
    value: Any

    @property
    def paths(self) -> tuple[str, ...]:
        return self.layout.paths

    @property
    def num_weights(self) -> int:
        return int(np.prod(self.layout.shape, dtype=np.int64))

    @property
    def original_bits(self) -> int:
        assert self.layout.dtype is not None
        return 8 * self.layout.dtype.itemsize * self.num_weights

    def points(self, parameter: Any) -> list[Point]:
        """The operating point of every layer."""
        return [self.method.point(problem, parameter) for problem in self.problems]

    def curves(self, parameters: np.ndarray | None = None) -> list[Curve]:
        """The points of every layer that a budget may choose, distortions in original units."""
        own = self.method.parameter
        if parameters is None:
            parameters = self.method.candidates() if own is None else np.asarray([own])
        curves = []
        for problem in self.problems:
            found = self.method.curve(problem, parameters)
            distortion = np.ldexp(found.distortion, problem.distortion_exponent)
            curves.append(found._replace(distortion=distortion))
        return curves

    def closer(self, curves: Sequence[Curve], place: int) -> list[Curve]:
        """The same curves with more points around one, if there are any between two."""
        parameters = curves[0].parameter
        between = self.method.between(parameters, place) if len(parameters) > 1 else None
        if between is None:
            return list(curves)
        more = self.curves(between)
        return [own.and_points_of(other) for own, other in zip(curves, more, strict=True)]

    def energies(self) -> list[float]:
        """The sum of the squared weights of every layer, in original units; 1 for zeros."""
        return [
            math.ldexp(energy(problem), 2 * problem.exponent) or 1.0 for problem in self.problems
        ]

    def joined(self, curves: Sequence[Curve]) -> Curve:
        """The curve of the whole leaf: all layers at one point."""
        if len(curves) == 1:
            return curves[0]
        rates = np.mean([own.rate_bits for own in curves], axis=0)
        return Curve(
            parameter=curves[0].parameter,
            rate_bits=rates,
            side_bits=np.sum([own.side_bits for own in curves], axis=0),
            distortion=np.sum([own.distortion for own in curves], axis=0),
            converged=np.all([own.converged for own in curves], axis=0),
        )

    def apply(self, points: Sequence[Point]) -> CompressedTensor:
        """Give the weights of every layer their codes."""
        stored = [
            tensor_of(problem, point, self.method)
            for problem, point in zip(self.problems, points, strict=True)
        ]
        leaf = _stack(stored) if self.layout.is_stack else stored[0]
        codes = packed(leaf.codes, _one_codebook(leaf, self.layout))
        return leaf._replace(codes=_placed(codes, self.value))


class _Selected(NamedTuple):
    """A tree taken apart: leaves to keep and tensors to compress, by number of the leaf."""

    params: Params
    slots: tuple[Any, ...]
    kept: dict[int, tuple[KeptLeaf, KeptLayout]]
    tensors: dict[int, _Tensor]


def _select(
    params: Params,
    method: Any,
    weighing: tuple[Any, CurvaturePolicy],
    select: Select,
    stacked: Select,
) -> _Selected:
    importance, policy = weighing
    if not isinstance(policy, CurvaturePolicy):
        raise TypeError(
            "policy must be a jaxcomp.curvature.CurvaturePolicy, such as "
            f"CurvaturePolicy(zeros='floor'), got {type(policy).__name__}."
        )
    params = with_readable_leaves(params)
    named = leaves_by_path(params)
    decisions = decide(params, select)
    groups, slots = group_tied(named)
    chosen = {
        number: group
        for number, group in enumerate(groups)
        if any(decisions[path].is_compressed for path in group.paths)
    }
    selected = list(chosen.values())
    for group in selected:
        if not is_concrete(group.value):
            raise TypeError(
                f"compress needs known weights, but the leaf {group.paths[0]!r} is traced; call it "
                "outside jit, and params() inside."
            )
    warn_of_wide({group.paths[0]: group.value for group in selected})
    stacks = set(
        stacked_paths(params, stacked, [path for group in selected for path in group.paths])
    )
    methods = _method_by_leaf(method, [group.paths for group in selected])
    # Read by the host, chunk by chunk; on CPU that is the same memory.
    host = {group.paths[0]: np.asarray(group.value) for group in selected}
    exponents = exponents_of("params", host)
    vector_sizes = [own.vector_size if isinstance(own, Vector) else None for own in methods]
    importances = importance_by_leaf(importance, selected, vector_sizes, policy)
    tensors = {}
    for number, own, exponent, h in zip(chosen, methods, exponents, importances, strict=True):
        group = chosen[number]
        is_stack = group.paths[0] in stacks
        layout = TensorLayout(
            paths=group.paths,
            method=own.at(None),
            shape=group.value.shape,
            dtype=np.dtype(group.value.dtype),
            is_weighted=h is not None,
            is_stack=is_stack,
            unseen=None if h is None else h.unseen,
        )
        weights = host[group.paths[0]]
        problems = _layers(group, weights, h) if is_stack else [_problem(weights, exponent, h)]
        problems = [own.prepare(problem) for problem in problems]
        tensors[number] = _Tensor(problems, own, layout, group.value)
    kept = {
        number: (_kept(group.value), KeptLayout(group.paths, decisions[group.paths[0]].reason))
        for number, group in enumerate(groups)
        if number not in chosen
    }
    return _Selected(params, tuple(slots), kept, tensors)


def _kept(value: Any) -> KeptLeaf:
    return KeptLeaf(value if is_array(value) or not is_concrete(value) else Constant(value))


def _problem(weights: np.ndarray, exponent: int, importance: Importance | None) -> Problem:
    """The problem of a leaf or layer."""
    if importance is None:
        return problem_of(weights, exponent=exponent)
    kind = "blocks" if importance.is_blocks else "importance"
    return problem_of(
        weights,
        exponent=exponent,
        importance_exponent=importance.exponent,
        **{kind: importance.values},
    )


def _layers(group: Group, weights: np.ndarray, importance: Importance | None) -> list[Problem]:
    """The problems of the layers of a stack."""
    path, number = group.paths[0], len(weights)
    layers = {f"{path}[{place}]": weights[place] for place in range(number)}
    parts = [None] * number if importance is None else importance.of_layers(path, number)
    exponents = exponents_of("params", layers)
    return [
        _problem(layer, exponent, part)
        for layer, exponent, part in zip(layers.values(), exponents, parts, strict=True)
    ]


def _method_by_leaf(method: Any, leaves: list[tuple[str, ...]]) -> list[Method]:
    """Return the method of every leaf, given by all its paths; first matching pattern wins."""
    if not isinstance(method, Mapping):
        _check_method(method, "method")
        return [method] * len(leaves)
    all_paths = [path for paths in leaves for path in paths]
    for pattern, value in method.items():
        if not isinstance(pattern, str):
            raise TypeError(f"the keys of method must be glob patterns of paths, got {pattern!r}.")
        _check_method(value, f"method[{pattern!r}]")
        if pattern != "*" and not matching_paths(all_paths, pattern):
            raise ValueError(
                f"the pattern {pattern!r} in method matches no selected leaf: they are "
                f"{shorten(paths[0] for paths in leaves)}."
            )
    # The default stands behind all others, so that none is shadowed.
    ordered = sorted(method.items(), key=lambda item: item[0] == "*")
    matched = [(set(matching_paths(all_paths, pattern)), value) for pattern, value in ordered]
    methods = []
    for paths in leaves:
        matching = [value for found, value in matched if found.intersection(paths)]
        if not matching:
            raise ValueError(
                f"method has no pattern that matches the selected leaf {paths[0]!r}; add one, or "
                "'*' for all others."
            )
        methods.append(matching[0])
    return methods


def _check_method(method: Any, label: str) -> None:
    if not isinstance(method, Method):
        known = "KMeans(16), RoundToNearest(8) or EntropyConstrained()"
        raise TypeError(
            f"{label} must be a method of jaxcomp.quantizers, such as {known}, got {method!r}."
        )


def _own_parameters(tensors: list[_Tensor], *, shared: bool) -> list[Any]:
    """The methods' own parameters; where they have none, their defaults."""
    parameters: list[Any] = [tensor.method.parameter for tensor in tensors]
    for method in {tensor.method for tensor in tensors if tensor.method.parameter is None}:
        places = [place for place, tensor in enumerate(tensors) if tensor.method == method]
        sizes = np.asarray([tensors[place].problems[0].size for place in places])
        layers = np.asarray([len(tensors[place].problems) for place in places])
        own = method.defaults(sizes, layers) if shared else [method.default] * len(places)
        for place, parameter in zip(places, own, strict=True):
            parameters[place] = parameter
    return parameters


def _within(
    tensors: list[_Tensor], budget: Budget, is_relative: bool, report: Any
) -> list[CompressedTensor]:
    """Apply the points that keep to a budget, by what the codes really cost.

    With `is_relative`, the error of every layer counts relative to the squares of its weights.
    """
    total = 3 * len(tensors)
    curves, energies = [], []
    for done, tensor in enumerate(tensors):
        report(done, total, shorten(tensor.paths, 1))
        curves.append(tensor.curves())
        energies.append(np.asarray(tensor.energies() if is_relative else [1.0]))
    rates, costs = _rates_and_costs(tensors, curves, energies)
    for number, place in enumerate(choose(rates, costs, budget).tolist()):
        report(len(tensors) + number, total, shorten(tensors[number].paths, 1))
        curves[number] = tensors[number].closer(curves[number], place)
    promised = _rates_and_costs(tensors, curves, energies)
    rates, costs = ([own.copy() for own in part] for part in promised)
    applied: dict[tuple[int, int], CompressedTensor] = {}
    best: tuple[float, list[CompressedTensor]] | None = None
    aim = budget
    for _ in range(_MOST_CHOICES):
        places = choose(rates, costs, aim)
        for number, place in enumerate(places.tolist()):
            if (number, place) in applied:
                continue
            report(2 * len(tensors) + number, total, shorten(tensors[number].paths, 1))
            leaf = tensors[number].apply([own.at(place) for own in curves[number]])
            applied[number, place] = leaf
            # From now on this point counts with what it really is, and others likewise.
            size = size_of(leaf, tensors[number].layout)
            cost = float(np.sum(_distortions(leaf) / energies[number]))
            known = [other for owner, other in applied if owner == number]
            measured = float(size.entropy_bits + size.codebook_bits), cost
            for values, own, real in zip((rates, costs), promised, measured, strict=True):
                values[number] = _corrected(values[number], own[number], known, place, real)
        found = [applied[number, place] for number, place in enumerate(places.tolist())]
        spent, lost = (
            math.fsum(own[place] for own, place in zip(values, places.tolist(), strict=True))
            for values in (rates, costs)
        )
        reached, other = (spent, lost) if budget.bits is not None else (lost, spent)
        if reached <= budget.limit * (1 + 1e-9) and (best is None or other < best[0]):
            best = other, found
            if reached >= _SPENT * budget.limit:
                break
        if reached > budget.limit:
            # Fine points use a budget up, and what they really cost scatters: a little less then.
            least = math.fsum(
                float(np.min(own)) for own in (rates if budget.bits is not None else costs)
            )
            over = reached / budget.limit - 1
            aim = aim.at(max(aim.limit * (1 - 2 * over), min(least, budget.limit)))
    if best is None:
        raise ValueError(
            f"{budget.name} = {budget.value:g} could not be met by these methods; allow a little "
            "more."
        )
    return best[1]


def _corrected(
    values: Float[np.ndarray, " points"],
    promised: Float[np.ndarray, " points"],
    known: Sequence[int],
    place: int,
    real: float,
) -> Float[np.ndarray, " points"]:
    """Return what the points of a tensor cost, now that one of them is known.

    Args:
        values: as they counted before.
        promised: by the curve.
        known: points whose numbers are real, this one too.
        place: of the point.
        real: its number.
    """
    ratio = real / promised[place] if promised[place] > 0 and real > 0 else 1.0
    # Only neighbours are off by the same; what is far away is not to be made worse.
    corrected = promised * min(max(ratio, 0.8), 1.25)
    corrected[list(known)] = values[list(known)]
    corrected[place] = real
    return corrected


def _rates_and_costs(
    tensors: Sequence[_Tensor],
    curves: Sequence[Sequence[Curve]],
    energies: Sequence[Float[np.ndarray, " layers"]],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Bits of every tensor at each of its points, and distortions over energies."""
    rates, costs = [], []
    for tensor, own, units in zip(tensors, curves, energies, strict=True):
        relative = [
            layer._replace(distortion=layer.distortion / unit)
            for layer, unit in zip(own, np.resize(units, len(own)), strict=True)
        ]
        whole = tensor.joined(relative)
        rates.append(whole.size_bits(tensor.num_weights))
        costs.append(whole.distortion)
    return rates, costs


def _distortions(leaf: CompressedTensor) -> Float[np.ndarray, "*layers"]:
    exponent = np.asarray(leaf.measures.distortion_exponent)
    return np.ldexp(np.asarray(leaf.measures.distortion, np.float64), exponent)


def _stack(parts: Sequence[CompressedTensor]) -> CompressedTensor:
    """Join the layers of a stack; codebooks and counts of the longest."""

    def padded(values: Any, size: int, *, repeats: bool) -> Any:
        if values is None or values.shape[0] == size:
            return values
        widths = [(0, size - values.shape[0])] + [(0, 0)] * (values.ndim - 1)
        xp = np if isinstance(values, np.ndarray) else jnp
        return xp.pad(values, widths, mode="edge") if repeats else xp.pad(values, widths)

    symbols = max(part.counts.shape[0] for part in parts)
    clusters = max(0 if part.codebook is None else part.codebook.shape[0] for part in parts)
    parts = [
        part._replace(
            codebook=padded(part.codebook, clusters, repeats=True),
            counts=padded(part.counts, symbols, repeats=False),
        )
        for part in parts
    ]

    def join(*leaves: Any) -> Any:
        return np.stack(leaves) if isinstance(leaves[0], np.ndarray) else jnp.stack(leaves)

    return jax.tree.map(join, *parts)


def _one_codebook(leaf: CompressedTensor, layout: TensorLayout) -> Any:
    if leaf.codebook is None:
        return None
    return leaf.codebook[0] if layout.is_stack else leaf.codebook


def _placed(codes: Any, value: Any) -> AnyArray:
    """Put codes where the weights are, spread over devices as they are if they have their shape."""
    if not isinstance(value, jax.Array) or is_wide(codes.dtype):
        return on_device(codes)
    if codes.shape != value.shape and len(value.sharding.device_set) > 1:
        return on_device(codes)
    return jax.device_put(codes, value.sharding)
