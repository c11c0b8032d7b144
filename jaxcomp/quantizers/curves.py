"""Operating points of a tensor: what each would cost in bits, and lose.

Axes: `M` points, `K` clusters.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Shaped


class Point(NamedTuple):
    """One operating point of a tensor: what applying it needs.

    Attributes:
        parameter: of the method.
        converged: whether the iteration reached a fixed point; True where nothing iterates.
        codebook: one point of `Curve.codebook`; None if the parameter is enough.
    """

    parameter: float
    converged: bool = True
    codebook: Any = None


class Curve(NamedTuple):
    """Operating points of one tensor; on the host but for the codebooks.

    Attributes:
        parameter: (M,) float64: number of clusters, bits, share of zeros, distortion per bit.
        rate_bits: (M,) float64, per weight: empirical entropy of the codes, side information out.
        side_bits: (M,) float64, of the tensor: codebook and scales.
        distortion: (M,) float64, `sum h (w - c)^2`.
        converged: (M,), whether the iteration reached a fixed point; True where nothing iterates.
        codebook: what applying a point needs, a pytree with leading axis M; None if that is the
            parameter alone.
    """

    parameter: Shaped[np.ndarray, " points"]
    rate_bits: Float[np.ndarray, " points"]
    side_bits: Float[np.ndarray, " points"]
    distortion: Float[np.ndarray, " points"]
    converged: Bool[np.ndarray, " points"]
    codebook: Any = None

    def size_bits(self, num_weights: int) -> Float[np.ndarray, " points"]:
        """Bits of the whole tensor at each point, codes and side information."""
        return self.rate_bits * num_weights + self.side_bits

    def and_points_of(self, other: "Curve") -> "Curve":
        """Return a curve with the points of both, one after the other."""
        return jax.tree.map(lambda *parts: np.concatenate(parts), self, other)

    def at(self, place: int) -> Point:
        """Return one point of the curve."""
        codebook = jax.tree.map(lambda part: part[place], self.codebook)
        return Point(float(self.parameter[place]), bool(self.converged[place]), codebook)
