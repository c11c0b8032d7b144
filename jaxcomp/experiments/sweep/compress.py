"""From a variant to changed weights: one pass over the raw weights, the final assignment.

Axes: `L` layers, `K` clusters. The codebooks were solved for the whole grid before (`codebooks`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcomp.coding import sizes
from jaxcomp.experiments.sweep.codebooks import Codebooks, Layers, codebook_variant, importance_of
from jaxcomp.experiments.sweep.variants import VECTOR_SIZE, Variant
from jaxcomp.quantizers import (
    assign,
    assign_by_cost,
    join_vectors,
    prune_by_magnitude,
    round_to_nearest,
    split_vectors,
    vector_kmeans,
)
from jaxcomp.quantizers.assignment import count_codes


class Sizes(NamedTuple):
    """Rate of a network's weight matrices in bits, biases out (THEORY of `rate`)."""

    fixed_bits: float
    entropy_bits: float
    codebook_bits: float
    description_bits: float


class Compressed(NamedTuple):
    """A network's layers after one variant.

    Attributes:
        layers: changed weights by path, in the layers' own dtypes.
        sizes: rate, or None where the variant does not compress.
        num_used: clusters in use, mean over layers; NaN where there is no codebook.
        num_empty: clusters without a weight, summed over layers; NaN likewise.
        converged: whether every layer's iteration reached a fixed point.
    """

    layers: Layers
    sizes: Sizes | None
    num_used: float
    num_empty: float
    converged: bool


def compress(
    layers: Layers,
    variant: Variant,
    codebooks: Codebooks,
    *,
    key: jax.Array,
    last_layer: str | None = None,
) -> Compressed:
    """Change the layers as the variant says.

    Args:
        layers: weights by path.
        variant: any variant but `early_stopping`, which is another network altogether.
        codebooks: from `solve_codebooks`, for the same layers.
        key: for the noise; consumed.
        last_layer: path of the layer that makes the logits.
    """
    match variant.method:
        case "kmeans" | "optimal" | "uniform":
            return _by_codebook(layers, variant, codebooks)
        case "entropy_constrained":
            return _by_cost(layers, variant, codebooks)
        case "vector":
            return _by_vectors(layers, variant, codebooks)
        case "round_to_nearest":
            return _rounded(layers, num_bits=int(variant.parameter))
        case "magnitude_pruning":
            return _pruned(layers, sparsity=variant.parameter)
        case "last_layer_scaled":
            assert last_layer is not None
            scaled = layers[last_layer] * jnp.asarray(variant.parameter, layers[last_layer].dtype)
            return _uncompressed({**layers, last_layer: scaled})
        case "weights_clipped":
            return _uncompressed(_clip(layers, variant.parameter))
        case "gaussian_noise":
            plain = _by_codebook(layers, codebook_variant(variant), codebooks)
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


def _by_codebook(layers: Layers, variant: Variant, codebooks: Codebooks) -> Compressed:
    intervals = codebooks.intervals
    row = intervals.rows[codebook_variant(variant).id]
    chosen = [path for path in layers if not variant.layer or path == variant.layer]
    places = [list(layers).index(path) for path in chosen]
    values, counts = _lookup(
        [layers[path] for path in chosen],
        jnp.asarray(intervals.centroids[row, places]),
        jnp.asarray(intervals.thresholds[row, places]),
    )
    return _quantized(
        {**layers, **dict(zip(chosen, values, strict=True))},
        counts,
        num_clusters=intervals.num_clusters[row, places],
        converged=intervals.converged[row, places],
    )


def _by_cost(layers: Layers, variant: Variant, codebooks: Codebooks) -> Compressed:
    codes = codebooks.entropy_codes
    row = codes.rows[variant.id]
    importance = importance_of(codebooks, variant.importance, layers)
    values, counts = _cheapest(
        list(layers.values()),
        [importance[path] for path in layers],
        jnp.asarray(codes.centroids[row]),
        jnp.asarray(codes.length_bits[row]),
        jnp.asarray(codes.multiplier[row]),
    )
    return _quantized(
        dict(zip(layers, values, strict=True)),
        counts,
        num_clusters=np.sum(np.isfinite(codes.length_bits[row]), axis=-1),
        converged=codes.converged[row],
    )


