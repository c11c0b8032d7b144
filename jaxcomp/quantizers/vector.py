"""Vector K-means: groups of m consecutive weights share one index, in their Hessian's metric.

Distortion convention: `sum_i (w_i - c_{a(i)})^T H_i (w_i - c_{a(i)})`, twice the loss rise that the
curvature predicts. H_i is a number times the identity ("scalar"), a diagonal or a full m x m
matrix for every point; which one is told by the number of axes. Unlike in one dimension the
importance also chooses the centre: a point goes to the centre that is nearest in its own metric,
ties to the lowest index. (A scalar H_i leaves the choice to the Euclidean distance.)

Points are visited in chunks: beside the points themselves, memory does not grow with N times K.

Axes: `...` groups, `N` points, `m` weights of a point, `K` clusters (`max_clusters` of them, the
first `num_clusters` in use), `J` chunks, `C` points of a chunk, `F` features summed by cluster.

Sources: Gersho and Gray, Vector Quantization and Signal Compression (1992), chapter 11; Bu, Gao,
Zou, Veeravalli, arXiv:1901.09421, Algorithm 1 (diameter); Arthur and Vassilvitskii, SODA 2007
(start); Jegou, Douze, Schmid, IEEE Trans. PAMI 33 (2011) (product quantization).
"""

import math
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt

from jaxcomp.numerics.checks import (
    check_codebook_size,
    check_count,
    check_finite,
    check_floating,
    check_penalty,
    is_concrete,
)
from jaxcomp.numerics.linear_algebra import cholesky
from jaxcomp.numerics.scaling import group_exponent, restore
from jaxcomp.numerics.transformations import always_compiled, with_codebook_held_fixed
from jaxcomp.quantizers.assignment import assignment_dtype
from jaxcomp.quantizers.histograms import (
    accumulation_dtype,
)
from jaxcomp.quantizers.scalar.lloyd import PENALTY_SCALES, PenaltyScale
from jaxcomp.quantizers.vector_steps import farthest_pair, updated
from jaxcomp.quantizers.vector_sums import (
    ImportanceForm,
    assigned,
    cluster_sums,
    cut_into_chunks,
    times,
)
from jaxcomp.types import PRNGKey

VectorPenaltyForm = Literal["none", "monotone", "published"]
VECTOR_PENALTY_FORMS: tuple[str, ...] = get_args(VectorPenaltyForm)

# Points a random start is drawn from, at least; all of them if there are fewer.
_MIN_START_POINTS = 16_384


class VectorQuantizationResult(NamedTuple):
    """A group of vectors after `vector_kmeans` (or many, with leading axes).

    Attributes:
        centroids: (..., K, m) in the dtype of the points, in no particular order; entries from
            `num_clusters` on repeat the last one.
        assignments: (..., N), smallest unsigned dtype: `centroids[assignments]` are the
            quantized points.
        distortion: (...) `sum (w - c)^T H (w - c)`.
        num_used: (...) int32, clusters with points.
        counts: (..., K) int32, points of each cluster.
        objective: (...) distortion plus penalty term.
        num_empty: (...) int32, `num_clusters - num_used`.
        num_iterations: (...) int32, centre updates done.
        converged: (...) bool, whether the last update moved no centre by more than rounding.
    """

    centroids: Float[Array, "... clusters m"]
    assignments: UInt[Array, "... points"]
    distortion: Float[Array, "..."]
    num_used: Int[Array, "..."]
    counts: Int[Array, "... clusters"]
    objective: Float[Array, "..."]
    num_empty: Int[Array, "..."]
    num_iterations: Int[Array, "..."]
    converged: Bool[Array, "..."]


