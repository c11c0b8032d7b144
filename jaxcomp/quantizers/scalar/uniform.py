"""Uniform scalar quantization: a grid of equal cells, reconstructed at centroids or midpoints.

The classical baseline: with entropy coding it stays 0.2546 bit above the rate-distortion function
at high rate (Gish and Pierce, IEEE Trans. Inf. Theory 14, 1968).

Axes: `...` groups, `N` points, `B` bins, `K` cells.
"""

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxcomp.numerics.checks import check_codebook_size, check_count, check_points
from jaxcomp.numerics.scaling import normalise, restore, restore_as
from jaxcomp.numerics.segments import segment_max, segment_min, segment_sum
from jaxcomp.numerics.transformations import (
    always_compiled,
    vectorized,
    with_codebook_held_fixed,
    without_derivative,
)
from jaxcomp.quantizers.assignment import assign
from jaxcomp.quantizers.histograms import (
    MOMENTS_SIGNATURE,
    Moments,
    bins_for,
    sum_of_squares,
)
from jaxcomp.quantizers.solution import (
    Codebook,
    QuantizationResult,
    Solution,
    bucket_moments,
    distortion_of_points,
    quantize_bucket,
    quantized,
)

Reconstruction = Literal["centroid", "midpoint"]
RECONSTRUCTIONS: tuple[str, ...] = get_args(Reconstruction)


@partial(jax.jit, static_argnames=("max_clusters", "reconstruction", "centroid_dtype"))
@without_derivative
def solve_uniform(
    moments: Moments,
    num_clusters: Int[Array, "..."] | int,
    *,
    max_clusters: int,
    reconstruction: Reconstruction = "centroid",
    centroid_dtype: jnp.dtype | None = None,
) -> Solution:
    """Cut the range of every group into K equal cells.

    Args:
        moments: of (...) groups.
        num_clusters: K, traced; broadcast against the leading axes of the moments. Clipped to
            1..`max_clusters`.
        max_clusters: size of the codebook, static.
        reconstruction: "centroid", the weighted mean of the cell's points (bins go whole to the
            cell of their position; a cell without mass keeps its midpoint), or "midpoint".
        centroid_dtype: dtype the centroids are stored in; by default that of the moments.

    Returns:
        The codebook and its cost: the thresholds are the edges of the grid, so that points are
        assigned by cell, which with centroids need not be the nearest centre. 0 iterations,
        converged.

    Raises:
        ValueError: while tracing, on an unknown `reconstruction` or `max_clusters < 1`.
    """
    if reconstruction not in RECONSTRUCTIONS:
        raise ValueError(
            f"reconstruction must be one of {RECONSTRUCTIONS}, got {reconstruction!r}."
        )
    check_count("max_clusters", max_clusters)
    solve = partial(
        _solve_group,
        max_clusters=max_clusters,
        reconstruction=reconstruction,
        centroid_dtype=jnp.dtype(centroid_dtype or moments.position.dtype),
    )
    signature = f"{MOMENTS_SIGNATURE},()->(k),(j),(),()"
    *codebook, distortion = vectorized(solve, signature=signature)(
        *moments, jnp.asarray(num_clusters).astype(jnp.int32)
    )
    return Solution(
        Codebook(*codebook),
        distortion,
        objective=distortion,
        num_iterations=jnp.zeros(distortion.shape, jnp.int32),
        converged=jnp.ones(distortion.shape, bool),
    )


def _solve_group(
    *arguments: Array,
    max_clusters: int,
    reconstruction: Reconstruction,
    centroid_dtype: jnp.dtype,
) -> tuple[Array, ...]:
    *fields, num_clusters = arguments
    moments = Moments(*fields)
    position, mass, exponent = moments.position, moments.mass, moments.exponent
    dtype = position.dtype
    num_live = jnp.clip(num_clusters, 1, max_clusters)
    k = jnp.arange(max_clusters, dtype=jnp.int32)

    def at(place):
        fraction = place.astype(dtype) / (2 * num_live).astype(dtype)
        return moments.minimum + (moments.maximum - moments.minimum) * fraction

    edges = at(2 * k[:-1] + 2)
    thresholds = jnp.where(k[:-1] + 1 < num_live, edges, jnp.inf)
    centroids = at(2 * k + 1)
    cells = assign(position, thresholds).astype(jnp.int32)
    if reconstruction == "centroid":
        cell_mass = segment_sum(mass, cells, max_clusters)
        offset = segment_sum(mass * (position - centroids[cells]), cells, max_clusters)
        means = centroids + offset / jnp.where(cell_mass > 0, cell_mass, 1)
        has_mass = mass > 0
        lowest = segment_min(jnp.where(has_mass, position, jnp.inf), cells, max_clusters)
        highest = segment_max(jnp.where(has_mass, position, -jnp.inf), cells, max_clusters)
        means = jnp.clip(means, lowest, jnp.maximum(lowest, highest))
        centroids = jnp.where(lowest <= highest, means, centroids)
    centroids = jnp.where(k < num_live, centroids, centroids[num_live - 1])
    stored = restore_as(centroids, exponent, centroid_dtype)
    distance = position - normalise(stored.astype(dtype), exponent)[cells]
    square, of_square = sum_of_squares(mass, distance, moments.deviation)
    return (
        stored,
        restore(thresholds, exponent, rounds_down=True),
        num_live,
        restore(square, of_square + 2 * exponent + moments.mass_exponent, axis=()),
    )


@always_compiled
@with_codebook_held_fixed(distortion_of_points)
def uniform(
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None = None,
    *,
    num_clusters: Int[Array, "..."] | int,
    max_clusters: int | None = None,
    reconstruction: Reconstruction = "centroid",
    num_bins: int = 4096,
) -> QuantizationResult:
    """Quantize every group of points on K equal cells between its extremes.

    Under differentiation as `kmeans`.

    Args:
        points: (..., N) floating, finite.
        importance: h >= 0, broadcastable to `points`; None means 1.
        num_clusters: K >= 1, an int or an array that broadcasts against the leading axes (then
            `max_clusters` is required).
        max_clusters: size of the returned codebook, static; defaults to `num_clusters`.
        reconstruction: "centroid" (weighted mean of the cell) or "midpoint".
        num_bins: bins of the histogram for N > `num_bins`, static; 16 for each of `max_clusters`
            if that is more.

    Returns:
        Centroids, assignments, distortion and diagnostics; `converged` is True, nothing iterates.

    Raises:
        TypeError: if the points are not floating or `num_clusters` is not an integer.
        ValueError: as `kmeans`, on unusable points, weights, K or options.
    """
    points, importance = check_points(points, importance)
    num_clusters, max_clusters = check_codebook_size(num_clusters, max_clusters)
    num_bins = bins_for(num_bins, max_clusters)
    return quantized(
        _uniform,
        points,
        importance,
        (num_clusters, 0),
        max_clusters=max_clusters,
        reconstruction=reconstruction,
        num_bins=num_bins,
    )


@partial(jax.jit, static_argnames=("max_clusters", "reconstruction", "num_bins"))
def _uniform(bucket, num_clusters, *, max_clusters, reconstruction, num_bins):
    solution = solve_uniform(
        bucket_moments(bucket, num_bins=num_bins),
        num_clusters,
        max_clusters=max_clusters,
        reconstruction=reconstruction,
        centroid_dtype=bucket.points.dtype,
    )
    return quantize_bucket(
        bucket,
        solution.codebook,
        num_iterations=solution.num_iterations,
        converged=solution.converged,
    )
