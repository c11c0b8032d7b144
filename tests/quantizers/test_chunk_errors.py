import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.quantizers.chunk_errors import Total, measured
from jaxcomp.quantizers.problems import problem_of, survey


def problem(weights, importance=None):
    return problem_of(weights, exponent=survey(weights)[1], importance=importance)


def test_errors_are_in_range_for_infinite_and_least_numbers():
    # What float16 has no room for is infinitely wrong, and no NaN.
    given = problem(np.asarray([65504.0, 1.0], np.float16))
    (_, chunk) = next(given.chunks())
    total = Total()
    total.add(measured(chunk, 2 * chunk.points, given.weights_dtype))
    assert total.errors(given).squared_error == np.inf


@pytest.mark.parametrize("exponent", [-140, -90, 0, 100])
def test_errors_are_those_of_fractions_at_any_scale(exponent):
    rng = np.random.default_rng(0)
    units = rng.integers(-8, 8, 50).astype(np.float32)
    h = rng.integers(0, 2, 50).astype(np.float32)
    given = problem(np.ldexp(units, exponent), h)
    total = Total()
    for _, chunk in given.chunks():
        values = jnp.round(chunk.points)
        total.add(measured(chunk, values, np.dtype(np.float32)))
    points = np.ldexp(units.astype(np.float64), exponent - given.exponent)
    error = points - np.round(points)
    expected = [np.sum(h * error**2), np.sum(error**2), np.sum(points**2)]
    np.testing.assert_allclose(total.errors(given), expected, rtol=1e-6)
    assert given.energy() == pytest.approx(expected[2])


def test_importance_of_zeros_weighs_nothing():
    given = problem(np.ones(4, np.float32), np.zeros(4, np.float32))
    assert given.importance is None
    assert given.weighs_nothing
    total = Total()
    for _, chunk in given.chunks():
        total.add(measured(chunk, 2 * chunk.points, np.dtype(np.float32)))
    assert total.errors(given) == (0.0, 4.0, 4.0)
