import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxcomp.rate_distortion import gaussian_distortion, gaussian_rate


def components(seed=0, number=7):
    rng = np.random.default_rng(seed)
    variances, importance = rng.gamma(1.0, size=number), rng.gamma(0.5, size=number)
    importance[2] = 0.0
    variances[3] = 0.0
    return variances, importance


def by_water_level(variances, importance, level):
    """Total distortion and rate at a water level, written as in the textbook."""
    distortion = rate = 0.0
    for v, h in zip(variances, importance, strict=True):
        each = v if h == 0 else min(level / h, v)
        distortion += h * each
        rate += 0.5 * np.log(v / each) if each > 0 else 0.0
    return distortion, rate


@pytest.mark.usefixtures("strict_promotion")
def test_both_directions_match_the_water_level():
    variances, importance = components()
    for levels in np.geomspace(1e-4, 3.0, 32).reshape(8, 4):  # four at a time, as below
        expected = np.array([by_water_level(variances, importance, level) for level in levels])
        found = gaussian_distortion(variances, importance, expected[:, 1])
        np.testing.assert_allclose(found, expected[:, 0], rtol=2e-6)
        # Relative to the total rate, float32 loses the digits that the distortions differ in.
        found = gaussian_rate(variances, importance, expected[:, 0])
        np.testing.assert_allclose(found, expected[:, 1], rtol=2e-6, atol=2e-6)


def test_matches_a_general_optimiser():
    variances, importance = np.array([1.0, 0.5, 2.0]), np.array([1.0, 3.0, 0.2])
    rate = 1.3

    def distortion(rates):
        return np.sum(variances * importance * np.exp(-2 * rates))

    found = optimize.minimize(
        distortion,
        np.full(3, rate / 3),
        bounds=[(0, None)] * 3,
        constraints={"type": "eq", "fun": lambda rates: rates.sum() - rate},
        tol=1e-10,
    )
    assert found.success
    assert float(gaussian_distortion(variances, importance, rate)) == pytest.approx(
        found.fun, rel=1e-5
    )


def test_limits():
    variances, importance = components()
    total = np.sum(variances * importance)
    distortion = gaussian_distortion(variances, importance, np.array([0.0, np.inf, -1.0, -0.0]))
    np.testing.assert_allclose(distortion, [total, 0, np.nan, total], rtol=1e-6)
    rate = gaussian_rate(variances, importance, np.array([0.0, total * 1.001, 2 * total, -1.0]))
    np.testing.assert_array_equal(rate, [np.inf, 0, 0, np.nan])
    nothing, some = np.zeros(7), np.array([0.0, 1.0, 2.0, 9.0])
    np.testing.assert_array_equal(gaussian_distortion(nothing, np.ones(7), some), 0)
    np.testing.assert_array_equal(gaussian_rate(nothing, np.ones(7), some), 0)


def test_slope_is_twice_the_water_level():
    variances, importance = components()
    level = 0.05
    _, rate = by_water_level(variances, importance, level)
    slope = jax.grad(lambda r: gaussian_distortion(variances, importance, r))(float(rate))
    assert float(slope) == pytest.approx(-2 * level, rel=1e-5)
    gradient = jax.grad(lambda v: gaussian_rate(v, importance, 0.5))(
        jnp.asarray(variances, jnp.float32)
    )
    assert np.all(np.isfinite(gradient))
    assert float(gradient[2]) == 0


def test_many_sources_at_once():
    sources = [components(seed) for seed in range(3)]
    variances, importance = (np.stack(part) for part in zip(*sources, strict=True))
    rates = np.array([0.1, 1.0, 2.0, 4.0])
    together = gaussian_distortion(variances, importance, rates)
    assert together.shape == (3, 4)
    for row, (v, h) in zip(together, sources, strict=True):
        np.testing.assert_allclose(row, gaussian_distortion(v, h, rates), rtol=1e-6)
    assert gaussian_distortion(variances, importance, 1.0).shape == (3,)


def test_bad_shapes():
    with pytest.raises(ValueError, match="variances must have an axis of components"):
        gaussian_rate(1.0, 1.0, 0.5)
    with pytest.raises(ValueError, match="importance must have the shape of variances"):
        gaussian_rate(np.ones(3), np.ones(2), 0.5)
    with pytest.raises(ValueError, match="rate_nats must have leading axes like"):
        gaussian_distortion(np.ones((2, 3)), 1.0, np.ones((3, 4)))
