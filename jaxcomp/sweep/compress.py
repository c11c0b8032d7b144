"""From a cell to changed weights: codebooks for a whole grid at once, then one pass per cell.

Axes: `C` cells, `L` layers, `K` clusters, `B` bins. A layer meets the quantizers as moments
only, so layers of different sizes share one solve for the whole grid, vmapped over cells and
layers; the raw weights are touched once per cell, by the final assignment.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcomp import rate
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
from jaxcomp.sweep.cells import Cell

Layers = dict[str, Array]


class Codebooks(NamedTuple):
    """Codebooks of every quantized cell of a sweep, for one network.

    Attributes:
        rows: position of each cell's id along the first axis of the arrays.
        centroids: `(C, L, K)`, ascending, padded by the last one.
        thresholds: `(C, L, K - 1)`; a weight belongs to cluster `#{t : weight > t}`.
        converged: `(C, L)`, whether the Lloyd iteration reached a fixed point.
    """

    rows: dict[str, int]
    centroids: np.ndarray
    thresholds: np.ndarray
    converged: np.ndarray


class Sizes(NamedTuple):
    """Rate of a network's weight matrices in bits, biases out (THEORY of `rate`)."""

    fixed_bits: float
    entropy_bits: float
    codebook_bits: float
    description_bits: float


class Compressed(NamedTuple):
    """A network's layers after one cell.

    Attributes:
        layers: changed weights by path, in the layers' own dtypes.
        sizes: rate, or None where the cell does not compress.
        num_used: clusters in use, mean over layers; NaN where there is no codebook.
        num_empty: clusters without a weight, summed over layers; NaN likewise.
        converged: whether every layer's iteration reached a fixed point.
    """

    layers: Layers
    sizes: Sizes | None
    num_used: float
    num_empty: float
    converged: bool


def solve_codebooks(
    layers: Layers,
    importance: Mapping[str, Layers | None],
    cells: Sequence[Cell],
    *,
    num_bins: int,
    num_iterations: int,
) -> Codebooks:
    """Solve the codebooks of all cells that have one, in one jitted call per penalty form.

    Args:
        layers: weights by path.
        importance: for each weighting of the cells its importance by path, None for equal.
        cells: those with method `kmeans`, `uniform` or `gaussian_noise` are solved; the noise
            needs the distortion of plain K-means.
        num_bins: B, bins of the histogram of moments.
        num_iterations: Lloyd iterations at most.
    """
    needed = dict.fromkeys(_codebook_cell(cell) for cell in cells if _has_codebook(cell))
    if not needed:
        empty = np.zeros((0, len(layers), 1), np.float32)
        return Codebooks({}, empty, empty[..., :0], np.zeros((0, len(layers)), bool))
    moments = {
        weighting: _stacked_moments(layers, weights, num_bins=num_bins)
        for weighting, weights in importance.items()
    }
    max_clusters = max(cell.num_clusters for cell in needed)
    # Centres are rounded to what the layers store before the last assignment. Layers of several
    # dtypes share one solve in float32, and are rounded after it.
    dtypes = {weights.dtype for weights in layers.values()}
    centroid_dtype = dtypes.pop() if len(dtypes) == 1 else jnp.dtype(jnp.float32)
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in needed:
        # Plain K-means is the monotone form at penalty zero, to the last bit.
        form = "uniform" if cell.method == "uniform" else cell.penalty_form
        key = (cell.weighting, "monotone" if form == "none" else form)
        groups.setdefault(key, []).append(cell)
    size = max(len(group) for group in groups.values())
    rows: dict[str, int] = {}
    solved = []
    for (weighting, form), group in groups.items():
        padded = group + [group[-1]] * (size - len(group))
        clusters = jnp.array([cell.num_clusters for cell in padded], jnp.int32)
        penalty = jnp.array([cell.diameter_penalty for cell in padded], jnp.float32)
        if form == "uniform":
            codebooks = _solve_uniform(
                moments["none"],
                clusters,
                max_clusters=max_clusters,
                centroid_dtype=centroid_dtype,
            )
        else:
            codebooks = _solve_kmeans(
                moments[weighting],
                clusters,
                penalty,
                max_clusters=max_clusters,
                penalty_form=form,
                num_iterations=num_iterations,
                centroid_dtype=centroid_dtype,
            )
        for cell in group:
            rows[cell.id] = len(rows)
        solved.append([np.asarray(leaf)[: len(group)] for leaf in codebooks])
    return Codebooks(rows, *(np.concatenate(parts) for parts in zip(*solved, strict=True)))


