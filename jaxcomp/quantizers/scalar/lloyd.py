"""Weighted K-means of scalars on moments: Lloyd's iteration, plain or with a diameter penalty.

Distortion convention, here and everywhere: `sum h_i (w_i - c_{a(i)})^2`, twice the loss rise that
the curvature h predicts. In one dimension the importances h move the centres, never the choice of
the centre: assignment is to the nearest one, ties to the lower index.

On a histogram of moments a bin goes whole to the cluster of its position, and a cluster is a run
of bins, whose sums are differences of two entries of a table: an iteration costs O(K log B),
whatever N. Neither K nor the penalty is static, so that a sweep over both compiles once.

In float64 inside, in the units of the moments: no result depends on the scale of the weights or of
their importances, and one weight of 1e30 leaves the others their digits.

Axes: `...` groups, `N` points, `B` bins, `K` clusters (`max_clusters` of them, the first
`num_clusters` in use).

Sources: Lloyd, IEEE Trans. Inf. Theory 28 (1982); Choi, El-Khamy, Lee, arXiv:1612.01543, section
3.3 (Hessian weights); Bu et al., arXiv:1901.09421 (diameter).
"""

from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxcomp.numerics.checks import (
    check_codebook_size,
    check_count,
    check_initial_centroids,
    check_penalty,
    check_points,
)
from jaxcomp.numerics.pairs import Pair
from jaxcomp.numerics.precision import in_float64, lacks_float64
from jaxcomp.numerics.scaling import normalise, restore, restore_as, split
from jaxcomp.numerics.sums import (
    count_below,
    middle_bin,
    pairwise_sum,
    running_maximum,
    running_sum,
)
from jaxcomp.numerics.transformations import (
    always_compiled,
    vectorized,
    with_codebook_held_fixed,
    without_derivative,
)
from jaxcomp.quantizers.assignment import assign, midpoints, nearest_thresholds
from jaxcomp.quantizers.histograms import (
    MOMENTS_SIGNATURE,
    Moments,
    about_one,
    accumulation_dtype,
    bins_for,
)
from jaxcomp.quantizers.scalar.coarse_to_fine import coarse_to_fine_centroids
from jaxcomp.quantizers.scalar.diameter import (
    PENALTY_FORMS,
    Clusters,
    PenaltyForm,
    penalty_term,
    update_centres,
)
from jaxcomp.quantizers.scalar.moment_sums import anchored_moments, between
from jaxcomp.quantizers.solution import (
    Codebook,
    QuantizationResult,
    Solution,
    bucket_moments,
    diameter_in_use,
    distortion_of_points,
    quantize_bucket,
    quantized,
)

PenaltyScale = Literal["relative", "absolute"]
PENALTY_SCALES: tuple[str, ...] = get_args(PenaltyScale)
Start = Literal["coarse_to_fine", "quantiles"]
STARTS: tuple[str, ...] = get_args(Start)


class _Prefix(NamedTuple):
    """What sums over runs of bins are read from; the difference of rows is the run between them."""

    position: Float[Array, " bins"]
    sums: Float[Array, "bins_plus_1 2"] | Pair  # of mass and first moment about the centre
    centre: Float[Array, ""]
    next_position: Float[Array, " bins_plus_1"]
    previous_position: Float[Array, " bins_plus_1"]


