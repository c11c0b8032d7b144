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


# Compiled functions of their own, here and in what scales: a solver that calls them a dozen times
# traces each only once, and they were a third of what it had to trace. Every operation counts, as
# they still are a third of what is compiled.
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
    unit = values.dtype.type(1 << info.num_fraction)
    # The maximum of integers is ten times as slow as that of floats. Subnormal numbers are moved
    # below 0 for it, in their order.
    integer = lax.convert_element_type(magnitude, values.dtype)
    key = lax.select(
        _is_subnormal(magnitude, info),
        lax.sub(integer, lax.full_like(integer, unit)),
        lax.bitcast_convert_type(magnitude, values.dtype),
    )
    largest = jnp.max(key, axis=axis, initial=-unit)
    units = lax.full_like(largest, unit)
    is_small = lax.lt(largest, lax.full_like(largest, 0))
    number = lax.select(is_small, lax.add(largest, units), largest)
    field = lax.convert_element_type(_field(_magnitude(number), info), jnp.int32)
    start = lax.select(
        is_small, lax.full_like(field, info.least - info.bias), lax.full_like(field, -info.bias)
    )
    is_nothing = lax.eq(largest, lax.neg(units))
    return lax.select(is_nothing, lax.full_like(field, 0), lax.add(field, start))


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
    mantissa, exponent = _split(values)
    return mantissa.astype(dtype), exponent


@jax.jit
def _split(values: Float[Array, "..."]) -> tuple[Float[Array, "..."], Int[Array, "..."]]:
    """Return `m` in [1, 2) and `e`: nothing is rounded."""
    info = _info(values.dtype)
    sign, magnitude = _sign_and_magnitude(values)
    lifted, start = _lifted(magnitude, info)
    constant = partial(lax.full_like, magnitude)
    fraction = lax.bitwise_and(lifted, constant((1 << info.num_fraction) - 1))
    number = lax.bitwise_or(fraction, constant(info.bias << info.num_fraction))
    is_fixed = _is_fixed(magnitude, info)
    # Zero and what is not finite stay, whatever the exponent; that of zero is 0.
    number = lax.select(is_fixed, magnitude, number)
    exponent = lax.add(_field(lifted, info), lax.sub(start, constant(info.bias)))
    exponent = lax.select(lax.eq(magnitude, constant(0)), constant(0), exponent)
    return (
        lax.bitcast_convert_type(lax.bitwise_or(number, sign), values.dtype),
        lax.convert_element_type(exponent, jnp.int32),
    )


def ordered(values: Float[Array, "..."]) -> Int[Array, "..."]:
    """Return signed integers in the order of the values, equal for 0 and -0; not for NaN."""
    bits = _bits(values)
    return jnp.where(bits < 0, bits.dtype.type(jnp.iinfo(bits.dtype).min) - bits, bits)


def is_zero(values: Shaped[Array, "..."]) -> Bool[Array, "..."]:
    """Return which numbers are 0: no subnormal number is, whatever the hardware does with it."""
    if jnp.issubdtype(values.dtype, jnp.floating):
        return _magnitude(values) == 0
    return values == 0


def is_negative(values: Shaped[Array, "..."]) -> Bool[Array, "..."]:
    """Return which numbers are below 0, subnormal ones too; NaN is not."""
    if jnp.issubdtype(values.dtype, jnp.floating):
        info = _info(values.dtype)
        sign, magnitude = _sign_and_magnitude(values)
        is_number = (magnitude != 0) & (magnitude <= info.special << info.num_fraction)
        return is_number & (sign != 0)
    return values < 0


class _Info:
    """How a floating dtype lays out its bits."""

    def __init__(self, dtype: jnp.dtype) -> None:
        info = jnp.finfo(dtype)
        self.dtype = dtype
        self.num_bits = int(info.bits)
        self.num_fraction = int(info.nmant)
        # The field of infinity and NaN; all ones.
        self.special = (1 << (self.num_bits - 1 - self.num_fraction)) - 1
        self.bias = self.special >> 1
        # What bits are read as. Patterns without a sign are not negative.
        self.integer = np.dtype(f"int{self.num_bits}")
        # Exponent of the smallest subnormal number.
        self.least = 1 - self.bias - self.num_fraction


def _info(dtype: jnp.dtype) -> _Info:
    if dtype not in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        raise TypeError(f"values must be float16, bfloat16, float32 or float64, got {dtype}.")
    return _Info(dtype)


