"""The codebooks of a whole grid of variants, for one network: a loop over curves.

A variant is a point of a method of `jaxcomp.quantizers`; those that differ in nothing but the
parameter are points of one curve of each layer. How many bits every layer gets is decided here
too, on these curves.

Axes: `L` layers, `M` points of a curve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxcomp.experiments.sweep.variants import VECTOR_SIZE, Variant
from jaxcomp.quantizers import (
    EntropyConstrained,
    KMeans,
    MagnitudePruning,
    Method,
    Optimal,
    RoundToNearest,
    Uniform,
    Vector,
    allocate_rates,
)
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.problems import Problem, as_problem

Layers = dict[str, Array]

# Values and importances told apart by the entropy-constrained solve, and its symbols.
ENTROPY_BINS, ENTROPY_LEVELS, ENTROPY_SYMBOLS = 512, 8, 128
# Bits shared between layers may give one of them this many times the clusters of the largest K.
SHARED_FACTOR = 2
# More updates of vector centres change the distortion by less than a per cent.
VECTOR_ITERATIONS = 20
# Methods whose points have to be solved for.
_SOLVED = ("kmeans", "optimal", "uniform", "entropy_constrained", "vector")


class Codebooks(NamedTuple):
    """Codebooks of every quantized variant of a sweep, for one network.

    Attributes:
        points: of every layer in order, by id of the variant.
        importance: of every weight, by name and path, where an assignment depends on it.
    """

    points: dict[str, tuple[Point, ...]]
    importance: dict[str, Layers]

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all variants with a codebook."""
        return tuple(self.points)

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return named arrays and plain metadata that a file can hold; `from_arrays` reads them."""
        values: list[np.ndarray] = []
        # Lists: their order is that of the values.
        variants: list[tuple[str, list[Any]]] = []
        for name, points in self.points.items():
            own: list[Any] = []
            for point in points:
                # A user's method may need no more than the parameter.
                parts = [np.asarray(part) for part in point.codebook or ()]
                values += [part.ravel() for part in parts]
                shapes = [list(part.shape) for part in parts]
                own.append([point.parameter, bool(point.converged), shapes])
            variants.append((name, own))
        # Files know no bfloat16, and float32 holds it exactly.
        exact = [part.astype(np.result_type(np.float32, part.dtype)) for part in values]
        arrays = {"codebooks": np.concatenate(exact) if exact else np.zeros(0, np.float32)}
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
        try:
            values, start = arrays["codebooks"], 0
            points: dict[str, tuple[Point, ...]] = {}
            for name, stored in metadata["variants"]:
                own = []
                for parameter, converged, shapes in stored:
                    parts = []
                    for shape in shapes:
                        size = int(np.prod(shape))
                        parts.append(values[start : start + size].reshape(shape))
                        start += size
                    own.append(Point(parameter, converged, tuple(parts) or None))
                points[name] = tuple(own)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"stored codebooks lack {error}; run the sweep again.") from error
        importance: dict[str, Layers] = {}
        for name, array in arrays.items():
            if name.startswith("importance/"):
                _, of, path = name.split("/", 2)
                importance.setdefault(of, {})[path] = jnp.asarray(array)
        return cls(points, importance)


def codebook_variant(variant: Variant) -> Variant:
    """The variant whose codebooks this one uses: of all layers, and plain K-means for noise."""
    if variant.method == "gaussian_noise":
        return Variant("compressed", "kmeans", "none", num_clusters=variant.num_clusters)
    return replace(variant, kind="compressed", layer="")


def quantizer(
    variant: Variant, *, num_bins: int = 4096, num_iterations: int = 100, seed: int = 0
) -> Method:
    """Return the method of a compressed variant, without its parameter.

    Args:
        variant: any that compresses.
        num_bins: of the histogram of moments.
        num_iterations: iterations at most, of those methods that iterate.
        seed: of the random start of vector codebooks.
    """
    match variant.method:
        case "kmeans":
            # The published method is Lloyd's iteration; plain K-means is the monotone form at 0.
            form = "monotone" if variant.penalty_form == "none" else variant.penalty_form
            return KMeans(
                diameter_penalty=variant.diameter_penalty,
                form=form,  # pyright: ignore[reportArgumentType]
                num_iterations=num_iterations,
                start="quantiles",
                num_bins=num_bins,
            )
        case "optimal":
            return Optimal(diameter_penalty=variant.diameter_penalty, num_bins=num_bins)
        case "uniform":
            return Uniform(num_bins=num_bins)
        case "entropy_constrained":
            return EntropyConstrained(
                num_symbols=ENTROPY_SYMBOLS,
                num_iterations=num_iterations,
                num_bins=ENTROPY_BINS,
                num_levels=ENTROPY_LEVELS,
            )
        case "vector":
            return Vector(
                vector_size=VECTOR_SIZE,
                num_iterations=min(num_iterations, VECTOR_ITERATIONS),
                seed=seed,
            )
        case "round_to_nearest":
            return RoundToNearest()
        case "magnitude_pruning":
            return MagnitudePruning()
        case method:
            raise ValueError(
                f"the method {method!r} is not known: define it, or import the module that does."
            )


def solve_codebooks(
    layers: Layers,
    importance: Mapping[str, Layers | None],
    variants: Sequence[Variant],
    *,
    num_bins: int,
    num_iterations: int,
    layer_weight: Mapping[str, float] | None = None,
    seed: int = 0,
    methods: Mapping[str, Method] | None = None,
) -> Codebooks:
    """Solve the codebooks of all variants that have one: a curve for each method and layer.

    Args:
        layers: weights by path.
        importance: by the name that variants give it and by path; None for equal ones.
        variants: those with a codebook are solved; noise needs the distortion of plain K-means.
        num_bins: B, bins of the histogram of moments.
        num_iterations: iterations at most, of those methods that iterate.
        layer_weight: mean curvature of each layer, >= 0. What a squared error in one layer counts
            against one in another where bits are shared without an importance; None for 1.
        seed: of the random start of vector codebooks.
        methods: of the user, by the name that variants give them.
    """
    groups: dict[tuple[Method, str], list[Variant]] = {}
    own: dict[tuple[str, str], list[Variant]] = {}
    for needed in {own.id: own for own in map(codebook_variant, variants)}.values():
        if needed.method in _SOLVED:
            method = quantizer(needed, num_bins=num_bins, num_iterations=num_iterations, seed=seed)
            groups.setdefault((method, needed.importance), []).append(needed)
        elif methods and needed.method in methods:
            own.setdefault((needed.method, needed.importance), []).append(needed)
    points: dict[str, tuple[Point, ...]] = {}
    stored: dict[str, Layers] = {}
    ones = {path: np.ones(weights.shape, np.float32) for path, weights in layers.items()}
    for (method, name), members in groups.items():
        known = importance.get(name)
        is_scalar = isinstance(method, KMeans | Optimal | Uniform)
        # Importances of 1 where there are none: the same programs then serve both.
        problems = problems_of(layers, ones if known is None and is_scalar else known)
        weight = np.ones(len(layers))
        if known is None and layer_weight is not None:
            weight = _positive(np.array([float(layer_weight[path]) for path in layers]))
        if isinstance(method, EntropyConstrained):
            points |= _of_multipliers(method, members, problems, weight)
        else:
            points |= _of_sizes(method, members, problems, weight)
        if known is not None and isinstance(method, EntropyConstrained | Vector):
            stored[name] = known
    for (label, name), members in own.items():
        assert methods is not None
        points |= _of_own(methods[label], members, layers, importance.get(name))
        if (known := importance.get(name)) is not None:
            stored[name] = known
    return Codebooks(points, stored)


def own_method(method: Method, weights: Array) -> Method:
    """Return a user's method as it suits a layer."""
    return method.suited(np.asarray(weights), is_stack=False)