@partial(
    jax.jit,
    static_argnames=("max_clusters", "penalty_form", "penalty_scale", "start", "centroid_dtype"),
)
@without_derivative
def solve_kmeans(
    moments: Moments,
    num_clusters: Int[Array, "..."] | int,
    diameter_penalty: Float[Array, "..."] | float = 0.0,
    *,
    max_clusters: int,
    penalty_form: PenaltyForm = "monotone",
    num_iterations: Int[Array, ""] | int = 30,
    penalty_scale: PenaltyScale = "relative",
    start: Start = "coarse_to_fine",
    initial_centroids: Float[Array, "... clusters"] | None = None,
    centroid_dtype: jnp.dtype | None = None,
) -> Solution:
    """Weighted K-means with a diameter penalty, on moments.

    Alternates nearest-centre assignment with the centre update of `penalty_form`, from `start` to
    a fixed point or for `num_iterations`. Without a penalty, with "monotone" and with "linear", no
    step raises the objective. A cluster that loses its mass keeps its centre, brought between the
    outermost centres in use (so that it never widens the codebook), and is reported.

    Args:
        moments: of (...) groups.
        num_clusters: K, traced; broadcast against the leading axes of the moments. Clipped to
            1..`max_clusters`.
        diameter_penalty: beta >= 0, traced, broadcast likewise.
        max_clusters: size of the codebook, static.
        penalty_form: "none"; "monotone", `beta diameter^2` minimised exactly at every step;
            "published", the same objective by Algorithm 1 of the paper, which may raise it;
            "linear", `(beta / 2) diameter`. The diameter is that of the clusters with mass.
        num_iterations: most centre updates, traced.
        penalty_scale: "relative" multiplies beta by `sum h` (squared forms) or by
            `sum h * std_h(w)` (linear), so that one number serves layers of any size;
            "absolute" takes it as it is.
        start: "coarse_to_fine", nearly the best intervals without a penalty (nothing is left for
            the iteration to do then); or "quantiles", (k + 1/2) / K of the unweighted points, made
            distinct, from which Lloyd's iteration ends far above on heavy tails (43 % with
            Student-t weights and K = 16). Static.
        initial_centroids: (..., K) to start from instead, in any order; the first `num_clusters`
            count.
        centroid_dtype: dtype the centroids are stored in (before the last assignment); by default
            that of the moments.

    Returns:
        The codebook and its cost, bins taken whole; see `kmeans` for that of the points.

    Raises:
        ValueError: while tracing, on an unknown option or `max_clusters < 1`.
    """
    return solve_with_penalty(
        moments,
        num_clusters,
        diameter_penalty,
        max_clusters=max_clusters,
        penalty_form=penalty_form,
        num_iterations=num_iterations,
        penalty_scale=penalty_scale,
        start=start,
        initial_centroids=initial_centroids,
        centroid_dtype=centroid_dtype,
    )[0]


def solve_with_penalty(
    moments: Moments,
    num_clusters: Int[Array, "..."] | int,
    diameter_penalty: Float[Array, "..."] | float,
    *,
    max_clusters: int,
    penalty_form: PenaltyForm,
    num_iterations: Int[Array, ""] | int,
    penalty_scale: PenaltyScale,
    start: Start,
    initial_centroids: Float[Array, "... clusters"] | None,
    centroid_dtype: jnp.dtype | None,
) -> tuple[Solution, Float[Array, "..."]]:
    """As `solve_kmeans`; also return the absolute beta, for the penalty of the points."""
    if penalty_form not in PENALTY_FORMS:
        raise ValueError(f"penalty_form must be one of {PENALTY_FORMS}, got {penalty_form!r}.")
    if penalty_scale not in PENALTY_SCALES:
        raise ValueError(f"penalty_scale must be one of {PENALTY_SCALES}, got {penalty_scale!r}.")
    if start not in STARTS:
        raise ValueError(f"start must be one of {STARTS}, got {start!r}.")
    check_count("max_clusters", max_clusters)
    dtype = moments.position.dtype
    solve = partial(
        _solve_group,
        num_iterations=jnp.asarray(num_iterations, jnp.int32),
        max_clusters=max_clusters,
        penalty_form=penalty_form,
        penalty_scale=penalty_scale,
        start=start,
        centroid_dtype=jnp.dtype(centroid_dtype or dtype),
    )
    arguments = [
        *moments,
        jnp.asarray(num_clusters).astype(jnp.int32),
        jnp.asarray(diameter_penalty).astype(dtype),
    ]
    signature = f"{MOMENTS_SIGNATURE},(),()"
    if initial_centroids is not None:
        arguments.append(jnp.asarray(initial_centroids).astype(dtype))
        signature += ",(k)"
    outputs = "(k),(j),(),(),(),(),(),()"
    found = vectorized(solve, signature=f"{signature}->{outputs}")(*arguments)
    centroids, thresholds, num_live, *costs, beta = found
    return Solution(Codebook(centroids, thresholds, num_live), *costs), beta


def _solve_group(*arguments: Array, penalty_form: PenaltyForm, **options) -> tuple[Array, ...]:
    moments = Moments(*arguments[: len(Moments._fields)])
    dtype = moments.position.dtype
    num_clusters, diameter_penalty, *initial = arguments[len(Moments._fields) :]
    solve = _solve_in_float64
    if dtype != jnp.float64 and lacks_float64():
        moments, solve = about_one(moments), _solve_in_units
    initial = [normalise(centroids, moments.exponent) for centroids in initial]
    centroids, thresholds, num_live, costs, iterations, converged = solve(
        *moments,
        num_clusters,
        diameter_penalty,
        *initial,
        penalty_form=penalty_form,
        dtype=dtype,
        **options,
    )
    of_mass = moments.mass_exponent
    of_distortion = of_mass + 2 * moments.exponent
    of_beta = of_mass + (moments.exponent if penalty_form == "linear" else 0)
    units = jnp.stack([of_distortion, of_distortion, of_beta])
    distortion, penalty, beta = restore(costs[0], costs[1] + units, axis=())
    return (
        centroids,
        thresholds,
        num_live,
        distortion,
        distortion + penalty,
        iterations,
        converged,
        beta,
    )