def _distortion_of_vectors(
    points: Float[Array, "... points m"],
    importance: Shaped[Array, "..."] | None,
    result: VectorQuantizationResult,
) -> Float[Array, "..."]:
    """Return `sum (w - c)^T H (w - c)` as it is written, for derivatives."""
    dtype = accumulation_dtype(points.dtype)
    index = result.assignments.astype(jnp.int32)[..., None]
    quantized = jnp.take_along_axis(result.centroids, index, axis=-2).astype(dtype)
    deviation = jnp.broadcast_to(points, quantized.shape).astype(dtype) - quantized
    pull = deviation
    if importance is not None:
        is_full = importance.ndim > points.ndim
        shape = (*deviation.shape, deviation.shape[-1]) if is_full else deviation.shape
        importance = importance if importance.ndim >= points.ndim else importance[..., None]
        importance = jnp.broadcast_to(importance, shape).astype(dtype)
        pull = importance * (deviation[..., None, :] if is_full else deviation)
        pull = jnp.sum(pull, axis=-1) if is_full else pull
    return jnp.sum(deviation * pull, axis=(-2, -1))


@always_compiled
@with_codebook_held_fixed(_distortion_of_vectors)
def vector_kmeans(
    points: Float[Array, "... points m"],
    importance: Shaped[Array, "..."] | None = None,
    *,
    num_clusters: Int[Array, "..."] | int,
    max_clusters: int | None = None,
    key: PRNGKey | None = None,
    initial_centroids: Float[Array, "... clusters m"] | None = None,
    diameter_penalty: Float[Array, "..."] | float = 0.0,
    penalty_form: VectorPenaltyForm = "monotone",
    penalty_scale: PenaltyScale = "relative",
    num_iterations: Int[Array, ""] | int = 30,
    chunk_size: int = 8192,
) -> VectorQuantizationResult:
    """Quantize every group of vectors by K-means in the metric of its importance.

    Alternates assignment and centre update until a fixed point or `num_iterations`; centroids are
    rounded to the dtype of the points before the last assignment, from which everything reported
    is recomputed. Forms "none" and "monotone" never raise the objective.

    - "none": `c = S^-1 s`, S the sum of H and s the sum of H w of a cluster. Directions in which
      a cluster has no importance keep their coordinate.
    - "published": `sum (w - c)^T H (w - c) + beta max |c_k - c_l|^2` by Algorithm 1 of the paper:
      points go to the *Euclidean*-nearest centre, the farthest pair of the previous centres is
      solved jointly. The objective may rise.
    - "monotone": assignment in the metric of the importance; the step to the same joint solve is
      halved until the objective does not rise, and beside it stand contractions of all centres
      towards the common mean; the best of them is taken.

    A cluster that loses its mass keeps its centre and is reported; with a penalty it moves to the
    nearest centre in use, so that it can never widen the codebook. Under differentiation as
    `kmeans`.

    Args:
        points: (..., N, m) floating, finite; meant for m from 2 to 16.
        importance: H, positive semi-definite: (..., N) numbers, (..., N, m) diagonals or
            (..., N, m, m) symmetric matrices, each axis of the full length or 1; None means 1.
        num_clusters: K >= 1. An int, or an array that broadcasts against the leading axes (then
            `max_clusters` is required); changing it compiles nothing if `max_clusters` stays.
        max_clusters: size of the returned codebook, static; defaults to `num_clusters`.
        key: for a random start, weighted k-means++ (on a sample of at least 16,384 points where
            there are more). Either this or `initial_centroids`.
        initial_centroids: (..., max_clusters, m) to start from.
        diameter_penalty: beta >= 0, traced, broadcast like `num_clusters`.
        penalty_form: "none", "monotone" or "published".
        penalty_scale: "relative" multiplies beta by the total mass `sum trace(H) / m`;
            "absolute" takes it as it is.
        num_iterations: most centre updates, traced.
        chunk_size: points visited at a time, static; only speed and memory depend on it.

    Returns:
        Centroids, assignments, distortion and diagnostics.

    Raises:
        TypeError: if the points are not floating, the importance is not real or `num_clusters` is
            not an integer.
        ValueError: on NaN or infinite points or importance, a shape that does not fit, importance
            that is not positive semi-definite (up to rounding), a group without importance, K < 1
            or K > `max_clusters`, a negative penalty, an unknown option, no start or two. Values
            are checked only where they are known, outside `jit` and `vmap`.
    """
    points, importance, form = _check_vectors(points, importance)
    num_clusters, max_clusters = check_codebook_size(num_clusters, max_clusters)
    check_penalty(diameter_penalty)
    if penalty_form not in VECTOR_PENALTY_FORMS:
        raise ValueError(
            f"penalty_form must be one of {VECTOR_PENALTY_FORMS}, got {penalty_form!r}."
        )
    if penalty_scale not in PENALTY_SCALES:
        raise ValueError(f"penalty_scale must be one of {PENALTY_SCALES}, got {penalty_scale!r}.")
    check_count("chunk_size", chunk_size)
    if (key is None) == (initial_centroids is None):
        came = "neither" if key is None else "both"
        raise ValueError(f"pass either key (a random start) or initial_centroids, got {came}.")
    if initial_centroids is not None:
        initial_centroids = check_floating(initial_centroids, "initial_centroids")
        if initial_centroids.shape[-2:] != (max_clusters, points.shape[-1]):
            raise ValueError(
                f"initial_centroids must have shape (..., {max_clusters}, {points.shape[-1]}), "
                f"max_clusters vectors, got {initial_centroids.shape}."
            )
        check_finite(initial_centroids, "initial_centroids")
    return _vector_kmeans(
        points,
        importance,
        num_clusters,
        jnp.asarray(diameter_penalty, accumulation_dtype(points.dtype)),
        jnp.asarray(num_iterations, jnp.int32),
        key,
        initial_centroids,
        options=_Options(form, max_clusters, penalty_form, penalty_scale, chunk_size),
    )


