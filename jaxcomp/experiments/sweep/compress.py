"""From a variant to changed weights: a point of a method applied, or a control.

The points were solved for the whole grid before (`codebooks`).
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxcomp.compressed.tensors import TensorLayout, decode, size_of, tensor_of
from jaxcomp.experiments.sweep.codebooks import (
    Codebooks,
    Layers,
    codebook_variant,
    own_method,
    quantizer,
)
from jaxcomp.experiments.sweep.files import Stored
from jaxcomp.experiments.sweep.variants import Variant
from jaxcomp.quantizers import EntropyConstrained, Method, Vector
from jaxcomp.quantizers.curves import Point
from jaxcomp.quantizers.methods.base import CodebookMethod
from jaxcomp.quantizers.problems import as_problem


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
        stored: what a file holds of each layer, by path; empty where the variant does not compress.
    """

    layers: Layers
    sizes: Sizes | None
    num_used: float
    num_empty: float
    converged: bool
    stored: dict[str, Stored]


def compress(
    layers: Layers,
    variant: Variant,
    codebooks: Codebooks,
    *,
    key: jax.Array,
    last_layer: str | None = None,
    methods: Mapping[str, Method] | None = None,
) -> Compressed:
    """Change the layers as the variant says.

    Args:
        layers: weights by path.
        variant: any variant but those of `TRAINED_OTHERWISE`, which are other networks.
        codebooks: from `solve_codebooks`, for the same layers.
        key: for the noise; consumed.
        last_layer: path of the layer that makes the logits.
        methods: of the user, by the name that variants give them.

    Raises:
        ValueError: for a method that is not known.
    """
    if variant.kind in ("compressed", "sensitivity"):
        return _quantized(layers, variant, codebooks, methods or {})
    match variant.method:
        case "last_layer_scaled":
            assert last_layer is not None
            scaled = layers[last_layer] * jnp.asarray(variant.parameter, layers[last_layer].dtype)
            return _uncompressed({**layers, last_layer: scaled})
        case "weights_clipped":
            return _uncompressed(_clip(layers, variant.parameter))
        case "gaussian_noise":
            plain = _quantized(layers, codebook_variant(variant), codebooks, {})
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


def _quantized(
    layers: Layers, variant: Variant, codebooks: Codebooks, methods: Mapping[str, Method]
) -> Compressed:
    own = methods.get(variant.method)
    method = quantizer(variant) if own is None else own
    known = codebooks.importance.get(variant.importance)
    # Only these, and perhaps a user's, give a weight its code by what it counts.
    has_costs = own is not None or isinstance(method, EntropyConstrained | Vector)
    points = codebooks.points.get(codebook_variant(variant).id)
    values, stored, counts, converged = {}, {}, [], []
    total = np.zeros(len(Sizes._fields))
    for number, (path, weights) in enumerate(layers.items()):
        if variant.layer and path != variant.layer:
            continue
        importance = known[path] if known is not None and has_costs else None
        if own is not None:
            method = own_method(own, weights)
        problem = method.prepare(as_problem(weights, importance))
        point = Point(variant.parameter) if points is None else points[number]
        leaf = tensor_of(problem, point, method)
        layout = TensorLayout(
            (path,), method, weights.shape, np.dtype(weights.dtype), importance is not None, False
        )
        values[path], stored[path] = decode(leaf, layout), (leaf, layout)
        total += np.asarray(size_of(leaf, layout))
        counts.append(np.asarray(leaf.counts))
        converged.append(bool(point.converged))
    has_codebook = isinstance(method, CodebookMethod)
    used = [np.count_nonzero(own) for own in counts]
    # A layer may have fewer weights than the clusters that were asked for.
    asked = [variant.num_clusters or len(own) for own in counts]
    return Compressed(
        {**layers, **values},
        Sizes(*total.tolist()),
        num_used=float(np.mean(used)) if has_codebook else np.nan,
        num_empty=float(sum(asked) - sum(used)) if has_codebook else np.nan,
        converged=all(converged),
        stored=stored,
    )


def _uncompressed(layers: Layers) -> Compressed:
    return Compressed(layers, None, np.nan, np.nan, converged=True, stored={})


@jax.jit
def _clip(layers: Layers, quantile: Float[Array, ""] | float) -> Layers:
    """Bring the weights of every layer between a quantile and its mirror image."""
    # As `jnp.quantile`, but for all layers at once: what follows the sort is most of the program.
    flat = [weights.astype(jnp.float32).ravel() for weights in layers.values()]
    last = np.asarray([len(own) - 1 for own in flat], np.float32)[:, None]
    place = jnp.stack([quantile, 1 - quantile]) * last
    below = jnp.floor(place)
    around = jnp.stack([below, jnp.ceil(place)], axis=-1).astype(jnp.int32)
    values = jnp.stack([jnp.sort(own)[rows] for own, rows in zip(flat, around, strict=True)])
    share = place - below
    bounds = values[..., 0] * (1 - share) + values[..., 1] * share
    return {
        path: jnp.clip(own, low, high).reshape(weights.shape).astype(weights.dtype)
        for (path, weights), own, (low, high) in zip(layers.items(), flat, bounds, strict=True)
    }


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