def _solve_in_units(
    *arguments: Float[Array, "..."],
    num_iterations: Float[Array, ""],
    max_clusters: int,
    penalty_form: PenaltyForm,
    penalty_scale: PenaltyScale,
    start: Start,
    centroid_dtype: jnp.dtype,
    dtype: jnp.dtype,
) -> tuple[Any, ...]:
    """Solve one group; distortion, penalty and beta come as three numbers and their exponents.

    In the dtype of the positions: float64, or float32 about 1, whose sums are pairs.
    """
    moments = Moments(*arguments[: len(Moments._fields)])
    num_clusters, diameter_penalty, *initial = arguments[len(Moments._fields) :]
    moments = moments._replace(
        num_points=moments.num_points.astype(jnp.int32),
        exponent=moments.exponent.astype(jnp.int32),
        mass_exponent=moments.mass_exponent.astype(jnp.int32),
    )
    num_iterations = num_iterations.astype(jnp.int32)
    prefix = _prefix_sums(moments)
    beta = _absolute_penalty(moments, prefix, diameter_penalty, penalty_form, penalty_scale)
    num_live = jnp.clip(num_clusters.astype(jnp.int32), 1, max_clusters)
    is_live = jnp.arange(max_clusters, dtype=jnp.int32) < num_live
    if initial:
        first = jnp.sort(jnp.where(is_live, initial[0], jnp.inf))
    elif start == "quantiles":
        first = quantile_start(moments, num_live, max_clusters)
    else:
        first = coarse_to_fine_centroids(
            moments.position, moments.mass, num_live, max_clusters=max_clusters
        )
    first = _repeat_last(first, is_live, num_live)

    def step(state):
        centroids, iteration, _ = state
        new = _update(prefix, centroids, is_live, beta, penalty_form)
        new = _repeat_last(new, is_live, num_live)
        return new, iteration + 1, jnp.all(new == centroids)

    centroids, iterations, converged = lax.while_loop(
        lambda state: ~state[2] & (state[1] < num_iterations),
        step,
        (first, jnp.int32(0), jnp.asarray(False)),
    )
    # What is reported refers to centroids as they are stored.
    stored = restore_as(centroids.astype(dtype), moments.exponent, centroid_dtype)
    rounded = normalise(stored.astype(dtype), moments.exponent)
    thresholds = nearest_thresholds(rounded)
    distortion, diameter = _evaluate(
        moments, rounded.astype(moments.position.dtype), thresholds.astype(moments.position.dtype)
    )
    penalty = penalty_term(diameter, beta, penalty_form=penalty_form)
    return (
        stored,
        restore(thresholds, moments.exponent, rounds_down=True),
        num_live,
        split(jnp.stack([distortion, penalty, beta]), dtype),
        iterations,
        converged,
    )


_solve_in_float64 = in_float64(
    "max_clusters", "penalty_form", "penalty_scale", "start", "centroid_dtype", "dtype"
)(_solve_in_units)


def _repeat_last(centroids, is_live, num_live):
    """Overwrite the padding with the last centre in use."""
    return jnp.where(is_live, centroids, centroids[num_live - 1])


def _prefix_sums(moments: Moments) -> _Prefix:
    position, mass = moments.position, moments.mass
    middle = middle_bin(mass)
    centre = position[middle]
    has_mass = mass > 0
    infinity = jnp.full((1,), jnp.inf, position.dtype)
    # Both neighbours from one pass: the next one is the previous one in the mirrored order.
    signed = jnp.stack([position, -position[::-1]], axis=-1)
    has_mass = jnp.stack([has_mass, has_mass[::-1]], axis=-1)
    previous = running_maximum(jnp.where(has_mass, signed, -jnp.inf))
    previous_position, next_position = previous[:, 0], -previous[::-1, 1]
    return _Prefix(
        position=position,
        sums=anchored_moments(position, mass, middle, 2),
        centre=centre,
        next_position=jnp.concatenate([next_position, infinity]),
        previous_position=jnp.concatenate([-infinity, previous_position]),
    )


