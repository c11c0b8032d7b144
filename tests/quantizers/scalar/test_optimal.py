import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from promotion import strictly
from quantizer_oracles import count_compilations, distortion, heavy_tailed, optimum, restored
from slow_cases import some_slow

from jaxcomp.quantizers import histogram_moments, histograms, optimal_kmeans, solve_optimal
from jaxcomp.quantizers.scalar import optimal

# Two sizes for nearly all tests, one compilation each: every point a bin, and a histogram.
EXACT, BINNED = 24, 3000
NUM_BINS = 512
MAX_CLUSTERS = 8


histogram_with_edges = strictly(histograms.histogram_with_edges)


@strictly
def run(points, importance=None, **options):
    options = {"max_clusters": MAX_CLUSTERS, "num_bins": NUM_BINS} | options
    return optimal_kmeans(points, importance, **options)


def brute_force(points, importance, num_clusters):
    """The least distortion over all partitions of the sorted points into intervals."""
    order = np.argsort(points)
    w, h = points[order].astype(np.float64), importance[order].astype(np.float64)
    least = np.inf
    for cuts in itertools.combinations(range(1, len(w)), num_clusters - 1):
        total = 0.0
        for part in np.split(np.arange(len(w)), cuts):
            if h[part].sum() > 0:
                mean = np.average(w[part], weights=h[part])
                total += np.sum(h[part] * (w[part] - mean) ** 2)
        least = min(least, total)
    return least


def check_bounds(result, points, importance, best, *, rel=1e-5):
    """The distortion is that of the codebook, and the optimum lies within the bound below it."""
    scale = np.sum(np.asarray(importance, np.float64) * np.asarray(points, np.float64) ** 2)
    found, gap = (np.asarray(part, np.float64) for part in (result.distortion, result.gap_bound))
    assert found[0] == gap[0] == np.inf
    tiny = np.finfo(np.float32).tiny
    for k in range(1, MAX_CLUSTERS + 1):
        assert found[k] - gap[k] <= best[k - 1] + tiny, k
        centroids = np.asarray(result.centroids(k), np.float64)
        assert centroids.shape == (k,)
        assert np.all(np.diff(centroids) >= 0)
        # Nearest assignment can only improve on whole bins.
        reached = distortion(np.asarray(points), np.asarray(importance), centroids)
        assert reached <= found[k] * (1 + rel) + 1e-12 * scale, k
        assert reached >= best[k - 1] * (1 - 1e-9)
    assert np.all(np.diff(found[1:]) <= 1e-6 * found[1])


@pytest.mark.parametrize("seed", some_slow(range(4), 2, 3))
def test_brute_force_over_all_partitions(seed, strict_promotion):
    points, importance = heavy_tailed(EXACT, seed)
    importance[seed] = 0
    result = run(points, importance)
    for num_clusters in (1, 2, 3, 4):
        expected = brute_force(points, importance, num_clusters)
        assert float(result.distortion[num_clusters]) == pytest.approx(expected, rel=2e-6)
    # The oracle of the other tests is the same.
    best = optimum(points, importance, MAX_CLUSTERS)
    np.testing.assert_allclose(best[3], expected, rtol=1e-12)
    np.testing.assert_allclose(result.distortion[1:5], best[:4], rtol=2e-6)
    # Nothing but rounding is left of the gap.
    assert np.all(np.asarray(result.gap_bound[1:]) <= 1e-4 * np.asarray(result.distortion[1:]))
    check_bounds(result, points, importance, best)


@pytest.mark.parametrize("seed", some_slow(range(5), 1, 2, 3, 4))
def test_bound_never_lies_below_the_true_gap(seed):
    points, importance = heavy_tailed(BINNED, seed)
    result = run(points, importance)
    best = optimum(points, importance, MAX_CLUSTERS)
    check_bounds(result, points, importance, best)
    gap = np.asarray(result.gap_bound[1:]) / best
    # 12 (K / B)^2 = 0.3 % for K = 8 and B = 512.
    assert np.all(gap[:4] < 0.002)
    assert gap[-1] < 0.006


def test_edges_from_neighbours_hold_those_of_the_bins():
    # The size of the tests of histograms.
    points, importance = heavy_tailed(20_000)
    moments, edges = histogram_with_edges(points, importance, num_bins=256)
    found = jax.jit(optimal._edges_from_neighbours)(moments)
    is_occupied = np.asarray(moments.num_points) > 0
    assert np.all((found.lowest <= edges.lowest)[is_occupied])
    assert np.all((found.highest >= edges.highest)[is_occupied])


@pytest.mark.slow  # Such edges are tested above, and what is solved with narrower ones.
def test_without_edges_the_bound_is_weaker_not_wrong():
    points, importance = heavy_tailed(BINNED)
    result = run(points, importance)
    best = optimum(points, importance, MAX_CLUSTERS)
    moments = histogram_moments(points, importance, num_bins=NUM_BINS)
    weaker = solve_optimal(moments, max_clusters=MAX_CLUSTERS)
    # Two programs: the same to a few roundings of the distortion.
    np.testing.assert_allclose(weaker.distortion, result.distortion, rtol=1e-6)
    rounding = 4e-6 * np.asarray(result.distortion[1:])
    assert np.all(weaker.gap_bound[1:] >= result.gap_bound[1:] - rounding)
    check_bounds(weaker, points, importance, best)


