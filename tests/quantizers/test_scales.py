"""Outliers, scales and many clusters: what no scalar quantizer may lose weights to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from promotion import strictly
from slow_cases import some_slow

from jaxcomp import quantizers
from jaxcomp.quantizers import block_kmeans

# As many points, bins and centres, and as strictly, as in the tests of each quantizer.
NUM_POINTS, NUM_BINS, K = 3000, 512, 8
histogram_moments = strictly(quantizers.histogram_moments)
kmeans = strictly(quantizers.kmeans)
optimal_kmeans = strictly(quantizers.optimal_kmeans)
uniform = strictly(quantizers.uniform)


def weights():
    return np.random.default_rng(0).standard_normal(NUM_POINTS).astype(np.float32)


def squared_error(points, centroids):
    points, centroids = np.asarray(points, np.float64), np.unique(np.asarray(centroids, np.float64))
    index = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, points)
    return np.sum((points - centroids[index]) ** 2)


OUTLIERS = [(1e2,), (-1e6,), (1e12,), (-3.4e38, 3.4e38), (1e5, -1e9, 1e20)]


@pytest.mark.parametrize("outliers", OUTLIERS)
def test_outliers_cost_one_centre_each(outliers):
    # Weights whose places the outliers take may count among the others: one size for all.
    points, rest = weights(), weights()
    points[: len(outliers)] = outliers
    ones = np.ones_like(points)
    best = optimal_kmeans(rest, ones, max_clusters=K, num_bins=NUM_BINS)
    achievable = float(np.asarray(best.distortion)[K - len(outliers)])
    found = kmeans(points, ones, num_clusters=K, max_clusters=K, num_bins=NUM_BINS)
    assert squared_error(rest, found.centroids) < 1.01 * achievable
    assert float(found.distortion) == pytest.approx(
        squared_error(points, found.centroids), rel=1e-5
    )
    optimal = optimal_kmeans(points, ones, max_clusters=K, num_bins=NUM_BINS)
    assert squared_error(rest, optimal.centroids(K)) < 1.01 * achievable
    assert float(np.asarray(optimal.gap_bound)[K]) < 0.02 * achievable


@pytest.mark.parametrize("exponent", some_slow([-90, -126, 60, 120], -126))
@pytest.mark.parametrize("has_weights", some_slow([False, True], False))
def test_powers_of_two_change_nothing(exponent, has_weights):
    points = weights()
    scaled = np.ldexp(points, exponent)
    ones, tiny = None, None
    if has_weights:
        ones, tiny = np.ones_like(points), np.full_like(points, 2.0**-140)
    for quantize in (kmeans, uniform):
        plain = quantize(points, ones, num_clusters=K, max_clusters=K, num_bins=NUM_BINS)
        found = quantize(scaled, tiny, num_clusters=K, max_clusters=K, num_bins=NUM_BINS)
        expected = np.ldexp(np.asarray(plain.centroids), exponent)
        # Where the result is subnormal it is rounded.
        np.testing.assert_allclose(found.centroids, expected, rtol=0, atol=2e-45)
        if exponent > -126:
            np.testing.assert_array_equal(found.assignments, plain.assignments)


def test_both_ends_of_the_range():
    values = np.asarray([-3e38, 0.0, 3e38], np.float32)
    points = np.resize(values, weights().shape)
    ones = np.ones_like(points)
    found = kmeans(points, ones, num_clusters=K, max_clusters=K, num_bins=NUM_BINS)
    np.testing.assert_array_equal(np.unique(found.centroids), values)


@pytest.mark.parametrize(
    ("num_clusters", "size"),
    some_slow(
        [(2, K), (K, K), (300, 300), (3000, 3000), (65_536, 65_536)],
        (300, 300),
        (3000, 3000),
        (65_536, 65_536),
    ),
)
def test_never_worse_than_uniform(num_clusters, size):
    num_points, num_bins = (NUM_POINTS, NUM_BINS) if size == K else (20_000, 4096)
    points = np.random.default_rng(1).uniform(size=num_points).astype(np.float32)
    found, cells = (
        quantize(
            points,
            np.ones_like(points),
            num_clusters=num_clusters,
            max_clusters=size,
            num_bins=num_bins,
        )
        for quantize in (kmeans, uniform)
    )
    assert float(found.distortion) <= float(cells.distortion)
    # No two centres are equal while a cell can be split.
    assert int(found.num_used) == min(num_clusters, np.unique(points).size)


def test_a_group_without_importance_counts_alike_in_jit():
    # As many as in the tests of histograms, which trace the same.
    points = np.arange(200, dtype=np.float32)
    # A function of its own, since results of the kernels outside `jit` are checked.
    found = jax.jit(lambda w, h: histogram_moments(w, h, num_bins=256))(points, 0 * points)
    mass = np.asarray(found.mass)
    np.testing.assert_array_equal(mass, mass[0])
    assert mass[0] > 0


@pytest.mark.slow
def test_a_group_without_importance_is_clustered_in_jit():
    points = jnp.arange(9.0)
    found = jax.jit(lambda w, h: kmeans(w, h, num_clusters=3).centroids)(points, jnp.zeros(9))
    np.testing.assert_allclose(found, [1, 4, 7])


def test_weights_of_blocks_are_checked_by_block():
    with pytest.raises(ValueError, match="0 throughout a group, got 1 such groups"):
        block_kmeans(
            np.arange(8, dtype=np.float32).reshape(2, 4),
            np.array([[0, 0, 1, 1], [0, 0, 1, 1]], np.float32),
            block_shape=(2, 2),
            num_clusters=2,
        )


@pytest.mark.slow
def test_blocks_may_hold_rows_without_weight():
    block_kmeans(
        jnp.ones((2, 4)),
        jnp.asarray([[0.0, 0, 0, 0], [1, 1, 1, 1]]),
        block_shape=(2, 2),
        num_clusters=2,
    )
