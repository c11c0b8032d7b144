"""A small layer to be rounded, and settings that several tests share: they compile but once."""

import jax
import numpy as np

from jaxcomp.quantizers.rounding_passes import RoundingSettings

INPUTS, OUTPUTS = 24, 40
SETTINGS = RoundingSettings(block_size=8, max_code=255, slopes=(1.0, 2.0))


def layer(seed: int = 0, groups: int = 2):
    """Weights, S with an input that is always 0, and importances of outputs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, 200, INPUTS)) * np.exp(rng.standard_normal(INPUTS))
    x = x + rng.standard_normal((groups, 200, 1))
    x[0, :, 3] = 0
    second = np.swapaxes(x, 1, 2) @ x / 200
    weights = rng.standard_normal((groups, INPUTS, OUTPUTS))
    parts = weights, second, rng.gamma(1.0, size=(groups, OUTPUTS))
    return tuple(jax.device_put(part.astype(np.float32)) for part in parts)
