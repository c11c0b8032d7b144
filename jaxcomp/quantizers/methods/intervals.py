"""Methods whose clusters are intervals: K-means, the best intervals there are, equal ones.

All are solved on a histogram of moments; the weights themselves are visited once to fill it and
once to be assigned.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxcomp.coding import sizes
from jaxcomp.numerics.checks import check_count, check_penalty
from jaxcomp.numerics.precision import computed_on_host, lacks_float64
from jaxcomp.numerics.transformations import computed_once, vectorized
from jaxcomp.quantizers.assignment import assign, nearest_thresholds
from jaxcomp.quantizers.chunk_errors import counts_of, measured
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.histograms import Moments, bins_for
from jaxcomp.quantizers.methods.base import ChunkCodes, Encoded, power_of_two, scale_bits
from jaxcomp.quantizers.methods.on_histograms import Asked, HistogramMethod
from jaxcomp.quantizers.passes import histogram_of
from jaxcomp.quantizers.problems import Chunk, Problem
from jaxcomp.quantizers.scalar.diameter import PENALTY_FORMS, PenaltyForm
from jaxcomp.quantizers.scalar.lloyd import STARTS, Start, solve_kmeans
from jaxcomp.quantizers.scalar.optimal import solve_optimal
from jaxcomp.quantizers.scalar.optimal_diameter import solve_optimal_diameter
from jaxcomp.quantizers.scalar.uniform import solve_uniform
from jaxcomp.quantizers.solution import Codebook, Solution

# Sizes of codebooks a budget chooses among.
_CANDIDATES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


@dataclass(frozen=True)
class _Intervals(HistogramMethod):
    """Clusters that are intervals of the weights, or of the weights over their scales."""

    parameter_name: ClassVar[str] = "num_clusters"
    parameter_header: ClassVar[str] = "K"
    words: ClassVar[str] = "{} clusters"
    default: ClassVar[float] = 16

    num_clusters: int | None = None
    num_bins: int = field(default=4096, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("num_bins", self.num_bins)

    @property
    def works_on_parts(self) -> bool:
        return self.rows is None

    def check(self, parameter: Any) -> None:
        check_count("num_clusters", parameter)

    def candidates(self) -> np.ndarray:
        return np.asarray(_CANDIDATES)

    def _asked(self, problem: Problem, parameters: Shaped[np.ndarray, " points"]) -> Asked:
        # A codebook whose static size is a power of two: nearly all K share one compilation.
        clusters = np.minimum(np.asarray(parameters), problem.size).astype(np.int32)
        max_clusters = power_of_two(clusters.max())
        moments = histogram_of(problem, num_bins=self._bins(max_clusters))
        return Asked(problem, np.asarray(parameters), moments, clusters, max_clusters)

    def _curve_of(self, asked: Asked, found: Solution) -> Curve:
        problem = asked.problem
        centroids, thresholds, _ = found.codebook
        size = sizes.code_size(
            _counts(asked.moments, np.asarray(thresholds)),
            num_clusters=asked.numbers,
            centroid_bits=problem.value_bits,
        )
        return Curve(
            parameter=np.asarray(asked.parameters, np.float64),
            rate_bits=size.entropy_bits / problem.size,
            side_bits=size.codebook_bits + scale_bits(problem),
            distortion=np.asarray(found.distortion, np.float64),
            converged=np.asarray(found.converged),
            codebook=(np.asarray(centroids), np.asarray(thresholds)),
        )

    def encode(self, problem: Problem, point: Point) -> Encoded:
        size = min(int(point.parameter), problem.size)
        centroids, thresholds = point.codebook
        return self._encoded(problem, centroids, _encode, thresholds).cut(size)

    def _bins(self, max_clusters: int) -> int:
        return bins_for(self.num_bins, max_clusters)


@dataclass(frozen=True)
class KMeans(_Intervals):
    """K-means from a start that is nearly optimal, with or without a penalty on the diameter.

    Attributes:
        num_clusters: K >= 1; a tensor with fewer distinct weights uses fewer.
        diameter_penalty: relative to the total importance, >= 0.
        form: of the penalty: monotone, published, linear or none (`solve_kmeans`).
        num_iterations: most updates of the centroids, >= 1.
        start: coarse_to_fine, or quantiles, as in the literature.
        num_bins: of the histogram, at least.
    """

    name: ClassVar[str] = "kmeans"
    label: ClassVar[str] = "K-means"

    diameter_penalty: float = 0.0
    form: PenaltyForm = "monotone"
    num_iterations: int = 200
    start: Start = "coarse_to_fine"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in PENALTY_FORMS:
            raise ValueError(f"form must be one of {PENALTY_FORMS}, got {self.form!r}.")
        check_penalty(float(self.diameter_penalty))
        if self.diameter_penalty > 0 and self.form == "none":
            raise ValueError(
                f"diameter_penalty must be 0 with form 'none', got {self.diameter_penalty!r}; "
                "choose another form, such as 'monotone'."
            )
        check_count("num_iterations", self.num_iterations)
        if self.start not in STARTS:
            raise ValueError(f"start must be one of {STARTS}, got {self.start!r}.")

    def _solve(
        self,
        moments: Moments,
        numbers: Int[np.ndarray, "*L M"],
        *,
        max_clusters: int,
        dtype: np.dtype,
    ) -> Solution:
        return solve_kmeans(
            moments,
            numbers,
            np.full(numbers.shape, self.diameter_penalty, np.float32),
            max_clusters=max_clusters,
            penalty_form=self.form,
            num_iterations=self.num_iterations,
            start=self.start,
            centroid_dtype=dtype,
        )


@dataclass(frozen=True)
class Optimal(_Intervals):
    """The best intervals within a reported gap, of every size from one solve.

    Attributes:
        num_clusters: K >= 1.
        diameter_penalty: `beta diameter^2`, relative to the total importance, >= 0.
        num_bins: of the histogram, at least; with a penalty, at most 512.
    """

    name: ClassVar[str] = "optimal"
    label: ClassVar[str] = "optimal"

    diameter_penalty: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_penalty(float(self.diameter_penalty))

    @property
    def _is_solved_together(self) -> bool:
        # Groups with a penalty are visited one after the other by the solver itself.
        return self.diameter_penalty == 0

    def _bins(self, max_clusters: int) -> int:
        if self.diameter_penalty > 0:
            return min(512, self.num_bins)
        return super()._bins(max_clusters)

    def _solve(
        self,
        moments: Moments,
        numbers: Int[np.ndarray, "*L M"],
        *,
        max_clusters: int,
        dtype: np.dtype,
    ) -> Solution:
        if self.diameter_penalty > 0:
            penalty = np.full(numbers.shape, self.diameter_penalty, np.float32)
            return _solve_diameter(
                moments, numbers, penalty, max_clusters=max_clusters, dtype=jnp.dtype(dtype)
            )
        solve = partial(_solve_plain, max_clusters=max_clusters, dtype=jnp.dtype(dtype))
        if lacks_float64():
            return computed_on_host(solve, moments, numbers)
        return solve(moments, numbers)


@dataclass(frozen=True)
class Uniform(_Intervals):
    """Equal intervals, each reconstructed at the mean of its weights; the classical baseline.

    Attributes:
        num_clusters: K >= 1.
        num_bins: of the histogram, at least.
    """

    name: ClassVar[str] = "uniform"
    label: ClassVar[str] = "uniform"

    def _solve(
        self,
        moments: Moments,
        numbers: Int[np.ndarray, "*L M"],
        *,
        max_clusters: int,
        dtype: np.dtype,
    ) -> Solution:
        return solve_uniform(moments, numbers, max_clusters=max_clusters, centroid_dtype=dtype)


def _counts(
    moments: Moments, thresholds: Float[np.ndarray, "points clusters-1"]
) -> Int[np.ndarray, "points clusters"]:
    """Count the weights of every cluster of many codebooks, bins of a histogram taken whole."""
    position = np.ldexp(moments.position, int(moments.exponent))
    # Positions do not decrease: a cluster is a run of bins. One on a threshold is in the lower one.
    below = np.concatenate([[0], np.cumsum(moments.num_points)])
    ends = below[np.searchsorted(position, thresholds, side="right")]
    whole = np.broadcast_to(below[-1], (len(ends), 1))
    return np.diff(np.concatenate([ends, whole], axis=1), prepend=0, axis=1)


@partial(jax.jit, static_argnames=("max_clusters", "dtype"))
def _solve_diameter(
    moments: Moments,
    num_clusters: Int[Array, "*L M"],
    diameter_penalty: Float[Any, "*L M"],
    *,
    max_clusters: int,
    dtype: jnp.dtype,
) -> Solution:
    solver = solve_optimal_diameter(moments, max_clusters=max_clusters)
    found = solver.solve(num_clusters, diameter_penalty).solution
    centroids = found.codebook.centroids.astype(dtype)
    thresholds = vectorized(nearest_thresholds, signature="(k)->(j)")(centroids)
    return found._replace(codebook=Codebook(centroids, thresholds, found.codebook.num_clusters))


@partial(jax.jit, static_argnames=("max_clusters", "dtype"))
def _solve_plain(
    moments: Moments, num_clusters: Int[Array, "*L M"], *, max_clusters: int, dtype: jnp.dtype
) -> Solution:
    # No bound is read here: without its search the solve takes half of the time.
    best = solve_optimal(
        moments, max_clusters=max_clusters, centroid_dtype=dtype, has_one_value_per_bin=True
    )
    codebook = best.codebook(num_clusters)
    row = codebook.num_clusters
    every = jnp.broadcast_to(best.distortion, (*row.shape, best.distortion.shape[-1]))
    distortion = jnp.take_along_axis(every, row[..., None], axis=-1)[..., 0]
    return Solution(
        codebook=codebook,
        distortion=distortion,
        objective=distortion,
        num_iterations=jnp.zeros(distortion.shape, jnp.int32),
        converged=jnp.ones(distortion.shape, bool),
    )


@partial(jax.jit, static_argnames=("dtype",))
def _encode(
    chunk: Chunk,
    thresholds: Float[Any, " clusters-1"],
    codebook: Float[Any, " clusters"],
    *,
    dtype: np.dtype,
) -> ChunkCodes:
    points, _ = chunk.scaled()
    codes = computed_once(chunk.num_padding >= 0, assign, points, jnp.asarray(thresholds))
    values = jnp.asarray(codebook)[codes.astype(jnp.int32)]
    return codes, counts_of(chunk, codes, codebook.shape[0]), measured(chunk, values, dtype)
