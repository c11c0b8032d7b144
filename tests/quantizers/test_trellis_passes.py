"""Tensors of any shape are quantized in parts as their chains are as a whole."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.quantizers.problems import as_problem
from jaxcomp.quantizers.scalar.trellis import Weights, trellis_codes
from jaxcomp.quantizers.scales import Rows
from jaxcomp.quantizers.trellis_passes import codes_in_chains, design_on_sample

# Further ones than the table has cost as the last.
PRICE = 0.2 * np.repeat(np.arange(8, dtype=np.float32), 2)


def tensor(shape, seed=0):
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


def whole(matrix, importance=None):
    mass = jnp.asarray(np.ones_like(matrix) if importance is None else importance)
    steps = jnp.full(matrix.shape[1], len(matrix), jnp.int32)
    return np.asarray(trellis_codes(Weights(jnp.asarray(matrix), mass, steps), jnp.asarray(PRICE)))


@pytest.mark.parametrize("order", [1, 2])
def test_parts_are_those_of_the_whole(order):
    """Several parts of 64 steps, and two groups of chains, the last of each filled up."""
    values = tensor((150, 520) if order == 1 else (520, 150))
    problem = as_problem(values).with_scales(Rows("tensor"), np.ones(1, np.float32))
    codes = codes_in_chains(problem, 1.0, PRICE, order).reshape(values.shape)
    np.testing.assert_array_equal(codes, whole(values) if order == 1 else whole(values.T).T)


def test_short_rows_are_chained_in_rows_of_many():
    values = tensor((700, 3, 10))
    problem = as_problem(values).with_scales(Rows("tensor"), np.ones(1, np.float32))
    codes = codes_in_chains(problem, 1.0, PRICE, 1)
    full = values.size // 250 * 250
    np.testing.assert_array_equal(
        codes[:full].reshape(-1, 250), whole(values.reshape(-1)[:full].reshape(-1, 250))
    )


def test_scales_and_importances_are_those_of_the_weights():
    values, importance = tensor((150, 520)), tensor((150, 520), 1) ** 2
    scales = np.exp(tensor(520, 2) / 9)
    problem = as_problem(values, importance).with_scales(Rows("channel"), scales)
    moments = problem.moments
    mass = importance * scales**2
    assert moments.importance * 2.0**problem.importance_exponent == pytest.approx(mass.mean())
    inside = values / scales
    mean = np.average(inside, weights=mass)
    assert moments.variance == pytest.approx(np.average((inside - mean) ** 2, weights=mass), 1e-5)
    assert moments.largest == pytest.approx(np.abs(inside).max())
    codes = codes_in_chains(problem, 2.0, PRICE, 1).reshape(values.shape)
    expected = whole(inside / 2, (mass / mass.mean()).astype(np.float32))
    # In other units: rounding decides between paths that cost the same.
    assert np.mean(codes != expected) < 1e-3


def test_a_sample_stands_for_a_tensor_that_it_covers():
    values = tensor((40, 256))
    problem = as_problem(values).with_scales(Rows("tensor"), np.ones(1, np.float32))
    found, sample, mass = design_on_sample(problem, 1.5, 2.0)
    np.testing.assert_array_equal(sample, values.reshape(-1))
    assert np.all(mass == 1)
    codes = codes_in_chains(problem, 1.5, np.asarray(found.price), 1)
    np.testing.assert_array_equal(np.asarray(found.integers).reshape(-1)[: values.size], codes)