def quantile_start(
    moments: Moments, num_live: Int[Array, ""], max_clusters: int
) -> Float[Array, " clusters"]:
    """Return the quantiles (k + 1/2) / K of the points, shifted apart to distinct bins."""
    is_occupied = moments.num_points > 0
    # Points up to each bin, and occupied bins up to it: 1 + the bin's rank among them.
    numbers = jnp.stack([moments.num_points, is_occupied.astype(jnp.int32)], axis=-1)
    cumulative, rank = running_sum(numbers).T
    num_points, num_occupied = cumulative[-1], rank[-1]
    by_rank = jnp.zeros_like(moments.position).at[jnp.where(is_occupied, rank - 1, rank.size)]
    by_rank = by_rank.set(moments.position, mode="drop")
    k = jnp.arange(max_clusters, dtype=jnp.int32)
    num_distinct = jnp.minimum(num_live, num_occupied)
    # floor((2 k + 1) N / (2 K)) without overflow: divide N first.
    twice = 2 * num_distinct
    quotient, remainder = num_points // twice, num_points % twice
    order = (2 * k + 1) * quotient + ((2 * k + 1) * remainder) // twice
    bins = count_below(cumulative, order)
    ranks = rank[jnp.clip(bins, 0, rank.shape[0] - 1)]
    ranks = running_maximum(ranks - k) + k
    ranks = jnp.minimum(ranks, num_occupied - num_distinct + 1 + k)
    return by_rank[jnp.clip(ranks, 1, num_occupied) - 1]


def _absolute_penalty(
    moments: Moments,
    prefix: _Prefix,
    diameter_penalty: Float[Array, ""],
    penalty_form: PenaltyForm,
    penalty_scale: PenaltyScale,
) -> Float[Array, ""]:
    if penalty_scale == "absolute":
        unit = moments.mass_exponent + (moments.exponent if penalty_form == "linear" else 0)
        return normalise(diameter_penalty, unit, axis=())
    total = pairwise_sum(moments.mass)
    if penalty_form != "linear":
        return diameter_penalty * total
    deviation = moments.position - prefix.centre
    squares = deviation * deviation + moments.deviation * moments.deviation
    # About the centre; the mean is as far from it as the first moment says.
    first = pairwise_sum(moments.mass * deviation)
    variance = pairwise_sum(moments.mass * squares) * total - first * first
    return diameter_penalty * jnp.sqrt(jnp.maximum(variance, 0))


def _update(
    prefix: _Prefix,
    centroids: Float[Array, " clusters"],
    is_live: Bool[Array, " clusters"],
    beta: Float[Array, ""],
    penalty_form: PenaltyForm,
) -> Float[Array, " clusters"]:
    """Assign the bins to their nearest centres, then move the centres.

    Coincident centres, as penalties make them, share the points between them: those above go to
    the highest one. That is a nearest assignment like any other, and they can part again.
    """
    thresholds = jnp.where(is_live[1:], midpoints(centroids), jnp.inf)
    clusters = _cluster_sums(prefix, thresholds)
    has_mass = clusters.has_mass
    moved = update_centres(clusters, beta, penalty_form=penalty_form)
    low = jnp.min(jnp.where(has_mass, moved, jnp.inf))
    high = jnp.max(jnp.where(has_mass, moved, -jnp.inf))
    # A cluster without mass may gain points later: outside the others it would widen the
    # codebook then, and the objective could rise.
    kept = jnp.clip(centroids, low, jnp.maximum(low, high))
    moved = jnp.where(has_mass, moved, jnp.where(low <= high, kept, centroids))
    if penalty_form == "published":
        moved = jnp.sort(moved)
    return moved


def _cluster_sums(prefix: _Prefix, thresholds: Float[Array, " clusters-1"]) -> Clusters:
    num_bins = prefix.position.shape[0]
    cuts = count_below(prefix.position, thresholds)
    start = jnp.concatenate([jnp.zeros((1,), jnp.int32), cuts])
    stop = jnp.concatenate([cuts, jnp.full((1,), num_bins, jnp.int32)])
    of_run = between(prefix.sums, start, stop)
    mass, moment = (of_run.high if isinstance(of_run, Pair) else of_run).T
    lowest, highest = prefix.next_position[start], prefix.previous_position[stop]
    # Whether any bin of the run has mass is decided without rounding.
    has_mass = lowest <= highest
    mass = jnp.where(has_mass, mass, 0)
    mean = prefix.centre + moment / jnp.where(mass > 0, mass, 1)
    # Rounding must not push a mean out of its own points: a run of equal points is met exactly.
    mean = jnp.clip(mean, lowest, jnp.maximum(lowest, highest))
    return Clusters(mass=mass, mean=mean, has_mass=has_mass)


