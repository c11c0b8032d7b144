"""K-means of vectors of consecutive weights."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from jaxcomp.coding import sizes
from jaxcomp.numerics.checks import check_count
from jaxcomp.numerics.segments import segment_counts
from jaxcomp.quantizers.assignment import assignment_dtype
from jaxcomp.quantizers.chunk_errors import measured
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.methods.base import (
    ChunkCodes,
    CodebookMethod,
    Encoded,
    power_of_two,
    scale_bits,
)
from jaxcomp.quantizers.problems import Chunk, Problem
from jaxcomp.quantizers.vector import join_vectors, vector_kmeans

# Vectors on which codebooks are designed: those of a small tensor, most of a large one.
_SAMPLES = (1 << 12, 1 << 16)
_CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Vector(CodebookMethod):
    """K-means of vectors of consecutive weights: less than a bit a weight, and dependence used.

    Codebooks are designed on at most 65,536 vectors of a tensor, evenly spaced. The importance of
    a tensor of n weights may be the Hessians of its vectors, (ceil(n / m), m, m), as
    `jaxcomp.curvature.hutchinson_blocks` estimates them.

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

    def prepare(self, problem: Problem) -> Problem:
        """Return a tensor over the scales of its rows.

        Raises:
            ValueError: if it has both scales and Hessians of its vectors.
        """
        if problem.blocks is not None and self.rows is not None:
            raise ValueError(
                f"importance by blocks needs vectors without scales, got scale {self.scale!r} and "
                f"group_size {self.group_size}; take scale='tensor', or importances of weights."
            )
        return super().prepare(problem)

    @property
    def entry_size(self) -> int:
        return self.vector_size

    def curve(self, problem: Problem, parameters: Shaped[np.ndarray, " points"]) -> Curve:
        num_vectors = -(-problem.size // self.vector_size)
        sample, num_sampled = self._sample(problem, num_vectors)
        clusters = np.minimum(np.asarray(parameters), num_vectors).astype(np.int32)
        max_clusters = power_of_two(clusters.max())
        found = [
            _solve(
                sample,
                jnp.asarray(k),
                jax.random.key(self.seed, impl="threefry2x32"),
                jnp.int32(self.num_iterations),
                vector_size=self.vector_size,
                max_clusters=max_clusters,
            )
            for k in clusters
        ]
        centroids, counts, distortion, converged = (
            np.stack(part) for part in zip(*jax.device_get(found), strict=True)
        )
        size = sizes.code_size(
            counts, num_clusters=max_clusters, centroid_bits=problem.value_bits * self.vector_size
        )
        share = num_vectors / num_sampled
        return Curve(
            parameter=np.asarray(parameters, np.float64),
            rate_bits=size.entropy_bits * share / problem.size,
            side_bits=size.codebook_bits + scale_bits(problem),
            distortion=distortion.astype(np.float64) * share,
            converged=converged,
            codebook=(centroids,),
        )

    def encode(self, problem: Problem, point: Point) -> Encoded:
        size = min(int(point.parameter), -(-problem.size // self.vector_size))
        encoded = self._encoded(
            problem,
            np.asarray(point.codebook[0]),
            _encode,
            jnp.int32(size),
        )
        return encoded.cut(size)

    def _sample(self, problem: Problem, num_vectors: int) -> tuple[Chunk, int]:
        """Return vectors evenly spread over the tensor, in one of two numbers, and how many."""
        most = next((size for size in _SAMPLES if num_vectors <= size), _SAMPLES[-1])
        if num_vectors <= most:
            return problem.sample(most * self.vector_size), num_vectors
        # The last vector may be short of weights: it is left out.
        begins = np.arange(most, dtype=np.int64) * (num_vectors - 1) // most * self.vector_size
        places = begins[:, None] + np.arange(self.vector_size)
        return problem.chunk(places.reshape(-1)), most

    def _join(self, values: Any, shape: tuple[int, ...]) -> Any:
        if isinstance(values, np.ndarray):
            return values.reshape(-1)[: int(np.prod(shape))].reshape(shape)
        return join_vectors(values, shape or (1,)).reshape(shape)


def _vectors(chunk: Chunk, vector_size: int) -> tuple[Array, Array, Array]:
    """Return the vectors of a chunk, their importances, and which have a weight that counts."""
    points, importance = chunk.scaled()
    is_point = chunk.is_point()
    vectors = points.reshape(-1, vector_size)
    is_vector = is_point.reshape(-1, vector_size)[:, 0]
    if chunk.blocks is not None:
        return vectors, chunk.blocks, is_vector
    mass = is_point.astype(points.dtype) if importance is None else importance
    return vectors, mass.reshape(-1, vector_size), is_vector


@partial(jax.jit, static_argnames=("vector_size", "max_clusters"))
def _solve(
    sample: Chunk,
    num_clusters: Int[Array, ""],
    key: Key[Array, ""],
    num_iterations: Int[Array, ""],
    *,
    vector_size: int,
    max_clusters: int,
) -> tuple[Array, Array, Array, Array]:
    """Return centroids, counts, distortion and whether the iteration reached a fixed point."""
    vectors, masses, is_vector = _vectors(sample, vector_size)
    found = vector_kmeans(
        vectors,
        masses,
        num_clusters=num_clusters,
        max_clusters=max_clusters,
        key=key,
        penalty_form="none",
        num_iterations=num_iterations,
    )
    # Copies weigh nothing, but were counted.
    number = segment_counts(is_vector, found.assignments.astype(jnp.int32), max_clusters)
    return found.centroids, number, found.distortion, found.converged


@partial(jax.jit, static_argnames=("dtype",))
def _encode(
    chunk: Chunk,
    num_clusters: Int[Array, ""],
    codebook: Float[Any, "clusters m"],
    *,
    dtype: np.dtype,
) -> ChunkCodes:
    max_clusters, vector_size = codebook.shape
    vectors, masses, is_vector = _vectors(chunk, vector_size)
    found = vector_kmeans(
        vectors,
        masses,
        num_clusters=num_clusters,
        max_clusters=max_clusters,
        initial_centroids=jnp.asarray(codebook),
        penalty_form="none",
        num_iterations=0,
    )
    codes = found.assignments
    number = segment_counts(is_vector, codes.astype(jnp.int32), max_clusters)
    values = jnp.asarray(codebook)[codes.astype(jnp.int32)].reshape(-1)
    codes = codes.astype(assignment_dtype(max_clusters))
    return codes, number, measured(chunk, values, dtype)
