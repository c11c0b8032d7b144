from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from promotion import strictly
from quantizer_oracles import count_compilations, heavy_tailed, optimum, restored

from jaxcomp.quantizers import histogram_moments, kmeans, solve_kmeans, solve_optimal
from jaxcomp.quantizers.histograms import histogram_with_edges
from jaxcomp.quantizers.scalar.coarse_to_fine import coarse_to_fine_centroids

# As many weights and bins as in the tests of histograms.
NUM_POINTS, NUM_BINS, MAX_CLUSTERS = 20_000, 256, 8
CLUSTERS = np.arange(1, MAX_CLUSTERS + 1, dtype=np.int32)


def sources():
    rng = np.random.default_rng(0)
    size = NUM_POINTS
    weights = rng.gamma(0.5, size=size)
    return {
        "normal": (rng.normal(size=size), weights),
        "laplace": (rng.laplace(size=size), weights),
        "student_t": heavy_tailed(size),
        "two_modes": (np.append(rng.normal(5, 0.1, 6_000), rng.normal(-1, 1, 14_000)), None),
        "mostly_zero": (np.where(rng.random(size) < 0.9, 0, rng.normal(size=size)), weights),
        "log_normal": (np.exp(2 * rng.normal(size=size)), None),
    }


@strictly
def moments_of(points, weights):
    points = points.astype(np.float32)
    weights = np.ones_like(points) if weights is None else weights.astype(np.float32)
    return histogram_with_edges(points, weights, num_bins=NUM_BINS)[0]


@strictly
def solve_all(moments):
    """Codebooks of all sizes, with the centres that the search finds."""

    def solve(number):
        return solve_kmeans(
            moments, number, max_clusters=MAX_CLUSTERS, penalty_form="none", num_iterations=0
        )

    return jax.vmap(solve)(CLUSTERS)


def excess(points, weights):
    """Return by how much the codebooks of all sizes are above the optimum on the same bins."""
    moments = moments_of(points, weights)
    values = restored(moments)
    best = optimum(values.position, values.mass, MAX_CLUSTERS) + np.sum(values.second)
    return np.asarray(solve_all(moments).distortion) / best - 1


@pytest.mark.parametrize("source", list(sources()))
def test_finds_the_optimum_on_the_same_bins(source, strict_promotion):
    above = excess(*sources()[source])
    # Nearest assignment by rounded centres: equal to a few roundings.
    assert np.all(above > -1e-5)
    assert np.median(above) < 1e-5
    assert np.all(above < 1e-3)


@pytest.mark.slow
def test_many_clusters_find_the_optimum_on_the_same_bins(strict_promotion):
    # The grid has two places for each, and the bins are sixteen for each.
    num_clusters, num_bins = 128, 2048
    for source in ("normal", "laplace", "student_t", "log_normal"):
        points, weights = (
            None if part is None else jnp.asarray(part, jnp.float32) for part in sources()[source]
        )
        moments = histogram_moments(points, weights, num_bins=num_bins)
        best = solve_optimal(moments, max_clusters=num_clusters, has_one_value_per_bin=True)
        found = solve_kmeans(moments, num_clusters, max_clusters=num_clusters, num_iterations=0)
        above = float(found.distortion / best.distortion[num_clusters]) - 1
        assert -1e-5 < above < 3e-4, source


@pytest.mark.slow
@pytest.mark.parametrize("num_clusters", [2, 5])
def test_few_points_are_solved_exactly(num_clusters):
    points, importance = heavy_tailed(60)
    found = kmeans(points, importance, num_clusters=num_clusters, max_clusters=5)
    best = optimum(points, importance, num_clusters)[-1]
    assert float(found.distortion) == pytest.approx(best, rel=1e-5)


@pytest.mark.slow
def test_better_than_lloyd_from_quantiles_on_heavy_tails():
    moments = histogram_moments(*sources()["student_t"], num_bins=512)
    by_start = {
        start: float(solve_kmeans(moments, 16, max_clusters=16, start=start).distortion)
        for start in ("coarse_to_fine", "quantiles")
    }
    assert by_start["coarse_to_fine"] < 0.8 * by_start["quantiles"]


def test_traced_numbers_of_clusters_compile_once_and_equal_single_calls():
    moments = moments_of(*sources()["student_t"])

    def solve(number):
        return coarse_to_fine_centroids(
            moments.position, moments.mass, number, max_clusters=MAX_CLUSTERS
        )

    solve(1)
    with count_compilations() as count:
        single = [solve(number) for number in range(1, MAX_CLUSTERS + 1)]
    assert count() == 0
    single = np.stack(single)  # on the host: slices of arrays of JAX are programs
    together = np.ldexp(solve_all(moments).codebook.centroids, -int(moments.exponent))
    np.testing.assert_allclose(together, single, rtol=1e-6, atol=1e-9)
    for number, centroids in enumerate(single, start=1):
        assert centroids.dtype == jnp.float32
        assert np.all(np.diff(centroids) >= 0)
        assert np.all(centroids[number - 1 :] == centroids[number - 1])


def test_bins_without_mass_and_fewer_bins_than_clusters():
    position = np.array([-2.0, -2.0, 0.5, np.nextafter(np.float32(0.5), np.float32(1)), 9, 9])
    mass = np.array([0.0, 1.0, 2.0, 1e-3, 0.0, 5.0])
    found = coarse_to_fine_centroids(position, mass, 7, max_clusters=8)
    found = np.asarray(found)
    np.testing.assert_array_equal(found[:4], position.astype(np.float32)[[1, 2, 3, 5]])
    np.testing.assert_array_equal(found[4:], np.float32(9))
    two = coarse_to_fine_centroids(position, mass, 2, max_clusters=8)
    np.testing.assert_allclose(two, [-1 / 3.001, *[9] * 7], rtol=1e-3)


@pytest.mark.slow
def test_one_bin():
    one = coarse_to_fine_centroids(np.array([3.0]), np.array([2.0]), 2, max_clusters=2)
    np.testing.assert_array_equal(one, 3)


def test_double_precision(x64):
    points, importance = (part.astype(np.float64) for part in heavy_tailed(300))
    # Known from the trace: nothing of it is computed otherwise than in the tests above.
    found = jax.eval_shape(
        partial(coarse_to_fine_centroids, max_clusters=5), np.sort(points), importance, 5
    )
    assert found.dtype == jnp.float64
