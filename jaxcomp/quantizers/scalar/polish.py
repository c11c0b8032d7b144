"""Where Lloyd's iteration starts, and how a codebook is refined on the points themselves.

Axes: `...` groups, `N` points, `B` bins, `K` clusters.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from jaxcomp.numerics.checks import check_count, check_initial_centroids, check_points
from jaxcomp.numerics.scaling import normalise, restore, restore_as
from jaxcomp.numerics.transformations import (
    always_compiled,
    vectorized,
    with_codebook_held_fixed,
    without_derivative,
)
from jaxcomp.quantizers.assignment import assign, nearest_thresholds
from jaxcomp.quantizers.bins import PointBins
from jaxcomp.quantizers.histograms import (
    Moments,
    importance_in_units,
    points_in_units,
)
from jaxcomp.quantizers.solution import (
    Codebook,
    QuantizationResult,
    distortion_of_points,
    quantize_points,
)


@partial(jax.jit, static_argnames=("max_clusters",))
@without_derivative
def plus_plus_start(
    moments: Moments,
    num_clusters: Int[Array, "..."] | int,
    key: PRNGKeyArray,
    *,
    max_clusters: int,
) -> Float[Array, "... clusters"]:
    """Draw centres by weighted k-means++: bins in proportion to mass times squared distance.

    The first centre is drawn in proportion to mass, every other one in proportion to
    `h (w - c)^2`, c being the nearest centre so far. Pass them as `initial_centroids`.

    Args:
        moments: of (...) groups.
        num_clusters: K, traced; broadcast against the leading axes. Clipped to 1..`max_clusters`.
        key: typed PRNG key, consumed here.
        max_clusters: size of the result, static.

    Returns:
        (..., max_clusters) ascending, entries from K on repeat the last one; centres repeat where
        there are fewer bins with mass than K.

    Raises:
        ValueError: while tracing, if `max_clusters < 1`.

    Source: Arthur and Vassilvitskii, SODA 2007, with weights in every stage.
    """
    check_count("max_clusters", max_clusters)
    num_clusters = jnp.clip(jnp.asarray(num_clusters, jnp.int32), 1, max_clusters)
    shape = np.broadcast_shapes(moments.minimum.shape, num_clusters.shape)
    # As numbers, which `vectorized` takes, and back by the implementation they came from.
    data = jax.random.key_data(jax.random.split(key, shape))
    wrap = partial(jax.random.wrap_key_data, impl=jax.random.key_impl(key))

    def draw(position, mass, exponent, number, words):
        keys = jax.random.split(wrap(words), max_clusters)
        largest = jnp.max(mass)
        mass = mass / jnp.where(largest > 0, largest, 1)

        def step(distance, arguments):
            place, subkey = arguments
            # Distances have a common scale, which the draw does not see.
            top = jnp.max(distance)
            near = distance / jnp.where(top > 0, top, 1)
            chance = jnp.where(place == 0, mass, mass * near * near)
            is_left = jnp.any(chance > 0)
            index = jax.random.categorical(subkey, jnp.log(jnp.where(is_left, chance, mass)))
            centre = position[index]
            gap = jnp.abs(position - centre)
            distance = jnp.where(place == 0, gap, jnp.minimum(distance, gap))
            return distance, jnp.where(place < number, centre, jnp.inf)

        places = jnp.arange(max_clusters, dtype=jnp.int32)
        _, centres = lax.scan(step, jnp.zeros_like(position), (places, keys))
        centres = jnp.sort(centres)
        return restore(jnp.where(places < number, centres, centres[number - 1]), exponent)

    signature = "(b),(b),(),(),(w)->(k)"
    return vectorized(draw, signature=signature)(
        moments.position, moments.mass, moments.exponent, num_clusters, data
    )


@always_compiled
@with_codebook_held_fixed(distortion_of_points)
def polish_kmeans(
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None = None,
    *,
    initial_centroids: Float[Array, "... clusters"],
    num_iterations: Int[Array, ""] | int = 1,
) -> QuantizationResult:
    """Refine a codebook by Lloyd's iteration on the points themselves, and assign them.

    What is left to gain after a histogram: points on the wrong side of an edge inside a bin. An
    iteration costs a pass over the points and K comparisons for each, and never raises the
    distortion. With 0 iterations the points are assigned to the centres as they are. Under
    differentiation as `kmeans`.

    Args:
        points: (..., N) floating, finite.
        importance: h >= 0, broadcastable to `points`; None means 1. Every group needs some.
        initial_centroids: (..., K) to start from, in any order.
        num_iterations: most centre updates, traced.

    Returns:
        Centroids (in the dtype of the points), assignments, distortion and diagnostics.

    Raises:
        TypeError, ValueError: as `kmeans`, on unusable points, weights or centroids.
    """
    points, importance = check_points(points, importance)
    initial_centroids = jnp.asarray(initial_centroids)
    if initial_centroids.ndim == 0 or initial_centroids.shape[-1] == 0:
        raise ValueError(
            f"initial_centroids must hold at least one centre, got shape {initial_centroids.shape}."
        )
    centroids = check_initial_centroids(initial_centroids, initial_centroids.shape[-1])
    return _polish(points, importance, centroids, jnp.asarray(num_iterations, jnp.int32))


@jax.jit
def _polish(points, importance, centroids, num_iterations):
    num_clusters = centroids.shape[-1]
    batch_shape = points.shape[:-1]
    groups, exponent = points_in_units(points.reshape(-1, points.shape[-1]))
    dtype = groups.dtype
    weights = jnp.ones_like(groups)
    if importance is not None:
        weights = importance_in_units(importance, points)[0].reshape(groups.shape)
    centroids = jnp.broadcast_to(centroids, (*batch_shape, num_clusters))
    start = normalise(centroids.astype(dtype).reshape(-1, num_clusters), exponent)
    start = jnp.sort(start, axis=-1)

    def thresholds_of(centres):
        return vectorized(nearest_thresholds, signature="(k)->(j)")(centres)

    def step(state):
        centres, iteration, _ = state
        bins = PointBins.of(assign(groups, thresholds_of(centres)).astype(jnp.int32), num_clusters)
        mass = bins.sum(weights)
        # About the centre, so that nothing large cancels.
        moment = bins.sum(weights * (groups - bins.look_up(centres)))
        moved = centres + jnp.where(mass > 0, moment / jnp.where(mass > 0, mass, 1), 0)
        moved = jnp.sort(moved, axis=-1)
        return moved, iteration + 1, jnp.all(moved == centres)

    centres, iterations, converged = lax.while_loop(
        lambda state: ~state[2] & (state[1] < num_iterations),
        step,
        (start, jnp.int32(0), jnp.asarray(False)),
    )
    stored = restore_as(centres, exponent, points.dtype).reshape(*batch_shape, num_clusters)
    codebook = Codebook(
        stored,
        thresholds_of(stored.astype(dtype)),
        jnp.full(batch_shape, num_clusters, jnp.int32),
    )
    return quantize_points(
        points,
        importance,
        codebook,
        num_iterations=jnp.broadcast_to(iterations, batch_shape),
        converged=jnp.broadcast_to(converged, batch_shape),
    )
