"""Centre updates of one-dimensional K-means with a penalty on the diameter of the codebook.

Given clusters of mass S_k and mean m_k (K of them, some without mass), each function returns new
centres c_k. `beta` is absolute: in the units of a mass for the squared forms, of a mass times a
weight for the linear one. Clusters without mass keep out of everything here: their entries are
returned arbitrary.

Sources: Bu, Gao, Zou, Veeravalli, arXiv:1901.09421, Algorithm 1 (published form), and its
correction to an exact, hence monotone, update.
"""

from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxcomp.numerics.precision import first_least
from jaxcomp.numerics.sums import (
    running_sum,
)

PenaltyForm = Literal["none", "monotone", "published", "linear"]
PENALTY_FORMS: tuple[str, ...] = get_args(PenaltyForm)


class Clusters(NamedTuple):
    """Sums over the clusters of one group, in order of value.

    Attributes:
        mass: (K,), sum of h.
        mean: (K,), weighted mean; non-decreasing over the clusters with mass.
        has_mass: (K,), whether the cluster has any mass.
    """

    mass: Float[Array, " clusters"]
    mean: Float[Array, " clusters"]
    has_mass: Bool[Array, " clusters"]


class _Pools(NamedTuple):
    """The lowest (highest) clusters taken together, for every size of the pool.

    Attributes:
        mean: (K,), common mean; +-inf for pools without mass.
        inverse_mass: (K,), 1 / mass; 1 for pools without mass.
    """

    mean: Float[Array, " clusters"]
    inverse_mass: Float[Array, " clusters"]


def update_centres(
    clusters: Clusters, beta: Float[Array, ""], *, penalty_form: PenaltyForm
) -> Float[Array, " clusters"]:
    """Return the new centres of the clusters with mass; see the functions of each form."""
    if penalty_form == "none":
        return clusters.mean
    if penalty_form == "monotone":
        return _monotone_update(clusters, beta)
    if penalty_form == "published":
        return _published_update(clusters, beta)
    return _linear_update(clusters, beta)


def penalty_term(
    diameter: Float[Array, "..."], beta: Float[Array, "..."], *, penalty_form: PenaltyForm
) -> Float[Array, "..."]:
    """Return what the penalty adds to the weighted distortion.

    `beta diameter^2` for the squared forms, `(beta / 2) diameter` for the linear one, 0 for none.
    """
    if penalty_form == "none":
        return jnp.zeros_like(diameter)
    if penalty_form == "linear":
        return 0.5 * beta * diameter
    return beta * diameter * diameter


def _pools(
    clusters: Clusters,
) -> tuple[_Pools, _Pools]:
    """Pool the lowest 1..K clusters, and the highest 1..K; entry k ends at cluster k.

    Means are taken about the outermost one, so that a pool of one has its cluster's mean to the
    bit and no difference of large numbers is formed.
    """
    mass = jnp.where(clusters.has_mass, clusters.mass, 0)
    bottom = jnp.min(jnp.where(clusters.has_mass, clusters.mean, jnp.inf))
    top = jnp.max(jnp.where(clusters.has_mass, clusters.mean, -jnp.inf))
    above = jnp.where(clusters.has_mass, clusters.mean - bottom, 0)
    below = jnp.where(clusters.has_mass, clusters.mean - top, 0)
    # All four in one pass.
    parts = jnp.stack([mass, mass * above, mass[::-1], (mass * below)[::-1]], axis=-1)
    low_mass, low_moment, high_mass, high_moment = running_sum(parts).T
    high_mass, high_moment = high_mass[::-1], high_moment[::-1]
    low_inverse = 1 / jnp.where(low_mass > 0, low_mass, 1)
    high_inverse = 1 / jnp.where(high_mass > 0, high_mass, 1)
    low_mean = jnp.where(low_mass > 0, bottom + low_moment * low_inverse, jnp.inf)
    high_mean = jnp.where(high_mass > 0, top + high_moment * high_inverse, -jnp.inf)
    return _Pools(low_mean, low_inverse), _Pools(high_mean, high_inverse)