def compress(
    layers: Layers,
    cell: Cell,
    codebooks: Codebooks,
    *,
    key: jax.Array,
    last_layer: str | None = None,
) -> Compressed:
    """Change the layers as the cell says.

    Args:
        layers: weights by path.
        cell: any cell but `early_stopping`, which is another network altogether.
        codebooks: from `solve_codebooks`, for the same layers.
        key: for the noise; consumed.
        last_layer: path of the layer that makes the logits.
    """
    match cell.method:
        case "kmeans" | "uniform":
            return _by_codebook(layers, cell, codebooks)
        case "round_to_nearest":
            return _rounded(layers, num_bits=int(cell.parameter))
        case "magnitude_pruning":
            return _pruned(layers, sparsity=cell.parameter)
        case "last_layer_scaled":
            assert last_layer is not None
            scaled = layers[last_layer] * jnp.asarray(cell.parameter, layers[last_layer].dtype)
            return _uncompressed({**layers, last_layer: scaled})
        case "weights_clipped":
            return _uncompressed(_clip(layers, cell.parameter))
        case "gaussian_noise":
            plain = _by_codebook(layers, _codebook_cell(cell), codebooks)
            return _uncompressed(_noisy(layers, plain.layers, key))
        case _:
            return _uncompressed(layers)


