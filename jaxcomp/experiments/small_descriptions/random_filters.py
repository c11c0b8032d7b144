"""LeNet-5 with random filters: two layers of convolutions whose filters are signs from a seed.

Axes: `n` images, `s` pixels of a side, `F` features.

Source: LeCun, Bottou, Bengio, Haffner, doi:10.1109/5.726791 (the network); signs in place of its
trained filters.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxcomp.training import random_signs

_SIDE, _FILTER = 28, 5
_FIRST, _SECOND = 6, 16
_GAIN = 4.0


class RandomFilters(NamedTuple):
    """Which filters.

    Attributes:
        seed: of the signs.
    """

    seed: int = 0

    @property
    def num_features(self) -> int:
        """F: 16 channels of 4 x 4."""
        return _SECOND * 16


@partial(jax.jit, static_argnames="filters")
def filtered(
    images: Float[Array, "n 28 28 *channel"], filters: RandomFilters
) -> Float[Array, "n 256"]:
    """Return the features of each image on its own.

    Args:
        images: from 0 to 1, with one channel or none.
        filters: which. Static.

    Raises:
        ValueError: while tracing, if images are not of 28 x 28 pixels.
    """
    if images.shape[1:] not in ((_SIDE, _SIDE), (_SIDE, _SIDE, 1)):
        raise ValueError(
            f"images must be (n, 28, 28) or (n, 28, 28, 1) for LeNet-5, got {images.shape}."
        )
    found = images.reshape(len(images), 1, _SIDE, _SIDE)
    for number, channels in enumerate((_FIRST, _SECOND)):
        shape = (channels, found.shape[1], _FILTER, _FILTER)
        signs = random_signs(2 * filters.seed + number, shape).astype("float32")
        found = lax.conv(
            found, jnp.asarray(signs / math.sqrt(math.prod(shape[1:]))), (1, 1), "VALID"
        )
        found = jax.nn.relu(found)
        found = lax.reduce_window(found, 0.0, lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    return _GAIN * found.reshape(len(images), -1)
