"""Solutions on a histogram, and what their codebooks make of the points, against NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_cases import some_slow

from jaxcomp.quantizers import histogram_moments, solve_kmeans, solve_uniform
from jaxcomp.quantizers.solution import Codebook, quantize_points

MAX_CLUSTERS = 4
POINTS = np.array([-3, -1, 0, 1, 2, 7], np.float32)
IMPORTANCE = np.array([1, 2, 1, 0.5, 4, 1], np.float32)


def distortion(centroids):
    nearest = np.abs(POINTS[:, None] - centroids).argmin(axis=1)
    return np.sum(IMPORTANCE * (POINTS - centroids[nearest]) ** 2)


@pytest.mark.parametrize("form", some_slow(["none", "monotone", "linear"], "none", "linear"))
def test_objective_is_the_distortion_and_the_penalty(form, strict_promotion):
    beta, moments = 0.5, histogram_moments(POINTS, IMPORTANCE)
    found = solve_kmeans(
        moments,
        3,
        beta,
        max_clusters=MAX_CLUSTERS,
        penalty_form=form,
        penalty_scale="absolute",
        start="quantiles",
    )
    centroids = np.asarray(found.codebook.centroids)[:3]
    diameter = centroids[-1] - centroids[0]
    penalty = {"none": 0, "monotone": beta * diameter**2, "linear": beta / 2 * diameter}[form]
    assert int(found.codebook.num_clusters) == 3
    np.testing.assert_allclose(found.distortion, distortion(centroids), rtol=1e-5)
    np.testing.assert_allclose(found.objective, distortion(centroids) + penalty, rtol=1e-5)


def test_a_grid_has_no_penalty_and_iterates_nothing(strict_promotion):
    found = solve_uniform(histogram_moments(POINTS, IMPORTANCE), 3, max_clusters=MAX_CLUSTERS)
    # Cells of width 10 / 3: {-3, -1, 0}, {1, 2}, {7}.
    centroids = np.array([-5 / 4, 8.5 / 4.5, 7])
    np.testing.assert_allclose(found.codebook.centroids[:3], centroids, rtol=1e-6)
    np.testing.assert_allclose(found.distortion, distortion(centroids), rtol=1e-5)
    assert float(found.objective) == float(found.distortion)
    assert (int(found.codebook.num_clusters), int(found.num_iterations)) == (3, 0)
    assert bool(found.converged)


def test_points_are_measured_under_any_codebook(strict_promotion):
    codebook = Codebook(
        jnp.array([-2, 1, 1, 1], jnp.float32),
        jnp.array([-0.5, np.inf, np.inf], jnp.float32),
        jnp.int32(3),
    )
    found = jax.jit(partial(quantize_points, penalty_form="monotone"))(
        jnp.asarray(POINTS),
        jnp.asarray(IMPORTANCE),
        codebook,
        num_iterations=jnp.int32(2),
        converged=jnp.asarray(False),
        beta=jnp.float32(2),
    )
    np.testing.assert_array_equal(found.assignments, [0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(found.counts, [2, 4, 0, 0])
    assert (int(found.num_used), int(found.num_empty), int(found.num_iterations)) == (2, 1, 2)
    assert not bool(found.converged)
    expected = distortion(np.array([-2.0, 1.0]))
    np.testing.assert_allclose(found.distortion, expected, rtol=1e-6)
    np.testing.assert_allclose(found.objective, expected + 2 * 3**2, rtol=1e-6)
