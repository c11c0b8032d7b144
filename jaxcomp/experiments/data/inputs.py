"""From pixels to network inputs: scaling to [0, 1] and standardization per channel."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int, UInt8

_EXAMPLES_PER_PIECE = 1024


class Standardization(NamedTuple):
    """Mean and standard deviation of every channel of the scaled pixels (0 to 1).

    Attributes:
        mean: `(C,)` float64.
        deviation: `(C,)` float64, over all pixels and examples (divided by their number); 1
            where all pixels of the channel are equal, so that the inputs become 0.
    """

    mean: Float64[np.ndarray, " channels"]
    deviation: Float64[np.ndarray, " channels"]


def standardization(
    images: UInt8[np.ndarray, "examples height width channels"],
    max_value: int,
    indices: Int[np.ndarray, " chosen"] | None = None,
) -> Standardization:
    """Measure mean and deviation of the scaled pixels, per channel.

    The pixels are counted by value, so the sums over them are exact.

    Args:
        images: `(N, H, W, C)` uint8.
        max_value: the value of a full pixel; pixels are divided by it.
        indices: the examples to measure, `(n,)`, repeats counted as often as they come; all
            when `None`.

    Returns:
        Mean and deviation, `(C,)` float64 each.

    Raises:
        TypeError: if the images are not uint8.
        ValueError: if they are not of shape `(N, H, W, C)`, if there are none, or if `max_value`
            is below 1.
    """
    _check_images(images, max_value)
    chosen = images if indices is None else images[indices]
    if chosen.size == 0:
        raise ValueError(
            f"Standardization needs at least one pixel, got images of shape {chosen.shape}; "
            "choose at least one example."
        )
    values = np.arange(256) / max_value
    counts = _count_values(chosen)
    fractions = counts / counts.sum(axis=1, keepdims=True)
    mean = fractions @ values
    variance = np.sum(fractions * (values - mean[:, np.newaxis]) ** 2, axis=1)
    # Rounding of the mean leaves a variance near 1e-34 when all pixels are equal.
    is_constant = fractions.max(axis=1) == 1.0
    return Standardization(mean, np.where(is_constant, 1.0, np.sqrt(variance)))


def to_inputs(
    images: UInt8[np.ndarray, "examples height width channels"],
    max_value: int,
    standardization: Standardization | None = None,
) -> Float32[np.ndarray, "examples height width channels"]:
    """Turn pixels into inputs: `pixel / max_value`, then minus the mean over the deviation.

    Each of the 256 possible inputs is computed in float64 and rounded once.

    Args:
        images: `(N, H, W, C)` uint8.
        max_value: the value of a full pixel.
        standardization: measured on the training sample; without it the inputs lie in [0, 1].

    Returns:
        Inputs `(N, H, W, C)` float32.

    Raises:
        TypeError: if the images are not uint8.
        ValueError: if they are not of shape `(N, H, W, C)`, if `max_value` is below 1, or if the
            standardization has another number of channels.
    """
    _check_images(images, max_value)
    num_channels = images.shape[-1]
    scaled = np.arange(256) / max_value
    table = np.repeat(scaled[np.newaxis], num_channels, axis=0)
    if standardization is not None:
        mean, deviation = (np.asarray(part) for part in standardization)
        if mean.shape != (num_channels,) or deviation.shape != (num_channels,):
            raise ValueError(
                f"The standardization has shapes {mean.shape} and {deviation.shape}, but the "
                f"images have {num_channels} channels; measure it on images of the same kind."
            )
        table = (table - mean[:, np.newaxis]) / deviation[:, np.newaxis]
    table = table.astype(np.float32)
    inputs = np.empty(images.shape, np.float32)
    for channel in range(num_channels):
        inputs[..., channel] = table[channel][images[..., channel]]
    return inputs


def _count_values(images: np.ndarray) -> np.ndarray:
    """Count how often each channel has each of the 256 values, `(C, 256)`."""
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for channel in range(images.shape[-1]):
        # In pieces, because bincount first makes eight bytes of every pixel.
        for start in range(0, len(images), _EXAMPLES_PER_PIECE):
            piece = images[start : start + _EXAMPLES_PER_PIECE, ..., channel]
            counts[channel] += np.bincount(piece.ravel(), minlength=256)
    return counts


def _check_images(images: np.ndarray, max_value: int) -> None:
    """Check dtype, rank and pixel scale."""
    if images.dtype != np.uint8:
        raise TypeError(f"Images must be uint8, got {images.dtype}; convert them to bytes.")
    if images.ndim != 4:
        raise ValueError(
            f"Images must have the shape (N, H, W, C), got {images.shape}; reshape them."
        )
    if max_value < 1:
        raise ValueError(
            f"max_value must be at least 1, got {max_value}; give the value of a full pixel."
        )
