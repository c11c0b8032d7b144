"""Rounding to multiples of a step: one rule for kernels and streams, against exact fractions."""

from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxcomp import coding
from jaxcomp.coding import Gaussian
from jaxcomp.coding.grid import grid_step, nearest_index

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
N = 500


@jax.jit
def traced(weights, step):
    return coding.quantize(weights, step=step)


def near_ties(step: float, dtype, seed: int = 0) -> np.ndarray:
    """Weights next to the middle between two multiples, where a sloppy quotient goes wrong."""
    rng = np.random.default_rng(seed)
    middle = (rng.integers(-2000, 2000, N) + 0.5) * step
    exact = np.asarray(middle, np.float32)
    steps = rng.integers(-2, 3, N).astype(np.int32)
    return (exact.view(np.int32) + steps).view(np.float32).astype(dtype)


def exact_index(weights, step) -> list[int]:
    """The nearest whole number to the quotient of two fractions; `round` sends ties to even."""
    divisor = Fraction(float(np.float32(step)))
    return [round(Fraction(float(weight)) / divisor) for weight in weights]


@pytest.mark.parametrize("step", [0.01, 1e-3, 0.125, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_index_is_the_nearest_without_exception(step, dtype):
    weights = near_ties(step, dtype)
    wide, own = weights.astype(np.float64), grid_step(np.float64(step), dtype=dtype)
    expected = exact_index(weights, step)
    np.testing.assert_array_equal(nearest_index(wide, own, dtype=dtype), expected)
    centres = (np.asarray(expected) * float(own)).astype(np.float32).astype(dtype)
    quantize = partial(coding.quantize, weights)
    # Known, a constant of a program, traced, and mapped: XLA would divide by each differently.
    for found in (
        quantize(step=step),
        jax.jit(lambda: quantize(step=step))(),
        traced(weights, np.float32(step)),
        jax.vmap(lambda own: quantize(step=own))(np.full(1, step, np.float32))[0],
    ):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, centres)
    prior = Gaussian(10 * step)
    decoded = coding.decode(coding.encode(weights, prior, step=step), prior, like=weights)
    np.testing.assert_array_equal(decoded, centres)


def test_numbers_of_bug_reports():
    weights = np.float32([0.114999995, -0.0, 0.0049, -0.0049])
    found = coding.quantize(weights, step=0.01)
    np.testing.assert_array_equal(found, np.float32([0.11, 0, 0, 0]))
    assert not np.signbit(np.asarray(found)[1:]).any()
    # A step finer than the dtype leaves the weight as it is.
    assert float(coding.quantize(np.float16(1), step=1e-5)) == 1
    z = (np.random.default_rng(0).normal(size=N) * 0.1).astype(jnp.bfloat16)
    error = np.asarray(coding.quantize(z, step=1e-3), np.float32) - z.astype(np.float32)
    # Half a step, and half a unit in the last place (2^-8 of a number) of the multiple.
    assert np.all(np.abs(error) <= 0.5e-3 + 2.0**-8 * (np.abs(z.astype(np.float32)) + 0.5e-3))


LEAVES = {
    "one": np.float32([0.3]),
    "none": np.zeros((0, 3), np.float32),
    "0-d": np.float32(0.3),
    "0-d of JAX": jnp.asarray(0.3, jnp.bfloat16),
    "number": 0.3,
    "negative zero": np.float32([-0.0, -1e-9]),
    "outlier": np.float32([1e-3, 3e4]),
    "float16": np.float16([6e4, 6e-8, -0.007]),
    "bfloat16": np.asarray([0.1, -0.2], ml_dtypes.bfloat16),
    "float64": np.array([0.1, 0.0234375, -7.3]),
    "subnormal": np.float32([1e-42, -1e-42]),
}


@pytest.mark.parametrize("step", [1 / 128, 0.01, 5e4])
def test_leaves_of_all_kinds_are_sent_as_they_are_rounded(step):
    prior = Gaussian(0.5)
    rounded = coding.quantize(LEAVES, step=step)
    decoded = coding.decode(coding.encode(LEAVES, prior, step=step), prior, like=LEAVES)
    for name, leaf in LEAVES.items():
        # Bit for bit; float64 comes back from a kernel as float32.
        own = np.asarray(decoded[name]).astype(rounded[name].dtype)
        assert own.tobytes() == np.asarray(rounded[name]).tobytes(), name
        assert own.shape == np.shape(leaf)
        assert np.all(np.isfinite(own.astype(np.float32))), name


def test_one_scale_is_as_good_as_another():
    weights = np.random.default_rng(1).normal(size=N).astype(np.float32)
    base = np.asarray(coding.quantize(weights, step=0.03))
    for exponent in (-140, -60, 60, 125):
        # Products with a power of two are exact, but for numbers below 1e-38.
        scaled = np.ldexp(weights, exponent)
        found = np.asarray(
            coding.quantize(scaled, step=float(np.ldexp(np.float32(0.03), exponent)))
        )
        if exponent == -140:
            grain = 2.0**-149
            assert np.count_nonzero(found) > 0.9 * np.count_nonzero(base)
            assert np.max(np.abs(found.astype(np.float64) - np.ldexp(base, -140))) < 400 * grain
        else:
            np.testing.assert_array_equal(found, np.ldexp(base, exponent))


def test_ends_of_the_range_stay_finite():
    weights = np.float32([3e38, -3e38, 1e-38, 0.0])
    # The nearest multiple of 2e38 would be infinite, that of 2.5e38 is not.
    np.testing.assert_array_equal(
        coding.quantize(weights, step=2e38), np.float32([2e38, -2e38, 0, 0])
    )
    np.testing.assert_array_equal(
        coding.quantize(weights, step=2.5e38), np.float32([2.5e38, -2.5e38, 0, 0])
    )
    np.testing.assert_array_equal(coding.quantize(weights, step=1e-300), weights)
    np.testing.assert_array_equal(coding.quantize(weights, step=1e300), np.zeros(4, np.float32))
    half = np.float16([65504, -40000])
    np.testing.assert_array_equal(coding.quantize(half, step=4e4), np.float16([4e4, -4e4]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: coding.quantize(np.arange(3), step=1.0), TypeError, "weights must be floating"),
        (
            lambda: coding.quantize(np.ma.masked_array([1.0]), step=1.0),
            TypeError,
            "weights must not be masked",
        ),
        (
            lambda: coding.quantize(np.array([1e300]), step=1.0),
            ValueError,
            r"range of float32, got 1e\+300: turn on jax_enable_x64",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
