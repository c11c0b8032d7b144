"""Methods whose clusters are intervals: K-means, the best intervals there are, equal ones.

All are solved on a histogram of moments; the weights themselves are visited once to fill it and
once to be assigned.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxcomp.coding import sizes
from jaxcomp.numerics.checks import check_penalty
from jaxcomp.quantizers.assignment import assign, nearest_thresholds
from jaxcomp.quantizers.curves import Curve, counts_of_intervals
from jaxcomp.quantizers.histograms import Moments, bins_for, histogram_moments, pad_bins
from jaxcomp.quantizers.methods.base import Encoded, Method, check_count, power_of_two
from jaxcomp.quantizers.scalar.diameter import PENALTY_FORMS, PenaltyForm
from jaxcomp.quantizers.scalar.lloyd import solve_kmeans
from jaxcomp.quantizers.scalar.optimal import solve_optimal
from jaxcomp.quantizers.scalar.optimal_diameter import solve_optimal_diameter
from jaxcomp.quantizers.scalar.uniform import solve_uniform
from jaxcomp.quantizers.solution import Solution

# Sizes of codebooks a budget chooses among.
_CANDIDATES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


@dataclass(frozen=True)
class _Intervals(Method):
    """Clusters that are intervals of the weights, or of the weights over their scales."""

    parameter_name: ClassVar[str] = "num_clusters"
    parameter_header: ClassVar[str] = "K"
    default: ClassVar[float] = 16

    def check(self, parameter: Any) -> None:
        check_count("num_clusters", parameter)

    def candidates(self) -> np.ndarray:
        return np.asarray(_CANDIDATES)

    def describe(self, parameter: float) -> str:
        return f"{int(parameter):,} clusters"

    def curve(
        self,
        weights: Float[Array, "*shape"],
        importance: Float[Array, "*shape"] | None,
        parameters: Shaped[np.ndarray, " points"],
    ) -> Curve:
        units, h, scales = self.scaled(weights, importance)
        # A codebook whose static size is a power of two: nearly all K share one compilation.
        clusters = np.minimum(np.asarray(parameters), units.size).astype(np.int32)
        max_clusters = power_of_two(clusters.max())
        moments = _moments(
            units.reshape(-1),
            None if h is None else h.reshape(-1),
            num_bins=self._bins(max_clusters),
        )
        centroids, thresholds, distortion, converged = self._solve(
            moments, clusters, max_clusters=max_clusters, dtype=units.dtype
        )
        counts = np.asarray(_counts(moments, thresholds))
        size = sizes.code_size(
            counts, num_clusters=np.maximum(clusters, (counts > 0).sum(-1)),
            centroid_bits=8 * units.dtype.itemsize,
        )  # fmt: skip
        side = size.codebook_bits + (0 if scales is None else 32.0 * scales.size)
        return Curve(
            parameter=np.asarray(parameters, np.float64),
            rate_bits=size.entropy_bits / units.size,
            side_bits=side,
            distortion=np.asarray(distortion, np.float64),
            converged=np.asarray(converged),
            codebook=(np.asarray(centroids), np.asarray(thresholds)),
        )

    def encode(
        self,
        weights: Float[Array, "*shape"],
        importance: Float[Array, "*shape"] | None,
        curve: Curve,
        place: int,
    ) -> Encoded:
        units, _, scales = self.scaled(weights, importance)
        size = min(int(curve.parameter[place]), units.size)
        centroids, thresholds = (part[place] for part in curve.codebook)
        codes, counts = _encode(units.reshape(-1), thresholds[: size - 1])
        return Encoded(
            codes.reshape(weights.shape), centroids[:size], scales, counts, curve.converged[place]
        )

    def size(
        self,
        counts: Int[np.ndarray, "layers symbols"],
        *,
        parameter: Float[np.ndarray, " layers"],
        num_scales: int,
        value_bits: int,
    ) -> sizes.CodeSize:
        del parameter  # what counts is what can be used: a tensor may have fewer weights
        bits = value_bits if self.rows is None else 32
        size = sizes.code_size(counts, num_clusters=counts.shape[-1], centroid_bits=bits)
        return sizes.with_scales(size, num_scales)

    def _bins(self, max_clusters: int) -> int:
        raise NotImplementedError

    def _solve(
        self,
        moments: Moments,
        num_clusters: Int[np.ndarray, " points"],
        *,
        max_clusters: int,
        dtype: np.dtype,
    ) -> tuple[Any, Any, Any, Any]:
        """Return centroids, thresholds, distortion and whether the iteration converged."""
        raise NotImplementedError


@dataclass(frozen=True)
class KMeans(_Intervals):
    """K-means from a start that is nearly optimal, with or without a penalty on the diameter.

    Attributes:
        num_clusters: K >= 1; a tensor with fewer distinct weights uses fewer.
        diameter_penalty: relative to the total importance, >= 0.
        form: of the penalty: monotone, published, linear or none (`solve_kmeans`).
        num_iterations: most updates of the centroids, >= 1.
        num_bins: of the histogram, at least.
    """

    name: ClassVar[str] = "kmeans"
    label: ClassVar[str] = "K-means"

    num_clusters: int | None = None
    diameter_penalty: float = 0.0
    form: PenaltyForm = "monotone"
    num_iterations: int = 200
    num_bins: int = 4096

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
        check_count("num_bins", self.num_bins)

    def curve(
        self,
        weights: Float[Array, "*shape"],
        importance: Float[Array, "*shape"] | None,
        parameters: Shaped[np.ndarray, " points"],
    ) -> Curve:
        """Return the operating points of a tensor; exact where every distinct weight is one."""
        if self.diameter_penalty > 0 or self.rows is not None or len(parameters) > 1:
            return super().curve(weights, importance, parameters)
        # Exact, where bins of a histogram might join two values: nothing changes a second time.
        size = min(int(parameters[0]), weights.size)
        distinct = _few_distinct(weights.reshape(-1), size)
        if distinct is None:
            return super().curve(weights, importance, parameters)
        extra = (0, size - distinct.size)
        counts = np.unique(np.asarray(weights), return_counts=True)[1]
        found = sizes.code_size(counts, num_clusters=size, centroid_bits=8 * weights.dtype.itemsize)
        return Curve(
            parameter=np.asarray(parameters, np.float64),
            rate_bits=np.atleast_1d(found.entropy_bits / weights.size),
            side_bits=np.atleast_1d(found.codebook_bits),
            distortion=np.zeros(1),
            converged=np.ones(1, bool),
            codebook=(
                np.pad(distinct, extra, mode="edge")[None],
                np.pad(distinct[:-1], extra, constant_values=np.inf)[None],
            ),
        )

    def _bins(self, max_clusters: int) -> int:
        return bins_for(self.num_bins, max_clusters)

    def _solve(
        self,
        moments: Moments,
        num_clusters: Int[np.ndarray, " points"],
        *,
        max_clusters: int,
        dtype: np.dtype,
    ) -> tuple[Any, Any, Any, Any]:
        found = solve_kmeans(
            moments,
            jnp.asarray(num_clusters),
            np.full(len(num_clusters), self.diameter_penalty, np.float32),
            max_clusters=max_clusters,
            penalty_form=self.form,
            num_iterations=self.num_iterations,
            centroid_dtype=dtype,
        )
        return _parts(found)


@dataclass(frozen=True)
class Optimal(_Intervals):
    """The best intervals within a reported gap, of every size from one solve.

    Attributes:
        num_clusters: K >= 1.
        diameter_penalty: `beta diameter^2`, relative to the total importance, >= 0.
        num_bins: of the histogram, at least; a quarter of it, at most 512, with a penalty.
    """

    name: ClassVar[str] = "optimal"
    label: ClassVar[str] = "optimal"

    num_clusters: int | None = None
    diameter_penalty: float = 0.0
    num_bins: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        check_penalty(float(self.diameter_penalty))
        check_count("num_bins", self.num_bins)

    def _bins(self, max_clusters: int) -> int:
        if self.diameter_penalty > 0:
            return min(512, max(self.num_bins // 4, 1))
        return bins_for(self.num_bins, max_clusters)

    def _solve(
        self,
        moments: Moments,
        num_clusters: Int[np.ndarray, " points"],
        *,
        max_clusters: int,
        dtype: np.dtype,
    ) -> tuple[Any, Any, Any, Any]:
        return _solve_optimal(
            moments,
            jnp.asarray(num_clusters),
            np.full(len(num_clusters), self.diameter_penalty, np.float32),
            max_clusters=max_clusters,
            is_penalised=self.diameter_penalty > 0,
            dtype=jnp.dtype(dtype),
        )


@dataclass(frozen=True)
class Uniform(_Intervals):
    """Equal intervals, each reconstructed at the mean of its weights; the classical baseline.

    Attributes:
        num_clusters: K >= 1.
        num_bins: of the histogram, at least.
    """

    name: ClassVar[str] = "uniform"
    label: ClassVar[str] = "uniform"

    num_clusters: int | None = None
    num_bins: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("num_bins", self.num_bins)

    def _bins(self, max_clusters: int) -> int:
        return bins_for(self.num_bins, max_clusters)

    def _solve(
        self,
        moments: Moments,
        num_clusters: Int[np.ndarray, " points"],
        *,
        max_clusters: int,
        dtype: np.dtype,
    ) -> tuple[Any, Any, Any, Any]:
        found = solve_uniform(
            moments, jnp.asarray(num_clusters), max_clusters=max_clusters, centroid_dtype=dtype
        )
        return _parts(found)


@partial(jax.jit, static_argnames=("num_bins",))
def _moments(
    points: Float[Array, " points"],
    importance: Float[Array, " points"] | None,
    *,
    num_bins: int,
) -> Moments:
    found = pad_bins(histogram_moments(points, importance, num_bins=num_bins), num_bins)
    # A leading axis, for the points of a curve.
    return jax.tree.map(lambda leaf: leaf[None], found)


def _parts(found: Solution) -> tuple[Array, Array, Array, Array]:
    codebook = found.codebook
    return codebook.centroids, codebook.thresholds, found.distortion, found.converged


@jax.jit
def _counts(moments: Moments, thresholds: Float[Array, "points clusters-1"]) -> Array:
    return counts_of_intervals(jax.tree.map(lambda leaf: leaf[0], moments), thresholds)


@partial(jax.jit, static_argnames=("max_clusters", "is_penalised", "dtype"))
def _solve_optimal(
    moments: Moments,
    num_clusters: Int[Array, " points"],
    diameter_penalty: Float[Any, " points"],
    *,
    max_clusters: int,
    is_penalised: bool,
    dtype: jnp.dtype,
) -> tuple[Array, Array, Array, Array]:
    if is_penalised:
        solver = solve_optimal_diameter(moments, max_clusters=max_clusters)
        found = solver.solve(num_clusters, diameter_penalty).solution
        centroids = found.codebook.centroids.astype(dtype)
        thresholds = jnp.vectorize(nearest_thresholds, signature="(k)->(j)")(centroids)
        return centroids, thresholds, found.distortion, found.converged
    # No bound is read here: without its search the solve takes half of the time.
    best = solve_optimal(
        moments, max_clusters=max_clusters, centroid_dtype=dtype, has_one_value_per_bin=True
    )
    found = best.codebook(num_clusters)
    distortion = jnp.take_along_axis(best.distortion, found.num_clusters[:, None], axis=-1)[:, 0]
    return found.centroids, found.thresholds, distortion, jnp.ones(distortion.shape, bool)


@jax.jit
def _encode(
    points: Float[Array, " points"], thresholds: Float[Any, " clusters-1"]
) -> tuple[Array, Array]:
    codes = assign(points, jnp.asarray(thresholds))
    index = codes.astype(jnp.int32)
    return codes, jax.ops.segment_sum(jnp.ones_like(index), index, thresholds.shape[0] + 1)


def _few_distinct(points: Float[Array, " points"], limit: int) -> np.ndarray | None:
    """Return the distinct values, ascending, if there are at most `limit`; otherwise None."""
    values = np.asarray(points)
    stride = max(values.size // (4 * limit), 1)
    if np.unique(values[::stride]).size > limit:  # settles it for nearly all layers, at no cost
        return None
    distinct = np.unique(values)
    return distinct if distinct.size <= limit else None
