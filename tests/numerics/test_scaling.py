"""Units of a power of two against `math.frexp` and `numpy.ldexp`, which keep subnormal numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.numerics.scaling import (
    group_exponent,
    is_negative,
    is_zero,
    normalise,
    restore,
    split,
)

pytestmark = pytest.mark.usefixtures("strict_promotion")


def every_exponent(dtype):
    """Numbers with every exponent the dtype has, both ends and the values around them."""
    info = jnp.finfo(dtype)
    exponents = np.arange(info.minexp - info.nmant, info.maxexp)
    rng = np.random.default_rng(0)
    with np.errstate(over="ignore"):
        values = np.ldexp(rng.uniform(1, 2, exponents.size), exponents)
        ends = [0.0, float(info.max), float(info.smallest_subnormal), float(info.tiny)]
        values = np.concatenate([values, -values, ends]).astype(info.dtype)
    return values[np.isfinite(values.astype(np.float64))]


@pytest.fixture(params=[jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def values(request):
    with jax.enable_x64(request.param == jnp.float64):
        yield every_exponent(request.param)


def test_exponents_are_those_of_frexp(values):
    found = jax.jit(group_exponent)(jnp.asarray(values)[:, None])
    expected = [math.frexp(float(value))[1] - 1 if value else 0 for value in values]
    np.testing.assert_array_equal(found, expected)


def test_numbers_and_exponents_of_a_split_are_those_of_frexp(values):
    number, exponent = jax.jit(lambda v: split(v, v.dtype))(jnp.asarray(values))
    found = [math.frexp(float(value)) for value in values]
    np.testing.assert_array_equal(exponent, [power - 1 if half else 0 for half, power in found])
    expected = np.asarray([2 * half for half, _ in found]).astype(values.dtype)
    np.testing.assert_array_equal(np.asarray(number).view(np.uint8), expected.view(np.uint8))
    kept = np.asarray([np.inf, -np.inf, np.nan])
    found = split(jnp.asarray(kept, values.dtype), values.dtype)[0]
    np.testing.assert_array_equal(np.asarray(found, np.float64), kept)


# From one end of float64 to the other, and beyond both.
@pytest.mark.parametrize("exponent", [0, 3, -7, 20, -130, 140, 300, -2000, 2097, -(2**31) + 1])
def test_exact_wherever_the_result_is_representable(values, exponent):
    scale = jax.jit(lambda v, e: (normalise(v, -e, axis=()), restore(v, e, axis=())))
    found = scale(jnp.asarray(values), jnp.full(values.shape, exponent, jnp.int32))
    with np.errstate(over="ignore", under="ignore"):
        if values.dtype == np.float64:
            expected = np.ldexp(values, max(exponent, -5000))
        else:
            # Exact in float64 or far out of range of the dtype; then rounded once.
            wide = np.ldexp(values.astype(np.float64), max(exponent, -5000))
            expected = wide.astype(values.dtype)
    for one in found:
        one = np.asarray(one)
        assert one.dtype == values.dtype
        np.testing.assert_array_equal(one.view(np.uint8), expected.view(np.uint8))


def test_groups_along_any_axes():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 5, 4)).astype(np.float32)
    values *= np.float32(10.0) ** rng.integers(-18, 18, (3, 1, 4)).astype(np.float32)
    values[1, :, 2] = 0
    exponent = group_exponent(jnp.asarray(values), axis=1)
    assert exponent.shape == (3, 4)
    assert exponent[1, 2] == 0
    scaled = normalise(jnp.asarray(values), exponent, axis=1)
    largest = np.abs(scaled).max(axis=1)
    assert np.all(((largest >= 1) & (largest < 2)) | (np.abs(values).max(axis=1) == 0))
    np.testing.assert_array_equal(scaled, values / 2.0 ** np.asarray(exponent)[:, None])
    np.testing.assert_array_equal(restore(scaled, exponent, axis=1), values)
    whole = group_exponent(jnp.asarray(values), axis=(0, -1))
    np.testing.assert_array_equal(
        restore(normalise(jnp.asarray(values), whole, axis=(0, -1)), whole, axis=(0, -1)), values
    )
    mapped = jax.vmap(lambda v: normalise(v, group_exponent(v, axis=0), axis=0))(values)
    np.testing.assert_array_equal(mapped, scaled)


def test_no_number_is_lost_or_taken_for_another():
    values = jnp.asarray([0.0, -0.0, 1e-45, -1e-45, 1e-30, -3.0, jnp.inf, -jnp.inf, jnp.nan])
    np.testing.assert_array_equal(jax.jit(is_zero)(values), [True, True] + 7 * [False])
    np.testing.assert_array_equal(
        jax.jit(is_negative)(values),
        [False, False, False, True, False, True, False, True, False],
    )
    moved = restore(values, jnp.int32(5), axis=0)
    assert np.signbit(moved[1])
    np.testing.assert_array_equal(moved[-3:], values[-3:])
    np.testing.assert_array_equal(is_zero(jnp.asarray([0, 2])), [True, False])
    np.testing.assert_array_equal(is_negative(jnp.asarray([0, -2])), [False, True])


def test_bad_input():
    with pytest.raises(TypeError, match="must be float16, bfloat16, float32 or float64, got int32"):
        group_exponent(jnp.arange(3))
    with pytest.raises(ValueError, match="exponent must have the 1 axes of the groups, got 0"):
        normalise(jnp.ones((2, 3)), jnp.int32(0))
