"""Rate-distortion functions of discrete sources, with a certificate for every point.

At slope -s the curve maximises `F(q) = sum_i p_i ln Z_i` with `Z_i = sum_j q_j exp(-s d_ij)` over
the probabilities q of the reproductions. With `c_j = sum_i p_i exp(-s d_ij) / Z_i` the channel
`Q(j|i) = q_j exp(-s d_ij) / Z_i` has distortion D and rate `-s D - sum p ln Z - sum q c ln c`,
while every code of distortion D' has rate at least `-s D' - sum p ln Z - ln max c`, whatever q was.
The difference at D, `ln max c - sum q c ln c`, is the gap: a certificate, not an estimate.

Blahut and Arimoto's iteration `q <- q c` needs thousands of steps wherever the best q leaves
reproductions out, since unused ones die out slowly. Here it only starts: what is left of the gap
is closed by a primal-dual interior-point method on the same problem, about ten Newton steps of one
Cholesky factorisation each. The certificate does not care where q came from.

Distances are measured from the smallest of each row, `exp(-s (d_ij - min_j d_ij))`: the best
logarithmic scale there is, since at the optimum the shifted Z_i is at least p_i, so that no slope
underflows. Everything is computed in float64 (float32 cannot certify 1e-6 nats) and rounded to the
default dtype at the end, so that what is certified still holds: rate and distortion are rounded up,
and the gap makes up for both.

Axes: `...` sources, `S` slopes, `N` source symbols, `M` reproductions.

Sources: Blahut, IEEE Trans. Inf. Theory 18 (1972); Arimoto, ibid.; Csiszar, ibid. 20 (1974), for
the lower bound; Mehrotra, SIAM J. Optim. 2 (1992), for the predictor and corrector.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxcomp.numerics.checks import is_concrete
from jaxcomp.numerics.linear_algebra import cholesky, cholesky_solve
from jaxcomp.numerics.memory import chunk_bytes
from jaxcomp.numerics.precision import in_float64, round_up

# Plain iterations before the interior-point method: they settle the easy slopes at little cost.
_NUM_PLAIN = 40
_MAX_NEWTON = 80
# Of a chunk of memory the kernels of one batch take so much; lanes beyond it wait. Lanes of a batch
# end together, at the last one's pace: a processor with few cores does better with few (1 MiB), an
# accelerator needs many.
_SHARE_OF_CHUNK = 16
_TO_BOUNDARY = 0.995
# Of a sum of a few hundred numbers in float64, relative to the sum; of one operation.
_ROUNDING = 1e-15
_UNIT = 2.0**-53
_STEPS = _TO_BOUNDARY * 0.7 ** np.arange(16)


class RateDistortionPoints(NamedTuple):
    """Points of a rate-distortion curve, one per slope, each with its certificate.

    Attributes:
        rate_nats: (..., S) rate of the channel found, an upper bound on R(D) at its distortion.
        distortion: (..., S) its distortion D.
        gap_nats: (..., S) how far R(D) may lie below `rate_nats`: for every D',
            `R(D') >= rate_nats - gap_nats - s (D' - D)`, with these numbers as they are. At an
            infinite slope it is said of the least distortion itself.
        output_probabilities: (..., S, M) q, from which channel and gap follow. The channel's own
            output distribution is `q c`, the same within the gap.
        converged: (..., S) whether the gap is at most the one asked for, before rounding to the
            default dtype.
    """

    rate_nats: Float[Array, "... slopes"]
    distortion: Float[Array, "... slopes"]
    gap_nats: Float[Array, "... slopes"]
    output_probabilities: Float[Array, "... slopes reproductions"]
    converged: Bool[Array, "... slopes"]


def blahut_arimoto(
    probabilities: Float[Array, "... symbols"],
    distortion_matrix: Float[Array, "... symbols reproductions"],
    slope_nats: Float[Array, "... slopes"] | float,
    *,
    gap_nats: float = 1e-6,
) -> RateDistortionPoints:
    """Return points of the rate-distortion curve at given slopes, with certified gaps.

    Every lane (source and slope) starts from the uniform distribution and stops at its own gap.
    No warm start from the neighbouring slope: the interior-point method that finishes a lane takes
    about ten steps from anywhere, and lanes that do not wait for each other run side by side.

    Args:
        probabilities: (..., N), at least 0, sum 1 (to 1e-3; normalised here). Symbols of
            probability 0 do not matter.
        distortion_matrix: (..., N, M). Infinity forbids a reproduction.
        slope_nats: (..., S), or a number (then the results lack the axis S): minus the slope of
            the curve, s >= 0 in nats per unit of distortion. Infinity asks for the least
            distortion. At 0 the rate is 0 and the distortion that of the best constant code.
        gap_nats: largest gap to stop at, positive. Traced. Rounding is at about 1e-13 nats.

    Returns:
        The points, in the default dtype. `converged` is false where 80 Newton steps did not
        suffice; the gap of such a point is as certified as any other.

    Raises:
        ValueError: on shapes that do not fit; where values are known, also on negative or NaN
            probabilities, rows that do not sum to 1, NaN or -infinity among the distances, a
            symbol without any allowed reproduction, negative or NaN slopes, `gap_nats` <= 0.

    Source: see the module.
    """
    shapes = _checked_shapes(probabilities, distortion_matrix, slope_nats)
    _check_values(probabilities, distortion_matrix, slope_nats, gap_nats)
    is_one = np.ndim(slope_nats) == 0
    slopes: Any = jnp.reshape(slope_nats, (1,)) if is_one else slope_nats
    points = _solve(
        probabilities,
        distortion_matrix,
        slopes,
        gap_nats,
        shapes=shapes,
        dtype=jnp.result_type(float),
    )
    return jax.tree.map(lambda leaf: jnp.squeeze(leaf, len(shapes)), points) if is_one else points


def _checked_shapes(probabilities, distances, slope_nats) -> tuple[int, ...]:
    """Return the leading axes of all three."""
    p, d, s = np.shape(probabilities), np.shape(distances), np.shape(slope_nats)
    if not p or len(d) < 2 or d[-2] != p[-1] or d[-1] == 0 or p[-1] == 0:
        raise ValueError(
            "distortion_matrix must have one row per symbol and at least one column, "
            f"got shape {d} for probabilities of shape {p}."
        )
    try:
        return np.broadcast_shapes(p[:-1], d[:-2], s[:-1])
    except ValueError:
        raise ValueError(
            "the leading axes of probabilities (..., N), distortion_matrix (..., N, M) and "
            f"slope_nats (..., S) must broadcast, got shapes {p}, {d} and {s}."
        ) from None


def check_probabilities(probabilities: Float[Array, "... symbols"]) -> None:
    """Refuse what is no distribution, where the values are known."""
    if not is_concrete(probabilities):
        return
    p = np.asarray(probabilities, np.float64)
    if not np.all(p >= 0):
        raise ValueError(f"probabilities must be at least 0, got {np.min(p):g}.")
    worst = np.max(np.abs(p.sum(axis=-1) - 1))
    if not worst <= 1e-3:
        raise ValueError(f"probabilities must sum to 1, got a sum that is off by {worst:g}.")


def check_slopes(slope_nats: Float[Array, "... slopes"], gap_nats: float) -> None:
    """Refuse slopes and gaps that mean nothing, where they are known."""
    if is_concrete(slope_nats) and not np.all(np.asarray(slope_nats) >= 0):
        raise ValueError(f"slope_nats must be at least 0, got {np.min(slope_nats):g}.")
    if is_concrete(gap_nats) and not np.all(np.asarray(gap_nats) > 0):
        raise ValueError(f"gap_nats must be positive, got {np.min(gap_nats):g}.")


def _check_values(probabilities, distances, slope_nats, gap_nats) -> None:
    check_probabilities(probabilities)
    check_slopes(slope_nats, gap_nats)
    if not is_concrete(distances):
        return
    d = np.asarray(distances, np.float64)
    if np.any(np.isnan(d) | (d == -np.inf)):
        raise ValueError("distortion_matrix must not hold NaN or -infinity.")
    if is_concrete(probabilities):
        occurs = np.asarray(probabilities) > 0
        if np.any(occurs & np.all(d == np.inf, axis=-1)):
            raise ValueError(
                "distortion_matrix must leave every symbol of positive probability a finite entry, "
                "got a row of infinities."
            )


@in_float64("shapes", "dtype")
def _solve(
    probabilities, distances, slope_nats, gap_nats, *, shapes, dtype
) -> RateDistortionPoints:
    num_symbols, num_reproductions = distances.shape[-2:]
    num_slopes = slope_nats.shape[-1]
    p = jnp.broadcast_to(probabilities, (*shapes, num_symbols)).reshape(-1, num_symbols)
    p = p / jnp.sum(p, axis=-1, keepdims=True)
    # One copy of a matrix that all sources share.
    d = distances.reshape(-1, num_symbols, num_reproductions)
    if d.shape[0] > 1:
        d = jnp.broadcast_to(distances, (*shapes, *distances.shape[-2:])).reshape(
            -1, num_symbols, num_reproductions
        )
    s = jnp.broadcast_to(slope_nats, (*shapes, num_slopes)).ravel()
    source = jnp.arange(s.shape[0]) // num_slopes

    def lane(arguments):
        index, slope = arguments
        matrix = d[jnp.minimum(index, d.shape[0] - 1)]
        return _solve_lane(p[index], matrix, slope, gap_nats)

    lanes = map_in_batches(lane, (source, s), num_symbols * num_reproductions)
    lanes = lanes._replace(**round_outward(lanes, s, dtype))
    return jax.tree.map(lambda leaf: leaf.reshape(*shapes, num_slopes, *leaf.shape[1:]), lanes)


def round_outward(points: Any, slope_nats: Float[Array, " lanes"], dtype: Any) -> dict[str, Array]:
    """Return rate, distortion and gap as numbers of a dtype (in float64) that claim no more.

    More rate and more distortion are still achievable; the gap grows by as much as both raised the
    tangent.
    """
    rate, distortion = round_up(points.rate_nats, dtype), round_up(points.distortion, dtype)
    is_raised = (distortion > points.distortion) & (slope_nats > 0) & jnp.isfinite(slope_nats)
    finite_slope = jnp.where(is_raised, slope_nats, 0)
    raised = jnp.where(is_raised, finite_slope * (distortion - points.distortion), 0)
    raised = (raised + (rate - points.rate_nats)) * (1 + 4 * _UNIT)
    gap = round_up((points.gap_nats + raised) * (1 + 4 * _UNIT), dtype)
    return {"rate_nats": rate, "distortion": distortion, "gap_nats": gap}


def map_in_batches(function, arguments, entries_per_lane: int):
    """Map over lanes, as many at a time as keep their matrices within bounds.

    The last batch is filled with copies of the first lane: a batch of another size would be
    compiled a second time.
    """
    num_lanes = arguments[0].shape[0]
    entries = chunk_bytes() // _SHARE_OF_CHUNK // 8
    size = max(1, min(num_lanes, entries // entries_per_lane))
    num_batches = -(-num_lanes // size)
    filled = jax.tree.map(
        lambda leaf: leaf[jnp.arange(num_batches * size) % num_lanes].reshape(
            num_batches, size, *leaf.shape[1:]
        ),
        arguments,
    )
    results = lax.map(jax.vmap(function), filled)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:num_lanes], results)


def _solve_lane(
    p: Float[Array, " symbols"],
    distances: Float[Array, "symbols reproductions"],
    slope: Float[Array, ""],
    gap_nats: Float[Array, ""],
) -> RateDistortionPoints:
    lowest = jnp.min(distances, axis=1, keepdims=True)
    # Rows of infinities belong to symbols of probability 0.
    lowest = jnp.where(jnp.isfinite(lowest), lowest, 0)
    excess = distances - lowest
    # Neither 0 times infinity: a forbidden reproduction stays forbidden at slope 0, and the nearest
    # one stays free at an infinite slope.
    exponent = jnp.where(jnp.isinf(excess), jnp.inf, slope * excess)
    exponent = jnp.where(excess == 0, 0, exponent)
    kernel = jnp.exp(-exponent)
    q = maximise(p, kernel, gap_nats)
    constant = best_constant(p, distances, q)
    # At small slopes, and for a source of one symbol, one reproduction is all there is to use: the
    # iterations approach it, but do not arrive.
    is_constant = (slope == 0) | (_vertex_gap(p, kernel, constant) <= _gap(p, kernel, q)[0])
    q = jnp.where(is_constant, constant, q)
    rate, gap, output, joint = evaluate(p, exponent, q)
    return RateDistortionPoints(
        # Of one reproduction nothing need be said; the sums would leave their rounding.
        rate_nats=jnp.where(jnp.max(q) == 1, 0, rate),
        distortion=jnp.sum(joint * jnp.where(joint > 0, distances, 0)),
        gap_nats=gap,
        output_probabilities=output,
        converged=gap <= gap_nats,
    )


def rounding_of(num_terms: int, numbers: Array) -> Array:
    """Return what a bound may lose in float64: sums of so many terms, a few numbers of this size.

    Every term of a sum may be off by one rounding of the sum, every logarithm by a few of itself.
    """
    return _UNIT * (num_terms + 16 + 8 * numbers)


def best_constant(p: Array, distances: Array, otherwise: Array) -> Array:
    """Return the distribution on the reproduction that serves all symbols best, if one may."""
    weighted = jnp.where(p[:, None] > 0, p[:, None] * distances, 0)
    total = jnp.sum(weighted, axis=0)
    least = jnp.min(total)
    index = jnp.arange(total.shape[0])
    first = jnp.min(jnp.where(total == least, index, total.shape[0]))
    return jnp.where(jnp.isfinite(least), (index == first).astype(p.dtype), otherwise)


def _normaliser(p: Array, kernel: Array, q: Array) -> Array:
    """Return Z, 1 for symbols of probability 0 (which may not be reachable at all)."""
    return jnp.where(p > 0, kernel @ q, 1)


def evaluate(
    p: Float[Array, " symbols"],
    exponent: Float[Array, "symbols reproductions"],
    q: Float[Array, " reproductions"],
) -> tuple[Array, Array, Array, Array]:
    """Return rate, gap, q without what is never used, and joint distribution of its channel.

    Args:
        p: source probabilities.
        exponent: `s (d_ij - min_j d_ij)`, possibly infinite.
        q: any distribution, sum 1.
    """
    kernel = jnp.exp(-exponent)
    z = _normaliser(p, kernel, q)
    c = (p / z) @ kernel
    output = q * c
    mean_log_c = jnp.sum(output * jnp.log(jnp.where(c > 0, c, 1)))
    joint = (p / z)[:, None] * kernel * q[None, :]
    mean_exponent = jnp.sum(joint * jnp.where(joint > 0, exponent, 0))
    mean_log_z, largest = jnp.sum(p * jnp.log(z)), jnp.log(jnp.max(c))
    rate = -mean_exponent - mean_log_z - mean_log_c
    # Of a single symbol nothing is added up.
    numbers = jnp.abs(mean_exponent) + jnp.abs(mean_log_z) + jnp.abs(largest)
    rounding = jnp.where(jnp.max(p) == 1, 0, rounding_of(sum(kernel.shape), numbers))
    gap = jnp.maximum(largest - mean_log_c, 0) + rounding
    # Reproductions that no symbol may use have no part in q either; the gap is the same without.
    used = jnp.where(c > 0, q, 0)
    return jnp.maximum(rate, 0), gap, used / jnp.sum(used), joint


def maximise(
    p: Float[Array, " symbols"],
    kernel: Float[Array, "symbols reproductions"],
    gap_nats: Float[Array, ""],
) -> Float[Array, " reproductions"]:
    """Maximise `sum p ln(K q)` over distributions q until the certified gap is small.

    Args:
        p: (N,) probabilities.
        kernel: (N, M), K >= 0, every row of positive probability with a positive entry.
        gap_nats: gap to stop at.

    Returns:
        (M,) the distribution of the smallest gap met.
    """
    q, _, gap = _plain_iterations(p, kernel, gap_nats)
    return _interior_point(p, kernel, q, gap, gap_nats)


def _gap(p: Array, kernel: Array, q: Array) -> tuple[Array, Array]:
    c = (p / _normaliser(p, kernel, q)) @ kernel
    output = q * c
    return jnp.log(jnp.max(c)) - jnp.sum(output * jnp.log(jnp.where(c > 0, c, 1))), output


def _vertex_gap(p: Array, kernel: Array, q: Array) -> Array:
    """Return the gap of a q that may leave symbols without a reproduction; then infinity."""
    z = _normaliser(p, kernel, q)
    is_reached = jnp.all(z > 0)
    c = (p / jnp.where(z > 0, z, 1)) @ kernel
    output = q * c
    gap = jnp.log(jnp.max(c)) - jnp.sum(output * jnp.log(jnp.where(c > 0, c, 1)))
    return jnp.where(is_reached, gap, jnp.inf)


def _plain_iterations(p, kernel, gap_nats):
    num_reproductions = kernel.shape[1]

    def step(state):
        q, iteration, _ = state
        gap, output = _gap(p, kernel, q)
        q = jnp.where(gap > gap_nats, output / jnp.sum(output), q)
        return q, iteration + 1, gap

    start = jnp.full((num_reproductions,), 1 / num_reproductions, p.dtype)
    return lax.while_loop(
        lambda state: (state[1] < _NUM_PLAIN) & (state[2] > gap_nats),
        step,
        (start, jnp.int32(0), jnp.asarray(jnp.inf, p.dtype)),
    )


def _interior_point(p, kernel, q, gap, gap_nats):
    """Minimise `-sum p ln(K q) + sum q` over q >= 0: at the optimum q sums to 1 by itself.

    The multipliers z of q >= 0 tend to 1 - c, and q z to 0 along the central path.
    """
    num_symbols, num_reproductions = kernel.shape
    solver = _reduced_solver if num_symbols < num_reproductions else _full_solver
    root_p = jnp.sqrt(p)
    least_centrality = 0.1 * gap_nats / num_reproductions

    def newton(state):
        q, z, iteration, best_gap, best_q = state
        normaliser = _normaliser(p, kernel, q)
        gradient = 1 - (p / normaliser) @ kernel
        solve = solver((root_p / normaliser)[:, None] * kernel, jnp.sqrt(q / z))
        centrality = jnp.sum(q * z) / num_reproductions

        # Predictor: how far the complementarity could fall at once.
        step = solve(-gradient)
        dual_step = -z - z / q * step
        reachable = q + jnp.minimum(1, _to_boundary(q, step)) * step
        reachable *= z + jnp.minimum(1, _to_boundary(z, dual_step)) * dual_step
        shrink = (jnp.sum(reachable) / num_reproductions / centrality) ** 3
        # On the central path the gap is about M times the complementarity: no need to go far below.
        target = jnp.maximum(jnp.clip(shrink, 1e-3, 0.5) * centrality, least_centrality)

        # Corrector, then the step that lowers the barrier function most: K is linear, so that all
        # candidates cost one product with it.
        aim = target - step * dual_step
        step = solve(aim / q - gradient)
        dual_step = (aim - q * z - z * step) / q
        lengths = jnp.asarray(_STEPS, p.dtype) * jnp.minimum(
            1 / _TO_BOUNDARY, _to_boundary(q, step)
        )
        change = jnp.where(p > 0, kernel @ step, 0)
        reached = normaliser[None, :] + lengths[:, None] * change[None, :]
        places = q[None, :] + lengths[:, None] * step[None, :]
        merit = jnp.sum(places - target * jnp.log(places), axis=1) - jnp.sum(
            p[None, :] * jnp.log(reached), axis=1
        )
        merit = jnp.where(jnp.isnan(merit), jnp.inf, merit)
        # Near the end all differences are rounding: among equals the longest step.
        least = jnp.min(merit)
        slack = 1e-3 * gap_nats + _ROUNDING * jnp.abs(least)
        chosen = jnp.max(jnp.where(merit <= least + slack, lengths, 0))
        moved = q + chosen * step
        dual_length = jnp.minimum(1, _TO_BOUNDARY * _to_boundary(z, dual_step))
        is_sound = jnp.all(jnp.isfinite(moved) & (moved > 0))
        q = jnp.where(is_sound, moved, q)
        z = jnp.where(is_sound, z + dual_length * dual_step, z)
        candidate = q / jnp.sum(q)
        gap, _ = _gap(p, kernel, candidate)
        is_better = gap < best_gap
        return (
            q,
            z,
            # Rounding has the last word: nothing would change from here on.
            jnp.where(is_sound, iteration + 1, _MAX_NEWTON),
            jnp.where(is_better, gap, best_gap),
            jnp.where(is_better, candidate, best_q),
        )

    # From inside: neither q nor z may start at its bound.
    start = jnp.maximum(q, 1e-4 / num_reproductions)
    start = start / jnp.sum(start)
    slack = 1 - (p / _normaliser(p, kernel, start)) @ kernel
    state = (start, jnp.maximum(slack, 1e-2), jnp.int32(0), gap, q)
    return lax.while_loop(
        lambda state: (state[3] > gap_nats) & (state[2] < _MAX_NEWTON), newton, state
    )[4]


def _to_boundary(values: Array, step: Array) -> Array:
    """Return the largest multiple of the step that keeps all values at least 0."""
    is_falling = step < 0
    return jnp.min(jnp.where(is_falling, -values / jnp.where(is_falling, step, -1), jnp.inf))


def _full_solver(factor: Array, scale: Array):
    """Return `r -> (A'A + diag(scale)^-2)^-1 r` by an M x M factorisation.

    Scaled so that the matrix is the identity plus something positive semidefinite: it can be
    factorised however close q is to its bound.
    """
    scaled = factor * scale[None, :]
    gram = jnp.matmul(scaled.T, scaled, precision="highest")
    lower = cholesky(gram + jnp.eye(scale.shape[0], dtype=scale.dtype))
    return lambda r: scale * cholesky_solve(lower, (scale * r)[:, None])[:, 0]


def _reduced_solver(factor: Array, scale: Array):
    """Return the same by an N x N factorisation, for fewer symbols than reproductions."""
    scaled = factor * scale[None, :]
    gram = jnp.matmul(scaled, scaled.T, precision="highest")
    lower = cholesky(gram + jnp.eye(factor.shape[0], dtype=scale.dtype))

    def solve(r: Array) -> Array:
        right = scale * r
        inner = cholesky_solve(lower, (scaled @ right)[:, None])[:, 0]
        return scale * (right - inner @ scaled)

    return solve