@pytest.mark.slow
def test_matches_the_programme_over_the_same_bins():
    points, importance = heavy_tailed(20_000)
    moments = histogram_moments(points, importance, num_bins=1024)
    result = solve_optimal(moments, max_clusters=MAX_CLUSTERS)
    values = restored(moments)
    expected = optimum(values.position, values.mass, MAX_CLUSTERS) + np.sum(values.second)
    np.testing.assert_allclose(result.distortion[1:], expected, rtol=3e-6)


@pytest.mark.slow
def test_short_dtypes_are_solved_exactly(strict_promotion):
    dtype = jnp.float16
    rng = np.random.default_rng(0)
    points = jnp.asarray(np.round(rng.standard_t(3, 70_000) * 30) / 64).astype(dtype)
    importance = jnp.asarray(rng.gamma(1.0, size=points.size).astype(np.float32))
    result = optimal_kmeans(points, importance, max_clusters=4)
    values = np.asarray(points.astype(jnp.float32))
    best = optimum(values, importance, 4)
    np.testing.assert_allclose(result.distortion[1:], best, rtol=1e-5)
    assert np.all(np.asarray(result.gap_bound[1:]) <= 1e-3 * best)
    assert np.all(np.asarray(result.distortion - result.gap_bound)[1:] <= best)
    assert result.centroids(3).dtype == dtype


def test_float64(x64):
    points, importance = (part.astype(np.float64) for part in heavy_tailed(EXACT))
    result = run(points + 1e3, importance)
    assert result.distortion.dtype == result.centroids(2).dtype == jnp.float64
    best = optimum(points + 1e3, importance, MAX_CLUSTERS)
    np.testing.assert_allclose(result.distortion[1:], best, rtol=1e-9)
    assert np.all(np.asarray(result.gap_bound[1:]) <= 1e-7 * np.asarray(result.distortion[1:]))
    assert np.all(np.asarray(result.distortion - result.gap_bound)[1:] <= best)


@pytest.mark.slow
def test_batched_equals_one_by_one_and_compiles_once():
    groups = [heavy_tailed(BINNED, seed) for seed in range(3)]
    points, importance = (np.stack(part) for part in zip(*groups, strict=True))
    together = run(points[None], importance[None])
    assert together.distortion.shape == (1, 3, MAX_CLUSTERS + 1)
    assert together.centroids(5).shape == (1, 3, 5)
    run(points[0], importance[0]).distortion.block_until_ready()
    with count_compilations() as num_compilations:
        alone = [run(points[group], importance[group]) for group in range(3)]
        assert num_compilations() == 0
    for group in range(3):
        np.testing.assert_allclose(
            together.distortion[0, group], alone[group].distortion, rtol=2e-6
        )
        np.testing.assert_allclose(
            together.centroid_table[0, group], alone[group].centroid_table, rtol=1e-5, atol=1e-7
        )


def test_codebooks_of_traced_numbers():
    points, importance = heavy_tailed(BINNED)
    result = run(points, importance)
    codebook = jax.jit(lambda r, k: r.codebook(k))(result, jnp.array([1, 3, 8]))
    for row, k in enumerate((1, 3, 8)):
        np.testing.assert_array_equal(codebook.centroids[row, :k], result.centroids(k))
        assert np.all(np.isinf(codebook.thresholds[row, k - 1 :]))
    np.testing.assert_array_equal(codebook.num_clusters, [1, 3, 8])


@pytest.mark.parametrize("num_points", [EXACT, BINNED])
def test_invariances(num_points):
    points, importance = heavy_tailed(num_points)
    base = run(points, importance)
    order = np.random.default_rng(7).permutation(num_points)
    permuted = run(points[order], importance[order])
    np.testing.assert_allclose(permuted.distortion, base.distortion, rtol=1e-5)
    # Powers of two are exact in floating point.
    scaled = run(points * np.float32(64), importance * np.float32(0.125))
    np.testing.assert_array_equal(scaled.centroid_table, base.centroid_table * 64)
    np.testing.assert_allclose(scaled.distortion, base.distortion * 64**2 * 0.125, rtol=1e-6)
    shifted = run(points + np.float32(4), importance)
    # The points are rounded to 2^-22 by the shift, and edges of bins may pass some.
    rel = 1e-3 if num_points == BINNED else 1e-4
    np.testing.assert_allclose(shifted.distortion[:6], base.distortion[:6], rtol=rel)