def problems_of(layers: Layers, importance: Mapping[str, Any] | None) -> list[Problem]:
    """Return layers as methods take them."""
    return [
        as_problem(weights, None if importance is None else importance[path])
        for path, weights in layers.items()
    ]


def _positive(weight: Float[np.ndarray, " layers"]) -> Float[np.ndarray, " layers"]:
    # A layer the loss does not depend on still has to have some weight.
    largest = weight.max(initial=0.0)
    return np.maximum(weight, 1e-9 * largest) if largest > 0 else np.ones(len(weight))


def _of_sizes(
    method: Method,
    variants: Sequence[Variant],
    problems: Sequence[Problem],
    layer_weight: Float[np.ndarray, " layers"],
) -> dict[str, tuple[Point, ...]]:
    """Solve codebooks of every size in every layer, then share bits between the layers."""
    sizes = sorted({variant.num_clusters for variant in variants})
    shared = [variant for variant in variants if variant.allocation == "optimal"]
    if shared and isinstance(method, Optimal):
        # Every size costs nothing more, and the largest budget is shared too.
        sizes = list(range(1, SHARED_FACTOR * sizes[-1] + 1))
    curves = list(method.curves(problems, [np.asarray(sizes)] * len(problems)))
    place = {size: number for number, size in enumerate(sizes)}
    found = {}
    for variant in variants:
        if variant.allocation == "equal":
            found[variant.id] = tuple(own.at(place[variant.num_clusters]) for own in curves)
    if shared:
        equal = np.array([place[variant.num_clusters] for variant in shared])
        for variant, own in zip(
            shared, _shared(curves, problems, equal, layer_weight), strict=True
        ):
            found[variant.id] = tuple(
                curve.at(point) for curve, point in zip(curves, own.tolist(), strict=True)
            )
    return found


