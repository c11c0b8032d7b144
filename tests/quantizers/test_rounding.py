import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantizer_oracles import count_compilations

from jaxcomp.quantizers import round_to_nearest

WEIGHTS = np.random.default_rng(0).standard_normal((3, 4, 6)).astype(np.float32)


@pytest.mark.parametrize("num_bits", [2, 4, 8])
@pytest.mark.parametrize("channel_axis", [-1, 0])
def test_matches_the_definition(num_bits, channel_axis, strict_promotion):
    rounded = round_to_nearest(jnp.asarray(WEIGHTS), num_bits=num_bits, channel_axis=channel_axis)
    channels = np.moveaxis(WEIGHTS, channel_axis, -1).reshape(-1, WEIGHTS.shape[channel_axis])
    codes = np.moveaxis(np.asarray(rounded.codes), channel_axis, -1).reshape(channels.shape)
    values = np.moveaxis(np.asarray(rounded.values), channel_axis, -1).reshape(channels.shape)
    largest = 2 ** (num_bits - 1) - 1
    scales = np.abs(channels).max(axis=0) / largest
    assert rounded.codes.dtype == jnp.int8
    assert rounded.values.dtype == jnp.float32
    np.testing.assert_allclose(rounded.scales, scales, rtol=1e-6)
    # The largest weight of every channel has the last code; no weight is off by half a step.
    np.testing.assert_array_equal(np.abs(codes).max(axis=0), largest)
    np.testing.assert_allclose(values, codes * scales, rtol=1e-6)
    assert np.all(np.abs(values - channels) <= scales / 2 * (1 + 1e-5))


def test_bits_compile_nothing_and_jit_agrees():
    expected = round_to_nearest(WEIGHTS, num_bits=4)
    with count_compilations() as num_compilations:
        round_to_nearest(WEIGHTS, num_bits=8)
        assert num_compilations() == 0
    traced = jax.jit(lambda w, b: round_to_nearest(w, num_bits=b))(WEIGHTS, 4)
    jax.tree.map(np.testing.assert_array_equal, traced, expected)


def test_a_channel_of_zeros_and_a_float16_array():
    weights = jnp.asarray(WEIGHTS[0]).at[:, 2].set(0).astype(jnp.float16)
    rounded = round_to_nearest(weights, num_bits=8)
    assert rounded.values.dtype == jnp.float16
    assert rounded.scales.dtype == jnp.float32
    assert float(rounded.scales[2]) == 0
    np.testing.assert_array_equal(rounded.codes[:, 2], 0)
    np.testing.assert_array_equal(rounded.values[:, 2], 0)


@pytest.mark.parametrize("power", [-145, -100, 100, 125])
def test_codes_do_not_depend_on_the_scale(power):
    # Eight digits, so that subnormal numbers (below 2^-126) hold the weights exactly.
    weights = np.round(WEIGHTS[0] * 16) / 16
    scaled = np.ldexp(weights, power).astype(np.float32)
    assert np.all(np.isfinite(scaled))
    plain = round_to_nearest(weights, num_bits=3)
    rounded = round_to_nearest(scaled, num_bits=3)
    np.testing.assert_array_equal(rounded.codes, plain.codes)
    # The scales of subnormal weights are whole multiples of 2^-149.
    expected = np.ldexp(np.asarray(plain.scales, np.float64), power)
    np.testing.assert_allclose(rounded.scales, expected, rtol=1e-6, atol=2.0**-150)
    expected = np.ldexp(np.asarray(plain.values, np.float64), power)
    np.testing.assert_allclose(rounded.values, expected, rtol=1e-6, atol=2.0**-150)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": np.arange(4)}, TypeError, "weights must be floating, got int32"),
        ({"weights": np.float32(1)}, ValueError, r"one axis and one entry, got shape \(\)"),
        ({"weights": np.zeros((0, 2))}, ValueError, r"one axis and one entry, got shape \(0, 2\)"),
        ({"weights": np.array([np.inf])}, ValueError, "weights must be finite, got 1 NaN"),
        ({"num_bits": 1}, ValueError, "num_bits must be 2 to 8, got 1"),
        ({"num_bits": 9}, ValueError, "num_bits must be 2 to 8, got 9"),
        ({"channel_axis": 3}, ValueError, "one of the 3 axes of weights, got 3"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        round_to_nearest(**({"weights": WEIGHTS, "num_bits": 4} | options))