@always_compiled
def split_vectors(
    values: Shaped[Array, "*shape"], vector_size: int, *, per_position: bool = False
) -> Shaped[Array, "... points m"]:
    """Cut the weights of a layer into groups of `vector_size` consecutive ones.

    What is missing in the last group is filled with zeros. Cut the importance of the weights in the
    same way: its zeros are a diagonal importance with which the filling weighs nothing
    (`split_vectors(jnp.ones_like(weights), m)` where all weights count alike).

    Args:
        values: of any shape with at least one axis; consecutive along the last one.
        vector_size: m >= 1, static.
        per_position: False makes one group of points, for one codebook: (N, m) from the
            flattened values. True is product quantization: (P, R, m), a group of R points for
            each of the P places of a vector within the last axis, each with a codebook of its own.

    Returns:
        The points, in the dtype of the values; `join_vectors` is the inverse.

    Raises:
        ValueError: if there are no values or `vector_size < 1`.
    """
    values = jnp.asarray(values)
    if values.ndim == 0 or values.size == 0:
        raise ValueError(
            f"values must have at least one axis and one entry, got shape {values.shape}."
        )
    check_count("vector_size", vector_size)
    rows = values.reshape(-1, values.shape[-1]) if per_position else values.reshape(1, -1)
    rows = jnp.pad(rows, [(0, 0), (0, -rows.shape[1] % vector_size)])
    vectors = rows.reshape(rows.shape[0], -1, vector_size)
    return jnp.swapaxes(vectors, 0, 1) if per_position else vectors[0]


@always_compiled
def join_vectors(
    vectors: Shaped[Array, "... points m"], shape: tuple[int, ...]
) -> Shaped[Array, "*shape"]:
    """Put the vectors of `split_vectors` back in their places, without the filling.

    Args:
        vectors: (N, m), or (P, R, m) from `per_position=True`.
        shape: of the layer.

    Returns:
        The values, shaped `shape`.

    Raises:
        ValueError: if the vectors are not what `split_vectors` makes of this shape.
    """
    per_position = vectors.ndim == 3
    template = jax.eval_shape(
        partial(split_vectors, vector_size=vectors.shape[-1], per_position=per_position),
        jax.ShapeDtypeStruct(shape, vectors.dtype),
    )
    if vectors.shape != template.shape:
        raise ValueError(
            f"vectors must have shape {template.shape} for a layer of shape {shape}, got "
            f"{vectors.shape}."
        )
    if per_position:
        rows = jnp.swapaxes(vectors, 0, 1).reshape(vectors.shape[1], -1)
        return rows[:, : shape[-1]].reshape(shape)
    return vectors.reshape(-1)[: math.prod(shape)].reshape(shape)


