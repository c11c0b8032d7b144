import jax
import jax.numpy as jnp
import numpy as np
import pytest
from promotion import strictly
from quantizer_oracles import distortion, heavy_tailed, naive_lloyd, nearest, optimum

from jaxcomp import quantizers
from jaxcomp.quantizers import block_kmeans, histogram_moments, plus_plus_start

NUM_POINTS = 1000
polish_kmeans = strictly(quantizers.polish_kmeans)


@pytest.mark.parametrize("num_iterations", [0, 1, 3])
def test_polish_follows_the_naive_iteration(num_iterations, strict_promotion):
    points, importance = heavy_tailed(NUM_POINTS)
    start = np.array([0.1, -0.2, 0.0, 0.3], np.float32)
    result = polish_kmeans(
        jnp.asarray(points),
        jnp.asarray(importance),
        initial_centroids=jnp.asarray(start),
        num_iterations=num_iterations,
    )
    expected = naive_lloyd(points, importance, start, num_iterations)
    np.testing.assert_allclose(result.centroids, expected, atol=1e-6)
    np.testing.assert_array_equal(result.assignments, nearest(points, np.asarray(result.centroids)))
    reached = distortion(points, importance, np.asarray(result.centroids))
    assert float(result.distortion) == pytest.approx(reached, rel=1e-6)


def test_polish_never_raises_the_distortion():
    points, importance = heavy_tailed(NUM_POINTS)
    start = np.array([-0.2, 0.0, 0.1, 0.3], np.float32)
    values = [
        float(
            polish_kmeans(
                points, importance, initial_centroids=start, num_iterations=num
            ).distortion
        )
        for num in (0, 1, 5, 200)
    ]
    assert np.all(np.diff(values) < 0)
    assert values[-1] >= optimum(points, importance, 4)[-1] * (1 - 1e-6)


def test_plus_plus_start_draws_by_mass_and_distance(strict_promotion):
    # Three heavy values and one without mass: the others are found whatever the key.
    points = np.array([-5.0, 0.0, 0.0, 7.0, 9.0], np.float32)
    moments = histogram_moments(points, np.array([1, 1, 1, 1, 0], np.float32))
    keys = jax.random.split(jax.random.key(0), 800)

    @jax.jit
    def starts(num_clusters):
        return jax.vmap(lambda key: plus_plus_start(moments, num_clusters, key, max_clusters=4))(
            keys
        )

    np.testing.assert_array_equal(starts(3), [[-5, 0, 7, 7]] * 800)
    # The first centre: in proportion to mass; 4 standard errors of 800 draws.
    first = np.asarray(starts(1))[:, 0]
    for value, share in ((-5.0, 0.25), (0.0, 0.5), (7.0, 0.25)):
        assert abs(np.mean(first == value) - share) < 4 * np.sqrt(share * (1 - share) / 800)
    # The second: mass times squared distance from the first.
    pairs = np.asarray(starts(2))
    # From 0: 25 : 49. From -5: 2 * 25 : 144. From 7: 144 : 2 * 49.
    chance = 0.5 * 49 / 74 + 0.25 * 98 / 242
    observed = np.mean((pairs[:, 0] == 0) & (pairs[:, 1] == 7))
    assert abs(observed - chance) < 4 * np.sqrt(chance * (1 - chance) / 800)
    with pytest.raises(ValueError, match="max_clusters must be at least 1, got 0"):
        plus_plus_start(moments, 1, jax.random.key(0), max_clusters=0)


@pytest.mark.slow
def test_blocks_have_their_own_codebooks(strict_promotion):
    block_shape = (4, 128)
    points, importance = heavy_tailed(8 * 512)
    matrix, weight = jnp.asarray(points.reshape(8, 512)), jnp.asarray(importance.reshape(8, 512))
    result = block_kmeans(
        matrix, weight, block_shape=block_shape, num_clusters=4, max_clusters=4, num_bins=128
    )
    rows, columns = block_shape
    assert result.centroids.shape == (8 // rows, 512 // columns, 4)
    assert result.assignments.shape == (8, 512)
    for i in range(8 // rows):
        for j in range(512 // columns):
            part = np.s_[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            block, h = np.asarray(matrix)[part].ravel(), np.asarray(weight)[part].ravel()
            centroids = np.asarray(result.centroids[i, j])
            np.testing.assert_array_equal(
                np.asarray(result.assignments)[part].ravel(), nearest(block, centroids)
            )
            best = optimum(block, h, 4)[-1]
            assert float(result.distortion[i, j]) <= 1.01 * best
            assert float(result.distortion[i, j]) >= best * (1 - 1e-5)


def test_bad_input():
    points = np.ones(4, np.float32)
    with pytest.raises(ValueError, match=r"hold at least one centre, got shape \(0,\)"):
        polish_kmeans(points, initial_centroids=np.zeros(0, np.float32))
    with pytest.raises(ValueError, match="initial_centroids must be finite, got 1"):
        polish_kmeans(points, initial_centroids=np.array([np.inf], np.float32))
    with pytest.raises(ValueError, match=r"matrix must have two axes, got shape \(4,\)"):
        block_kmeans(points, block_shape=(1, 4), num_clusters=2)
    with pytest.raises(ValueError, match=r"must divide .* \(2, 2\), got \(1, 3\)"):
        block_kmeans(points.reshape(2, 2), block_shape=(1, 3), num_clusters=2)
