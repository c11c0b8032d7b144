"""Updates of vector centres: to the means of their clusters, and under a penalty on the diameter.

Axes: `K` clusters, `m` weights of a point.

Source: Bu, Gao, Zou, Veeravalli, arXiv:1901.09421, Algorithm 1.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxcomp.numerics.linear_algebra import after, eigh
from jaxcomp.quantizers.vector_sums import (
    ClusterSums,
    nearest_centres,
    quadratic_form,
    solve_semidefinite,
    solve_with,
)

# Halvings of a step before the centres stay where they are.
_MAX_HALVINGS = 20
# Radii of the balls the centres are cut to, as fractions of the largest distance to the mean.
_RADII = (1.0, 0.7, 0.45, 0.25)


def updated(
    sums: ClusterSums,
    centroids: Float[Array, "clusters m"],
    beta: Float[Array, ""],
    penalty_form: str,
) -> Float[Array, "clusters m"]:
    """Return the new centres of clusters, by their sums about the old ones.

    Args:
        sums: over the clusters.
        centroids: the old centres.
        beta: penalty on the squared diameter, absolute.
        penalty_form: "none", "monotone" or "published" (`vector_kmeans`).
    """
    # The clusters' matrices and, last, their sum: one decomposition for all.
    matrices = jnp.concatenate([sums.mass, jnp.sum(sums.mass, axis=0, keepdims=True)])
    values, vectors = eigh(matrices if penalty_form == "monotone" else sums.mass)
    num_clusters = centroids.shape[0]
    plain = solve_with((values[:num_clusters], vectors[:num_clusters]), sums.pull)
    plain = jnp.where(sums.has_mass[:, None], plain, 0)
    if penalty_form == "none":
        return centroids + plain
    step = _joint_step(sums, centroids, plain, beta)
    if penalty_form == "monotone":
        step = _best_step(sums, centroids, step, plain, (values[-1], vectors[-1]), beta)
    # Not even rounding may tell a penalty of 0 from none.
    moved = centroids + jnp.where(beta > 0, step, plain)
    return jnp.where(beta > 0, _gather_empty(moved, sums.has_mass), moved)


def farthest_pair(
    centroids: Float[Array, "clusters m"], has_mass: Bool[Array, " clusters"]
) -> tuple[Int[Array, ""], Int[Array, ""], Float[Array, ""]]:
    """Return the two centres with mass that are farthest apart, and their squared distance.

    The first such pair; twice the same centre at distance 0 if all that have mass coincide.
    """

    def visit(best, number):
        deviation = centroids - centroids[number][None, :]
        squares = jnp.sum(deviation * deviation, axis=-1)
        squares = jnp.where(has_mass & has_mass[number], squares, 0)
        other = jnp.argmax(squares).astype(jnp.int32)
        is_better = squares[other] > best[2]
        new = (number, other, squares[other])
        return jax.tree.map(partial(jnp.where, is_better), new, best), None

    start = (jnp.int32(0), jnp.int32(0), jnp.zeros((), centroids.dtype))
    return lax.scan(visit, start, jnp.arange(centroids.shape[0], dtype=jnp.int32))[0]


def _joint_step(
    sums: ClusterSums,
    centroids: Float[Array, "clusters m"],
    plain: Float[Array, "clusters m"],
    beta: Float[Array, ""],
) -> Float[Array, "clusters m"]:
    """Return the step of Algorithm 1: the farthest pair jointly, all others to their own minimum.

    The pair's steps u and v from its centres solve
    `(S1 + beta I) u - beta v = s1 + beta (c2 - c1)` and
    `(S2 + beta I) v - beta u = s2 - beta (c2 - c1)`.
    """
    first, second, squared_distance = farthest_pair(centroids, sums.has_mass)
    size = centroids.shape[1]
    spring = beta * jnp.eye(size, dtype=centroids.dtype)
    tension = beta * (centroids[second] - centroids[first])
    matrix = jnp.block(
        [[sums.mass[first] + spring, -spring], [-spring, sums.mass[second] + spring]]
    )
    right = jnp.concatenate([sums.pull[first] + tension, sums.pull[second] - tension])
    pair = solve_semidefinite(after(matrix, plain), right)
    moved = plain.at[first].set(pair[:size]).at[second].set(pair[size:])
    return jnp.where(squared_distance > 0, moved, plain)


def _best_step(
    sums: ClusterSums,
    centroids: Float[Array, "clusters m"],
    joint: Float[Array, "clusters m"],
    plain: Float[Array, "clusters m"],
    all_mass: tuple[Float[Array, " m"], Float[Array, "m m"]],
    beta: Float[Array, ""],
) -> Float[Array, "clusters m"]:
    """Return the candidate step with the lowest objective of these clusters; 0 if all raise it.

    For fixed assignments the objective is convex, but its minimum has no closed form: the joint
    step, halved until it does not raise the objective, stalls where several pairs are equally far
    apart. The other candidates move every centre: towards the common mean g, onto the line
    `g + rho e_k`, where e_k is the cluster's own mean about g, cut to a ball of some radius, and
    rho the minimiser along that line. `all_mass` is the decomposition of the sum of all masses.
    """
    has_mass = sums.has_mass
    before = farthest_pair(centroids, has_mass)[2]

    def rise(step: Float[Array, "clusters m"]) -> Float[Array, ""]:
        widened = farthest_pair(centroids + step, has_mass)[2]
        change = quadratic_form(sums.mass, step, step) - 2 * jnp.sum(step * sums.pull)
        return change + beta * (widened - before)

    def halve(state):
        return state[0] * 0.5, state[1] + 1

    length, _ = lax.while_loop(
        lambda state: (rise(state[0] * joint) > 0) & (state[1] < _MAX_HALVINGS),
        halve,
        (jnp.ones((), centroids.dtype), jnp.int32(0)),
    )

    means = jnp.where(has_mass[:, None], centroids + plain, 0)
    moment = jnp.sum(sums.mass * means[:, None, :], axis=(0, 2))
    common = solve_with(all_mass, moment)
    offset = jnp.where(has_mass[:, None], means - common[None, :], 0)
    radius = jnp.sqrt(jnp.sum(offset * offset, axis=-1))

    def towards_common(fraction: Float[Array, ""]) -> Float[Array, "clusters m"]:
        limit = fraction * jnp.max(radius)
        shrink = jnp.where(radius > limit, limit / jnp.where(radius > limit, radius, 1), 1)
        cut = offset * shrink[:, None]
        squared_diameter = farthest_pair(cut, has_mass)[2]
        curved = quadratic_form(sums.mass, cut, cut) + beta * squared_diameter
        rho = quadratic_form(sums.mass, cut, offset) / jnp.where(curved > 0, curved, 1)
        moved = common[None, :] + jnp.maximum(rho, 0) * cut
        return jnp.where(has_mass[:, None], moved - centroids, 0)

    fractions = jnp.asarray(_RADII, centroids.dtype)
    steps = lax.map(towards_common, fractions)
    steps = jnp.concatenate([jnp.stack([jnp.zeros_like(joint), length * joint]), steps])
    rises = lax.map(rise, steps)
    return steps[jnp.argmin(rises)]


def _gather_empty(
    centroids: Float[Array, "clusters m"], has_mass: Bool[Array, " clusters"]
) -> Float[Array, "clusters m"]:
    """Move every centre without mass to the nearest one with mass."""
    unit = jnp.ones((centroids.shape[0],), centroids.dtype)
    nearest = nearest_centres(centroids.T, unit, centroids, has_mass, "scalar")
    return jnp.where(has_mass[:, None], centroids, centroids[nearest])
