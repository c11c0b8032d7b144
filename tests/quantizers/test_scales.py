"""Outliers, scales and many clusters: what no scalar quantizer may lose weights to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_cases import some_slow

from jaxcomp.quantizers import block_kmeans, histogram_moments, kmeans, optimal_kmeans, uniform

NUM_POINTS, NUM_BINS, K = 20_000, 512, 8
# Codebooks of many clusters, of which any number may be used: one program for most tests.
SIZE = 300


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
    best = optimal_kmeans(jnp.asarray(rest), max_clusters=K, num_bins=NUM_BINS)
    achievable = float(best.distortion[K - len(outliers)])
    found = kmeans(jnp.asarray(points), num_clusters=K, num_bins=NUM_BINS)
    assert squared_error(rest, found.centroids) < 1.01 * achievable
    assert float(found.distortion) == pytest.approx(
        squared_error(points, found.centroids), rel=1e-5
    )
    optimal = optimal_kmeans(jnp.asarray(points), max_clusters=K, num_bins=NUM_BINS)
    assert squared_error(rest, optimal.centroids(K)) < 1.01 * achievable
    assert float(optimal.gap_bound[K]) < 0.02 * achievable


@pytest.mark.parametrize("exponent", some_slow([-90, -126, 60, 120], -126))
@pytest.mark.parametrize("has_weights", some_slow([False, True], False))
def test_powers_of_two_change_nothing(exponent, has_weights):
    points = jnp.asarray(weights())
    scaled = jnp.asarray(np.ldexp(weights(), exponent))
    ones, tiny = None, None
    if has_weights:
        ones, tiny = jnp.ones(points.shape), jnp.full(points.shape, np.float32(2.0**-140))
    for quantize in (kmeans, uniform):
        plain = quantize(points, ones, num_clusters=K, max_clusters=SIZE)
        found = quantize(scaled, tiny, num_clusters=K, max_clusters=SIZE)
        expected = np.ldexp(np.asarray(plain.centroids), exponent)
        # Where the result is subnormal it is rounded.
        np.testing.assert_allclose(found.centroids, expected, rtol=0, atol=2e-45)
        if exponent > -126:
            np.testing.assert_array_equal(found.assignments, plain.assignments)


def test_both_ends_of_the_range():
    values = np.asarray([-3e38, 0.0, 3e38], np.float32)
    points = np.resize(values, weights().shape)
    found = kmeans(points, num_clusters=K, num_bins=NUM_BINS)
    np.testing.assert_array_equal(np.unique(found.centroids), values)


@pytest.mark.parametrize(
    ("num_clusters", "size"),
    some_slow(
        [(2, SIZE), (SIZE, SIZE), (3000, 3000), (65_536, 65_536)], (3000, 3000), (65_536, 65_536)
    ),
)
def test_never_worse_than_uniform(num_clusters, size):
    points = np.random.default_rng(1).uniform(size=NUM_POINTS).astype(np.float32)
    found, cells = (
        quantize(
            jnp.asarray(points),
            jnp.ones(points.shape),
            num_clusters=num_clusters,
            max_clusters=size,
        )
        for quantize in (kmeans, uniform)
    )
    assert float(found.distortion) <= float(cells.distortion)
    # No two centres are equal while a cell can be split.
    assert int(found.num_used) == min(num_clusters, np.unique(points).size)


def test_a_group_without_importance_counts_alike_in_jit():
    points = jnp.arange(9.0)
    # A function of its own, since results of the kernels outside `jit` are checked.
    found = jax.jit(lambda w, h: histogram_moments(w, h, num_bins=9))(points, jnp.zeros(9))
    np.testing.assert_array_equal(found.mass, found.mass[0])
    assert found.mass[0] > 0


@pytest.mark.slow
def test_a_group_without_importance_is_clustered_in_jit():
    points = jnp.arange(9.0)
    found = jax.jit(lambda w, h: kmeans(w, h, num_clusters=3).centroids)(points, jnp.zeros(9))
    np.testing.assert_allclose(found, [1, 4, 7])


def test_weights_of_blocks_are_checked_by_block():
    with pytest.raises(ValueError, match="0 throughout a group, got 1 such groups"):
        block_kmeans(
            jnp.arange(8.0).reshape(2, 4),
            jnp.asarray([[0.0, 0, 1, 1], [0, 0, 1, 1]]),
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
