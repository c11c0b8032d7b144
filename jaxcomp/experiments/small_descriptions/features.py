"""Features of an image written down by hand: nothing in them is fitted to any data.

An image is set upright and to one size by its second moments, if asked for; the strength and
direction of its gradient go into orientation channels, which are pooled by Gaussian windows; the
root of each is taken to cosines over the places and to waves over the orientations, of which the
low frequencies stay, low ones first, divided by constants that fall with the frequency.

Axes: `n` images, `s` pixels of a side, `O` orientations, `G` windows of a side, `F` features.

Sources: Liu, Nakashima, Sako, Fujisawa, doi:10.1016/S0031-3203(03)00085-2 (gradient directions and
moment normalisation for digits); Dalal, Triggs, doi:10.1109/CVPR.2005.177.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_ORIENTATIONS = 8
_POWER = 4  # of the cosine: neighbouring channels overlap
_SPREAD = 0.6  # of a window, in distances between windows
_GAIN = 10.0
_SIZE = 6 / 28  # standard deviation of an upright image, in sides
_LEAST = 1e-12


class Features(NamedTuple):
    """Which features.

    Attributes:
        is_upright: whether slant, size and place are taken out first.
        grid: G.
        degree: frequencies along both sides stay whose sum is below it.
        blur: standard deviations of the Gaussians whose derivatives are the gradient, pixels.
        has_intensity: whether the image itself is one more channel.
        spatial_fall: a frequency over places is divided by what falls beyond it.
        angular_fall: likewise for waves over orientations.
    """

    is_upright: bool = True
    grid: int = 5
    degree: int = 5
    blur: tuple[float, ...] = (0.7,)
    has_intensity: bool = False
    spatial_fall: float = 3.0
    angular_fall: float = 3.0

    @property
    def num_features(self) -> int:
        """F."""
        channels = _ORIENTATIONS * len(self.blur) + self.has_intensity
        return channels * len(_frequencies(self.grid, self.degree))


@partial(jax.jit, static_argnames="features")
def features_of(
    images: Float[Array, "n s s *channel"], features: Features
) -> Float[Array, "n count"]:
    """Return the features of each image on its own.

    Args:
        images: square, from 0 to 1, with one channel or none.
        features: which. Static.

    Raises:
        ValueError: while tracing, if images are not square or have several channels.
    """
    side = images.shape[1]
    if images.shape[1:] not in ((side, side), (side, side, 1)):
        raise ValueError(
            f"images must be square and of one channel, (n, s, s) or (n, s, s, 1), got "
            f"{images.shape}."
        )
    images = images.reshape(len(images), side, side)
    if features.is_upright:
        images = _upright(images)
    windows, chosen = _windows(side, features.grid), _frequencies(features.grid, features.degree)
    cosines = _cosines(features.grid)
    fall = _GAIN * (1 + (chosen.sum(axis=1) / features.spatial_fall) ** 2)

    def pooled(channels: Array, waves: np.ndarray, gain: np.ndarray) -> Array:
        found = jnp.einsum("gy,noyx,hx->nogh", windows, channels, windows)
        found = jnp.sqrt(jnp.maximum(found, 0))
        found = jnp.einsum("po,nogh,ug,vh->npuv", waves, found, cosines, cosines)
        return found[:, :, chosen[:, 0], chosen[:, 1]] * (gain[:, None] * fall).astype(np.float32)

    waves, order = _waves()
    gains = 1 + (order / features.angular_fall) ** 2
    parts = [pooled(_orientations(images, blur), waves, gains) for blur in features.blur]
    if features.has_intensity:
        one = np.ones((1, 1), np.float32)
        parts.append(pooled(images[:, None], one, np.ones(1)))
    # Low frequencies first, whatever their channel.
    return jnp.swapaxes(jnp.concatenate(parts, axis=1), 1, 2).reshape(len(images), -1)


def _upright(images: Float[Array, "n s s"]) -> Float[Array, "n s s"]:
    """Return images without slant, of one size and around the middle, by their second moments."""
    side = images.shape[1]
    places = jnp.arange(side, dtype=jnp.float32)
    mass = images.sum((1, 2)) + 1e-6
    row, column = (images.sum(axis) / mass[:, None] for axis in (2, 1))
    y, x = row @ places, column @ places
    # A tenth of a squared pixel, for images that are a point or empty.
    yy, xx = row @ places**2 - y**2 + 0.1, column @ places**2 - x**2 + 0.1
    both = jnp.einsum("nyx,y,x->n", images, places, places) / mass - x * y
    slant = jnp.clip(both / yy, -0.9, 0.9)
    height = jnp.sqrt(yy)
    width = jnp.sqrt(jnp.maximum(xx - 2 * slant * both + slant**2 * yy, 0.1))
    # What is narrow stays narrow, though less so.
    aspect = jnp.minimum(width / height, height / width)
    kept = jnp.clip(jnp.sqrt(jnp.sin(math.pi / 2 * aspect)), 0.3, 1)
    size = _SIZE * side
    across = jnp.where(width < height, width / kept, width) / size
    down = jnp.where(width > height, height / kept, height) / size
    offset = places - (side - 1) / 2
    rows = jnp.broadcast_to(
        (offset * down[:, None] + y[:, None])[:, :, None], (len(images), side, side)
    )
    columns = offset * across[:, None, None] + x[:, None, None]
    columns = columns + slant[:, None, None] * (rows - y[:, None, None])
    return sampled(images, rows, columns)


def sampled(
    images: Float[Array, "n s s"], rows: Float[Array, "n h w"], columns: Float[Array, "n h w"]
) -> Float[Array, "n h w"]:
    """Return square images at places between pixels, bilinear, 0 outside."""
    count, side = images.shape[:2]
    padded = jnp.pad(images, ((0, 0), (1, 2), (1, 2))).reshape(count, -1)
    rows, columns = (jnp.clip(place + 1, 0, side + 0.999) for place in (rows, columns))
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = rows - top, columns - left
    first = (top * (side + 3) + left).astype(jnp.int32).reshape(count, -1)

    def at(step: int) -> Array:
        return jnp.take_along_axis(padded, first + step, axis=1).reshape(rows.shape)

    above = at(0) * (1 - right) + at(1) * right
    below = at(side + 3) * (1 - right) + at(side + 4) * right
    return above * (1 - down) + below * down


def _orientations(images: Array, blur: float) -> Float[Array, "n O s s"]:
    """Return how strong the gradient is, dealt out to the directions that it is near to."""
    smooth, derivative = _gaussians(images.shape[1], blur)
    x = jnp.einsum("ay,nyx,bx->nab", smooth, images, derivative)
    y = jnp.einsum("ay,nyx,bx->nab", derivative, images, smooth)
    strength = jnp.sqrt(x**2 + y**2 + _LEAST)
    angles = 2 * np.pi * np.arange(_ORIENTATIONS) / _ORIENTATIONS
    channels = []
    for cosine, sine in zip(np.cos(angles).tolist(), np.sin(angles).tolist(), strict=True):
        along = jnp.maximum(x * cosine + y * sine, 0) / strength
        channels.append(strength * along**_POWER)
    return jnp.stack(channels, axis=1)


def _gaussians(side: int, blur: float) -> tuple[np.ndarray, np.ndarray]:
    """Return matrices that blur along a side, and that differentiate what is blurred."""
    away = np.subtract.outer(np.arange(side), np.arange(side))
    smooth = np.exp(-(away**2) / (2 * blur**2))
    smooth /= smooth.sum(axis=1).max()
    return smooth.astype(np.float32), (-away / blur**2 * smooth).astype(np.float32)


def _windows(side: int, grid: int) -> np.ndarray:
    """Return (G, s) weights of pixels in windows, each of sum 1."""
    step = side / grid
    centres = (np.arange(grid) + 0.5) * step - 0.5
    away = np.subtract.outer(centres, np.arange(side))
    windows = np.exp(-(away**2) / (2 * (_SPREAD * step) ** 2))
    return (windows / windows.sum(axis=1, keepdims=True)).astype(np.float32)


def _frequencies(grid: int, degree: int) -> np.ndarray:
    """Return pairs of frequencies whose sum is below the degree, low sums first."""
    pairs = np.argwhere(np.add.outer(np.arange(grid), np.arange(grid)) < degree)
    return pairs[np.argsort(pairs.sum(axis=1), kind="stable")]


def _cosines(count: int) -> np.ndarray:
    """Return the discrete cosine transform, orthonormal."""
    places = np.outer(np.arange(count), np.arange(count) + 0.5)
    found = np.cos(np.pi * places / count) * np.sqrt(2 / count)
    found[0] /= np.sqrt(2)
    return found.astype(np.float32)


def _waves() -> tuple[np.ndarray, np.ndarray]:
    """Return the real Fourier transform over orientations, orthonormal, and the order of each."""
    half, angles = _ORIENTATIONS // 2, 2 * np.pi * np.arange(_ORIENTATIONS) / _ORIENTATIONS
    rows, order = [np.full(_ORIENTATIONS, math.sqrt(0.5))], [0]
    for number in range(1, half):
        rows += [np.cos(number * angles), np.sin(number * angles)]
        order += [number, number]
    rows.append(np.cos(half * angles) * math.sqrt(0.5))
    order.append(half)
    found = np.stack(rows) * math.sqrt(2 / _ORIENTATIONS)
    return found.astype(np.float32), np.asarray(order)
