"""K-means of vectors of consecutive weights."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxcomp.coding import sizes
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.methods.base import (
    CodebookMethod,
    Encoded,
    check_count,
    power_of_two,
    scale_bits,
)
from jaxcomp.quantizers.vector import join_vectors, split_vectors, vector_kmeans

# Vectors on which codebooks are designed.
_MOST_VECTORS = 1 << 16
_CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Vector(CodebookMethod):
    """K-means of vectors of consecutive weights: less than a bit a weight, and dependence used.

    Codebooks are designed on at most 65,536 vectors of a tensor, evenly spaced.

    Attributes:
        num_clusters: K >= 1, vectors of the codebook.
        vector_size: m, consecutive weights along the last axis.
        num_iterations: most updates of the centroids, >= 1.
        seed: of the random start.
    """

    name: ClassVar[str] = "vector"
    label: ClassVar[str] = "vector"
    parameter_name: ClassVar[str] = "num_clusters"
    parameter_header: ClassVar[str] = "K"
    words: ClassVar[str] = "{} vectors"
    default: ClassVar[float] = 64

    num_clusters: int | None = None
    vector_size: int = 2
    num_iterations: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("vector_size", self.vector_size, 1, 16)
        check_count("num_iterations", self.num_iterations)

    def check(self, parameter: Any) -> None:
        check_count("num_clusters", parameter)

    def candidates(self) -> np.ndarray:
        return np.asarray(_CANDIDATES)

    @property
    def entry_size(self) -> int:
        return self.vector_size

    def curve(
        self,
        weights: Float[Array, "*shape"],
        importance: Float[Array, "*shape"] | None,
        parameters: Shaped[np.ndarray, " points"],
    ) -> Curve:
        vectors, h, scales = self._vectors(weights, importance)
        stride = -(-len(vectors) // _MOST_VECTORS)
        some, own = vectors[::stride], h[::stride]
        clusters = np.minimum(np.asarray(parameters), len(vectors)).astype(np.int32)
        max_clusters = power_of_two(clusters.max())
        found = [
            vector_kmeans(
                some,
                own,
                num_clusters=jnp.asarray(k),
                max_clusters=max_clusters,
                key=jax.random.key(self.seed, impl="threefry2x32"),
                penalty_form="none",
                num_iterations=self.num_iterations,
            )
            for k in clusters
        ]
        counts = np.stack([np.asarray(part.counts) for part in found])
        size = sizes.code_size(
            counts, num_clusters=max_clusters, centroid_bits=32 * self.vector_size
        )
        share = len(vectors) / len(some)
        return Curve(
            parameter=np.asarray(parameters, np.float64),
            rate_bits=size.entropy_bits * share / weights.size,
            side_bits=size.codebook_bits + scale_bits(scales),
            distortion=np.asarray([part.distortion for part in found], np.float64) * share,
            converged=np.asarray([part.converged for part in found]),
            codebook=np.stack([np.asarray(part.centroids) for part in found]),
        )

    def encode(
        self,
        weights: Float[Array, "*shape"],
        importance: Float[Array, "*shape"] | None,
        point: Point,
    ) -> Encoded:
        vectors, h, scales = self._vectors(weights, importance)
        size = min(int(point.parameter), len(vectors))
        found = vector_kmeans(
            vectors,
            h,
            num_clusters=jnp.asarray(size, jnp.int32),
            max_clusters=len(point.codebook),
            initial_centroids=jnp.asarray(point.codebook),
            penalty_form="none",
            num_iterations=0,
        )
        return Encoded(
            found.assignments,
            np.asarray(found.centroids)[:size],
            scales,
            np.asarray(found.counts)[:size],
        )

    def _vectors(
        self, weights: Float[Array, "*shape"], importance: Float[Array, "*shape"] | None
    ) -> tuple[Array, Array, Array | None]:
        units, h, scales = self.scaled(weights, importance)
        h = jnp.ones_like(units) if h is None else h
        vectors = split_vectors(jnp.atleast_1d(units), self.vector_size)
        return vectors, split_vectors(jnp.atleast_1d(h), self.vector_size), scales

    def _join(self, values: Any, shape: tuple[int, ...]) -> Any:
        if isinstance(values, np.ndarray):
            return values.reshape(-1)[: int(np.prod(shape))].reshape(shape)
        return join_vectors(values, shape or (1,)).reshape(shape)
