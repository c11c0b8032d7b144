"""Quantization for an entropy coder: the least distortion at a number of bits."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxcomp.quantizers.assignment import count_codes
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.histograms import Moments, pad_bins
from jaxcomp.quantizers.methods.base import CodebookMethod, Encoded, check_count, scale_bits
from jaxcomp.quantizers.scalar.entropy_constrained import (
    assign_by_cost,
    joint_moments,
    solve_entropy_constrained,
)


@dataclass(frozen=True)
class EntropyConstrained(CodebookMethod):
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

    def check(self, parameter: Any) -> None:
        is_number = isinstance(parameter, float | int | np.number)
        if not is_number or isinstance(parameter, bool):
            raise TypeError(f"multiplier must be a number, got {parameter!r}.")
        if not (np.isfinite(parameter) and parameter >= 0):
            raise ValueError(f"multiplier must be finite and at least 0, got {parameter!r}.")

    def candidates(self) -> np.ndarray:
        return 2 * np.log(2) * 4.0 ** -np.arange(7, -1.25, -0.25)

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

    def curve(
        self,
        weights: Float[Array, "*shape"],
        importance: Float[Array, "*shape"] | None,
        parameters: Shaped[np.ndarray, " points"],
    ) -> Curve:
        units, h, scales = self.scaled(weights, importance)
        moments = _moments(
            units.reshape(-1),
            None if h is None else h.reshape(-1),
            num_bins=self.num_bins,
            # Without importances there are no levels to tell apart.
            num_levels=min(2, self.num_levels) if h is None else self.num_levels,
        )
        found = solve_entropy_constrained(
            moments,
            jnp.asarray(parameters, jnp.float32),
            max_clusters=self.num_symbols,
            num_iterations=self.num_iterations,
            centroid_dtype=units.dtype,
        )
        return Curve(
            parameter=np.asarray(parameters, np.float64),
            rate_bits=np.asarray(found.rate_bits, np.float64),
            side_bits=8.0 * units.dtype.itemsize * np.asarray(found.num_used) + scale_bits(scales),
            distortion=np.asarray(found.distortion, np.float64),
            converged=np.asarray(found.converged),
            codebook=tuple(
                np.asarray(part) for part in (found.centroids, found.length_bits, found.multiplier)
            ),
        )

    def encode(
        self,
        weights: Float[Array, "*shape"],
        importance: Float[Array, "*shape"] | None,
        point: Point,
    ) -> Encoded:
        units, h, scales = self.scaled(weights, importance)
        centroids, length_bits, multiplier = point.codebook
        codes, counts = _encode(
            units.reshape(-1),
            None if h is None else h.reshape(-1),
            centroids,
            length_bits,
            multiplier,
        )
        # Symbols that occur come first.
        counts = np.asarray(counts)
        size = int(np.max(np.flatnonzero(counts), initial=0)) + 1
        return Encoded(codes.reshape(weights.shape), centroids[:size], scales, counts[:size])


@partial(jax.jit, static_argnames=("num_bins", "num_levels"))
def _moments(
    points: Float[Array, " points"],
    importance: Float[Array, " points"] | None,
    *,
    num_bins: int,
    num_levels: int,
) -> Moments:
    found = joint_moments(points, importance, num_bins=num_bins, num_levels=num_levels)
    return pad_bins(found, num_bins * num_levels)


@jax.jit
def _encode(
    points: Float[Array, " points"],
    importance: Float[Array, " points"] | None,
    centroids: Float[Any, " symbols"],
    length_bits: Float[Any, " symbols"],
    multiplier: Float[Any, ""],
) -> tuple[Array, Array]:
    codes = assign_by_cost(
        points,
        importance,
        jnp.asarray(centroids),
        jnp.asarray(length_bits),
        jnp.asarray(multiplier),
    )
    return codes, count_codes(codes, centroids.shape[0])
