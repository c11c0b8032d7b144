"""Round-to-nearest integers with one scale per channel: the baseline of deployed networks.

Symmetric: code 0 is weight 0, the codes run from -(2^(b-1) - 1) to 2^(b-1) - 1, the scale maps the
largest magnitude of a channel to the last code. Channels are output channels: the last axis of a
dense kernel (in, out) and of a convolution (3, 3, in, out). Weights times a power of two have the
same codes, down to subnormal numbers, whose scales have few digits.

Source: Krishnamoorthi, arXiv:1806.08342, section 2.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcomp.numerics.checks import check_finite, check_floating, is_concrete
from jaxcomp.numerics.placement import automatic_axes, to_automatic
from jaxcomp.numerics.scaling import group_exponent, normalise, restore
from jaxcomp.numerics.transformations import always_compiled
from jaxcomp.quantizers.histograms import (
    accumulation_dtype,
)


class RoundedWeights(NamedTuple):
    """Weights rounded to integers.

    Attributes:
        codes: int8, shaped like the weights.
        scales: (channels,) float32 (float64 for float64 weights); 0 for a channel of zeros.
        values: `codes * scales` along the channel axis, dtype of the weights.
    """

    codes: Int[Array, "..."]
    scales: Float[Array, " channels"]
    values: Float[Array, "..."]


@always_compiled
def round_to_nearest(
    weights: Float[Array, "..."], *, num_bits: Int[Array, ""] | int, channel_axis: int = -1
) -> RoundedWeights:
    """Round weights to symmetric integers of `num_bits` bits, one scale per channel.

    Args:
        weights: at least one axis, floating, finite.
        num_bits: b from 2 to 8. Traced: changing it compiles nothing.
        channel_axis: axis of the output channels, static.

    Returns:
        Codes, scales and the weights they stand for.

    Raises:
        TypeError: if the weights are not floating.
        ValueError: on weights without an axis or entry, NaN or infinite weights, `num_bits` or
            `channel_axis` out of range. Values are checked only outside `jit` and `vmap`.
    """
    weights = check_floating(weights, "weights")
    if weights.ndim == 0 or weights.size == 0:
        raise ValueError(
            f"weights must have at least one axis and one entry, got shape {weights.shape}."
        )
    if not -weights.ndim <= channel_axis < weights.ndim:
        raise ValueError(
            f"channel_axis must be one of the {weights.ndim} axes of weights, got {channel_axis}."
        )
    check_finite(weights, "weights")
    if is_concrete(num_bits) and not 2 <= int(num_bits) <= 8:
        raise ValueError(f"num_bits must be 2 to 8, got {int(num_bits)}.")
    axis = channel_axis % weights.ndim
    with automatic_axes(weights) as leave:
        weights, num_bits = to_automatic(weights), jnp.asarray(num_bits, jnp.int32)
        return leave(_round_to_nearest(weights, num_bits, channel_axis=axis))


@partial(jax.jit, static_argnames=("channel_axis",))
def _round_to_nearest(weights, num_bits, *, channel_axis):
    dtype = accumulation_dtype(weights.dtype)
    others = tuple(axis for axis in range(weights.ndim) if axis != channel_axis)
    largest_code = (jnp.left_shift(jnp.int32(1), num_bits - 1) - 1).astype(dtype)
    exact = weights.astype(dtype)
    # In units of a power of two near the largest of each channel: at any scale the same codes.
    exponent = group_exponent(exact, axis=others)
    units = normalise(exact, exponent, axis=others)
    magnitude = jnp.max(jnp.abs(units), axis=others, keepdims=True)
    scales = magnitude / largest_code
    # Channels of zeros become code 0.
    ratio = units / jnp.where(scales > 0, scales, 1)
    codes = jnp.clip(jnp.round(ratio), -largest_code, largest_code)
    return RoundedWeights(
        codes=codes.astype(jnp.int8),
        scales=restore(scales.reshape(-1), exponent.reshape(-1), axis=()),
        values=restore(codes * scales, exponent, axis=others).astype(weights.dtype),
    )
