"""Real quantizers of least-squares weights: codebooks fixed beforehand, and adaptive ones.

*Designed* codebooks are made once, from the weights of independent data sets, for all weights of a
model alike. They are fixed before the sample is seen, so that their rate is exactly `d ln K` (or,
for the entropy code, the sum of its code lengths) and nothing else need be sent; they know how
weights are spread, not which weight is which. *Adaptive* codebooks are made from the weights they
serve; with some 50 weights the codebook is most of the message, and is counted.

Axes: `Q` kinds of codebook, `R` rates, `K` clusters, `L` cells of the entropy-coded grid, `d`
weights, `N` points of the design.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxcomp.linear_regression.adaptive import (
    Partitions,
    all_runs,
    best_partitions,
    means_of,
    uniform_partitions,
)
from jaxcomp.numerics.segments import segment_counts, segment_sum
from jaxcomp.quantizers import histogram_moments, solve_kmeans, solve_uniform
from jaxcomp.quantizers.assignment import assign

FIXED_RATE = ("uniform", "kmeans", "hessian_kmeans", "diameter_kmeans")
DESIGNED = (*FIXED_RATE, "entropy_coded")
"""Codebooks from independent draws: equal cells; K-means; K-means weighted with the exact Hessian
`(2/n) G`; the same with a penalty on the diameter; equal cells with an entropy code."""
ADAPTIVE = ("adaptive_uniform", "adaptive_kmeans", "adaptive_hessian", "adaptive_diameter")
"""Codebooks from the weights themselves, their bits counted by `jaxcomp.coding.sizes.code_size`."""

# Cells of the entropy-coded grid: enough for 6 bits a weight over ten standard deviations.
_CELLS = 255


class DesignedCodebooks(NamedTuple):
    """Codebooks for every rate of a grid.

    Attributes:
        centroids: (Q, R, K) of the fixed-rate quantizers.
        thresholds: (Q, R, K - 1).
        origin: (), centre of the middle cell of the entropy-coded grids.
        steps: (R,), widths of their cells.
        cell_centroids: (R, L).
        cell_nats: (R, L), lengths of their code words.
    """

    centroids: Float[Array, "Q R K"]
    thresholds: Float[Array, "Q R K-1"]
    origin: Float[Array, ""]
    steps: Float[Array, " R"]
    cell_centroids: Float[Array, "R L"]
    cell_nats: Float[Array, "R L"]

    @classmethod
    def empty(cls, num_rates: int) -> "DesignedCodebooks":
        """Codebooks of one centroid at 0, to stand where none are used."""
        zeros = jnp.zeros
        return cls(
            zeros((len(FIXED_RATE), num_rates, 1)),
            zeros((len(FIXED_RATE), num_rates, 0)),
            zeros(()),
            jnp.ones((num_rates,)),
            zeros((num_rates, 1)),
            zeros((num_rates, 1)),
        )


def design_codebooks(
    weights: Float[Array, "... d"],
    importance: Float[Array, "... d"],
    *,
    num_clusters: Sequence[int],
    entropies_nats: Float[np.ndarray, " R"] | None = None,
    diameter_penalty: float = 0.05,
) -> DesignedCodebooks:
    """Make the codebooks of all rates from weights of independent data sets.

    Args:
        weights: (..., d), least-squares weights; all of them are pooled.
        importance: (..., d), the diagonals of their Hessians.
        num_clusters: K of every rate.
        entropies_nats: (R,), entropy of a weight on the entropy-coded grids; None for `ln K`.
        diameter_penalty: relative strength for "diameter_kmeans".

    Returns:
        The codebooks. The entropy-coded grid of a rate has the step at which the pooled weights
        have the given entropy; its code words are a little longer, by what it takes to
        have one for every cell.

    Raises:
        ValueError: if the shapes differ, K < 1, or an entropy is negative.
    """
    if weights.shape != importance.shape:
        raise ValueError(
            f"importance must have the shape of weights, {weights.shape}, got {importance.shape}."
        )
    clusters = np.asarray(num_clusters, np.int32)
    if clusters.ndim != 1 or clusters.size < 1 or clusters.min() < 1:
        raise ValueError(f"num_clusters must be a list of numbers >= 1, got {num_clusters}.")
    targets = np.log(clusters) if entropies_nats is None else np.asarray(entropies_nats)
    if targets.shape != clusters.shape or not np.all(targets >= 0):
        raise ValueError(
            f"entropies_nats must be {clusters.size} numbers >= 0, one for each of num_clusters, "
            f"got shape {targets.shape}."
        )
    return _design(
        weights.reshape(-1),
        importance.reshape(-1),
        jnp.asarray(clusters),
        jnp.asarray(targets, weights.dtype),
        jnp.asarray(diameter_penalty, weights.dtype),
        max_clusters=int(clusters.max()),
    )


@partial(jax.jit, static_argnames=("max_clusters",))
def _design(
    points: Float[Array, " N"],
    importance: Float[Array, " N"],
    num_clusters: Int[Array, " R"],
    targets: Float[Array, " R"],
    diameter_penalty: Float[Array, ""],
    *,
    max_clusters: int,
) -> DesignedCodebooks:
    # Plain, weighted, weighted with a penalty: one solve for all.
    mass = jnp.stack([jnp.ones_like(importance), importance, importance])
    moments = histogram_moments(jnp.broadcast_to(points, mass.shape), mass)
    grid = solve_uniform(
        jax.tree.map(lambda leaf: leaf[0], moments), num_clusters, max_clusters=max_clusters
    ).codebook
    penalties = diameter_penalty * jnp.asarray([0.0, 0.0, 1.0], points.dtype)
    books = solve_kmeans(
        jax.tree.map(lambda leaf: leaf[:, None], moments),
        num_clusters,
        penalties[:, None],
        max_clusters=max_clusters,
        start="quantiles",
    ).codebook
    origin = jnp.mean(points)
    steps = _steps_of_entropy(points - origin, targets)
    cells = _cell(points - origin, steps)
    tables = partial(_grid_tables, points, origin)
    cell_centroids, cell_nats = jax.vmap(tables)(cells, steps)
    return DesignedCodebooks(
        jnp.concatenate([grid.centroids[None], books.centroids]),
        jnp.concatenate([grid.thresholds[None], books.thresholds]),
        origin,
        steps,
        cell_centroids,
        cell_nats,
    )


def _cell(offsets: Float[Array, " N"], steps: Float[Array, " R"]) -> Int[Array, "R N"]:
    """Number of the cell of every point; what lies beyond the grid goes to its last cells."""
    half = _CELLS // 2
    place = jnp.clip(jnp.round(offsets / steps[:, None]), -half, half)
    return place.astype(jnp.int32) + half


def _cell_counts(cells: Int[Array, " N"]) -> Float[Array, " L"]:
    return segment_counts(jnp.ones(cells.shape, bool), cells, _CELLS).astype(jnp.float32)


def _steps_of_entropy(
    offsets: Float[Array, " N"], targets_nats: Float[Array, " R"]
) -> Float[Array, " R"]:
    """Find the steps at which the pooled weights have the given entropies, by bisection."""
    reach = 4 * jnp.max(jnp.abs(offsets))
    # The finest grid still spans three quarters of the farthest weight to either side.
    low = jnp.full_like(targets_nats, jnp.log(reach * (1.5 / _CELLS / 4)))
    high = jnp.full_like(targets_nats, jnp.log(reach))

    def entropy(log_steps: Array) -> Array:
        counts = jax.vmap(_cell_counts)(_cell(offsets, jnp.exp(log_steps)))
        share = counts / offsets.shape[0]
        return -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1)), axis=-1)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        is_fine = entropy(middle) >= targets_nats
        # At zero entropy every step up to the largest will do; the largest is the one meant.
        is_fine = is_fine | (targets_nats <= 0)
        return jnp.where(is_fine, middle, low), jnp.where(is_fine, high, middle)

    low, high = lax.fori_loop(0, 24, halve, (low, high))
    return jnp.exp(high)


def _grid_tables(
    points: Float[Array, " N"], origin: Float[Array, ""], cells: Int[Array, " N"], step: Array
) -> tuple[Float[Array, " L"], Float[Array, " L"]]:
    counts = _cell_counts(cells)
    middle = origin + step * (jnp.arange(_CELLS) - _CELLS // 2).astype(points.dtype)
    offset = segment_sum(points - middle[cells], cells, _CELLS)
    centroids = middle + offset / jnp.maximum(counts, 1).astype(points.dtype)
    # Cells that no weight of the design fell into need a code word too; together they get one
    # point's share, or none if there is but one cell in reach.
    is_single = jnp.max(counts) >= points.shape[0]
    floor = jnp.where(is_single, 0.0, 1 / _CELLS)
    share = (counts + floor) / (points.shape[0] + floor * _CELLS)
    nats = -jnp.log(jnp.where(share > 0, share, jnp.finfo(jnp.float32).tiny))
    return centroids, nats.astype(points.dtype)


class MergedCodebooks(NamedTuple):
    """All codebooks of fixed rate as one table: a weight is looked up once for all of them.

    Attributes:
        thresholds: (T,) of all codebooks, ascending, infinite ones last.
        values: (T + 1, F, R), the centroids of a weight above T' thresholds.
    """

    thresholds: Float[Array, " T"]
    values: Float[Array, "T+1 F R"]


@jax.jit
def merge(codebooks: DesignedCodebooks) -> MergedCodebooks:
    """Return the table of all codebooks of fixed rate."""
    thresholds = jnp.sort(codebooks.thresholds.ravel())
    low = jnp.concatenate([thresholds[:1] - 1, thresholds])
    high = jnp.append(thresholds, jnp.inf)
    # A point of every interval; intervals of no length are never looked up.
    inside = jnp.where(jnp.isfinite(high), 0.5 * low + 0.5 * high, low + 1)
    index = assign(inside, codebooks.thresholds).astype(jnp.int32)
    values = jnp.take_along_axis(codebooks.centroids, index, axis=-1)
    return MergedCodebooks(thresholds, jnp.moveaxis(values, -1, 0))


def designed_quantize(
    weights: Float[Array, " d"],
    codebooks: DesignedCodebooks,
    merged: MergedCodebooks,
    rates: Float[Array, " R"],
    names: Sequence[str],
) -> dict[str, tuple[Float[Array, "R d"], Float[Array, " R"]]]:
    """Quantize the weights of one model with designed codebooks of every rate.

    Args:
        weights: (d,).
        codebooks: of R rates.
        merged: from `merge`, of the same.
        rates: (R,), `d ln K`.
        names: out of `DESIGNED`.

    Returns:
        For each name the quantized weights and the length of the code in nats.
    """
    found = {}
    # (F, R, d): one row of the table for every weight.
    place = jnp.searchsorted(merged.thresholds, weights)
    fixed = jnp.moveaxis(merged.values[place], 0, -1)
    for name in names:
        if name == "entropy_coded":
            cells = _cell(weights - codebooks.origin, codebooks.steps)
            values = jnp.take_along_axis(codebooks.cell_centroids, cells, axis=-1)
            nats = jnp.take_along_axis(codebooks.cell_nats, cells, axis=-1)
            found[name] = values, jnp.sum(nats, axis=-1)
            continue
        found[name] = fixed[FIXED_RATE.index(name)], rates
    return found


def adaptive_quantize(
    weights: Float[Array, "M d"],
    importance: Float[Array, "M d"],
    num_clusters: Int[Array, " R"],
    diameter_penalty: Float[Array, ""],
    names: Sequence[str],
    *,
    max_clusters: int,
) -> dict[str, tuple[Float[Array, "M R d"], Int[Array, "M R K"]]]:
    """Quantize the weights of models, each with codebooks made from its own.

    K-means is solved exactly, plain and weighted; with the penalty very nearly (see
    `jaxcomp.linear_regression.adaptive`).

    Args:
        weights: (M, d).
        importance: (M, d), diagonals of the Hessians.
        num_clusters: (R,), K of every rate.
        diameter_penalty: relative strength for "adaptive_diameter".
        names: out of `ADAPTIVE`.
        max_clusters: largest K, static.

    Returns:
        For each name the quantized weights and how many of them every centroid serves.
    """
    order = jnp.argsort(weights, axis=-1)
    inverse = jnp.argsort(order, axis=-1)[:, None]
    points = jnp.take_along_axis(weights, order, axis=-1).T
    mass = jnp.take_along_axis(importance, order, axis=-1).T
    found: dict[str, Partitions] = {}
    if {"adaptive_uniform", "adaptive_kmeans"} & set(names):
        runs = all_runs(points, jnp.ones_like(points))
        if "adaptive_uniform" in names:
            cuts = uniform_partitions(points, num_clusters, max_clusters)
            found["adaptive_uniform"] = means_of(runs, cuts)
        if "adaptive_kmeans" in names:
            found["adaptive_kmeans"], _ = best_partitions(points, runs, num_clusters, max_clusters)
    if {"adaptive_hessian", "adaptive_diameter"} & set(names):
        beta = diameter_penalty * jnp.sum(mass, axis=0)
        found["adaptive_hessian"], found["adaptive_diameter"] = best_partitions(
            points,
            all_runs(points, mass),
            num_clusters,
            max_clusters,
            beta if "adaptive_diameter" in names else None,
        )

    # One program for all kinds: they stand one after the other along the rates.
    joined = Partitions(
        *(jnp.concatenate(parts, axis=1) for parts in zip(*found.values(), strict=True))
    )
    values = jnp.transpose(joined.values(points.shape[0]), (2, 1, 0))
    values = jnp.take_along_axis(values, inverse, axis=-1)
    counts = jnp.transpose(joined.counts(), (2, 1, 0))
    split = [jnp.split(part, len(found), axis=1) for part in (values, counts)]
    by_name = dict(zip(found, zip(*split, strict=True), strict=True))
    return {name: by_name[name] for name in names}