def _of_own(
    method: Method, variants: Sequence[Variant], layers: Layers, importance: Layers | None
) -> dict[str, tuple[Point, ...]]:
    """Solve the points of a user's method, the same parameter in every layer."""
    parameters = np.asarray([variant.parameter for variant in variants])
    curves = []
    for path, weights in layers.items():
        own = own_method(method, weights)
        problem = as_problem(weights, None if importance is None else importance[path])
        # Counts, of clusters or bits, stay whole numbers.
        asked = parameters.astype(np.asarray(own.candidates()).dtype)
        curves.append(own.curve(own.prepare(problem), asked))
    return {
        variant.id: tuple(curve.at(point) for curve in curves)
        for point, variant in enumerate(variants)
    }


def _shared(
    curves: Sequence[Curve],
    problems: Sequence[Problem],
    equal: np.ndarray,
    layer_weight: Float[np.ndarray, " layers"],
) -> np.ndarray:
    """Give every layer the point at which it uses the bits of all layers best, (variants, L).

    Args:
        curves: of the layers.
        problems: likewise.
        equal: (variants,), the point of all layers whose bits are shared.
        layer_weight: what a unit of distortion counts in each layer.
    """
    rates = np.stack(
        [curve.size_bits(own.size) for curve, own in zip(curves, problems, strict=True)]
    )
    costs = np.stack([_distortion(c, own) for c, own in zip(curves, problems, strict=True)])
    chosen = allocate_rates(
        rates, costs, budget_bits=rates[:, equal].sum(axis=0), layer_weight=layer_weight
    )
    # What is left of a budget is spent step by step, which the same size everywhere may beat.
    is_better = chosen.total_distortion <= layer_weight @ costs[:, equal]
    return np.where(is_better[:, None], chosen.places, equal[:, None])


def _distortion(curve: Curve, problem: Problem) -> Float[np.ndarray, " points"]:
    return np.ldexp(curve.distortion, problem.distortion_exponent)


def _of_multipliers(
    method: EntropyConstrained,
    variants: Sequence[Variant],
    problems: Sequence[Problem],
    layer_weight: Float[np.ndarray, " layers"],
) -> dict[str, tuple[Point, ...]]:
    """Solve entropy-constrained codebooks.

    The same distortion per bit in all layers is their optimal allocation. It is relative to the
    distortion per weight of a single centre, of each layer or of all of them.
    """
    spread = np.array([_spread(problem) for problem in problems])
    number = np.array([problem.size for problem in problems], np.float64)
    own = spread / number
    pooled = (layer_weight @ spread) / number.sum() / layer_weight
    ratio = {"equal": np.ones(len(own)), "optimal": pooled / np.where(own > 0, own, np.inf)}
    parameter = np.array([variant.parameter for variant in variants])
    shares = np.stack([ratio[variant.allocation] for variant in variants], axis=1)
    curves = list(method.curves(problems, [parameter * share for share in shares]))
    return {
        variant.id: tuple(curve.at(point) for curve in curves)
        for point, variant in enumerate(variants)
    }


def _spread(problem: Problem) -> float:
    """Return `sum h (w - mean)^2` in original units."""
    everything = slice(0, problem.size)
    points = problem.points(everything).astype(np.float64)
    mass = problem.importance_of(everything)
    mass = np.ones_like(points) if mass is None else mass.astype(np.float64)
    mean = np.sum(mass * points) / np.sum(mass)
    spread = np.sum(mass * (points - mean) ** 2)
    return float(np.ldexp(spread, problem.distortion_exponent))
