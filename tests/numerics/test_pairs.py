"""Pairs of float32, compiled, against exact integers and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.numerics import pairs
from jaxcomp.numerics.pairs import Pair

pytestmark = pytest.mark.usefixtures("strict_promotion")


def numbers(seed):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(2000) * 2.0 ** rng.integers(-20, 20, 2000)).astype(np.float32)


def pair_of(values):
    high = values.astype(np.float32)
    return Pair(high, (values - high).astype(np.float32))


def exact(pair):
    return np.asarray(pair.high, np.float64) + np.asarray(pair.low, np.float64)


def test_a_product_is_exact():
    # 48 bits: float64 holds it.
    a, b = numbers(0), numbers(1)
    found = jax.jit(pairs.two_product)(a, b)
    np.testing.assert_array_equal(exact(found), a.astype(np.float64) * b.astype(np.float64))


@pytest.mark.parametrize("name", ["add", "subtract", "multiply"])
def test_operations_have_45_bits(name):
    # Compiled as a whole, so that a compiler that simplified sums would be found out.
    a, b = numbers(2).astype(np.float64) + numbers(3), numbers(4).astype(np.float64) + numbers(5)
    a, b = pair_of(a), pair_of(b)
    x, y = exact(a), exact(b)
    expected = {"add": x + y, "subtract": x - y, "multiply": x * y}[name]
    size = np.abs(x * y) if name == "multiply" else np.maximum(np.abs(x), np.abs(y))
    found = exact(jax.jit(getattr(pairs, name))(a, b))
    assert np.max(np.abs(found - expected) / size) < 2.0**-44


def test_sums_from_an_anchor():
    values = np.stack([numbers(6), numbers(7)], axis=-1)
    columns = Pair(values, np.zeros_like(values))
    sums = exact(jax.jit(pairs.anchored_pairs)(columns, jnp.int32(700)))
    upto = np.concatenate([np.zeros((1, 2)), np.cumsum(values.astype(np.float64), axis=0)])
    assert np.max(np.abs(sums - (upto - upto[700]))) < 2.0**-40 * np.abs(values).sum()