def test_doubled_weights_and_points_without_weight():
    points, importance = heavy_tailed(EXACT // 2)
    twice = np.concatenate([points, points])
    duplicated = run(twice, np.concatenate([importance, importance]))
    doubled = run(twice, np.concatenate([2 * importance, 0 * importance]))
    np.testing.assert_allclose(duplicated.distortion, doubled.distortion, rtol=1e-6)
    np.testing.assert_allclose(duplicated.centroid_table, doubled.centroid_table, rtol=1e-6)
    elsewhere = run(
        np.concatenate([points, points + np.float32(9)]),
        np.concatenate([2 * importance, 0 * importance]),
    )
    np.testing.assert_allclose(elsewhere.distortion, doubled.distortion, rtol=2e-6)


@pytest.mark.parametrize("num_points", some_slow([EXACT, BINNED], BINNED))
def test_few_values_need_few_centres(num_points):
    values = np.array([-3.0, 0.1, 0.7, 12.5], np.float32)
    points = np.resize(values, num_points)
    ones = np.ones_like(points)  # equal weights, and no program of their own
    result = run(points, ones)
    np.testing.assert_array_equal(result.centroids(4), values)
    np.testing.assert_allclose(result.distortion[4:], 0, atol=1e-30)
    np.testing.assert_array_equal(np.unique(result.centroids(7)), values)
    constant = run(np.full(num_points, -7.25, np.float32), ones)
    np.testing.assert_array_equal(constant.distortion[1:], 0)
    np.testing.assert_array_equal(constant.centroids(3), -7.25)


@pytest.mark.parametrize(
    ("scale", "mass"), [(1e-30, 1.0), (1e17, 1.0), (2e37, 1e-20), (1.0, 1e-30)]
)
def test_tiny_and_huge_magnitudes(scale, mass):
    points, importance = heavy_tailed(BINNED)
    base = run(points, importance)
    result = run(
        (points.astype(np.float64) * scale).astype(np.float32),
        (importance.astype(np.float64) * mass).astype(np.float32),
    )
    centroids = np.asarray(result.centroids(4), np.float64)
    # Points on the edge of a bin may be rounded to the other side.
    np.testing.assert_allclose(
        centroids / scale, base.centroids(4), atol=1e-3 * np.abs(points).max()
    )
    assert not np.any(np.isnan(result.distortion))


def test_an_outlier_does_not_drown_the_rest():
    # Squares of 1e12 and of 1e-3 in one group: float64 prefix sums lose the small ones.
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.standard_normal(EXACT - 1) * 1e-3, [1e12]]).astype(np.float32)
    result = run(points, np.ones_like(points))
    rest = optimum(points[:-1], np.ones(EXACT - 1), MAX_CLUSTERS)
    centred_error = 1e12 * 2.0**-24
    assert float(result.distortion[2]) <= rest[0] + EXACT * centred_error**2


@settings(max_examples=25)
@given(
    st.lists(
        st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, -0.0, 1e-45, 1.0]),
        min_size=EXACT,
        max_size=EXACT,
    ),
    st.lists(st.integers(0, 3), min_size=EXACT, max_size=EXACT).filter(any),
)
def test_any_small_group(values, importance):
    points, importance = np.array(values, np.float32), np.array(importance, np.float32)
    result = run(points, importance)
    table = np.asarray(result.centroid_table)
    assert np.all(np.isfinite(table))
    assert np.all(np.diff(table, axis=-1) >= 0)
    assert points.min() <= table.min() <= table.max() <= points.max()
    scale = np.abs(points).max()
    if 1e-15 < scale < 1e15:
        best = optimum(points, importance, MAX_CLUSTERS)
        found, gap = np.asarray(result.distortion), np.asarray(result.gap_bound)
        # Denormals count as 0: their squares are below everything float32 holds.
        assert np.all((found - gap)[1:] <= best * (1 + 1e-6) + 1e-37)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"points": [1, 2]}, TypeError, "points must be floating, got int32"),
        ({"points": []}, ValueError, "at least one point per group"),
        ({"points": [1.0, np.nan]}, ValueError, "points must be finite, got 1 NaN or infinite"),
        ({"importance": [1.0, -1.0]}, ValueError, "importance must be at least 0, got 1"),
        ({"importance": [0.0, 0.0]}, ValueError, "must not be 0 throughout a group"),
        ({"max_clusters": 0}, ValueError, "max_clusters must be at least 1, got 0"),
        ({"max_clusters": 2.0}, TypeError, "max_clusters must be a Python integer, got float"),
        ({"num_bins": 0}, ValueError, "num_bins must be at least 1, got 0"),
    ],
)
def test_bad_input(arguments, error, message):
    options = {"points": [1.0, 2.0], "max_clusters": 2} | arguments
    options = {
        name: np.array(value) if isinstance(value, list) else value
        for name, value in options.items()
    }
    with pytest.raises(error, match=message):
        optimal_kmeans(**options)


def test_numbers_of_clusters_out_of_range():
    result = run(*heavy_tailed(EXACT))
    with pytest.raises(ValueError, match="between 1 and max_clusters = 8, got 9"):
        result.centroids(9)
    with pytest.raises(ValueError, match="between 1 and max_clusters = 8, got 0"):
        result.centroids(0)
    with pytest.raises(TypeError, match="must be a Python integer, got"):
        result.centroids(jnp.int32(2))