def _check_vectors(
    points: Array, importance: Array | None
) -> tuple[Array, Array | None, ImportanceForm]:
    points = check_floating(points, "points")
    if points.ndim < 2 or points.size == 0:
        raise ValueError(
            f"points must have shape (..., N, m) with at least one entry, got {points.shape}."
        )
    check_finite(points, "points")
    if importance is None:
        return points, None, "scalar"
    importance = jnp.asarray(importance)
    if jnp.issubdtype(importance.dtype, jnp.complexfloating):
        raise TypeError(f"importance must be real, got {importance.dtype}.")
    importance = importance.astype(accumulation_dtype(points.dtype))
    shapes: dict[int, tuple[ImportanceForm, tuple[int, ...]]] = {
        points.ndim - 1: ("scalar", points.shape[:-1]),
        points.ndim: ("diagonal", points.shape),
        points.ndim + 1: ("full", (*points.shape, points.shape[-1])),
    }
    form, shape = shapes.get(importance.ndim, ("scalar", ()))
    fits = importance.ndim in shapes and all(
        have == want or (have == 1 and not (form == "full" and axis >= points.ndim - 1))
        for axis, (have, want) in enumerate(zip(importance.shape, shape, strict=True))
    )
    if not fits:
        allowed = ", ".join(f"{shape} ({form})" for form, shape in shapes.values())
        raise ValueError(
            f"importance must have one of the shapes {allowed}, or 1 along some of the axes of "
            f"points, got {importance.shape}."
        )
    check_finite(importance, "importance")
    if is_concrete(importance):
        _check_semidefinite(importance, form, points.ndim)
    return points, importance, form


def _check_semidefinite(importance: Array, form: ImportanceForm, point_ndim: int) -> None:
    with jax.ensure_compile_time_eval():
        num_bad, num_massless = (int(n) for n in _importance_problems(importance, form, point_ndim))
    number = importance.size // (importance.shape[-1] ** 2 if form == "full" else 1)
    if num_bad and form == "full":
        raise ValueError(
            f"importance must be symmetric positive semi-definite, got {num_bad} matrices of "
            f"{number} that are not; symmetrize them, and raise negative eigenvalues to 0 first."
        )
    if num_bad:
        raise ValueError(
            f"importance must be at least 0, got {num_bad} negative of {number}; apply a policy "
            "for negative curvature first."
        )
    if num_massless:
        raise ValueError(
            f"importance must not be 0 throughout a group, got {num_massless} such groups; pass "
            "None to weigh all points alike."
        )


@partial(jax.jit, static_argnames=("form", "point_ndim"))
def _importance_problems(
    importance: Array, form: ImportanceForm, point_ndim: int
) -> tuple[Array, Array]:
    axes = tuple(range(point_ndim - 2, importance.ndim))
    num_massless = jnp.sum(jnp.all(importance == 0, axis=axes), dtype=jnp.int32)
    if form != "full":
        return jnp.sum(importance < 0, dtype=jnp.int32), num_massless
    size = importance.shape[-1]
    diagonal = jnp.diagonal(importance, axis1=-2, axis2=-1)
    scale = jnp.max(jnp.abs(importance), axis=(-2, -1), keepdims=True)
    scaled = importance / jnp.where(scale > 0, scale, 1)
    # A sum of outer products in this precision is semi-definite only up to rounding.
    slack = 8 * size * float(jnp.finfo(importance.dtype).eps)
    asymmetry = jnp.max(jnp.abs(scaled - jnp.swapaxes(scaled, -1, -2)), axis=(-2, -1))
    identity = jnp.broadcast_to(jnp.eye(size, dtype=importance.dtype), importance.shape)
    factor = cholesky(scaled + slack * identity)
    is_bad = (asymmetry > slack) | ~jnp.all(jnp.isfinite(factor), axis=(-2, -1))
    is_bad |= jnp.any(diagonal < 0, axis=-1)
    return jnp.sum(is_bad, dtype=jnp.int32), num_massless


