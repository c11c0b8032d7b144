"""A tree taken apart: the leaves to compress, each with its method, and those to keep."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcomp.compressed.importance import (
    Importance,
    Weighing,
    exponents_of,
    importance_of_leaf,
)
from jaxcomp.compressed.layer_places import method_for
from jaxcomp.compressed.parts import (
    exponent_of_parts,
    importance_on_parts,
    problem_on_parts,
    spread_of_leaf,
)
from jaxcomp.compressed.tensors import (
    CompressedTensor,
    KeptLayout,
    KeptLeaf,
    TensorLayout,
    on_device,
    packed,
    tensor_on_device,
    tensor_on_host,
)
from jaxcomp.compressed.together import AskedLeaf, curves_together, points_together
from jaxcomp.compressed.tree import CompressedTree, TreeLayout, kept_bits
from jaxcomp.curvature import CurvaturePolicy
from jaxcomp.curvature.layer_inputs import OpenNetwork
from jaxcomp.numerics.checks import is_concrete
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.methods import Method, Vector
from jaxcomp.quantizers.placed import Spread
from jaxcomp.quantizers.problems import Problem, problem_of
from jaxcomp.trees.leaves import (
    Constant,
    check_is_here,
    is_array,
    is_wide,
    warn_of_wide,
    with_readable_leaves,
)
from jaxcomp.trees.paths import leaves_by_path, matching_paths, shorten
from jaxcomp.trees.selection import Select, decide, stacked_paths
from jaxcomp.trees.tied import Group, group_tied
from jaxcomp.types import AnyArray, Params

# For arrays of several processes.
_HINT = (
    "; KMeans, Optimal, Uniform and EntropyConstrained with one scale a leaf that is no stack of "
    "layers need no more than each has"
)

Stored = tuple[CompressedTensor, TensorLayout]
"""A compressed leaf and its layout."""


class Remade(Sequence[Problem]):
    """Problems that are made whenever they are asked for, so that no importance is held.

    Args:
        make: makes all of them.
        number: how many there are.
    """

    def __init__(self, make: Callable[[], list[Problem]], number: int) -> None:
        self._make, self._number = make, number

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._make())

    def __getitem__(self, place: Any) -> Any:
        return self._make()[place]


class Tensor(NamedTuple):
    """A leaf to be compressed: its layers (one, if it is no stack) as problems."""

    problems: Sequence[Problem]
    method: Method
    layout: TensorLayout
    value: Any

    @property
    def paths(self) -> tuple[str, ...]:
        """Where it stands."""
        return self.layout.paths

    @property
    def num_weights(self) -> int:
        """How many weights it has."""
        return int(np.prod(self.layout.shape, dtype=np.int64))

    @property
    def original_bits(self) -> int:
        """Its size before compression."""
        return 8 * self.num_bytes

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        return self.layout.dtype.itemsize * self.num_weights

    def asked(self, parameters: Any) -> AskedLeaf:
        """The tensor with the parameter of a point, or those of a curve."""
        return AskedLeaf(self.method, self.problems, parameters)

    def candidates(self) -> np.ndarray:
        """The parameters that a budget may choose."""
        own = self.method.parameter
        return self.method.candidates() if own is None else np.asarray([own])

    def between(self, curves: Sequence[Curve], place: int) -> np.ndarray | None:
        """More parameters around one of some curves; None if there are none between two."""
        parameters = curves[0].parameter
        return self.method.between(parameters, place) if len(parameters) > 1 else None

    def points(self, parameter: Any) -> list[Point]:
        """The operating point of every layer."""
        return next(points_together([self.asked(parameter)]))

    def curves(self, parameters: np.ndarray | None = None) -> list[Curve]:
        """The points of every layer that a budget may choose, distortions in original units."""
        asked = self.candidates() if parameters is None else parameters
        return next(curves_together([self.asked(asked)]))

    def closer(self, curves: Sequence[Curve], place: int) -> list[Curve]:
        """The same curves with more points around one, if there are any between two."""
        between = self.between(curves, place)
        if between is None:
            return list(curves)
        more = self.curves(between)
        return [own.and_points_of(other) for own, other in zip(curves, more, strict=True)]

    def energies(self) -> list[float]:
        """The sum of the squared weights of every layer, in original units; 1 for zeros."""
        return [
            math.ldexp(problem.energy(), 2 * problem.exponent) or 1.0 for problem in self.problems
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
            tensor_on_host(problem, point, self.method)
            for problem, point in zip(self.problems, points, strict=True)
        ]
        leaf = tensor_on_device(_stack(stored) if self.layout.is_stack else stored[0])
        codes = packed(leaf.codes, _one_codebook(leaf, self.layout))
        return leaf._replace(codes=_placed(codes, self.value))


class Selected(NamedTuple):
    """A tree taken apart: leaves to keep and tensors to compress, by number of the leaf."""

    params: Params
    slots: tuple[Any, ...]
    kept: dict[int, tuple[KeptLeaf, KeptLayout]]
    tensors: dict[int, Tensor]

    @property
    def num_weights(self) -> int:
        """How many weights are compressed."""
        return sum(tensor.num_weights for tensor in self.tensors.values())

    @property
    def original_bits(self) -> int:
        """Size of the whole tree before compression."""
        kept = sum(kept_bits(leaf) for leaf, _ in self.kept.values())
        return kept + sum(tensor.original_bits for tensor in self.tensors.values())

    def tree(self, stored: Mapping[int, Stored]) -> CompressedTree:
        """Put the tree together again.

        Args:
            stored: what becomes of some leaves, by number; others are kept. Tensors without are
                None, as long as they are not known.
        """
        whole: dict[int, Any] = {
            number: (None, tensor.layout) for number, tensor in self.tensors.items()
        }
        whole |= self.kept | dict(stored)
        in_order = [whole[number] for number in sorted(whole)]
        structure = jax.tree.structure(self.params)
        layout = TreeLayout(structure, self.slots, tuple(own for _, own in in_order))
        return CompressedTree(tuple(leaf for leaf, _ in in_order), layout)


def select_leaves(
    params: Params,
    method: Any,
    weighing: tuple[Any, CurvaturePolicy],
    select: Select,
    stacked: Select,
    network: OpenNetwork | None = None,
    visited: Callable[[], None] | None = None,
) -> Selected:
    """Take a tree apart; see `jaxcomp.compress` for what the arguments are and what is refused.

    With `visited` no importance is held: it is made again where it is needed. It is called whenever
    something of a leaf was read.
    """
    importance, policy = weighing
    if not isinstance(policy, CurvaturePolicy):
        raise TypeError(
            "policy must be a jaxcomp.curvature.CurvaturePolicy, such as "
            f"CurvaturePolicy(zeros='floor'), got {type(policy).__name__}."
        )
    params = with_readable_leaves(params, may_be_shared=True)
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
    methods = [
        method_for(own, group, network, is_stack=group.paths[0] in stacks)
        for own, group in zip(methods, selected, strict=True)
    ]
    weighed, tensors = Weighing.of(importance, policy), {}
    for (number, group), method_of_leaf in zip(chosen.items(), methods, strict=True):
        leaf = _leaf_of(group, method_of_leaf, is_stack=group.paths[0] in stacks)
        h = leaf.importance(weighed)
        layout = TensorLayout(
            paths=group.paths,
            method=leaf.method.at(None),
            shape=group.value.shape,
            dtype=np.dtype(group.value.dtype),
            is_weighted=h is not None,
            is_stack=leaf.is_stack,
            unseen=None if h is None else h.unseen,
        )
        problems: Sequence[Problem] = leaf.problems(h)
        if visited is not None:
            if h is not None:
                problems = Remade(partial(leaf.problems_by, weighed), len(problems))
            visited()
        tensors[number] = Tensor(problems, leaf.method, layout, group.value)
    kept = {
        number: (_kept(group.value), KeptLayout(group.paths, decisions[group.paths[0]].reason))
        for number, group in enumerate(groups)
        if number not in chosen
    }
    return Selected(params, tuple(slots), kept, tensors)


class _Leaf(NamedTuple):
    """A leaf that is compressed, read by the host chunk by chunk, or summed where it lies.

    Attributes:
        group: where it stands, and its value.
        method: of it.
        is_stack: whether it is a stack of layers.
        exponent: of its largest weight.
        weights: on the host, on CPU the same memory; None for one that stays where it lies.
        spread: how devices share it; None for one on the host.
    """

    group: Group
    method: Method
    is_stack: bool
    exponent: int
    weights: np.ndarray | None
    spread: Spread | None

    def importance(self, weighing: Weighing | None) -> Importance | None:
        """Return the importance of its weights, where they are."""
        if weighing is None:
            return None
        if self.spread is not None:
            return importance_on_parts(weighing, self.group, self.spread)
        vector_size = self.method.vector_size if isinstance(self.method, Vector) else None
        return importance_of_leaf(weighing, self.group, vector_size)

    def problems(self, importance: Importance | None) -> list[Problem]:
        """Return the problems of its layers, prepared."""
        if self.spread is not None:
            return [problem_on_parts(self.group, self.spread, self.exponent, importance)]
        assert self.weights is not None
        if self.is_stack:
            problems = _layers(self.group, self.weights, importance)
        else:
            problems = [_problem(self.weights, self.exponent, importance)]
        return [self.method.prepare(problem) for problem in problems]

    def problems_by(self, weighing: Weighing | None) -> list[Problem]:
        """Return its problems with the importance taken from the whole."""
        return self.problems(self.importance(weighing))


def _leaf_of(group: Group, method: Method, *, is_stack: bool) -> _Leaf:
    path = group.paths[0]
    spread = spread_of_leaf(method, group, is_stack=is_stack)
    if spread is not None:
        exponent = exponent_of_parts("params", group, spread)
        return _Leaf(group, method, is_stack, exponent, None, spread)
    check_is_here(path, group.value, _HINT)
    weights = np.asarray(group.value)
    (exponent,) = exponents_of("params", {path: weights})
    method = method.suited(weights, is_stack=is_stack)
    return _Leaf(group, method, is_stack, exponent, weights, None)


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


def _stack(parts: Sequence[CompressedTensor]) -> CompressedTensor:
    """Join the layers of a stack, on the host; codebooks and counts of the longest."""

    def padded(values: Any, size: int, *, repeats: bool) -> Any:
        if values is None or values.shape[0] == size:
            return values
        widths = [(0, size - values.shape[0])] + [(0, 0)] * (values.ndim - 1)
        return np.pad(values, widths, mode="edge") if repeats else np.pad(values, widths)

    symbols = max(part.counts.shape[0] for part in parts)
    clusters = max(0 if part.codebook is None else part.codebook.shape[0] for part in parts)
    parts = [
        part._replace(
            codebook=padded(part.codebook, clusters, repeats=True),
            counts=padded(part.counts, symbols, repeats=False),
        )
        for part in parts
    ]

    return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)


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
