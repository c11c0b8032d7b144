import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantizer_oracles import nearest

from jaxcomp.quantizers import assign
from jaxcomp.quantizers.assignment import assignment_dtype, nearest_thresholds


@pytest.mark.parametrize("num_clusters", [1, 2, 17, 60, 256, 300, 600])
def test_counts_the_thresholds_below(num_clusters, strict_promotion):
    rng = np.random.default_rng(0)
    thresholds = np.sort(rng.integers(-40, 40, num_clusters - 1)).astype(np.float32)
    thresholds[num_clusters // 2 :] = np.where(num_clusters > 20, np.inf, 40)
    points = rng.integers(-45, 45, 1000).astype(np.float32)  # many ties
    assignments = assign(jnp.asarray(points), jnp.asarray(thresholds))
    expected = np.sum(points[:, None] > thresholds[None, :], axis=1)
    np.testing.assert_array_equal(assignments, expected)
    assert assignments.dtype == (jnp.uint8 if num_clusters <= 256 else jnp.uint16)


@pytest.mark.parametrize(
    ("num_clusters", "dtype"),
    [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_smallest_dtype(num_clusters, dtype):
    assert assignment_dtype(num_clusters) == dtype


def test_leading_axes_broadcast():
    points = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    thresholds = np.array([[[-1.0, 0.0]], [[0.0, 1.0]]], np.float32)
    assignments = assign(points, thresholds)
    assert assignments.shape == (2, 3, 50)
    for i in range(2):
        for j in range(3):
            np.testing.assert_array_equal(assignments[i, j], assign(points[j], thresholds[i, 0]))


def test_nearest_to_the_last_bit():
    # Centroids a few floats apart: rounding a midpoint up would move points to the wrong one.
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(0, 4, 64))
    centroids = (np.int32(0x3F800000) + steps).astype(np.int32).view(np.float32)
    points = (np.int32(0x3F800000) + np.arange(steps[-1] + 3)).astype(np.int32).view(np.float32)
    assignments = assign(points, nearest_thresholds(jnp.asarray(centroids)))
    np.testing.assert_array_equal(assignments, nearest(points, centroids))


def test_coincident_centroids_leave_all_points_to_the_lowest():
    centroids = jnp.array([-1.0, 0.0, 0.0, 0.0, 2.0, 2.0])
    thresholds = nearest_thresholds(centroids)
    np.testing.assert_array_equal(thresholds, [-0.5, 1.0, 1.0, 1.0, jnp.inf])
    np.testing.assert_array_equal(
        assign(jnp.array([-9.0, 0.0, 0.5, 9.0]), thresholds), [0, 1, 1, 4]
    )


@pytest.mark.parametrize("num_clusters", [16, 64, 256])
def test_memory_does_not_grow_with_the_clusters(num_clusters):
    points, thresholds = jnp.zeros(1 << 20), jnp.zeros(num_clusters - 1)
    analysis = jax.jit(assign).lower(points, thresholds).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 4 * points.size