class _Options(NamedTuple):
    """What is static in a solve."""

    form: ImportanceForm
    max_clusters: int
    penalty_form: VectorPenaltyForm
    penalty_scale: PenaltyScale
    chunk_size: int


@partial(jax.jit, static_argnames=("options",))
def _vector_kmeans(
    points,
    importance,
    num_clusters,
    diameter_penalty,
    num_iterations,
    key,
    initial_centroids,
    *,
    options,
):
    batch, dtype = points.shape[:-2], accumulation_dtype(points.dtype)
    batch = jnp.broadcast_shapes(batch, num_clusters.shape, diameter_penalty.shape)
    if initial_centroids is not None:
        batch = jnp.broadcast_shapes(batch, initial_centroids.shape[:-2])
        initial_centroids = initial_centroids.astype(dtype)
    num_groups = math.prod(int(length) for length in batch)

    def flat(values, trailing):
        values = jnp.broadcast_to(values, (*batch, *values.shape[values.ndim - trailing :]))
        return values.reshape(num_groups, *values.shape[len(batch) :])

    if importance is not None:
        shape = (*points.shape[:-1], *points.shape[-1:] * (importance.ndim - points.ndim + 1))
        importance = flat(jnp.broadcast_to(importance, shape), importance.ndim - points.ndim + 2)
    solve = partial(_solve_group, options=options)
    arguments: Any = (
        flat(points, 2),
        importance,
        flat(num_clusters, 0),
        flat(diameter_penalty, 0),
        jnp.broadcast_to(num_iterations, (num_groups,)),
        None if key is None else jax.random.split(key, num_groups),
        None if initial_centroids is None else flat(initial_centroids, 2),
    )
    # Alone, a group keeps its loops free of the masks that batching puts in them.
    if num_groups == 1:
        result = solve(*jax.tree.map(lambda leaf: leaf[0], arguments))
        result = jax.tree.map(lambda leaf: leaf[None], result)
    else:
        result = jax.vmap(solve)(*arguments)
    return jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), result)


def _solve_group(
    points: Float[Array, "points m"],
    importance: Float[Array, "points ..."] | None,
    num_clusters: Int[Array, ""],
    diameter_penalty: Float[Array, ""],
    num_iterations: Int[Array, ""],
    key: PRNGKey | None,
    initial_centroids: Float[Array, "clusters m"] | None,
    *,
    options: _Options,
) -> VectorQuantizationResult:
    form, max_clusters, penalty_form, penalty_scale, chunk_size = options
    num_points, size = points.shape
    dtype = accumulation_dtype(points.dtype)
    if importance is None:
        importance = jnp.ones((num_points,), dtype)
    # In powers of two near the largest entries: squares of huge or tiny weights stay in range.
    point_unit, importance_unit = _power_of_two(points.astype(dtype)), _power_of_two(importance)
    scaled_points = points.astype(dtype) / point_unit
    scaled_importance = importance / importance_unit
    is_live = jnp.arange(max_clusters, dtype=jnp.int32) < jnp.clip(num_clusters, 1, max_clusters)
    num_live = jnp.sum(is_live, dtype=jnp.int32)

    if initial_centroids is None:
        assert key is not None
        start = _random_start(key, scaled_points, scaled_importance, max_clusters, form)
    else:
        start = initial_centroids / point_unit
    start = _repeat_last(start, is_live, num_live)
    chunks = cut_into_chunks(scaled_points, scaled_importance, chunk_size)
    beta = diameter_penalty / importance_unit
    if penalty_scale == "relative":
        beta = diameter_penalty * _total_mass(scaled_importance, form, size)

    # The published algorithm does not look at the importance to choose a centre.
    metric: ImportanceForm = "scalar" if penalty_form == "published" else form
    rounding = 4 * jnp.finfo(dtype).eps

    def step(state):
        centroids, iteration, _ = state
        sums = cluster_sums(chunks, centroids, is_live, form=form, metric=metric)
        new = updated(sums, centroids, beta, penalty_form)
        new = _repeat_last(new, is_live, num_live)
        return new, iteration + 1, jnp.all(jnp.abs(new - centroids) <= rounding)

    centroids, iterations, converged = lax.while_loop(
        lambda state: ~state[2] & (state[1] < num_iterations),
        step,
        (start, jnp.int32(0), jnp.asarray(False)),
    )
    centroids = (centroids * point_unit).astype(points.dtype)
    stored = centroids.astype(dtype) / point_unit
    index, cost, counts, has_mass = assigned(chunks, stored, is_live, form=form, metric=metric)

    def in_units(value: Array) -> Array:
        # One after the other: the product of the units alone may overflow.
        return value * point_unit * importance_unit * point_unit

    distortion = in_units(cost)
    diameter = farthest_pair(stored, has_mass)[2]
    if penalty_form == "none":
        beta = jnp.zeros_like(beta)
    num_used = jnp.sum(counts > 0, dtype=jnp.int32)
    return VectorQuantizationResult(
        centroids=centroids,
        assignments=index.reshape(-1)[:num_points].astype(assignment_dtype(max_clusters)),
        distortion=distortion,
        num_used=num_used,
        counts=counts,
        objective=distortion + in_units(beta * diameter),
        num_empty=num_live - num_used,
        num_iterations=iterations,
        converged=converged,
    )


