"""Vectors by cluster, in the metric of their importance: nearest centres, sums, quadratic forms.

Importance H of a point is a number times the identity ("scalar"), a diagonal or a full m x m
matrix. Points are visited in chunks: memory does not grow with N times K.

Axes: `m` weights of a point, `K` clusters, `J` chunks, `C` (`size`) points of a chunk, `F` features
summed by cluster.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxcomp.numerics.linear_algebra import eigh
from jaxcomp.numerics.segments import segment_counts

ImportanceForm = Literal["scalar", "diagonal", "full"]

# Centres compared in one pass over a chunk.
_UNROLL = 4


class Chunks(NamedTuple):
    """Points in chunks, the points of a chunk last, where they fill vector registers.

    Attributes:
        points: (J, m, C).
        importance: (J, C), (J, m, C) or (J, m, m, C); 0 for padding.
        is_point: (J, C), False for padding.
    """

    points: Float[Array, "chunks m size"]
    importance: Float[Array, "chunks ... size"]
    is_point: Bool[Array, "chunks size"]


class ClusterSums(NamedTuple):
    """Sums over the clusters.

    Attributes:
        mass: (K, m, m), sum of H.
        pull: (K, m), sum of H (w - c) about the centre c that the points were assigned to.
        has_mass: (K,), whether any H of the cluster is not 0.
    """

    mass: Float[Array, "clusters m m"]
    pull: Float[Array, "clusters m"]
    has_mass: Bool[Array, " clusters"]


def cut_into_chunks(
    points: Float[Array, "points m"], importance: Float[Array, "points ..."], chunk_size: int
) -> Chunks:
    """Return points in chunks of one size, the last one filled up with zeros."""
    num_points = points.shape[0]
    chunk_size = min(chunk_size, num_points)
    extra = -num_points % chunk_size

    def cut(values):
        values = jnp.pad(values, [(0, extra)] + [(0, 0)] * (values.ndim - 1))
        values = values.reshape(-1, chunk_size, *values.shape[1:])
        return jnp.moveaxis(values, 1, -1)

    return Chunks(cut(points), cut(importance), cut(jnp.ones((num_points,), bool)))


def times(importance: Array, deviation: Float[Array, "m size"], form: ImportanceForm) -> Array:
    """Return H times the deviation of every point, (m, C)."""
    if form == "scalar":
        return importance[None, :] * deviation
    if form == "diagonal":
        return importance * deviation
    return jnp.sum(importance * deviation[None, :, :], axis=1)


def _distance(
    importance: Array, deviation: Float[Array, "m size"], metric: ImportanceForm
) -> Float[Array, " size"]:
    """Return what a point compares centres by; a scalar importance scales all distances alike."""
    if metric == "scalar":
        return jnp.sum(deviation * deviation, axis=0)
    if metric == "diagonal":
        return jnp.sum(importance * deviation * deviation, axis=0)
    # One sum over both axes is one fused pass; as a product and a sum it takes ten times as long.
    return jnp.sum(importance * deviation[:, None, :] * deviation[None, :, :], axis=(0, 1))


def nearest_centres(
    points: Float[Array, "m size"],
    importance: Array,
    centroids: Float[Array, "clusters m"],
    is_live: Bool[Array, " clusters"],
    metric: ImportanceForm,
) -> Int[Array, " size"]:
    """Return the nearest live centre of every point, ties to the lowest index, centre by centre."""

    def visit(best, candidate):
        lowest, index = best
        centre, is_allowed, number = candidate
        distance = _distance(importance, points - centre[:, None], metric)
        is_better = (distance < lowest) & is_allowed
        return (jnp.where(is_better, distance, lowest), jnp.where(is_better, number, index)), None

    size = points.shape[-1]
    start = (jnp.full((size,), jnp.inf, points.dtype), jnp.zeros((size,), jnp.int32))
    numbers = jnp.arange(centroids.shape[0], dtype=jnp.int32)
    (_, index), _ = lax.scan(visit, start, (centroids, is_live, numbers), unroll=_UNROLL)
    return index


def cluster_sums(
    chunks: Chunks,
    centroids: Float[Array, "clusters m"],
    is_live: Bool[Array, " clusters"],
    *,
    form: ImportanceForm,
    metric: ImportanceForm,
) -> ClusterSums:
    """Assign points to the nearest centre in one metric, and sum over clusters in another."""
    num_clusters, size = centroids.shape

    def visit(total, chunk):
        points, importance, _ = chunk
        index = nearest_centres(points, importance, centroids, is_live, metric)
        # About the centre, so that a cluster at its mean is not moved by rounding.
        deviation = points - centroids[index].T
        pull = times(importance, deviation, form)
        mass = importance.reshape(-1, importance.shape[-1])
        features = jnp.concatenate([pull, mass], axis=0)
        return total + sum_by_cluster(features, index, num_clusters), None

    num_features = size + {"scalar": 1, "diagonal": size, "full": size * size}[form]
    start = jnp.zeros((num_features, num_clusters), centroids.dtype)
    sums, _ = lax.scan(visit, start, chunks)
    pull, mass = sums[:size].T, sums[size:].T
    identity = jnp.eye(size, dtype=centroids.dtype)
    if form == "full":
        mass = mass.reshape(num_clusters, size, size)
        mass = 0.5 * (mass + jnp.swapaxes(mass, 1, 2))
    else:
        mass = mass[:, :, None] * identity[None, :, :]
    has_mass = jnp.any(jnp.diagonal(mass, axis1=1, axis2=2) > 0, axis=-1)
    return ClusterSums(mass, pull, has_mass)


def sum_by_cluster(
    features: Float[Array, "features size"], index: Int[Array, " size"], num_clusters: int
) -> Float[Array, "features clusters"]:
    """Sum the features of the points of every cluster, the same on every run.

    A scatter on CPU; elsewhere, where scatters add in any order, a product with the indicators of
    the clusters.
    """
    return lax.platform_dependent(
        features,
        index,
        cpu=partial(_sum_by_scatter, num_clusters=num_clusters),
        default=partial(_sum_by_product, num_clusters=num_clusters),
    )


def _sum_by_scatter(features, index, *, num_clusters):
    return jax.ops.segment_sum(features.T, index, num_clusters, mode="promise_in_bounds").T


def _sum_by_product(features, index, *, num_clusters):
    indicators = jax.nn.one_hot(index, num_clusters, dtype=features.dtype)
    return jnp.matmul(features, indicators, precision="highest")


def assigned(
    chunks: Chunks,
    centroids: Float[Array, "clusters m"],
    is_live: Bool[Array, " clusters"],
    *,
    form: ImportanceForm,
    metric: ImportanceForm,
) -> tuple[Array, Array, Array, Array]:
    """Return assignments, distortion, counts and which clusters have mass."""
    num_clusters = centroids.shape[0]

    def visit(total, chunk):
        points, importance, is_point = chunk
        cost, counts, has_mass = total
        index = nearest_centres(points, importance, centroids, is_live, metric)
        deviation = points - centroids[index].T
        costs = jnp.sum(deviation * times(importance, deviation, form), axis=0)
        counts += segment_counts(is_point, index, num_clusters)
        weighs = jnp.any(importance.reshape(-1, index.shape[0]) != 0, axis=0)
        found = segment_counts(weighs, index, num_clusters)
        return (cost + jnp.sum(costs), counts, has_mass | (found > 0)), index

    start = (
        jnp.zeros((), centroids.dtype),
        jnp.zeros((num_clusters,), jnp.int32),
        jnp.zeros((num_clusters,), bool),
    )
    (cost, counts, has_mass), index = lax.scan(visit, start, chunks)
    return index, jnp.maximum(cost, 0), counts, has_mass


def solve_semidefinite(
    matrix: Float[Array, "... m m"], right: Float[Array, "... m"]
) -> Float[Array, "... m"]:
    """Return the shortest minimisers of `x^T A x - 2 b^T x`, A positive semi-definite."""
    return solve_with(eigh(matrix), right)


def solve_with(
    decomposition: tuple[Float[Array, "... m"], Float[Array, "... m m"]],
    right: Float[Array, "... m"],
) -> Float[Array, "... m"]:
    """As `solve_semidefinite`, by eigenvalues and eigenvectors of A."""
    values, vectors = decomposition
    largest = jnp.maximum(values[..., -1:], 0)
    is_kept = values > values.shape[-1] * jnp.finfo(values.dtype).eps * largest
    inverse = jnp.where(is_kept, 1 / jnp.where(is_kept, values, 1), 0)
    product = partial(jnp.einsum, precision="highest")
    return product(
        "...ij,...j->...i", vectors, inverse * product("...ji,...j->...i", vectors, right)
    )


def quadratic_form(
    mass: Float[Array, "clusters m m"],
    left: Float[Array, "clusters m"],
    right: Float[Array, "clusters m"],
) -> Float[Array, ""]:
    """Return `sum_k l_k^T H_k r_k`."""
    return jnp.sum(left[:, :, None] * mass * right[:, None, :])