@jax.jit
def squared_errors(
    before: Layers, after: Layers, curvature: Layers
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Plain and curvature-weighted squared change of all layers, summed.

    Half of the second is the rise of the training loss that a second-order expansion at a
    minimum predicts (nats, if the curvature is in nats per squared weight).
    """
    with jax.default_matmul_precision("highest"):
        plain, weighted = jnp.float32(0), jnp.float32(0)
        for path, weights in before.items():
            change = (after[path] - weights).astype(jnp.float32).ravel()
            importance = curvature[path].astype(jnp.float32).ravel()
            plain += jnp.sum(change * change)
            weighted += jnp.sum(importance * change * change)
        return plain, weighted


def _has_codebook(cell: Cell) -> bool:
    return cell.method in ("kmeans", "uniform", "gaussian_noise")


def _codebook_cell(cell: Cell) -> Cell:
    """The cell whose codebooks this one uses: of all layers, and plain K-means for noise."""
    if cell.method == "gaussian_noise":
        return Cell("compressed", "kmeans", "none", num_clusters=cell.num_clusters)
    if cell.layer:
        return Cell(
            "compressed",
            cell.method,
            cell.weighting,
            cell.penalty_form,
            cell.diameter_penalty,
            cell.num_clusters,
        )
    return cell


def _stacked_moments(layers: Layers, importance: Layers | None, *, num_bins: int) -> Moments:
    moments = []
    for path, weights in layers.items():
        weight = None if importance is None else importance[path].ravel()
        reduced = histogram_moments(weights.ravel(), weight, num_bins=num_bins)
        moments.append(pad_bins(reduced, num_bins))
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


def _parts(codebook: Codebook) -> tuple[Array, Array, Array]:
    # Files know no bfloat16, and float32 holds it exactly.
    wide = jnp.promote_types(codebook.centroids.dtype, jnp.float32)
    return codebook.centroids.astype(wide), codebook.thresholds, codebook.converged


def _by_codebook(layers: Layers, cell: Cell, codebooks: Codebooks) -> Compressed:
    row = codebooks.rows[_codebook_cell(cell).id]
    chosen = [path for path in layers if not cell.layer or path == cell.layer]
    places = [list(layers).index(path) for path in chosen]
    values, counts = _lookup(
        [layers[path] for path in chosen],
        jnp.asarray(codebooks.centroids[row, places]),
        jnp.asarray(codebooks.thresholds[row, places]),
    )
    num_clusters = cell.num_clusters
    used = np.asarray(counts)[:, :num_clusters]
    size = rate.code_size(used, num_clusters=num_clusters)
    return Compressed(
        {**layers, **dict(zip(chosen, values, strict=True))},
        Sizes(*(float(np.sum(part)) for part in size)),
        num_used=float(np.mean(np.sum(used > 0, axis=-1))),
        num_empty=float(np.sum(used == 0)),
        converged=bool(np.all(codebooks.converged[row, places])),
    )


@jax.jit
def _lookup(
    layers: list[Array], centroids: Float[Array, "L K"], thresholds: Float[Array, "L K-1"]
) -> tuple[list[Array], Int[Array, "L K"]]:
    values, counts = [], []
    for row, weights in enumerate(layers):
        assignments = assign(weights.ravel(), thresholds[row])
        values.append(centroids[row][assignments].astype(weights.dtype).reshape(weights.shape))
        counts.append(
            jax.ops.segment_sum(
                jnp.ones(weights.size, jnp.int32), assignments, num_segments=centroids.shape[-1]
            )
        )
    return values, jnp.stack(counts)


def _rounded(layers: Layers, *, num_bits: int) -> Compressed:
    rounded = {path: round_to_nearest(w, num_bits=num_bits) for path, w in layers.items()}
    total = np.zeros(4)
    for layer in rounded.values():
        codes = np.asarray(layer.codes).astype(np.int64)
        counts = np.bincount(codes.ravel() + 2 ** (num_bits - 1), minlength=2**num_bits)
        total += rate.rounded_size(counts, num_bits=num_bits, num_scales=layer.scales.size)
    values = {path: layer.values for path, layer in rounded.items()}
    return Compressed(values, Sizes(*total.tolist()), np.nan, np.nan, converged=True)


def _pruned(layers: Layers, *, sparsity: float) -> Compressed:
    values = {path: prune_by_magnitude(w, sparsity) for path, w in layers.items()}
    total = np.zeros(4)
    for layer in values.values():
        total += rate.pruned_size(layer.size, int(jnp.count_nonzero(layer)))
    return Compressed(values, Sizes(*total.tolist()), np.nan, np.nan, converged=True)


def _uncompressed(layers: Layers) -> Compressed:
    return Compressed(layers, None, np.nan, np.nan, converged=True)


@jax.jit
def _clip(layers: Layers, quantile: Float[Array, ""] | float) -> Layers:
    def clip(weights: Array) -> Array:
        flat = weights.astype(jnp.float32)
        low, high = jnp.quantile(flat, jnp.stack([quantile, 1 - quantile]))
        return jnp.clip(flat, low, high).astype(weights.dtype)

    return jax.tree.map(clip, layers)


@jax.jit
def _noisy(layers: Layers, compressed: Layers, key: jax.Array) -> Layers:
    """Add Gaussian noise of the mean square change that `compressed` has, layer by layer."""
    # One draw for all layers: generators are what this program costs to compile.
    noise = jax.random.normal(key, (sum(w.size for w in layers.values()),), jnp.float32)
    noisy, start = {}, 0
    for path, weights in layers.items():
        change = (compressed[path] - weights).astype(jnp.float32)
        deviation = jnp.sqrt(jnp.mean(change * change))
        share = noise[start : start + weights.size].reshape(weights.shape)
        noisy[path] = (weights.astype(jnp.float32) + deviation * share).astype(weights.dtype)
        start += weights.size
    return noisy