def _by_vectors(layers: Layers, variant: Variant, codebooks: Codebooks) -> Compressed:
    codes = codebooks.vectors
    row = codes.rows[variant.id]
    importance = importance_of(codebooks, variant.importance, layers)
    values, counts = _nearest_vectors(
        list(layers.values()),
        [importance[path] for path in layers],
        jnp.asarray(codes.centroids[row]),
        jnp.asarray(codes.num_clusters[row]),
    )
    return _quantized(
        dict(zip(layers, values, strict=True)),
        counts,
        num_clusters=np.full(len(layers), codes.num_clusters[row]),
        converged=codes.converged[row],
        centroid_bits=32 * VECTOR_SIZE,
    )


def _quantized(
    layers: Layers,
    counts: Int[Array, "L K"],
    *,
    num_clusters: Int[np.ndarray, " L"],
    converged: Bool[np.ndarray, " L"],
    centroid_bits: int = 32,
) -> Compressed:
    """Put changed layers and their sizes together; `counts` are those of the symbols."""
    number = np.asarray(counts)
    size = sizes.code_size(number, num_clusters=num_clusters, centroid_bits=centroid_bits)
    used = np.sum(number > 0, axis=-1)
    return Compressed(
        layers,
        Sizes(*(float(np.sum(part)) for part in size)),
        num_used=float(np.mean(used)),
        num_empty=float(np.sum(num_clusters - used)),
        converged=bool(np.all(converged)),
    )


@jax.jit
def _lookup(
    layers: list[Array], centroids: Float[Array, "L K"], thresholds: Float[Array, "L K-1"]
) -> tuple[list[Array], Int[Array, "L K"]]:
    values, counts = [], []
    for row, weights in enumerate(layers):
        assignments = assign(weights.ravel(), thresholds[row])
        values.append(centroids[row][assignments].astype(weights.dtype).reshape(weights.shape))
        counts.append(count_codes(assignments, centroids.shape[-1]))
    return values, jnp.stack(counts)


@jax.jit
def _cheapest(
    layers: list[Array],
    importance: list[Array],
    centroids: Float[Array, "L K"],
    length_bits: Float[Array, "L K"],
    multiplier: Float[Array, " L"],
) -> tuple[list[Array], Int[Array, "L K"]]:
    values, counts = [], []
    for row, weights in enumerate(layers):
        assignments = assign_by_cost(
            weights.ravel(),
            importance[row].ravel(),
            centroids[row],
            length_bits[row],
            multiplier[row],
        )
        values.append(centroids[row][assignments].astype(weights.dtype).reshape(weights.shape))
        counts.append(count_codes(assignments, centroids.shape[-1]))
    return values, jnp.stack(counts)


@jax.jit
def _nearest_vectors(
    layers: list[Array],
    importance: list[Array],
    centroids: Float[Array, "L K m"],
    num_clusters: Int[Array, ""],
) -> tuple[list[Array], Int[Array, "L K"]]:
    values, counts = [], []
    for row, weights in enumerate(layers):
        found = vector_kmeans(
            split_vectors(weights, VECTOR_SIZE),
            split_vectors(importance[row], VECTOR_SIZE),
            num_clusters=num_clusters,
            max_clusters=centroids.shape[1],
            initial_centroids=centroids[row],
            penalty_form="none",
            num_iterations=0,
        )
        values.append(join_vectors(found.centroids[found.assignments], weights.shape))
        counts.append(found.counts)
    return values, jnp.stack(counts)


def _rounded(layers: Layers, *, num_bits: int) -> Compressed:
    rounded = {path: round_to_nearest(w, num_bits=num_bits) for path, w in layers.items()}
    total = np.zeros(4)
    for layer in rounded.values():
        codes = np.asarray(layer.codes).astype(np.int64)
        counts = np.bincount(codes.ravel() + 2 ** (num_bits - 1), minlength=2**num_bits)
        total += sizes.rounded_size(counts, num_bits=num_bits, num_scales=layer.scales.size)
    values = {path: layer.values for path, layer in rounded.items()}
    return Compressed(values, Sizes(*total.tolist()), np.nan, np.nan, converged=True)


def _pruned(layers: Layers, *, sparsity: float) -> Compressed:
    values = {path: prune_by_magnitude(w, sparsity) for path, w in layers.items()}
    total = np.zeros(4)
    for layer in values.values():
        total += sizes.pruned_size(layer.size, int(jnp.count_nonzero(layer)))
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
