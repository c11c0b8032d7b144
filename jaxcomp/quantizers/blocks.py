"""Codebooks of their own for the rows or blocks of a matrix, in one call.

Each block is a group of few points: a histogram of them and nearly the best codebook on it, block
after block in batches, so that memory stays that of the matrix.

Axes: `R` rows, `C` columns; a block is (r, c) of them.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from jaxcomp.numerics.checks import check_codebook_size, check_floating, check_points
from jaxcomp.numerics.transformations import always_compiled, with_codebook_held_fixed
from jaxcomp.quantizers.histograms import (
    bins_for,
    histogram_moments,
)
from jaxcomp.quantizers.scalar.lloyd import solve_kmeans
from jaxcomp.quantizers.solution import (
    QuantizationResult,
    distortion_of_points,
    quantize_points,
)

# Points quantized together: bounds the memory.
_POINTS_AT_ONCE = 1 << 18


def _blocks(
    values: Shaped[Array, "rows columns"], grid: tuple[int, ...]
) -> Shaped[Array, "row_blocks column_blocks points"]:
    """Return the entries of every block of a grid of them."""
    parts = values.reshape(grid[0], values.shape[0] // grid[0], grid[1], -1)
    return parts.swapaxes(1, 2).reshape(*grid, -1)


def _distortion_of_blocks(
    matrix: Float[Array, "rows columns"],
    importance: Shaped[Array, "rows columns"] | None,
    result: QuantizationResult,
) -> Float[Array, "row_blocks column_blocks"]:
    """Return `sum h (w - c)^2` of every block as it is written, for derivatives."""
    grid = result.distortion.shape
    if importance is not None:
        importance = _blocks(jnp.broadcast_to(importance, matrix.shape), grid)
    result = result._replace(assignments=_blocks(result.assignments, grid))
    return distortion_of_points(_blocks(matrix, grid), importance, result)


@always_compiled
@with_codebook_held_fixed(_distortion_of_blocks)
def block_kmeans(
    matrix: Float[Array, "rows columns"],
    importance: Shaped[Array, "rows columns"] | None = None,
    *,
    block_shape: tuple[int, int],
    num_clusters: Int[Array, "row_blocks column_blocks"] | int,
    max_clusters: int | None = None,
    num_bins: int = 256,
) -> QuantizationResult:
    """Quantize every block of a matrix with nearly the best codebook of its own.

    `(1, C)` gives every row its codebook, `(R, 1)` every column. As `kmeans` without a penalty,
    on a histogram of `num_bins` bins for each block; then every point goes to its nearest centre.
    Under differentiation as `kmeans`.

    Args:
        matrix: (R, C) floating, finite.
        importance: h >= 0, broadcastable to the matrix; None means 1. Every block needs some.
        block_shape: (r, c), which must divide (R, C). Static.
        num_clusters: K >= 1, an int or an array of (R / r, C / c) of them (then `max_clusters` is
            required); traced.
        max_clusters: size of the codebooks, static; defaults to `num_clusters`.
        num_bins: bins of each histogram, static; 16 for each of `max_clusters` if that is more.

    Returns:
        As `kmeans`, with leading axes (R / r, C / c), but assignments laid out like the matrix.

    Raises:
        TypeError, ValueError: as `kmeans`; ValueError also if the matrix has not two axes or the
            blocks do not fit.
    """
    matrix = check_floating(matrix, "matrix")
    if matrix.ndim != 2:
        raise ValueError(f"matrix must have two axes, got shape {matrix.shape}.")
    if any(size < 1 for size in block_shape) or any(
        whole % size for whole, size in zip(matrix.shape, block_shape, strict=True)
    ):
        raise ValueError(
            f"block_shape must divide the shape of the matrix, {matrix.shape}, got {block_shape}."
        )
    grid = (matrix.shape[0] // block_shape[0], matrix.shape[1] // block_shape[1])
    matrix, importance = check_points(matrix, importance, grouped=partial(_blocks, grid=grid))
    num_clusters, max_clusters = check_codebook_size(num_clusters, max_clusters)
    return _block_kmeans(
        matrix,
        importance,
        num_clusters,
        block_shape=tuple(block_shape),
        max_clusters=max_clusters,
        num_bins=bins_for(num_bins, max_clusters),
    )


@partial(jax.jit, static_argnames=("block_shape", "max_clusters", "num_bins"))
def _block_kmeans(matrix, importance, num_clusters, *, block_shape, max_clusters, num_bins):
    (num_rows, num_columns), (rows, columns) = matrix.shape, block_shape
    grid = (num_rows // rows, num_columns // columns)

    def blocks(values):
        return _blocks(values, grid).reshape(grid[0] * grid[1], rows * columns)

    def quantize(arguments):
        points, weight, k = arguments
        moments = histogram_moments(points, weight, num_bins=num_bins)
        solution = solve_kmeans(
            moments, k, max_clusters=max_clusters, penalty_form="none", centroid_dtype=points.dtype
        )
        return quantize_points(
            points,
            weight,
            solution.codebook,
            num_iterations=solution.num_iterations,
            converged=solution.converged,
        )

    weight = importance
    if weight is not None:
        weight = blocks(jnp.broadcast_to(weight, matrix.shape))
    points = blocks(matrix)
    at_once = max(1, min(points.shape[0], _POINTS_AT_ONCE // points.shape[1]))
    extra = -points.shape[0] % at_once
    number = jnp.broadcast_to(num_clusters, grid).ravel()

    def batched(values):
        # Batches of one size; the last one repeats the last block.
        filler = jnp.broadcast_to(values[-1:], (extra, *values.shape[1:]))
        return jnp.concatenate([values, filler]).reshape(-1, at_once, *values.shape[1:])

    found = lax.map(quantize, jax.tree.map(batched, (points, weight, number)))
    found = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[: points.shape[0]], found)
    result = jax.tree.map(lambda leaf: leaf.reshape(*grid, *leaf.shape[1:]), found)
    layout = result.assignments.reshape(*grid, rows, columns).swapaxes(1, 2)
    return result._replace(assignments=layout.reshape(matrix.shape))
