"""A layer trained on scikit-learn's digits, drawn large: where a transfer begins.

The 1,797 digits of 8 x 8 pixels are drawn into 28 x 28 as the larger ones are made: 20 pixels high
and wide, around their centre of mass, with strokes of several widths, turned, sheared and bent a
little. Nothing of the larger data set is looked at.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxcomp.experiments import data
from jaxcomp.experiments.small_descriptions.features import sampled

_SIDE, _BOX = 28, 20
_COPIES = 6


def drawn_digits(seed: int) -> tuple[Float[np.ndarray, "n 28 28"], Int[np.ndarray, " n"]]:
    """Return images from 0 to 1, six of each digit, and their labels."""
    digits = data.load("digits")
    small = np.concatenate([digits.pool_images, digits.test_images])[..., 0].astype(np.float32)
    labels = np.concatenate([digits.pool_labels, digits.test_labels])
    rng = np.random.Generator(np.random.PCG64(seed))
    images = [_drawn(small / digits.max_value, rng) for _ in range(_COPIES)]
    return np.concatenate(images), np.tile(labels, _COPIES)


def _drawn(small: Float[np.ndarray, "n 8 8"], rng: np.random.Generator) -> np.ndarray:
    """Draw each digit once."""
    count, side = small.shape[:2]

    def uniform(reach: float) -> np.ndarray:
        return rng.uniform(-reach, reach, (count, 1, 1)).astype(np.float32)

    places = np.arange(_SIDE, dtype=np.float32) - (_SIDE - 1) / 2
    y, x = np.meshgrid(places, places, indexing="ij")
    mass = small.sum((1, 2)) + 1e-6
    pixels = np.arange(side, dtype=np.float32)
    centre_y = ((small.sum(2) @ pixels) / mass)[:, None, None]
    centre_x = ((small.sum(1) @ pixels) / mass)[:, None, None]
    angle, shear, across, down = uniform(0.2), uniform(0.15), uniform(0.1), uniform(0.1)
    bend = 2 * math.pi / _SIDE
    y, x = (
        y + uniform(1.2) * np.sin(bend * x + uniform(math.pi)),
        x + uniform(1.2) * np.sin(bend * y + uniform(math.pi)),
    )
    y, x = np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y + shear * y
    scale = side / _BOX
    rows, columns = y * scale * (1 + down) + centre_y, x * scale * (1 + across) + centre_x
    found = np.asarray(
        jax.jit(sampled)(jnp.asarray(small), jnp.asarray(rows), jnp.asarray(columns))
    )
    threshold = 0.4 + uniform(0.15)  # a higher one makes thin strokes
    return np.clip((found - threshold) / 0.35 + 0.5, 0, 1).astype(np.float32)
