"""Groups of numbers in units of a power of two near their largest, exactly, and back.

Squares and products of weights of 1e-30 or 1e30 are out of range in float32. A solver that works
on numbers divided by a power of two near the largest gives the same result at every scale, since
such a division does not round.

Everything here is integer arithmetic on bit patterns: XLA's programs for CPUs take subnormal
numbers for 0, in comparisons as well as in products, and `2^e` itself may be out of range. No
result depends on whether they do.

Axes: `...` groups, `N` numbers of a group.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

Axis = int | tuple[int, ...]

# More octaves than from the smallest number of float64 to the largest.
_REACH = 1 << 12


# Compiled functions of their own, here and in `_scaled`: a solver that calls them a dozen times
# traces each only once, and they were a third of what it had to trace.
@partial(jax.jit, static_argnames="axis")
def group_exponent(values: Float[Array, "..."], *, axis: Axis = -1) -> Int[Array, "..."]:
    """Return the largest e with `2^e <= max |values|` in every group.

    Args:
        values: (..., N), float16, bfloat16, float32 or float64, subnormal numbers included.
        axis: the axis along which a group lies, or several.

    Returns:
        (...) int32, without these axes; 0 for a group of zeros, and for one without numbers.

    Raises:
        TypeError: while tracing, for any other dtype.
    """
    info = _info(values.dtype)
    magnitude = _magnitude(values)
    # The maximum of integers is ten times as slow as that of floats. Subnormal numbers are moved
    # below 0 for it, in their order.
    least_normal = 1 << info.num_fraction
    below = magnitude.astype(info.signed) - info.signed.type(least_normal)
    normal = lax.bitcast_convert_type(magnitude, values.dtype)
    key = jnp.where(magnitude < least_normal, below.astype(values.dtype), normal)
    largest = jnp.max(key, axis=axis, initial=-least_normal)
    integer = jnp.where(largest < 0, largest + least_normal, largest)
    exponent = _field(_magnitude(integer), info) - info.bias
    exponent = jnp.where(largest < 0, exponent + info.least, exponent)
    return jnp.where(largest == -least_normal, 0, exponent)


def normalise(
    values: Float[Array, "..."], exponent: Int[Array, "..."], *, axis: Axis = -1
) -> Float[Array, "..."]:
    """Return `values / 2^exponent`: with the exponent of the group the largest is in [1, 2).

    Exact wherever the result is representable, subnormal numbers included; else rounded once, to
    nearest. What is too large becomes infinite. NaN and infinity stay.

    Args:
        values: (..., N), float16, bfloat16, float32 or float64.
        exponent: (...) integers of any size, those of the groups.
        axis: the axes of `values` that `exponent` lacks; `()` for none.

    Returns:
        (..., N) in the dtype of `values`.

    Raises:
        TypeError: while tracing, for any other dtype.
    """
    return _scaled(values, -_limited(exponent), axis)


def restore(
    values: Float[Array, "..."],
    exponent: Int[Array, "..."],
    *,
    axis: Axis = -1,
    rounds_down: bool = False,
) -> Float[Array, "..."]:
    """Return `values * 2^exponent`, the inverse of `normalise`.

    Args:
        values: as in `normalise`.
        exponent: as in `normalise`.
        axis: as in `normalise`.
        rounds_down: round what is not representable to the next number below instead: a threshold
            t then still has the same numbers above it.
    """
    return _scaled(values, _limited(exponent), axis, rounds_down=rounds_down)


def restore_as(
    values: Float[Array, "... values"], exponent: Int[Array, "..."], dtype: jnp.dtype
) -> Float[Array, "... values"]:
    """Return `values * 2^exponent` along the last axis in another dtype, such as a codebook's."""
    if dtype == jnp.bfloat16:
        # The range of float32, whose subnormal numbers a conversion would take for 0.
        return restore(values.astype(dtype), exponent)
    return restore(values, exponent).astype(dtype)


def split(
    values: Float[Array, "..."], dtype: jnp.dtype
) -> tuple[Float[Array, "..."], Int[Array, "..."]]:
    """Return `m` in [1, 2) and `e` with `values = m * 2^e`, m rounded to another dtype.

    So a number in float64 comes out of it that would be out of range.

    Args:
        values: (...), float16, bfloat16, float32 or float64.
        dtype: of m; float32 or longer.

    Returns:
        (...) m, 0 for 0, and (...) int32 e.
    """
    exponent = group_exponent(values, axis=())
    return normalise(values, exponent, axis=()).astype(dtype), exponent


def ordered(values: Float[Array, "..."]) -> Int[Array, "..."]:
    """Return signed integers in the order of the values, equal for 0 and -0; not for NaN."""
    info = _info(values.dtype)
    bits = lax.bitcast_convert_type(values, info.signed)
    return jnp.where(bits < 0, info.signed.type(jnp.iinfo(info.signed).min) - bits, bits)


def is_zero(values: Shaped[Array, "..."]) -> Bool[Array, "..."]:
    """Return which numbers are 0: no subnormal number is, whatever the hardware does with it."""
    if jnp.issubdtype(values.dtype, jnp.floating):
        return _magnitude(values) == 0
    return values == 0


