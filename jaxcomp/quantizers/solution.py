"""What scalar solvers return, and what their codebooks make of the points.

A solver works on a histogram and returns a `Solution`; `quantize_points` assigns the raw points by
its codebook and measures everything again on them.

Axes: `...` groups, `N` points, `K` clusters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt

from jaxcomp.numerics import across
from jaxcomp.numerics.scaling import group_exponent, normalise, restore, split
from jaxcomp.numerics.sums import pairwise_sum, running_maximum
from jaxcomp.quantizers import placed
from jaxcomp.quantizers.assignment import assign
from jaxcomp.quantizers.bins import PointBins, chunk_of, in_chunks
from jaxcomp.quantizers.histograms import (
    LOG2_LARGEST,
    Moments,
    accumulation_dtype,
    histogram_moments,
    importance_in_units,
    points_in_units,
    sum_of_squares,
)
from jaxcomp.quantizers.one_pass import (
    LEAST_NORMAL,
    below_magnitude,
    is_one_large_group,
    quickly_on_cpus,
)
from jaxcomp.quantizers.padding import Bucketed, bucketed, without_copies, without_filling
from jaxcomp.quantizers.scalar.diameter import PenaltyForm, penalty_term

# Counters of a cluster that are increased in turns, for so many clusters at most: to read what was
# written just now takes longer.
_LANES, _FEW_CLUSTERS = 16, 64


class Codebook(NamedTuple):
    """Centres of one group (or of many, with leading axes) and the points they serve.

    Attributes:
        centroids: (..., K) ascending, already rounded to the dtype they are stored in; entries
            from `num_clusters` on repeat the last one.
        thresholds: (..., K - 1): a point w goes to cluster `#{t : w > t}`; +inf where no cluster
            is left.
        num_clusters: (...) int32, how many of the K entries are meant.
    """

    centroids: Float[Array, "... clusters"]
    thresholds: Float[Array, "... clusters-1"]
    num_clusters: Int[Array, "..."]


class Solution(NamedTuple):
    """The codebook a scalar solver found on a histogram of moments, and what it costs there.

    Attributes:
        codebook: (...) of each group.
        distortion: (...) weighted distortion of the histogram, bins taken whole. Infinite or 0 if
            it is out of the range of floats, as `objective`; nothing depends on them.
        objective: (...) what was minimised: the distortion and what the penalty adds to it.
        num_iterations: (...) int32, centre updates done.
        converged: (...) bool, whether the last update changed nothing.
    """

    codebook: Codebook
    distortion: Float[Array, "..."]
    objective: Float[Array, "..."]
    num_iterations: Int[Array, "..."]
    converged: Bool[Array, "..."]


class QuantizationResult(NamedTuple):
    """A quantized group of points (or many, with leading axes).

    Attributes:
        centroids: (..., K) ascending, dtype of the points; entries from `num_clusters` on repeat
            the last one.
        assignments: (..., N), smallest unsigned dtype: `centroids[assignments]` are the
            quantized points.
        distortion: (...) `sum h (w - c)^2` over the raw points, weight units squared times h.
            Infinite or 0 if that is out of the range of floats; nothing depends on it.
        num_used: (...) int32, distinct centres with points; `num_clusters` may be more.
        counts: (..., K) int32, points of each cluster.
        objective: (...) distortion plus penalty term.
        num_empty: (...) int32, `num_clusters - num_used`.
        num_iterations: (...) int32, centre updates done.
        converged: (...) bool, whether the last update changed nothing.
    """

    centroids: Float[Array, "... clusters"]
    assignments: UInt[Array, "... points"]
    distortion: Float[Array, "..."]
    num_used: Int[Array, "..."]
    counts: Int[Array, "... clusters"]
    objective: Float[Array, "..."]
    num_empty: Int[Array, "..."]
    num_iterations: Int[Array, "..."]
    converged: Bool[Array, "..."]


def bucket_moments(bucket: Bucketed, *, num_bins: int) -> Moments:
    """Return the histogram of the points of a bucket, without its copies."""
    return histogram_moments(
        bucket.points, bucket.weights(), num_bins=num_bins, num_padding=bucket.num_padding
    )


def quantized(
    kernel: Callable[..., QuantizationResult],
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None,
    *arguments: tuple[Any, int],
    num_bins: int,
    **options: Any,
) -> QuantizationResult:
    """Quantize points on the devices that hold them, or filled up to a size that others have.

    Args:
        kernel: `(bucket, *arguments, num_bins, **options)`, of groups along leading axes.
        points: (..., N).
        importance: broadcastable to the points, or None.
        arguments: as in `placed.run`.
        num_bins: of the histogram.
        options: of the kernel, static.
    """
    spread = placed.spread_of(points)
    if spread is None:
        bucket = bucketed(points, importance, num_bins=num_bins)
        result = kernel(bucket, *(value for value, _ in arguments), num_bins=num_bins, **options)
        assignments = without_filling(result.assignments, points.shape[-1])
        return result._replace(assignments=assignments)
    return placed.run(
        OfBucket(kernel),
        spread,
        points,
        importance,
        *arguments,
        whole_up_to=num_bins,
        result=QuantizationResult,
        num_bins=num_bins,
        **options,
    )


class OfBucket(NamedTuple):
    """A kernel of a bucket as one of points that are not filled up."""

    kernel: Callable[..., QuantizationResult]

    def __call__(
        self, points: Array, importance: Array | None, *arguments: Any, **options: Any
    ) -> QuantizationResult:
        """Run the kernel."""
        return self.kernel(Bucketed(points, importance, None), *arguments, **options)


def quantize_bucket(
    bucket: Bucketed,
    codebook: Codebook,
    *,
    num_iterations: Int[Array, "..."],
    converged: Bool[Array, "..."],
    beta: Float[Array, "..."] | None = None,
    penalty_form: PenaltyForm = "none",
) -> QuantizationResult:
    """As `quantize_points`; copies are assigned too, but neither weighed nor counted."""
    return quantize_points(
        bucket.points,
        bucket.weights(),
        codebook,
        num_iterations=num_iterations,
        converged=converged,
        beta=beta,
        penalty_form=penalty_form,
        num_padding=bucket.num_padding,
    )


def quantize_points(
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None,
    codebook: Codebook,
    *,
    num_iterations: Int[Array, "..."],
    converged: Bool[Array, "..."],
    beta: Float[Array, "..."] | None = None,
    penalty_form: PenaltyForm = "none",
    num_padding: Int[Array, ""] | None = None,
) -> QuantizationResult:
    """Assign the raw points by the thresholds of a codebook and recompute what is reported.

    Args:
        points: (..., N).
        importance: broadcastable to `points`, or None.
        codebook: leading axes as `points`.
        num_iterations: centre updates that led to the codebook.
        converged: whether the last of them changed nothing.
        beta: (...) the absolute multiplier of the penalty; None without one.
        penalty_form: the form the codebook was made with.
        num_padding: as in `histogram_moments`.

    Returns:
        The result, with distortion, diameter and counts of the points themselves.
    """
    shape = (*codebook.num_clusters.shape, points.shape[-1])
    assignments = assign(jnp.broadcast_to(points, shape), codebook.thresholds)
    counts, has_mass, square, of_square = _measured(
        points, importance, codebook.centroids, assignments, num_padding
    )
    distortion = restore(square, of_square, axis=())
    penalty = jnp.zeros_like(distortion)
    if beta is not None:
        # In units of their own: a difference may be out of range.
        centroids = codebook.centroids.astype(accumulation_dtype(points.dtype))
        exponent = group_exponent(centroids) - LOG2_LARGEST
        used = diameter_in_use(normalise(centroids, exponent), has_mass.astype(centroids.dtype))
        diameter = restore(used, exponent, axis=())
        penalty = penalty_term(diameter, beta, penalty_form=penalty_form)
    num_used = jnp.sum(counts > 0, axis=-1, dtype=jnp.int32)
    return QuantizationResult(
        centroids=codebook.centroids,
        assignments=assignments,
        distortion=distortion,
        num_used=num_used,
        counts=counts,
        objective=distortion + penalty,
        num_empty=codebook.num_clusters - num_used,
        num_iterations=num_iterations,
        converged=converged,
    )


def _measured(
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None,
    centroids: Float[Array, "... clusters"],
    assignments: UInt[Array, "... points"],
    num_padding: Int[Array, ""] | None,
) -> tuple[
    Int[Array, "... clusters"], Bool[Array, "... clusters"], Float[Array, "..."], Int[Array, "..."]
]:
    """As `_measure`, of points, importances and centroids as they come."""
    if not is_one_large_group(points, importance, centroids.shape[-1]) or (
        assignments.size != points.size
    ):
        return _measure_in_units(points, importance, centroids, assignments, num_padding)

    def as_they_come(points, importance, centroids, assignments, num_padding):
        shape = assignments.shape[:-1]
        *found, is_sound = _measure_group(
            points.reshape(1, -1),
            None if importance is None else importance.reshape(1, -1),
            centroids.reshape(1, -1),
            assignments.reshape(1, -1),
            num_padding,
        )
        return tuple(part.reshape(*shape, *part.shape[1:]) for part in found), is_sound

    return quickly_on_cpus(
        as_they_come, _measure_in_units, points, importance, centroids, assignments, num_padding
    )


def _measure_in_units(
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None,
    centroids: Float[Array, "... clusters"],
    assignments: UInt[Array, "... points"],
    num_padding: Int[Array, ""] | None,
) -> tuple[Array, Array, Array, Array]:
    shape = assignments.shape[:-1]
    # In the shape in which their histogram is made of them, so that it is computed once.
    scaled, exponent = points_in_units(points.reshape(-1, points.shape[-1]))
    scaled = scaled.reshape(points.shape)
    exponent = jnp.broadcast_to(exponent.reshape(points.shape[:-1]), shape)
    centroids = normalise(centroids.astype(scaled.dtype), exponent)
    # They are in order already; a loop's result is not computed again for every point.
    centroids = jnp.moveaxis(running_maximum(jnp.moveaxis(centroids, -1, 0)), 0, -1)
    mass, mass_exponent = None, jnp.zeros_like(exponent)
    if importance is not None:
        mass, mass_exponent = importance_in_units(importance, points)
    counts, has_mass, square, of_square = _measure(
        scaled, mass, centroids, assignments, num_padding
    )
    return counts, has_mass, square, of_square + 2 * exponent + mass_exponent


def _measure(
    points: Float[Array, "... points"],
    mass: Float[Array, "... points"] | None,
    centroids: Float[Array, "... clusters"],
    assignments: UInt[Array, "... points"],
    num_padding: Int[Array, ""] | None,
) -> tuple[
    Int[Array, "... clusters"], Bool[Array, "... clusters"], Float[Array, "..."], Int[Array, "..."]
]:
    """Return counts, which clusters have mass, and the distortion as a number and its exponent."""
    batch_shape = assignments.shape[:-1]
    assignments, centroids = (part.reshape(-1, part.shape[-1]) for part in (assignments, centroids))
    index = assignments.astype(jnp.int32)
    bins = PointBins.of(index, centroids.shape[-1])
    points, mass = jax.tree.map(
        lambda part: jnp.broadcast_to(part, (*batch_shape, part.shape[-1])).reshape(index.shape),
        (points, mass),
    )

    def in_one_pass(points, mass, centroids, num_padding):
        if assignments.shape[0] == 1:
            return _measure_group(points, mass, centroids, assignments, num_padding)[:-1]

        def terms(one, distance, *masses):
            total = one * masses[0] if masses else one
            return (one, total * distance * distance, *(total for _ in masses))

        values = (points,) if mass is None else (points, mass)
        with jax.enable_x64(True):
            # In float64 no square is out of range.
            count, squares, *total = bins.add_up(
                terms, 1 + len(values), *values, base=centroids, num_padding=num_padding
            )
            square = split(jnp.sum(squares, axis=-1), points.dtype)
            return count.astype(jnp.int32), (total[0] if total else count) > 0, *square

    def at_once(points, mass, centroids, num_padding):
        count = without_copies(bins.count(), index[:, 0], num_padding)
        has_mass = count > 0 if mass is None else bins.maximum(mass) > 0
        distance = points - bins.look_up(centroids)
        if num_padding is not None:
            is_point = (
                jnp.arange(points.shape[-1], dtype=jnp.int32) < points.shape[-1] - num_padding
            )
            distance = jnp.where(is_point[None, :], distance, 0)
        return count, has_mass, *sum_of_squares(mass, distance, is_of_points=True)

    measured = lax.platform_dependent(
        points, mass, centroids, num_padding, cpu=in_one_pass, default=at_once
    )
    found = (part.reshape(*batch_shape, *part.shape[1:]) for part in measured)
    return cast(Any, tuple(found))


def _measure_group(
    points: Float[Array, "1 points"],
    mass: Float[Array, "1 points"] | None,
    centroids: Float[Array, "1 clusters"],
    assignments: UInt[Array, "1 points"],
    num_padding: Int[Array, ""] | None,
) -> tuple[Array, ...]:
    """As `_measure` of one group, on CPU only: squares are added without asking for the cluster.

    Points need not be in units: in float64 no square of a float32 is out of range.

    Returns:
        What `_measure` does, and whether no float32 was subnormal: conversions take these for 0.
        So it counts where points are in units.
    """
    num_clusters = centroids.shape[-1]
    lanes = _LANES if num_clusters <= _FEW_CLUSTERS else 1
    values = (points,) if mass is None else (points, mass)
    is_short = points.dtype == jnp.float32

    def add(state, numbers, is_new, place, own, *weight):
        squares, counts, least = state
        if num_padding is not None:
            is_new = is_new & (numbers < points.shape[-1] - num_padding)
        place = place.astype(jnp.int32)
        centre = centroids[0].at[place].get(mode="promise_in_bounds", wrap_negative_indices=False)
        distance = own.astype(jnp.float64) - centre.astype(jnp.float64)
        square = distance * distance
        number = is_new.astype(counts.dtype)
        if is_short:
            for part in (own, *weight):
                least = jnp.minimum(least, below_magnitude(part))
        if weight:
            square = weight[0].astype(jnp.float64) * square
            number = number + ((is_new & (weight[0] > 0)).astype(jnp.int64) << 32)
        counts = counts.at[place * lanes + numbers % lanes].add(
            number, mode="promise_in_bounds", wrap_negative_indices=False
        )
        return squares + jnp.where(is_new, square, 0), counts, least

    with jax.enable_x64(True):
        # In float64 no square is out of range. Both counts are in one integer.
        dtype = jnp.int32 if mass is None else jnp.int64
        chunk = (chunk_of(points.shape[-1]),)
        squares, counts, least = in_chunks(
            add,
            (
                jnp.zeros(chunk, jnp.float64),
                jnp.zeros((num_clusters * lanes,), dtype),
                jnp.full(chunk, LEAST_NORMAL, jnp.uint32),
            ),
            assignments[0],
            *(part[0] for part in values),
        )
        counts = jnp.sum(counts.reshape(num_clusters, lanes), axis=-1, dtype=dtype)
        counts = across.total(counts[None])
        square = split(across.total(pairwise_sum(squares)[None]), points.dtype)
        has_mass = counts > 0 if mass is None else (counts >> 32) > 0
        return counts.astype(jnp.int32), has_mass, *square, jnp.all(least >= LEAST_NORMAL)


def diameter_in_use(
    quantized: Float[Array, "... points"], mass: Float[Array, "... points"] | None
) -> Float[Array, "..."]:
    """Return the distance of the outermost centres that serve any mass; 0 if none does."""
    if mass is None:
        return jnp.max(quantized, axis=-1) - jnp.min(quantized, axis=-1)
    low = jnp.min(jnp.where(mass > 0, quantized, jnp.inf), axis=-1)
    high = jnp.max(jnp.where(mass > 0, quantized, -jnp.inf), axis=-1)
    return jnp.where(low <= high, high - low, 0)


def distortion_of_points(
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None,
    result: QuantizationResult,
) -> Float[Array, "..."]:
    """Return `sum h (w - c)^2` as it is written, for derivatives."""
    points = jnp.broadcast_to(points, result.assignments.shape)
    points = points.astype(accumulation_dtype(points.dtype))
    index = result.assignments.astype(jnp.int32)
    quantized = jnp.take_along_axis(result.centroids, index, axis=-1).astype(points.dtype)
    squares = jnp.square(points - quantized)
    if importance is not None:
        squares = jnp.broadcast_to(importance, squares.shape).astype(squares.dtype) * squares
    return jnp.sum(squares, axis=-1)