def _evaluate(
    moments: Moments,
    centroids: Float[Array, " clusters"],
    thresholds: Float[Array, " clusters-1"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the distortion and the diameter of the clusters with mass."""
    bins = assign(moments.position, thresholds).astype(jnp.int32)
    nearest = centroids[bins]
    deviation = moments.position - nearest
    squares = deviation * deviation + moments.deviation * moments.deviation
    return pairwise_sum(moments.mass * squares), diameter_in_use(nearest, moments.mass)


@always_compiled
@with_codebook_held_fixed(distortion_of_points)
def kmeans(
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None = None,
    *,
    num_clusters: Int[Array, "..."] | int,
    max_clusters: int | None = None,
    diameter_penalty: Float[Array, "..."] | float = 0.0,
    penalty_form: PenaltyForm = "monotone",
    penalty_scale: PenaltyScale = "relative",
    num_iterations: Int[Array, ""] | int = 30,
    num_bins: int = 4096,
    start: Start = "coarse_to_fine",
    initial_centroids: Float[Array, "... clusters"] | None = None,
) -> QuantizationResult:
    """Quantize every group of points by weighted K-means, with an optional diameter penalty.

    Minimises `sum h (w - c)^2 + penalty` over intervals and centres. Up to `num_bins` points the
    iteration is Lloyd's on the points themselves, beyond on their histogram of moments. Centroids
    are rounded to the dtype of the points before the points are assigned to the nearest of them;
    the distortion is recomputed from that assignment. With as many clusters as distinct points the
    distortion is 0 and `num_used` says how many were needed.

    Under differentiation the codebook is a constant, and distortion and objective have the
    derivative of it held fixed (see `jaxcomp.numerics.transformations`).

    Args:
        points: (..., N) floating, finite.
        importance: h >= 0, broadcastable to `points`; None means 1. Every group needs some.
        num_clusters: K >= 1. An int, or an array that broadcasts against the leading axes (then
            `max_clusters` is required); changing it compiles nothing if `max_clusters` stays.
        max_clusters: size of the returned codebook, static; defaults to `num_clusters`.
        diameter_penalty: beta >= 0, like `num_clusters` traced.
        penalty_form: "none", "monotone", "published" or "linear"; see `solve_kmeans`.
        penalty_scale: "relative" or "absolute"; see `solve_kmeans`.
        num_iterations: most centre updates.
        num_bins: bins of the histogram for N > `num_bins`, static; 16 for each of `max_clusters`
            if that is more.
        start: "coarse_to_fine" or "quantiles"; see `solve_kmeans`. Static.
        initial_centroids: (..., max_clusters) to start from instead; `plus_plus_start` draws some.

    Returns:
        Centroids, assignments, distortion and diagnostics.

    Raises:
        TypeError: if the points are not floating or `num_clusters` is not an integer.
        ValueError: on NaN or infinite points or weights, negative weights, a group whose weights
            are all 0, no points, K < 1 or K > `max_clusters`, a negative penalty, an unknown
            option. Values are checked only where they are known, outside `jit` and `vmap`.
    """
    points, importance = check_points(points, importance)
    num_clusters, max_clusters = check_codebook_size(num_clusters, max_clusters)
    check_penalty(diameter_penalty)
    num_bins = bins_for(num_bins, max_clusters)
    return quantized(
        _kmeans,
        points,
        importance,
        (num_clusters, 0),
        (jnp.asarray(diameter_penalty, accumulation_dtype(points.dtype)), 0),
        (jnp.asarray(num_iterations, jnp.int32), 0),
        (check_initial_centroids(initial_centroids, max_clusters), 1),
        max_clusters=max_clusters,
        penalty_form=penalty_form,
        penalty_scale=penalty_scale,
        num_bins=num_bins,
        start=start,
    )


@partial(
    jax.jit,
    static_argnames=("max_clusters", "penalty_form", "penalty_scale", "num_bins", "start"),
)
def _kmeans(
    bucket,
    num_clusters,
    diameter_penalty,
    num_iterations,
    initial_centroids,
    *,
    max_clusters,
    penalty_form,
    penalty_scale,
    num_bins,
    start,
):
    solution, beta = solve_with_penalty(
        bucket_moments(bucket, num_bins=num_bins),
        num_clusters,
        diameter_penalty,
        max_clusters=max_clusters,
        penalty_form=penalty_form,
        num_iterations=num_iterations,
        penalty_scale=penalty_scale,
        start=start,
        initial_centroids=initial_centroids,
        centroid_dtype=bucket.points.dtype,
    )
    return quantize_bucket(
        bucket,
        solution.codebook,
        num_iterations=solution.num_iterations,
        converged=solution.converged,
        beta=beta,
        penalty_form=penalty_form,
    )