def is_negative(values: Shaped[Array, "..."]) -> Bool[Array, "..."]:
    """Return which numbers are below 0, subnormal ones too; NaN is not."""
    if jnp.issubdtype(values.dtype, jnp.floating):
        info, magnitude = _info(values.dtype), _magnitude(values)
        is_number = (magnitude != 0) & (magnitude <= info.special << info.num_fraction)
        return is_number & (lax.bitcast_convert_type(values, info.unsigned) != magnitude)
    return values < 0


class _Info:
    """How a floating dtype lays out its bits."""

    def __init__(self, dtype: jnp.dtype) -> None:
        info = jnp.finfo(dtype)
        self.num_bits = int(info.bits)
        self.num_fraction = int(info.nmant)
        # The field of infinity and NaN; all ones.
        self.special = (1 << (self.num_bits - 1 - self.num_fraction)) - 1
        self.bias = self.special >> 1
        self.signed = np.dtype(f"int{self.num_bits}")
        self.unsigned = np.dtype(f"uint{self.num_bits}")
        # Exponent of the smallest subnormal number.
        self.least = 1 - self.bias - self.num_fraction


def _info(dtype: jnp.dtype) -> _Info:
    if dtype not in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        raise TypeError(f"values must be float16, bfloat16, float32 or float64, got {dtype}.")
    return _Info(dtype)


def _magnitude(values: Float[Array, "..."]) -> Shaped[Array, "..."]:
    """Return the bit pattern without its sign: unsigned integers in the order of magnitude."""
    info = _info(values.dtype)
    bits = lax.bitcast_convert_type(values, info.unsigned)
    return bits & bits.dtype.type((1 << (info.num_bits - 1)) - 1)


def _without_subnormals(
    magnitude: Shaped[Array, "..."], dtype: jnp.dtype
) -> tuple[Shaped[Array, "..."], Int[Array, "..."]]:
    """Return the pattern of a normal number, and by which power of two it is too large.

    A subnormal number is an integer times the smallest one; as a float that integer is normal.
    """
    info = _info(dtype)
    is_subnormal = magnitude < (1 << info.num_fraction)
    signed = magnitude.astype(info.signed)
    integer = lax.bitcast_convert_type(
        jnp.where(is_subnormal, signed, 0).astype(dtype), info.unsigned
    )
    lifted = jnp.where(is_subnormal, integer, magnitude)
    return lifted, jnp.where(is_subnormal, jnp.int32(info.least), jnp.int32(0))


def _field(magnitude: Shaped[Array, "..."], info: _Info) -> Int[Array, "..."]:
    """Return the biased exponent."""
    return lax.shift_right_logical(magnitude, jnp.full_like(magnitude, info.num_fraction)).astype(
        jnp.int32
    )


def _limited(exponent: Int[Array, "..."]) -> Int[Array, "..."]:
    """Return the exponent without what goes beyond any float's range, both ways."""
    return jnp.clip(exponent.astype(jnp.int32), -_REACH, _REACH)


@partial(jax.jit, static_argnames=("axis", "rounds_down"))
def _scaled(
    values: Float[Array, "..."],
    shift: Int[Array, "..."],
    axis: Axis,
    *,
    rounds_down: bool = False,
) -> Array:
    """Return `values * 2^shift`."""
    info = _info(values.dtype)
    axes = (axis,) if isinstance(axis, int) else axis
    if axes:
        shift = jnp.expand_dims(shift, axes)
    if shift.ndim != values.ndim:
        raise ValueError(
            f"exponent must have the {values.ndim - len(axes)} axes of the groups, got "
            f"{shift.ndim - len(axes)}."
        )
    magnitude = _magnitude(values)
    one = magnitude.dtype.type(1)
    lifted, base = _without_subnormals(magnitude, values.dtype)
    field = _field(lifted, info) + base + shift
    fraction = lifted & magnitude.dtype.type((1 << info.num_fraction) - 1)
    normal = (
        jnp.clip(field, 0, info.special).astype(magnitude.dtype) << info.num_fraction
    ) | fraction
    # Below the normal numbers the leading one shows: shifted right, rounded to nearest, ties to
    # even. A carry into the exponent gives the smallest normal number, as it should.
    places = jnp.clip(1 - field, 1, info.num_fraction + 2).astype(magnitude.dtype)
    whole = fraction | magnitude.dtype.type(1 << info.num_fraction)
    kept = lax.shift_right_logical(whole, places)
    rest = whole & ((one << places) - one)
    sign = lax.bitcast_convert_type(values, info.unsigned) & magnitude.dtype.type(
        1 << (info.num_bits - 1)
    )
    if rounds_down:
        is_up = (rest > 0) & (sign != 0)
    else:
        half = one << (places - one)
        is_up = (rest > half) | ((rest == half) & ((kept & one) == one))
    small = kept + is_up.astype(kept.dtype)
    large = jnp.full_like(magnitude, info.special << info.num_fraction)
    result = jnp.where(field <= 0, small, jnp.where(field >= info.special, large, normal))
    is_fixed = (magnitude == 0) | (magnitude >= large)
    result = jnp.where(is_fixed, magnitude, result)
    return lax.bitcast_convert_type(result | sign, values.dtype)