def _monotone_update(clusters: Clusters, beta: Float[Array, ""]) -> Float[Array, " clusters"]:
    """Minimise `sum S_k (c_k - m_k)^2 + beta (max c - min c)^2` exactly.

    The minimiser is `c_k = clip(m_k, L, U)`. For a diameter D, the lower end pools the lowest
    clusters with `L(D) = min over pools A of m_A + beta D / S_A`, the upper end likewise with a
    maximum; the diameter solves `U(D) - L(D) = D`. The left side minus the right is convex,
    piecewise linear and decreasing, so that Newton's method from D = 0 climbs through the pools
    and ends at the exact ones.
    """
    low, high = _pools(clusters)

    def ends(diameter):
        lower = low.mean + beta * low.inverse_mass * diameter
        upper = high.mean - beta * high.inverse_mass * diameter
        return first_least(lower, axis=0), first_least(-upper, axis=0)

    def climb(state):
        _, num_steps, diameter, _ = state
        a, b = ends(diameter)
        low_slope, high_slope = beta * low.inverse_mass[a], beta * high.inverse_mass[b]
        new = (high.mean[b] - low.mean[a]) / (1 + low_slope + high_slope)
        new = jnp.maximum(new, diameter)
        limits = (low.mean[a] + low_slope * new, high.mean[b] - high_slope * new)
        return new > diameter, num_steps + 1, new, limits

    zero = jnp.zeros_like(beta)
    # Every step but the last enlarges a pool, so there are at most 2 K of them.
    limit = 2 * clusters.mass.shape[0]
    *_, (lower, upper) = lax.while_loop(
        lambda state: state[0] & (state[1] < limit),
        climb,
        (jnp.asarray(True), jnp.int32(0), zero, (zero, zero)),
    )
    return jnp.clip(clusters.mean, lower, jnp.maximum(lower, upper))


def _published_update(clusters: Clusters, beta: Float[Array, ""]) -> Float[Array, " clusters"]:
    """Solve jointly for the two outermost centres, leave the others at their means.

    The shift form `c1 = m1 + beta S2 (m2 - m1) / det`, `det = S1 S2 + beta (S1 + S2)`: with
    beta = 0 it is plain K-means to the last bit. The result may be out of order, and the objective
    may rise.
    """
    index = jnp.arange(clusters.mass.shape[0], dtype=jnp.int32)
    first = jnp.min(jnp.where(clusters.has_mass, index, index[-1]))
    last = jnp.max(jnp.where(clusters.has_mass, index, 0))
    gap = clusters.mean[last] - clusters.mean[first]
    low_slope = beta / jnp.where(clusters.has_mass[first], clusters.mass[first], 1)
    high_slope = beta / jnp.where(clusters.has_mass[last], clusters.mass[last], 1)
    diameter = gap / (1 + low_slope + high_slope)
    moved = jnp.where(index == first, clusters.mean + low_slope * diameter, clusters.mean)
    return jnp.where(index == last, moved - high_slope * diameter, moved)


def _linear_update(clusters: Clusters, beta: Float[Array, ""]) -> Float[Array, " clusters"]:
    """Minimise `sum S_k (c_k - m_k)^2 + (beta / 2) (max c - min c)` exactly.

    The outermost centres move inwards by `beta / (4 S)`; past a neighbour they pool with it. When
    the ends meet, all centres are at the common mean.
    """
    low, high = _pools(clusters)
    lower = jnp.min(low.mean + 0.25 * beta * low.inverse_mass)
    upper = jnp.max(high.mean - 0.25 * beta * high.inverse_mass)
    have_met = lower >= upper
    lower = jnp.where(have_met, low.mean[-1], lower)
    upper = jnp.where(have_met, low.mean[-1], upper)
    return jnp.clip(clusters.mean, lower, upper)