def _power_of_two(values: Float[Array, "..."]) -> Float[Array, ""]:
    """Return a power of two near the largest magnitude; 1 if all are 0."""
    exponent = group_exponent(values, axis=tuple(range(values.ndim)))
    # Kept away from the ends of the range, where its square or inverse would not be a number.
    limit = jnp.finfo(values.dtype).maxexp - 2
    return restore(jnp.ones((), values.dtype), jnp.clip(exponent, -limit, limit), axis=())


def _repeat_last(centroids, is_live, num_live):
    """Overwrite the padding with the last centre in use."""
    return jnp.where(is_live[:, None], centroids, centroids[num_live - 1][None, :])


def _total_mass(importance: Array, form: ImportanceForm, size: int) -> Float[Array, ""]:
    if form == "full":
        return jnp.sum(jnp.trace(importance, axis1=-2, axis2=-1)) / size
    return jnp.sum(importance) / (size if form == "diagonal" else 1)


def _random_start(
    key: PRNGKey,
    points: Float[Array, "points m"],
    importance: Float[Array, "points ..."],
    max_clusters: int,
    form: ImportanceForm,
) -> Float[Array, "clusters m"]:
    """Weighted k-means++: each centre is a point, drawn by its distortion from those before."""
    sample_key, first_key, other_key = jax.random.split(key, 3)
    num_points = points.shape[0]
    num_drawn = max(_MIN_START_POINTS, 16 * max_clusters)
    if num_points > num_drawn:
        drawn = jax.random.randint(sample_key, (num_drawn,), 0, num_points, jnp.int32)
        points, importance = points[drawn], importance[drawn]
    if form == "full":
        mass = jnp.trace(importance, axis1=-2, axis2=-1)
    else:
        mass = jnp.sum(importance.reshape(points.shape[0], -1), axis=-1)
    points, importance = points.T, jnp.moveaxis(importance, 0, -1)

    def distortion(centre):
        deviation = points - centre[:, None]
        return jnp.maximum(jnp.sum(deviation * times(importance, deviation, form), axis=0), 0)

    def draw(lowest, key):
        # All distances 0: any point will do, and there is no better one.
        centre = points[:, jax.random.categorical(key, jnp.log(lowest))]
        return jnp.minimum(lowest, distortion(centre)), centre

    first = points[:, jax.random.categorical(first_key, jnp.log(mass))]
    _, others = lax.scan(draw, distortion(first), jax.random.split(other_key, max_clusters - 1))
    return jnp.concatenate([first[None, :], others])
