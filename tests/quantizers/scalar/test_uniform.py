import jax
import jax.numpy as jnp
import numpy as np
import pytest
from promotion import strictly
from quantizer_oracles import count_compilations, heavy_tailed

from jaxcomp import quantizers
from jaxcomp.quantizers import Moments, solve_uniform

uniform = strictly(quantizers.uniform)
NUM_POINTS, MAX_CLUSTERS = 300, 8


def naive(points, importance, num_clusters, reconstruction):
    """The grid in float64; also the cell of every point."""
    low, high = float(points.min()), float(points.max())
    edges = np.linspace(low, high, num_clusters + 1)
    cells = np.searchsorted(edges[1:-1].astype(np.float32), points, side="left")
    centroids = (edges[1:] + edges[:-1]) / 2
    if reconstruction == "centroid":
        for k in range(num_clusters):
            if np.any(cells == k):
                inside = cells == k
                centroids[k] = np.average(points[inside], weights=importance[inside])
    return centroids, cells


@pytest.mark.parametrize("reconstruction", ["centroid", "midpoint"])
@pytest.mark.parametrize("num_clusters", [1, 3, 8])
def test_matches_the_naive_grid(num_clusters, reconstruction, strict_promotion):
    points, importance = heavy_tailed(NUM_POINTS)
    result = uniform(
        points,
        importance,
        num_clusters=num_clusters,
        max_clusters=MAX_CLUSTERS,
        reconstruction=reconstruction,
    )
    result = jax.tree.map(np.asarray, result)
    w, h = (part.astype(np.float64) for part in (points, importance))
    centroids, cells = naive(w, h, num_clusters, reconstruction)
    np.testing.assert_array_equal(result.assignments, cells)
    np.testing.assert_allclose(
        result.centroids[:num_clusters], centroids, atol=2e-7 * np.abs(w).max(), rtol=0
    )
    np.testing.assert_array_equal(
        result.centroids[num_clusters:], result.centroids[num_clusters - 1]
    )
    expected = np.sum(h * (w - centroids[cells]) ** 2)
    assert float(result.distortion) == pytest.approx(expected, rel=1e-5)
    assert float(result.objective) == float(result.distortion)
    assert int(result.num_used) == len(np.unique(cells))
    assert int(result.num_empty) == num_clusters - len(np.unique(cells))
    np.testing.assert_array_equal(result.counts, np.bincount(cells, minlength=MAX_CLUSTERS))
    assert bool(result.converged)


@pytest.mark.slow
def test_histogram_is_close_to_the_points():
    points, importance = heavy_tailed(30_000)
    result = uniform(points, importance, num_clusters=8)
    centroids, cells = naive(points.astype(np.float64), importance, 8, "centroid")
    np.testing.assert_array_equal(result.assignments, cells)
    # Bins that an edge cuts go whole to one side.
    np.testing.assert_allclose(result.centroids, centroids, atol=1e-3 * np.ptp(points))
    expected = np.sum(importance * (points - centroids[cells]) ** 2)
    assert float(result.distortion) == pytest.approx(expected, rel=1e-3)


def test_batched_equals_one_by_one_and_clusters_compile_nothing():
    groups = [heavy_tailed(NUM_POINTS, seed) for seed in range(2)]
    points, importance = (np.stack(part) for part in zip(*groups, strict=True))
    together = uniform(points, importance, num_clusters=np.array([3, 8]), max_clusters=MAX_CLUSTERS)
    alone = [
        uniform(points[0], importance[0], num_clusters=3, max_clusters=MAX_CLUSTERS),
    ]
    jax.block_until_ready(alone)
    with count_compilations() as num_compilations:
        alone.append(uniform(points[1], importance[1], num_clusters=8))
        assert num_compilations() == 0
    together = jax.tree.map(np.asarray, together)
    for group in range(2):
        chosen = jax.tree.map(lambda leaf, group=group: leaf[group], together)
        np.testing.assert_array_equal(chosen.assignments, alone[group].assignments)
        np.testing.assert_allclose(chosen.centroids, alone[group].centroids, rtol=1e-6)


def test_constant_group():
    points = np.full(NUM_POINTS, 0.3, np.float32)
    result = uniform(points, np.ones_like(points), num_clusters=8)
    assert float(result.distortion) == 0
    assert int(result.num_used) == 1
    np.testing.assert_array_equal(result.centroids, np.float32(0.3))


def test_short_dtype():
    dtype = jnp.bfloat16
    points = heavy_tailed(NUM_POINTS)[0].astype(dtype)
    result = uniform(points, num_clusters=8)
    assert result.centroids.dtype == dtype
    exact = points.astype(np.float64)
    centroids = np.asarray(result.centroids).astype(np.float32)[np.asarray(result.assignments)]
    assert float(result.distortion) == pytest.approx(np.sum((exact - centroids) ** 2), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_clusters": 0}, ValueError, "num_clusters must be at least 1, got 0"),
        ({"reconstruction": "mode"}, ValueError, "reconstruction must be one of .* got 'mode'"),
        ({"points": np.arange(3)}, TypeError, "points must be floating, got int32"),
        ({"points": np.array([np.nan])}, ValueError, "points must be finite, got 1 NaN"),
        ({"importance": np.zeros(2)}, ValueError, "must not be 0 throughout a group"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        uniform(**({"points": np.array([1.0, 2.0]), "num_clusters": 2} | options))


def test_size_of_the_codebook():
    moments = Moments(*4 * [np.ones(3, np.float32)], *4 * [np.float32(1)])
    with pytest.raises(ValueError, match="max_clusters must be at least 1, got 0"):
        solve_uniform(moments, 1, max_clusters=0)
