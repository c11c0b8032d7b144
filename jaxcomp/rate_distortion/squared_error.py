"""Rate-distortion functions for squared error over real reproductions, with importances.

The source symbol is a *pair* (w_i, h_i) of probability p_i, the distortion `h_i (w_i - y)^2`, y any
real number. Importance is never a probability: a source weighted by h has a "limit" that real
quantizers beat.

The certificate of `blahut_arimoto` holds for the reproductions it was given; over a grid it may
claim far more than is true. Here the largest c(y) is looked for over all real y: at every point of
the source (where narrow peaks are), on a grid between, and from the highest of these peaks by
Newton's method. The same peaks become new reproductions, those that are not used make room, and
the problem is solved again until the gap over the reals is closed (an exchange method: a handful of
rounds). Between reproductions that are given nothing is exchanged; the gap then says what the grid
is worth.

Axes: `...` sources, `S` slopes, `N` source symbols, `M` reproductions.

Sources: Rose, IEEE Trans. Inf. Theory 40 (1994), for the finite support of the best output; Hettich
and Kortanek, SIAM Review 35 (1993), for exchange methods.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import logsumexp
from jaxtyping import Array, Bool, Float, Int

from jaxcomp.numerics.checks import check_finite, is_concrete
from jaxcomp.numerics.precision import in_float64
from jaxcomp.rate_distortion.discrete import (
    best_constant,
    check_probabilities,
    check_slopes,
    evaluate,
    maximise,
    round_outward,
    rounding_of,
)

_MAX_ROUNDS = 12
_LEAST_ROUNDS = 3
_NUM_NEWTON = 8
# Passes that lower the multipliers of symbols that stick out, and the peaks refined in each.
_NUM_LOWERED = 4
_NUM_PEAKS = 64
# The grid between the points of the source, where the certificate looks too.
_NUM_GRID = 256
# Candidates at a time: their matrix against the source has to stay small.
_CHUNK = 128


class SquaredErrorPoints(NamedTuple):
    """Points of a rate-distortion curve over real reproductions.

    Attributes:
        rate_nats: (..., S) rate of the channel found, an upper bound on R(D) at its distortion.
        distortion: (..., S) its distortion `E h (w - y)^2`.
        gap_nats: (..., S) how far R(D) over all real reproductions may lie below `rate_nats`:
            `R(D') >= rate_nats - gap_nats - s (D' - D)` for every D', with these numbers as they
            are.
        reproductions: (..., S, M) the reproductions, in no order.
        output_probabilities: (..., S, M) q, from which the channel follows; see `blahut_arimoto`.
        converged: (..., S) whether the gap is at most the one asked for, before rounding to the
            default dtype.
    """

    rate_nats: Float[Array, "... slopes"]
    distortion: Float[Array, "... slopes"]
    gap_nats: Float[Array, "... slopes"]
    reproductions: Float[Array, "... slopes reproductions"]
    output_probabilities: Float[Array, "... slopes reproductions"]
    converged: Bool[Array, "... slopes"]


def squared_error_curve(
    points: Float[Array, "... symbols"],
    importance: Float[Array, "... symbols"] | float,
    slope_nats: Float[Array, "... slopes"],
    *,
    probabilities: Float[Array, "... symbols"] | None = None,
    reproductions: Float[Array, "... reproductions"] | None = None,
    num_reproductions: int = 256,
    gap_nats: float = 1e-4,
) -> SquaredErrorPoints:
    """Return points of R(D) for pairs (w, h) and squared error, certified over all real y.

    Args:
        points: (..., N), w_i, finite.
        importance: h_i >= 0, broadcastable to `points`.
        slope_nats: (..., S), s >= 0 in nats per unit of `h (w - y)^2`, finite; minus the slope.
        probabilities: (..., N), p_i; None means 1/N each.
        reproductions: (..., M), to be used as they are, between which nothing is moved.
        num_reproductions: M of the method's own otherwise, at least 8; static. A rate of R nats
            needs some ten times e^R, sources of very unequal importance more.
        gap_nats: largest gap to stop at, positive.

    Returns:
        The points, in the default dtype. `converged` is false where M reproductions or 12 rounds
        did not suffice; the gap is certified all the same, as far as the search for the largest
        c(y) goes: it looks at every point, at 256 places between, and refines the highest peaks.

    Raises:
        TypeError: if the points are not real numbers.
        ValueError: on shapes that do not fit, fewer than 8 reproductions; where values are known,
            also on points that are not finite, importances that are negative or not finite,
            probabilities that do not sum to 1, slopes that are negative or not finite, and
            `gap_nats` <= 0.
    """
    shapes = _checked(points, importance, slope_nats, probabilities, reproductions)
    _check_values(points, importance, slope_nats, probabilities, reproductions, gap_nats)
    if reproductions is None and num_reproductions < 8:
        raise ValueError(f"num_reproductions must be at least 8, got {num_reproductions}.")
    num_symbols = np.shape(points)[-1]
    shares: Any = np.full((num_symbols,), 1 / num_symbols)
    return _solve(
        points,
        importance,
        slope_nats,
        shares if probabilities is None else probabilities,
        np.zeros((num_reproductions,)) if reproductions is None else reproductions,
        gap_nats,
        shapes=shapes,
        is_fixed=reproductions is not None,
        dtype=jnp.result_type(float),
    )


def _checked(points, importance, slope_nats, probabilities, reproductions) -> tuple[int, ...]:
    """Return the leading axes of all."""
    w, h, s = np.shape(points), np.shape(importance), np.shape(slope_nats)
    if not w or w[-1] == 0:
        raise ValueError(f"points must hold at least one point, got shape {w}.")
    for name, shape in (("importance", h), ("probabilities", np.shape(probabilities))):
        if name == "probabilities" and probabilities is None:
            continue
        try:
            fits = np.broadcast_shapes(w, shape) == w
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name} must have the shape of points, {w}, or broadcast to it, got {shape}."
            )
    if not s:
        raise ValueError("slope_nats must have an axis of slopes, got a number.")
    y = np.shape(reproductions) if reproductions is not None else (1,)
    try:
        return np.broadcast_shapes(w[:-1], s[:-1], y[:-1])
    except ValueError:
        raise ValueError(
            "the leading axes of points (..., N), slope_nats (..., S) and reproductions (..., M) "
            f"must broadcast, got shapes {w}, {s} and {y}."
        ) from None


def _check_values(points, importance, slope_nats, probabilities, reproductions, gap_nats):
    check_finite(jnp.asarray(points), "points")
    check_finite(jnp.asarray(importance), "importance")
    check_finite(jnp.asarray(slope_nats), "slope_nats")
    if reproductions is not None:
        check_finite(jnp.asarray(reproductions), "reproductions")
    if is_concrete(importance) and np.any(np.asarray(importance) < 0):
        raise ValueError(
            f"importance must be at least 0, got {np.min(importance):g}; apply a policy for "
            "negative curvature first."
        )
    check_slopes(slope_nats, gap_nats)
    if probabilities is not None:
        check_probabilities(probabilities)


class _Source(NamedTuple):
    points: Float[Array, " symbols"]
    importance: Float[Array, " symbols"]
    p: Float[Array, " symbols"]


@in_float64("shapes", "is_fixed", "dtype")
def _solve(
    points,
    importance,
    slope_nats,
    probabilities,
    reproductions,
    gap_nats,
    *,
    shapes,
    is_fixed,
    dtype,
) -> SquaredErrorPoints:
    num_symbols, num_slopes = points.shape[-1], slope_nats.shape[-1]
    num_reproductions = reproductions.shape[-1]

    def per_source(values, length):
        return jnp.broadcast_to(values, (*shapes, length)).reshape(-1, length)

    w = per_source(points, num_symbols)
    h = per_source(jnp.broadcast_to(importance, points.shape), num_symbols)
    p = per_source(jnp.broadcast_to(probabilities, points.shape), num_symbols)
    p = p / jnp.sum(p, axis=-1, keepdims=True)
    y = per_source(reproductions, num_reproductions)
    s = per_source(slope_nats, num_slopes).ravel()
    index = jnp.arange(s.shape[0]) // num_slopes

    def lane(arguments):
        index, slope = arguments
        source = _Source(w[index], h[index], p[index])
        return _solve_lane(source, slope, y[index], gap_nats, is_fixed)

    # One after the other: their rounds and Newton steps differ too much to advance together.
    lanes = lax.map(lane, (index, s))
    lanes = lanes._replace(**round_outward(lanes, s, dtype))
    return jax.tree.map(lambda leaf: leaf.reshape(*shapes, num_slopes, *leaf.shape[1:]), lanes)


def _solve_lane(
    source: _Source,
    slope: Float[Array, ""],
    given: Float[Array, " reproductions"],
    gap_nats: Float[Array, ""],
    is_fixed: bool,
) -> SquaredErrorPoints:
    num_moving = given.shape[0] // 4
    if is_fixed:
        candidates = _candidates(source)
        found, _ = _solve_on(source, slope, given, candidates, gap_nats)
        return _tightened(source, slope, found, candidates, gap_nats)

    candidates = _candidates(source)
    settled = _settled_nodes(source, given.shape[0] - 2 * num_moving)

    def exchange(state):
        moving, best, iteration, _ = state
        nodes = jnp.concatenate([settled, moving])
        found, peaks = _solve_on(source, slope, nodes, candidates, gap_nats)
        # A source too rich for M reproductions goes on without getting anywhere.
        is_stuck = (iteration >= _LEAST_ROUNDS) & (found.gap_nats > 0.7 * best.gap_nats)
        best = jax.tree.map(
            lambda new, old: jnp.where(found.gap_nats < best.gap_nats, new, old), found, best
        )
        used = lax.top_k(found.output_probabilities, num_moving)[1]
        return jnp.concatenate([nodes[used], peaks]), best, iteration + 1, is_stuck

    start = jnp.full((2 * num_moving,), settled[0])
    blank = SquaredErrorPoints(
        *(jnp.full((), jnp.inf, given.dtype) for _ in range(3)),
        reproductions=jnp.zeros_like(given),
        output_probabilities=jnp.zeros_like(given),
        converged=jnp.asarray(False),
    )
    best = lax.while_loop(
        lambda state: ~state[1].converged & ~state[3] & (state[2] < _MAX_ROUNDS),
        exchange,
        (start, blank, jnp.int32(0), jnp.asarray(False)),
    )[1]
    return _tightened(source, slope, best, candidates, gap_nats)


def _settled_nodes(source: _Source, number: int) -> Float[Array, " settled"]:
    """Return reproductions that stay in every round, so that no part of the source is left alone.

    The best constant, first; then half of the rest evenly over the points that matter, half at
    their quantiles by `p h`, which follow the source into its narrow places.
    """
    mass = source.p * source.importance
    matters = mass > 0
    low = jnp.min(jnp.where(matters, source.points, jnp.inf))
    high = jnp.max(jnp.where(matters, source.points, -jnp.inf))
    low, high = (jnp.where(jnp.isfinite(edge), edge, 0) for edge in (low, high))
    total = jnp.maximum(jnp.sum(mass), jnp.finfo(mass.dtype).tiny)
    mean = jnp.sum(mass * source.points) / total
    num_even = (number - 1) // 2
    share = jnp.linspace(0, 1, num_even, dtype=mass.dtype)
    order = jnp.argsort(source.points)
    cumulative = jnp.cumsum(mass[order]) / total
    num_quantiles = number - 1 - num_even
    levels = (jnp.arange(num_quantiles, dtype=mass.dtype) + 0.5) / num_quantiles
    quantiles = jnp.interp(levels, cumulative, source.points[order])
    return jnp.concatenate([mean[None], low + share * (high - low), quantiles])


class _Candidates(NamedTuple):
    """Where the largest c(y) is looked for first: `places[order]` ascends."""

    places: Float[Array, " candidates"]
    order: Int[Array, " candidates"]


def _candidates(source: _Source) -> _Candidates:
    """Return all points of the source, then a grid between.

    A narrow peak of c belongs to one heavy source symbol and sits at its point; wide ones, of many
    symbols together, are met by the grid.
    """
    low, high = jnp.min(source.points), jnp.max(source.points)
    number = _NUM_GRID + -(source.points.shape[0] + _NUM_GRID) % _CHUNK
    share = jnp.linspace(0, 1, number, dtype=low.dtype)
    places = jnp.concatenate([source.points, low + share * (high - low)])
    return _Candidates(places, jnp.argsort(places))


def _solve_on(
    source: _Source,
    slope: Float[Array, ""],
    nodes: Float[Array, " reproductions"],
    candidates: _Candidates,
    gap_nats: Float[Array, ""],
) -> tuple[SquaredErrorPoints, Float[Array, " peaks"]]:
    """Solve for given reproductions; also return the highest peaks of c(y), a quarter as many."""
    distances = source.importance[:, None] * (source.points[:, None] - nodes[None, :]) ** 2
    lowest = jnp.min(distances, axis=1)
    exponent = slope * (distances - lowest[:, None])
    # A quarter of the gap for the probabilities; the places get the rest.
    q = maximise(source.p, jnp.exp(-exponent), 0.25 * gap_nats)
    q = jnp.where(slope == 0, best_constant(source.p, distances, q), q)
    rate, grid_gap, output, joint = evaluate(source.p, exponent, q)

    log_ratio = _log_ratio(source, slope, nodes, q)
    peaks, log_peak, _ = _highest_peaks(source, slope, log_ratio, candidates, nodes.shape[0] // 4)
    # The largest c on the nodes is in `grid_gap` already.
    on_nodes = jnp.max(logsumexp(_terms(source, slope, log_ratio, nodes), axis=1))
    gap = grid_gap + jnp.maximum(log_peak - on_nodes, 0)
    points = SquaredErrorPoints(
        rate_nats=rate,
        distortion=jnp.sum(joint * distances),
        gap_nats=gap,
        reproductions=nodes,
        output_probabilities=output,
        converged=gap <= gap_nats,
    )
    return points, peaks


def _log_ratio(
    source: _Source,
    slope: Float[Array, ""],
    nodes: Float[Array, " reproductions"],
    q: Float[Array, " reproductions"],
) -> Float[Array, " symbols"]:
    """Return ln(p / Z), -infinity for symbols of probability 0."""
    distances = source.importance[:, None] * (source.points[:, None] - nodes[None, :]) ** 2
    log_q = jnp.where(q > 0, jnp.log(jnp.where(q > 0, q, 1)), -jnp.inf)
    log_z = logsumexp(log_q[None, :] - slope * distances, axis=1)
    log_p = jnp.log(jnp.where(source.p > 0, source.p, 1))
    return jnp.where(source.p > 0, log_p - log_z, -jnp.inf)


def _terms(
    source: _Source, slope: Float[Array, ""], log_ratio: Float[Array, " symbols"], y: Array
) -> Float[Array, "places symbols"]:
    """Return the logarithms of the terms of c(y)."""
    deviation = source.points[None, :] - y[:, None]
    return log_ratio[None, :] - slope * source.importance[None, :] * deviation * deviation


def _tightened(
    source: _Source,
    slope: Float[Array, ""],
    found: SquaredErrorPoints,
    candidates: _Candidates,
    gap_nats: Float[Array, ""],
) -> SquaredErrorPoints:
    """Return the points with the best lower bound that a few changes of the multipliers give.

    Any multipliers l_i with `sum_i l_i exp(-s h_i (w_i - y)^2) <= 1` for all y prove
    `R(D) >= -s D + sum p ln(l / p)`. Dividing them all by the highest peak is wasteful where a few
    heavy symbols stick out of a source that is too rich for the reproductions: dividing those by
    their own peaks costs only their own probability.
    """
    log_ratio = _log_ratio(source, slope, found.reproductions, found.output_probabilities)
    has_mass = source.p > 0
    log_p = jnp.log(jnp.where(has_mass, source.p, 1))
    num_points = source.points.shape[0]

    def lower(_, state):
        log_ratio, best = state
        _, log_peak, values = _highest_peaks(source, slope, log_ratio, candidates, _NUM_PEAKS)
        mean = jnp.sum(jnp.where(has_mass, source.p * (log_ratio - log_p), 0))
        expected = slope * found.distortion
        numbers = jnp.abs(mean) + jnp.abs(log_peak) + expected
        size = found.reproductions.shape[0] + num_points
        bound = mean - log_peak - expected - rounding_of(size, numbers)
        return log_ratio - jnp.maximum(values[:num_points], 0), jnp.maximum(best, bound)

    start = jnp.full((), -jnp.inf, log_ratio.dtype)
    _, bound = lax.fori_loop(0, _NUM_LOWERED, lower, (log_ratio, start))
    gap = jnp.minimum(found.gap_nats, jnp.maximum(found.rate_nats - bound, 0))
    return found._replace(gap_nats=gap, converged=gap <= gap_nats)


def _highest_peaks(
    source: _Source,
    slope: Float[Array, ""],
    log_ratio: Float[Array, " symbols"],
    candidates: _Candidates,
    num_peaks: int,
) -> tuple[Float[Array, " peaks"], Float[Array, ""], Float[Array, " candidates"]]:
    """Return the places of the highest peaks of ln c, the highest value met, all candidates'."""

    def terms(y: Array) -> Array:
        return _terms(source, slope, log_ratio, y)

    chunks = candidates.places.reshape(-1, _CHUNK)
    unordered = lax.map(lambda y: logsumexp(terms(y), axis=1), chunks).ravel()
    places, values = candidates.places[candidates.order], unordered[candidates.order]
    below = jnp.append(-jnp.inf, values[:-1])
    above = jnp.append(values[1:], -jnp.inf)
    is_peak = (values >= below) & (values > above)
    chosen = lax.top_k(jnp.where(is_peak, values, -jnp.inf), num_peaks)[1]
    low = places[jnp.maximum(chosen - 1, 0)]
    high = places[jnp.minimum(chosen + 1, places.shape[0] - 1)]

    def refine(_, state):
        y, best_y, best = state
        exponents = terms(y)
        value = logsumexp(exponents, axis=1)
        weights = jnp.exp(exponents - value[:, None])
        stiff = (2 * slope * source.importance)[None, :]
        pull = stiff * (source.points[None, :] - y[:, None])
        first = jnp.sum(weights * pull, axis=1)
        stiffness = jnp.sum(weights * stiff, axis=1)
        second = jnp.sum(weights * pull * pull, axis=1) - stiffness - first * first
        # Where ln c is not concave, a step of the mean-shift iteration, which always ascends.
        step = first / jnp.maximum(jnp.where(second < 0, -second, stiffness), 1e-300)
        is_better = value > best
        best_y, best = jnp.where(is_better, y, best_y), jnp.where(is_better, value, best)
        return jnp.clip(y + step, low, high), best_y, best

    start = places[chosen]
    _, peaks, heights = lax.fori_loop(
        0, _NUM_NEWTON, refine, (start, start, jnp.full_like(start, -jnp.inf))
    )
    return peaks, jnp.maximum(jnp.max(values), jnp.max(heights)), unordered
