"""Quantization for an entropy coder: the least distortion at a number of bits."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxcomp.numerics.checks import check_count
from jaxcomp.quantizers.assignment import assignment_dtype
from jaxcomp.quantizers.chunk_errors import counts_of, measured
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.histograms import Moments
from jaxcomp.quantizers.methods.base import ChunkCodes, Encoded, scale_bits
from jaxcomp.quantizers.methods.on_histograms import Asked, HistogramMethod
from jaxcomp.quantizers.passes import histogram_of, joint_histogram_of
from jaxcomp.quantizers.problems import Chunk, Problem
from jaxcomp.quantizers.scalar.entropy_constrained import (
    RateDistortionCurve,
    cheapest_symbols,
    solve_entropy_constrained,
)


@dataclass(frozen=True)
class EntropyConstrained(HistogramMethod):
    """The least distortion for the bits of an entropy coder: cheap symbols attract weights.

    Attributes:
        multiplier: distortion that a bit is worth, relative to the distortion per weight of a
            single value; > 0. At high rate R bits it is `2 ln 2 4^-R`. None without a budget is
            that of 4 bits, on average over the tensors.
        num_symbols: most symbols.
        num_iterations: most updates, >= 1.
        num_bins: intervals of value of the histogram; twice as many where all weights count alike.
        num_levels: intervals of importance of the histogram.
    """

    name: ClassVar[str] = "entropy_constrained"
    label: ClassVar[str] = "entropy-constrained"
    parameter_name: ClassVar[str] = "multiplier"
    parameter_header: ClassVar[str] = "slope"
    words: ClassVar[str] = "slope {}"
    default: ClassVar[float] = float(2 * np.log(2) * 4.0**-4)

    multiplier: float | None = None
    num_symbols: int = 128
    num_iterations: int = 50
    num_bins: int = 1024
    num_levels: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_symbols", "num_iterations", "num_bins", "num_levels"):
            check_count(name, getattr(self, name))

    @property
    def works_on_parts(self) -> bool:
        return self.rows is None

    def check(self, parameter: Any) -> None:
        is_number = isinstance(parameter, float | int | np.number)
        if not is_number or isinstance(parameter, bool):
            raise TypeError(f"multiplier must be a number, got {parameter!r}.")
        if not (np.isfinite(parameter) and parameter >= 0):
            raise ValueError(f"multiplier must be finite and at least 0, got {parameter!r}.")

    def candidates(self) -> np.ndarray:
        return 2 * np.log(2) * 4.0 ** -np.arange(7, -1.25, -0.25)

    def between(
        self, parameters: Shaped[np.ndarray, " points"], place: int
    ) -> Shaped[np.ndarray, " points"]:
        """Return multipliers from one neighbour to the other, even in bits."""
        logs = np.log(parameters)
        low, high = logs[max(place - 1, 0)], logs[min(place + 1, len(logs) - 1)]
        return np.exp(np.linspace(low, high, len(logs)))

    def defaults(
        self, num_weights: Int[np.ndarray, " tensors"], num_layers: Int[np.ndarray, " tensors"]
    ) -> list[float]:
        """Return the multipliers of 4 bits on average, relative errors of all layers alike.

        A bit more for each of n weights lowers the relative error of their layer by an amount that
        does not depend on n: one slope for all layers is a multiplier that grows like n.
        """
        shares = num_weights * num_layers / np.sum(num_weights * num_layers)
        logs = np.log(np.maximum(num_weights, 1))
        found = self.default * np.exp(logs - np.sum(shares * logs))
        least, most = np.min(self.candidates()), np.max(self.candidates())
        return [float(part) for part in np.clip(found, least, most)]

    def number(self, parameter: float) -> str:
        return f"{parameter:.3g}"

    def _asked(self, problem: Problem, parameters: Shaped[np.ndarray, " points"]) -> Asked:
        if problem.importance is None and problem.scales is None:
            # There are no levels to tell apart.
            moments = histogram_of(problem, num_bins=self.num_bins * min(2, self.num_levels))
        else:
            moments = joint_histogram_of(
                problem, num_bins=self.num_bins, num_levels=self.num_levels
            )
        multipliers = np.asarray(parameters, np.float32)
        return Asked(problem, np.asarray(parameters), moments, multipliers, self.num_symbols)

    def _solve(
        self,
        moments: Moments,
        numbers: Float[np.ndarray, "*L M"],
        *,
        max_clusters: int,
        dtype: np.dtype,
    ) -> RateDistortionCurve:
        return solve_entropy_constrained(
            moments,
            numbers[..., None, :],
            max_clusters=max_clusters,
            num_iterations=self.num_iterations,
            centroid_dtype=dtype,
        )

    def _curve_of(self, asked: Asked, found: Any) -> Curve:
        found = jax.tree.map(lambda part: np.asarray(part)[0], found)
        problem = asked.problem
        return Curve(
            parameter=np.asarray(asked.parameters, np.float64),
            rate_bits=found.rate_bits.astype(np.float64),
            side_bits=float(problem.value_bits) * found.num_used + scale_bits(problem),
            distortion=found.distortion.astype(np.float64),
            converged=found.converged,
            codebook=(found.centroids, found.length_bits, found.multiplier),
        )

    def encode(self, problem: Problem, point: Point) -> Encoded:
        centroids, length_bits, multiplier = point.codebook
        encoded = self._encoded(problem, centroids, _encode, length_bits, multiplier)
        # Symbols that occur come first.
        return encoded.cut(int(np.max(np.flatnonzero(encoded.counts), initial=0)) + 1)


@partial(jax.jit, static_argnames=("dtype",))
def _encode(
    chunk: Chunk,
    length_bits: Float[Any, " symbols"],
    multiplier: Float[Any, ""],
    codebook: Float[Any, " symbols"],
    *,
    dtype: np.dtype,
) -> ChunkCodes:
    points, importance = chunk.scaled()
    codes = cheapest_symbols(
        points,
        jnp.ones_like(points) if importance is None else importance,
        jnp.asarray(codebook),
        jnp.asarray(length_bits),
        jnp.asarray(multiplier),
    )
    values = jnp.asarray(codebook)[codes]
    codes = codes.astype(assignment_dtype(codebook.shape[0]))
    return codes, counts_of(chunk, codes, codebook.shape[0]), measured(chunk, values, dtype)
