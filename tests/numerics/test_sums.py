import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.numerics.sums import (
    anchored_sums,
    count_below,
    middle_bin,
    number_of,
    pairwise_sum,
    running_maximum,
    running_sum,
)


@pytest.mark.parametrize("anchor", [0, 3, 50])
def test_anchored_sums_leave_out_what_lies_further_out(anchor, x64):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((50, 2))
    sums = np.asarray(jax.jit(anchored_sums)(jnp.asarray(values), jnp.int32(anchor)))
    for start, stop in ((0, 50), (1, 4), (3, 3), (2, 47), (20, 30)):
        expected = values[start:stop].sum(axis=0)
        np.testing.assert_allclose(sums[stop] - sums[start], expected, rtol=1e-12, atol=1e-13)
    values[0] = values[-1] = 1e30
    sums = np.asarray(jax.jit(anchored_sums)(jnp.asarray(values), jnp.int32(25)))
    np.testing.assert_allclose(sums[40] - sums[5], values[5:40].sum(axis=0), rtol=1e-12)
    assert float(middle_bin(jnp.asarray([1.0, 0, 4, 1, 1]))) == 2


@pytest.mark.parametrize("length", [1, 2, 37])
def test_running_values(length):
    values = np.random.default_rng(0).integers(-9, 9, (length, 2))
    np.testing.assert_array_equal(running_sum(jnp.asarray(values)), np.cumsum(values, axis=0))
    for dtype in (jnp.int32, jnp.float32):
        maximum = running_maximum(jnp.asarray(values).astype(dtype))
        np.testing.assert_array_equal(maximum, np.maximum.accumulate(values, axis=0))


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9])
def test_count_below(length):
    position = np.sort(np.random.default_rng(0).integers(0, 5, length)).astype(np.float32)
    thresholds = np.array([-np.inf, -1, 0, 0.5, 2, 4, 9, np.inf], np.float32)
    expected = np.searchsorted(position, thresholds, side="right")
    np.testing.assert_array_equal(count_below(jnp.asarray(position), thresholds), expected)


def test_pairwise_sum():
    values = np.full((70_001, 2), 0.1, np.float32)
    np.testing.assert_allclose(
        pairwise_sum(jnp.asarray(values), axis=0), 70_001 * float(np.float32(0.1)), rtol=1e-6
    )


def num_roundings(length):
    """How many additions a number passes through in the tree of `pairwise_sum`."""
    number = 0
    while length > 1:
        branches = min(32, length)
        row = min(128, math.ceil(length / branches))
        length = row * math.ceil(length / (branches * row))
        number += branches - 1
    return number


@pytest.mark.slow
def test_errors_of_ten_million_numbers():
    length = 10_000_000
    rng = np.random.default_rng(0)
    random = rng.standard_normal(length // 2).astype(np.float32)
    # Added one by one to the first, all others would be lost: each is half of its last digit.
    small = np.full(length, 2.0**-24, np.float32)
    small[0] = 1
    cases = {
        "of one sign": (random**2, math.fsum((random**2).tolist())),
        "all lost": (small, 1 + (length - 1) * 2.0**-24),
        "cancelling at the end": (np.concatenate([random, -random]), 0.0),
        "cancelling at the last node": (np.concatenate([abs(random), -abs(random)]), 0.0),
        "cancelling in pairs": (np.stack([random, -random], axis=-1).ravel(), 0.0),
    }
    assert num_roundings(length) == 135
    for name, (values, exact) in cases.items():
        # Every addition is off by at most half an ulp, 2^-24, of what it gives.
        unit = num_roundings(values.size) * 2.0**-24
        magnitude = float(np.sum(np.abs(values), dtype=np.float64))
        error = abs(float(pairwise_sum(jnp.asarray(values))) - exact)
        assert error <= unit / (1 - unit) * magnitude, name


@pytest.mark.parametrize("num_more", [0, 3])
def test_what_is_true_is_counted_exactly(num_more):
    """Up to 2^24, which float32 still counts, and beyond."""
    size = (1 << 24) + num_more
    are_so = np.ones((size,), bool)
    are_so[5] = False
    assert int(jax.jit(number_of)(are_so)) == size - 1
    assert number_of(jnp.zeros((2, 0), bool)) == 0
