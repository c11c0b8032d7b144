import jax
import numpy as np
import pytest
from quantizer_oracles import count_compilations, heavy_tailed
from slow_cases import some_slow

from jaxcomp.quantizers import histogram_moments, kmeans, optimal_kmeans, uniform
from jaxcomp.quantizers.padding import bucketed

QUANTIZERS = {
    # From quantiles, which count points.
    "kmeans": lambda w, h: kmeans(
        w,
        h,
        num_clusters=4,
        max_clusters=5,
        num_bins=64,
        start="quantiles",
        penalty_form="none",
    ),
    "uniform": lambda w, h: uniform(w, h, num_clusters=4, max_clusters=5, num_bins=64),
}

# Traced points are never filled up.
TRACED = {name: jax.jit(quantizer) for name, quantizer in QUANTIZERS.items()}


@pytest.mark.parametrize("num_bins", [64, 1000])
def test_sizes(num_bins):
    edges = [size + k for size in (32, 64, 128) for k in (-1, 0, 1)]
    for number in [*range(1, 21), *edges, 1000, 4097, 1_000_001]:
        points = np.zeros(number, np.float32)
        bucket = bucketed(points, None, num_bins=num_bins)
        size = bucket.points.shape[0]
        assert size - int(bucket.num_padding) == number
        assert number <= size <= max(number * 9 / 8, 1)
        # Small groups stay small enough to be kept point by point.
        assert (size <= num_bins) == (number <= num_bins)


# Point by point with importance, and bins without: each kind compiles every quantizer twice.
@pytest.mark.parametrize(
    ("num_points", "first", "has_weights"),
    some_slow(
        [
            (50, "smallest", True),
            (50, "largest", True),
            (50, "weightless", True),
            (1000 - 3, "smallest", False),
            (1000 - 3, "largest", False),
        ],
        (1000 - 3, "smallest", False),
        (1000 - 3, "largest", False),
    ),
)
@pytest.mark.parametrize("quantizer", list(QUANTIZERS))
def test_copies_change_nothing(quantizer, first, has_weights, num_points):
    points, importance = heavy_tailed(num_points)
    at = {"smallest": points.argmin(), "largest": points.argmax(), "weightless": 0}[first]
    points[[0, at]] = points[[at, 0]]
    importance[0] = 0 if first == "weightless" else importance[0]
    weights = importance if has_weights else None
    found = QUANTIZERS[quantizer](points, weights)
    expected = TRACED[quantizer](points, weights)
    assert found.assignments.shape == points.shape
    for name, values in expected._asdict().items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=1e-5, atol=1e-7, err_msg=name)
    assert int(found.counts.sum()) == num_points


def test_sizes_of_one_bucket_compile_once():
    problem = heavy_tailed(50)
    for kind in (np.asarray, jax.device_put):
        points, importance = map(kind, problem)
        for quantizer in QUANTIZERS.values():
            quantizer(points, importance)
        fewer = [kind(part[:49]) for part in problem]
        with count_compilations() as compiled:
            for quantizer in QUANTIZERS.values():
                assert quantizer(*fewer).assignments.shape == (49,)
        assert compiled() == 0


def test_weights_of_groups():
    points, importance = heavy_tailed(3 * 77)
    points = points.reshape(3, 77)
    for weights in (importance[:77], importance[:3, None], np.float32(2)):
        bucket = bucketed(jax.device_put(points), jax.device_put(weights), num_bins=64)
        expected = np.broadcast_to(weights, points.shape)
        np.testing.assert_array_equal(bucket.weights()[:, :77], expected)
        np.testing.assert_array_equal(bucket.weights()[:, 77:], 0)
        assert bucket.points.shape == bucket.weights().shape == (3, 80)
        np.testing.assert_array_equal(bucket.points[:, 77:], np.tile(points[:, :1], 3))
    assert bucketed(jax.device_put(points), None, num_bins=64).weights() is None


@pytest.mark.parametrize("size", [3, 300])
def test_copies_do_not_count(size):
    # In a bin of their own, and among as many points as a histogram has bins.
    points, _ = heavy_tailed(size)
    padded = np.concatenate([points, np.full(size // 3, points[0], np.float32)])
    num_padding = np.int32(size // 3)
    found = histogram_moments(padded, num_bins=64, num_padding=num_padding)
    marks = (np.arange(padded.size) < size).astype(np.float32)
    marked = histogram_moments(padded, marks, num_bins=64, num_padding=num_padding)
    for name, part in found._asdict().items():
        np.testing.assert_allclose(part, getattr(marked, name), rtol=1e-6, err_msg=name)
    assert float(found.mass.sum()) == int(found.num_points.sum()) == size


@pytest.mark.slow
def test_the_optimum_of_a_bucket():
    points, importance = heavy_tailed(77)
    found = optimal_kmeans(points, importance, max_clusters=3, num_bins=64)
    expected = jax.jit(lambda w, h: optimal_kmeans(w, h, max_clusters=3, num_bins=64))(
        points, importance
    )
    np.testing.assert_allclose(found.distortion, expected.distortion, rtol=1e-5)
    np.testing.assert_allclose(found.gap_bound, expected.gap_bound, rtol=1e-3)
