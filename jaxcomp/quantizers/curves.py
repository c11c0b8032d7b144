"""Operating points of a tensor: what each would cost in bits, and lose.

Axes: `M` points, `K` clusters.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxcomp.numerics.scaling import restore
from jaxcomp.quantizers.assignment import assign
from jaxcomp.quantizers.histograms import Moments


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


@jax.jit
def counts_of_intervals(
    moments: Moments, thresholds: Float[Array, "points clusters-1"]
) -> Int[Array, "points clusters"]:
    """Count the weights of every cluster of many codebooks, bins of the histogram taken whole.

    Args:
        moments: of one group.
        thresholds: (M, K - 1).
    """
    position = restore(moments.position, moments.exponent)

    def count(own: Float[Array, " clusters-1"]) -> Int[Array, " clusters"]:
        index = assign(position, own).astype(jnp.int32)
        return jax.ops.segment_sum(moments.num_points, index, own.shape[0] + 1)

    return jax.lax.map(count, thresholds)
