import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxcomp.quantizers.scalar import diameter
from jaxcomp.quantizers.scalar.diameter import PENALTY_FORMS, Clusters, penalty_term

# Eager loops would compile every operation of the update by itself.
update_centres = jax.jit(diameter.update_centres, static_argnames="penalty_form")

NUM_CLUSTERS = 5


def make_clusters(mass, mean):
    mass, mean = np.array(mass, np.float32), np.array(mean, np.float32)
    return Clusters(jnp.asarray(mass), jnp.asarray(mean), jnp.asarray(mass > 0))


def random_clusters(seed):
    rng = np.random.default_rng(seed)
    mass = rng.gamma(0.3, size=NUM_CLUSTERS) + 1e-3
    mass[rng.random(NUM_CLUSTERS) < 0.2] = 0  # clusters without mass, wherever they fall
    mass[rng.integers(NUM_CLUSTERS)] = 1.0
    return make_clusters(mass, np.sort(rng.standard_t(3, NUM_CLUSTERS)))


def value(clusters, centres, beta, form):
    """Distortion between the means and the centres, plus the penalty; the inner parts are fixed."""
    mass, mean = (np.asarray(part, np.float64) for part in (clusters.mass, clusters.mean))
    centres = np.asarray(centres, np.float64)
    served = centres[mass > 0]
    diameter = served.max() - served.min()
    penalty = 0.5 * beta * diameter if form == "linear" else beta * diameter**2
    return np.sum((mass * (centres - mean) ** 2)[mass > 0]) + penalty


def best_value(clusters, beta, form):
    """The same minimum from a general solver: variables c_k and ends L <= c_k <= U."""
    mass, mean = (np.asarray(part, np.float64) for part in (clusters.mass, clusters.mean))
    mass, mean = mass[mass > 0], mean[mass > 0]
    size = len(mass)

    def function(x):
        spread = x[-1] - x[-2]
        penalty = 0.5 * beta * spread if form == "linear" else beta * spread**2
        return np.sum(mass * (x[:size] - mean) ** 2) + penalty

    def gradient(x):
        spread = x[-1] - x[-2]
        slope = 0.5 * beta if form == "linear" else 2 * beta * spread
        return np.concatenate([2 * mass * (x[:size] - mean), [-slope, slope]])

    eye, one, zero = np.eye(size), np.ones((size, 1)), np.zeros((size, 1))
    inside = np.block([[eye, -one, zero], [-eye, zero, one]])
    result = minimize(
        function,
        np.concatenate([mean, mean[[0, -1]]]),
        jac=gradient,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda x: inside @ x, "jac": lambda _: inside},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return result.fun


@pytest.mark.parametrize("form", ["monotone", "linear"])
@pytest.mark.parametrize("beta", [1e-3, 0.1, 1.0, 30.0])
def test_update_is_the_minimum_for_fixed_assignments(form, beta, strict_promotion):
    for seed in range(20):
        clusters = random_clusters(seed)
        centres = update_centres(clusters, jnp.float32(beta), penalty_form=form)
        found, best = value(clusters, centres, beta, form), best_value(clusters, beta, form)
        assert found <= best * (1 + 1e-5) + 1e-7, seed
        assert found >= best * (1 - 1e-5) - 1e-6, seed
        in_use = np.asarray(centres)[np.asarray(clusters.has_mass)]
        assert np.all(np.diff(in_use) >= 0)


@pytest.mark.parametrize("beta", [0.01, 1.0, 100.0])
def test_published_update_is_the_joint_solve(beta, strict_promotion):
    for seed in range(20):
        clusters = random_clusters(seed)
        centres = update_centres(clusters, jnp.float32(beta), penalty_form="published")
        mass, mean = (np.asarray(part, np.float64) for part in (clusters.mass, clusters.mean))
        in_use = np.flatnonzero(mass > 0)
        expected = mean.copy()
        if len(in_use) > 1:
            ends = in_use[[0, -1]]
            matrix = np.diag(mass[ends] + beta) - beta * np.eye(2)[::-1]
            expected[ends] = np.linalg.solve(matrix, mass[ends] * mean[ends])
        np.testing.assert_allclose(
            np.asarray(centres)[in_use], expected[in_use], rtol=1e-4, atol=1e-5
        )


def test_counterexample_to_the_published_update():
    # One point a cluster, w = (-1, -0.99, 1): the lowest centre passes its neighbour.
    clusters = make_clusters([1.0, 1e6, 1e6], [-1.0, -0.99, 1.0])
    beta = jnp.float32(1.0)
    before = value(clusters, clusters.mean, 1.0, "published")
    published = update_centres(clusters, beta, penalty_form="published")
    monotone = update_centres(clusters, beta, penalty_form="monotone")
    assert before == pytest.approx(4.00, abs=5e-3)
    assert value(clusters, published, 1.0, "published") == pytest.approx(4.96, abs=5e-3)
    assert value(clusters, monotone, 1.0, "monotone") <= before
    assert float(published[0]) > float(published[1])


@pytest.mark.parametrize("form", PENALTY_FORMS)
def test_without_penalty_the_means_come_back_to_the_bit(form):
    for seed in range(10):
        clusters = random_clusters(seed)
        centres = update_centres(clusters, jnp.float32(0), penalty_form=form)
        in_use = np.asarray(clusters.has_mass)
        np.testing.assert_array_equal(np.asarray(centres)[in_use], clusters.mean[in_use])


@pytest.mark.parametrize("form", ["monotone", "linear"])
def test_an_enormous_penalty_merges_all_centres(form):
    clusters = random_clusters(0)
    centres = update_centres(clusters, jnp.float32(1e12), penalty_form=form)
    mean = np.average(clusters.mean, weights=clusters.mass)
    in_use = np.asarray(clusters.has_mass)
    np.testing.assert_allclose(np.asarray(centres)[in_use], mean, rtol=1e-5)


@pytest.mark.parametrize("form", PENALTY_FORMS)
def test_a_single_cluster_stays(form):
    clusters = make_clusters([0, 0, 2.0, 0, 0], [9.0, 9.0, 0.3, 9.0, 9.0])
    centres = update_centres(clusters, jnp.float32(3), penalty_form=form)
    assert float(centres[2]) == np.float32(0.3)


@pytest.mark.parametrize(
    ("form", "expected"), [("none", 0), ("monotone", 12), ("published", 12), ("linear", 3)]
)
def test_penalty_term(form, expected):
    assert float(penalty_term(jnp.float32(2), jnp.float32(3), penalty_form=form)) == expected