def _sign_and_magnitude(
    values: Float[Array, "..."],
) -> tuple[Int[Array, "..."], Int[Array, "..."]]:
    """Return the bit of the sign in its place, and the pattern without it."""
    bits = _bits(values)
    magnitude = _without_sign(bits)
    return lax.bitwise_xor(bits, magnitude), magnitude


def _magnitude(values: Float[Array, "..."]) -> Int[Array, "..."]:
    """Return the bit pattern without its sign: integers in the order of magnitude."""
    return _without_sign(_bits(values))


def _bits(values: Float[Array, "..."]) -> Int[Array, "..."]:
    return lax.bitcast_convert_type(values, _info(values.dtype).integer)


def _without_sign(bits: Int[Array, "..."]) -> Int[Array, "..."]:
    return lax.bitwise_and(bits, lax.full_like(bits, jnp.iinfo(bits.dtype).max))


def _is_subnormal(magnitude: Int[Array, "..."], info: _Info) -> Bool[Array, "..."]:
    """Return which patterns are of subnormal numbers, or of 0."""
    return lax.lt(magnitude, lax.full_like(magnitude, 1 << info.num_fraction))


def _is_fixed(magnitude: Int[Array, "..."], info: _Info) -> Bool[Array, "..."]:
    """Return which patterns no power of two changes: 0, infinity, NaN."""
    constant = partial(lax.full_like, magnitude)
    return lax.bitwise_or(
        lax.eq(magnitude, constant(0)),
        lax.ge(magnitude, constant(info.special << info.num_fraction)),
    )


def _lifted(
    magnitude: Int[Array, "..."], info: _Info
) -> tuple[Int[Array, "..."], Int[Array, "..."]]:
    """Return patterns of normal numbers (or 0), and the power of two that each is taken times.

    A subnormal number is an integer times the smallest one; as a float that integer is normal.
    """
    is_subnormal = _is_subnormal(magnitude, info)
    integer = lax.bitcast_convert_type(
        lax.convert_element_type(magnitude, info.dtype), info.integer
    )
    lifted = lax.select(is_subnormal, integer, magnitude)
    start = lax.select(
        is_subnormal, lax.full_like(magnitude, info.least), lax.full_like(magnitude, 0)
    )
    return lifted, start


def _field(magnitude: Int[Array, "..."], info: _Info) -> Int[Array, "..."]:
    """Return the biased exponent."""
    return lax.shift_right_logical(magnitude, lax.full_like(magnitude, info.num_fraction))


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
    shape = jnp.broadcast_shapes(values.shape, shift.shape)
    shift = lax.convert_element_type(shift, info.integer)
    values, shift = jnp.broadcast_to(values, shape), jnp.broadcast_to(shift, shape)
    sign, magnitude = _sign_and_magnitude(values)
    constant = partial(lax.full_like, magnitude)
    places, zero = constant(info.num_fraction), constant(0)
    lifted, start = _lifted(magnitude, info)
    moved = lax.add(start, shift)
    field = lax.add(_field(lifted, info), moved)
    # What does not fit wraps around, and is not taken.
    normal = lax.add(lifted, lax.shift_left(moved, places))
    # Below the normal numbers: in units of the smallest one, which is a normal number again, and
    # rounded as floats are. A carry into the exponent gives the smallest normal number, as it
    # should; what is far below one unit need only be above 0.
    of_units = lax.max(lax.add(field, constant(info.bias + info.num_fraction - 1)), constant(1))
    fraction = lax.bitwise_and(lifted, constant((1 << info.num_fraction) - 1))
    units = lax.bitcast_convert_type(
        lax.bitwise_or(fraction, lax.shift_left(of_units, places)), values.dtype
    )
    if rounds_down:
        whole = lax.select(lax.eq(sign, zero), lax.floor(units), lax.ceil(units))
    else:
        whole = lax.round(units, lax.RoundingMethod.TO_NEAREST_EVEN)
    small = lax.convert_element_type(whole, info.integer)
    large = constant(info.special << info.num_fraction)
    result = lax.select(lax.ge(field, constant(info.special)), large, normal)
    result = lax.select(lax.le(field, zero), small, result)
    result = lax.select(_is_fixed(magnitude, info), magnitude, result)
    return lax.bitcast_convert_type(lax.bitwise_or(result, sign), values.dtype)
