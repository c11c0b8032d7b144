"""How far every variant of a sweep is from the rate-distortion limit of its network.

The limit is that of the network's weights with the reference importance, the Gauss-Newton diagonal,
whatever importance a quantizer was given: all variants are measured by one yardstick, the rise of
the training loss that a second-order expansion predicts. It is one for codes that treat the weights
of a layer as independent symbols, with one codebook per layer, and whose encoder knows every
weight's importance. What knows more may go below it: integer rounding, whose scales differ from
channel to channel, and pairs of neighbouring weights.
"""

from typing import NamedTuple

import numpy as np

from jaxcomp.experiments.sweep.codebooks import Layers
from jaxcomp.rate_distortion import NetworkLimit

# Slopes half a bit of rate apart: between them the tangents lie up to 0.04 bit below the curve, as
# much as the bounds are apart.
_NUM_SLOPES = 20
_MAX_BITS = 5.5
_GAP_BITS = 0.04


class Limits(NamedTuple):
    """Limits for one variant, in bits per weight; NaN where there is none.

    Attributes:
        limit: certified: no code of this distortion takes less.
        shannon: Shannon lower bound as if the weights had a density, an estimate.
        excess: what the variant's entropy is above the limit.
    """

    limit: float
    shannon: float
    excess: float


NO_LIMITS = Limits(np.nan, np.nan, np.nan)


def network_limit(weights: Layers, reference: Layers) -> NetworkLimit | None:
    """Return the limit of a network; None if no weight has any importance."""
    layers = {
        path: (np.asarray(leaf, np.float64), np.asarray(reference[path], np.float64))
        for path, leaf in weights.items()
    }
    if not any(np.any(importance > 0) for _, importance in layers.values()):
        return None
    return NetworkLimit(layers, num_slopes=_NUM_SLOPES, max_bits=_MAX_BITS, gap_bits=_GAP_BITS)


def limits_at(
    limit: NetworkLimit | None, entropy_bits: float, predicted_rise_nats: float
) -> Limits:
    """Return the limits for a variant whose distortion is twice the rise that it predicts.

    Args:
        limit: of its network.
        entropy_bits: per weight.
        predicted_rise_nats: `1/2 sum h (what - w)^2`; NaN for variants without one.
    """
    if limit is None or not predicted_rise_nats >= 0:
        return NO_LIMITS
    least = limit.limit_bits(2 * predicted_rise_nats)
    shannon = limit.shannon_bits(2 * predicted_rise_nats)
    return Limits(least, shannon, entropy_bits - least)
