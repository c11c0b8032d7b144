import decimal

import jax
import numpy as np
import pytest
from scipy import stats

from jaxcomp.rate_distortion import (
    density_entropy,
    gaussian_entropy,
    generalised_gaussian_entropy,
    laplacian_entropy,
    shannon_distortion,
    shannon_rate,
)


@pytest.mark.usefixtures("strict_promotion")
def test_entropies_match_scipy():
    np.testing.assert_allclose(gaussian_entropy(0.3), stats.norm(scale=0.3).entropy(), rtol=1e-6)
    np.testing.assert_allclose(
        laplacian_entropy(0.3), stats.laplace(scale=0.3).entropy(), atol=1e-6
    )
    for shape in (0.6, 1.0, 2.0, 5.0):
        expected = stats.gennorm(shape, scale=0.7).entropy()
        found = generalised_gaussian_entropy(0.7, shape)
        # SciPy's own integral is good to about 1e-7 where the density has a cusp.
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_entropy_of_a_density_on_a_grid():
    grid = np.linspace(-30, 30, 20001)
    density = 7 * stats.logistic.pdf(grid)  # not normalised
    # Trapezoidal error of order step^2, float32 sums of 20,001 terms.
    assert float(density_entropy(grid, density)) == pytest.approx(2.0, abs=1e-4)


def test_tight_for_gaussians_and_inverse_of_each_other():
    entropy = gaussian_entropy(2.0)
    rate = shannon_rate(entropy, np.array([0.0, 1.0, 4.0, 5.0, -1.0]))
    np.testing.assert_allclose(rate, [np.inf, np.log(2), 0, 0, np.nan], atol=1e-6)
    rates = np.array([0.5, 2.0, 7.0])
    distortion = shannon_distortion(entropy, rates, -0.7)
    np.testing.assert_allclose(distortion, 4 * np.exp(-2 * rates - 0.7), rtol=2e-6)
    np.testing.assert_allclose(shannon_rate(entropy, distortion, -0.7), rates, rtol=2e-6)


def test_bounds_hold_after_rounding():
    generator = np.random.default_rng(0)
    entropies, rates = generator.normal(size=40), generator.uniform(0, 12, 40)
    logs, distortions = generator.normal(size=40), np.exp(generator.normal(size=40) - 2)
    found = shannon_rate(entropies, distortions, logs), shannon_distortion(entropies, rates, logs)
    with decimal.localcontext(prec=40):
        constant = (1 + decimal.Decimal("6.28318530717958647692528676655900576839433").ln()) / 2
        for numbers in zip(entropies, distortions, rates, logs, *found, strict=True):
            h, d, r, log, rate, least = (decimal.Decimal(float(value)) for value in numbers)
            exact = max(h + log / 2 - constant - d.ln() / 2, decimal.Decimal(0))
            assert exact - decimal.Decimal("5e-7") * (1 + exact) <= rate <= exact
            exact = (2 * (h - r - constant) + log).exp()
            assert exact * (1 - decimal.Decimal("2e-7")) <= least <= exact


def test_says_nothing_where_there_is_nothing_to_say():
    # Atoms, or weights without importance.
    np.testing.assert_array_equal(shannon_rate(-np.inf, np.array([0.0, 1.0])), 0)
    np.testing.assert_array_equal(shannon_rate(1.0, np.array([0.0, 1.0]), -np.inf), 0)
    assert np.isnan(shannon_distortion(1.0, -1.0))


def test_gradient_is_finite():
    slope = jax.grad(lambda d: shannon_rate(gaussian_entropy(1.0), d))(0.25)
    assert float(slope) == pytest.approx(-0.5 / 0.25)
