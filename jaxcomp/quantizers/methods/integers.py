"""Rounding to the nearest integer."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxcomp.coding import sizes
from jaxcomp.numerics.sums import pairwise_sum
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.methods.base import Encoded, Method, check_count, scale_bits
from jaxcomp.quantizers.rounding import round_to_nearest
from jaxcomp.quantizers.scales import Rows, Scale


@dataclass(frozen=True)
class RoundToNearest(Method):
    """Symmetric integers times a scale, by default one for each channel; what hardware runs.

    Attributes:
        num_bits: 2 to 8.
    """

    name: ClassVar[str] = "round_to_nearest"
    label: ClassVar[str] = "integers"
    parameter_name: ClassVar[str] = "num_bits"
    parameter_header: ClassVar[str] = "bits"
    words: ClassVar[str] = "{} bits"
    default: ClassVar[float] = 8

    num_bits: int | None = None
    scale: Scale = field(default="channel", kw_only=True)

    @property
    def rows(self) -> Rows:
        return Rows(self.scale, self.group_size, self.channel_axis)

    def check(self, parameter: Any) -> None:
        check_count("num_bits", parameter, 2, 8)

    def candidates(self) -> np.ndarray:
        return np.arange(2, 9)

    def curve(
        self,
        weights: Float[Array, "*shape"],
        importance: Float[Array, "*shape"] | None,
        parameters: Shaped[np.ndarray, " points"],
    ) -> Curve:
        rates, sides, distortions = [], [], []
        for num_bits in parameters:
            codes, scales, distortion = _round(weights, importance, int(num_bits), rows=self.rows)
            rates.append(sizes.empirical_entropy_bits(_count(codes, int(num_bits))))
            sides.append(scale_bits(scales))
            distortions.append(float(distortion))
        return Curve(
            parameter=np.asarray(parameters, np.float64),
            rate_bits=np.asarray(rates),
            side_bits=np.asarray(sides),
            distortion=np.asarray(distortions),
            converged=np.ones(len(parameters), bool),
        )

    def encode(
        self,
        weights: Float[Array, "*shape"],
        importance: Float[Array, "*shape"] | None,
        point: Point,
    ) -> Encoded:
        num_bits = int(point.parameter)
        codes, scales, _ = _round(weights, importance, num_bits, rows=self.rows)
        return Encoded(codes, None, scales, _count(codes, num_bits))

    def size(
        self, counts: Int[np.ndarray, "layers symbols"], *, num_scales: int, value_bits: int
    ) -> sizes.CodeSize:
        del value_bits
        num_bits = counts.shape[-1].bit_length() - 1  # every code is counted, also one that is 0
        return sizes.rounded_size(counts, num_bits=num_bits, num_scales=num_scales)


@partial(jax.jit, static_argnames=("rows",))
def _round(
    weights: Float[Array, "*shape"],
    importance: Float[Array, "*shape"] | None,
    num_bits: Int[Array, ""] | int,
    *,
    rows: Rows,
) -> tuple[Int[Array, "*shape"], Float[Array, " rows"], Float[Array, ""]]:
    """Return codes, scales and distortion."""
    rounded = round_to_nearest(rows.split(weights), num_bits=num_bits, channel_axis=0)
    error = (rows.join(rounded.values, weights.shape) - weights).astype(jnp.float32)
    squared = error * error if importance is None else importance * error * error
    return rows.join(rounded.codes, weights.shape), rounded.scales, pairwise_sum(squared.ravel())


def _count(codes: Int[Array, "..."], num_bits: int) -> Int[np.ndarray, " codes"]:
    """Count every code, from -2 ** (num_bits - 1) on."""
    shifted = np.asarray(codes).astype(np.int64).ravel() + 2 ** (num_bits - 1)
    return np.bincount(shifted, minlength=2**num_bits).astype(np.int32)
