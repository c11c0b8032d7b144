"""The entropy of ridge against SciPy's densities and draws."""

import linear_regression_oracles as oracle
import numpy as np
import pytest
from scipy import stats
from slow_cases import some_slow

from jaxcomp.linear_regression import (
    Setting,
    estimated_entropy_nats,
    least_squares_entropy_nats,
    ridge_entropy_nats,
    ridge_log_density,
)

MAX_Z = 4.0


def test_ridge_density_without_penalty_is_the_multivariate_t():
    setting = Setting(4, 13, 0.7, 2.0)
    nu = 10
    reference = stats.multivariate_t(np.zeros(4), 0.7 * np.eye(4) / nu, df=nu)
    along, across = np.array([-1.0, 1.2, 1.5, 3.0]), np.array([0.2, 0.0, 0.7, 2.0])
    points = np.zeros((4, 4))
    points[:, 0], points[:, 1] = along - np.sqrt(2.0), across
    found = ridge_log_density(along, across, setting, 0.0)
    np.testing.assert_allclose(found, reference.logpdf(points), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("penalty", some_slow([0.5, 8.0, 200.0], 8.0, 200.0))
def test_ridge_density_and_entropy(penalty):
    dim, n, s2 = 6, 18, 0.7
    truth = np.array([1.0, -0.5, 0.3, 0.8, 0.0, -0.2])
    setting = Setting(dim, n, s2, float(truth @ truth))
    draws = oracle.draw(truth, np.eye(dim), s2, n, 20_000)
    right = np.einsum("mij,mj->mi", draws.gram, draws.weights)
    weights = np.linalg.solve(draws.gram + penalty * np.eye(dim), right[..., None])[..., 0]
    along = weights @ truth / np.linalg.norm(truth)
    across = np.sqrt(np.sum(weights**2, axis=1) - along**2)
    surprise = -ridge_log_density(along, across, setting, penalty)
    entropy = ridge_entropy_nats(setting, penalty)
    assert abs(surprise.mean() - entropy) < MAX_Z * surprise.std() / np.sqrt(surprise.size)
    assert abs(estimated_entropy_nats(weights, truth) - entropy) < 0.08
    # A density integrates to one: importance sampling from a normal of the same two moments.
    rng = np.random.default_rng(0)
    proposal = stats.multivariate_t(weights.mean(0), np.cov(weights.T), df=5, seed=rng)
    sample = proposal.rvs(20_000)
    s_along = sample @ truth / np.linalg.norm(truth)
    s_across = np.sqrt(np.maximum(np.sum(sample**2, axis=1) - s_along**2, 0))
    density = ridge_log_density(s_along, s_across, setting, penalty)
    assert abs(oracle.z_score(np.exp(density - proposal.logpdf(sample)), 1.0)) < MAX_Z


@pytest.mark.parametrize("dim", some_slow([2, 8, 20], 8, 20))
def test_ridge_entropy_without_penalty_is_that_of_the_multivariate_t(dim):
    # From three degrees of freedom, with tails that no grid of standard deviations covers, on.
    for n, signal in ((dim + 2, 4.0), (dim + 2, 1e6), (dim + 12, 0.0), (100_000, 4.0)):
        found = ridge_entropy_nats(Setting(dim, n, 0.7, signal), 0.0)
        exact = float(least_squares_entropy_nats(dim, n, noise_variance=0.7))
        assert found == pytest.approx(exact, abs=2e-6)


@pytest.mark.parametrize(("dim", "num_examples"), some_slow([(2, 4), (2, 9), (6, 8)], (2, 9)))
@pytest.mark.parametrize("penalty", some_slow([0.03, 5.0, 1e4], 5.0))
def test_ridge_entropy_of_few_examples_is_the_mean_surprise_of_draws(dim, num_examples, penalty):
    truth = np.append(1.5, np.zeros(dim - 1))
    draws = oracle.draw(truth, np.eye(dim), 0.7, num_examples, 20_000)
    right = np.einsum("mij,mj->mi", draws.gram, draws.weights)
    weights = np.linalg.solve(draws.gram + penalty * np.eye(dim), right[..., None])[..., 0]
    setting = Setting(dim, num_examples, 0.7, 2.25)
    across = np.linalg.norm(weights[:, 1:], axis=1)
    surprise = -ridge_log_density(weights[:, 0], across, setting, penalty)
    assert abs(oracle.z_score(surprise, ridge_entropy_nats(setting, penalty))) < MAX_Z


def test_ridge_entropy_of_huge_penalties():
    # W tends to X^T y / lambda, whose entropy falls by d for every factor e.
    setting = Setting(3, 9, 1.0, 2.0)
    for penalty in (1e12, 1e16, 1e19, 1e30, 1e300):
        tripled = ridge_entropy_nats(setting, 3 * penalty)
        expected = ridge_entropy_nats(setting, penalty) - 3 * np.log(3)
        assert tripled == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_entropies_at_the_size_of_the_study():
    for n in (80, 200, 5000):
        setting = Setting(50, n, 1.0, 2.0)
        exact = least_squares_entropy_nats(50, n)
        np.testing.assert_allclose(ridge_entropy_nats(setting, 0.0), exact, atol=1e-6)
        falling = [ridge_entropy_nats(setting, penalty) for penalty in (0.0, 10.0, 1e3, 1e5)]
        assert np.all(np.diff(falling) < 0)
    # Without a signal the axis has no meaning; the density is that of a radius.
    assert np.isfinite(ridge_entropy_nats(Setting(50, 80, 1.0, 0.0), 10.0))


@pytest.mark.parametrize(
    ("setting", "penalty", "message"),
    [
        (Setting(1, 9), 1.0, "dim must be at least 2"),
        (Setting(5, 9), -1.0, "penalty must be finite and at least 0"),
    ],
)
def test_refused(setting, penalty, message):
    with pytest.raises(ValueError, match=message):
        ridge_entropy_nats(setting, penalty)
