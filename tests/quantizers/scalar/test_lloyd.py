import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from promotion import strictly
from quantizer_oracles import (
    count_compilations,
    distortion,
    heavy_tailed,
    naive_lloyd,
    nearest,
    objective,
    quantile_start,
    restored,
)
from sklearn.cluster import KMeans
from slow_cases import some_slow

from jaxcomp.quantizers import Moments, histogram_moments, kmeans, solve_kmeans
from jaxcomp.quantizers.scalar.diameter import PENALTY_FORMS

# Two sizes for nearly all tests, one compilation each: every point a bin, from the quantiles; and a
# histogram, from the coarse to the fine.
EXACT, BINNED = 300, 3000
NUM_BINS = 512
MAX_CLUSTERS = 8


@strictly
def run(points, importance, num_clusters, **options):
    # From the quantiles, where the references start too.
    options = {"max_clusters": MAX_CLUSTERS, "num_bins": NUM_BINS, "start": "quantiles"} | options
    return kmeans(points, importance, num_clusters=num_clusters, **options)


def run_from(points, importance, num_clusters, start, **options):
    """From given centres; penalties are absolute, in the same program."""
    options = {"penalty_scale": "absolute", "initial_centroids": start} | options
    return run(points, importance, num_clusters, **options)


def padded_start(points, num_clusters):
    start = quantile_start(points, num_clusters)
    return np.pad(start, (0, MAX_CLUSTERS - num_clusters), mode="edge")


def scikit_learn_centroids(points, importance, start, num_iterations):
    model = KMeans(
        n_clusters=len(start),
        init=np.asarray(start, np.float64)[:, None],
        n_init=1,
        max_iter=num_iterations,
        tol=0.0,
        algorithm="lloyd",
    )
    model.fit(points.astype(np.float64)[:, None], sample_weight=importance.astype(np.float64))
    return np.sort(model.cluster_centers_[:, 0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_exact_bins_match_scikit_learn(seed, strict_promotion):
    points, importance = heavy_tailed(EXACT, seed)
    result = run(points, importance, 5, num_iterations=300)
    expected = scikit_learn_centroids(points, importance, quantile_start(points, 5), 300)
    assert bool(result.converged)
    # Means of at most 300 float32 numbers: a few eps of the largest.
    np.testing.assert_allclose(
        np.asarray(result.centroids)[:5], expected, atol=1e-6 * np.abs(points).max(), rtol=0
    )


@pytest.mark.slow
def test_histogram_matches_scikit_learn_on_many_points():
    points, importance = heavy_tailed(20_000)
    result = run(points, importance, 8, num_iterations=300, num_bins=4096)
    start = quantile_start(points, 8)
    expected = scikit_learn_centroids(points, importance, start, 300)
    # Whole bins, but 4096 of them for 8 clusters.
    assert float(result.distortion) == pytest.approx(
        distortion(points, importance, expected), rel=1e-3
    )


@pytest.mark.parametrize("num_iterations", [0, 1, 2, 7])
def test_follows_the_naive_iteration_step_by_step(num_iterations):
    points, importance = heavy_tailed(EXACT)
    result = run(points, importance, 5, num_iterations=num_iterations)
    expected = naive_lloyd(points, importance, quantile_start(points, 5), num_iterations)
    np.testing.assert_allclose(
        np.asarray(result.centroids)[:5], expected, atol=1e-6 * np.abs(points).max(), rtol=0
    )
    assert int(result.num_iterations) == num_iterations


@pytest.mark.slow
def test_sums_of_a_heavy_tail_are_accurate():
    points, importance = heavy_tailed(1_000_000)
    moments = histogram_moments(points, importance)
    start = quantile_start(points, 256)

    found = solve_kmeans(moments, 256, max_clusters=256, num_iterations=1, initial_centroids=start)

    values = restored(moments)
    position, mass, second = values.position, values.mass, values.second
    cluster = np.searchsorted((start[1:] + start[:-1]) / 2, position, side="left")
    total = np.bincount(cluster, mass, 256)
    mean = np.bincount(cluster, mass * position, 256) / total
    np.testing.assert_allclose(found.codebook.centroids, mean, rtol=1e-6, atol=1e-8)
    # The test sees the difference: plain float32 prefix sums are far off.
    edges = np.concatenate([[0], np.cumsum(np.bincount(cluster, minlength=256))])
    plain = [np.append(0, np.cumsum(v.astype(np.float32))) for v in (mass, mass * position)]
    plain_mass, plain_moment = (np.diff(prefix[edges]) for prefix in plain)
    assert np.abs(plain_moment / plain_mass / mean - 1).max() > 1e-4
    # The objective of the histogram is that of its own codebook.
    expected = distortion(position, mass, np.asarray(found.codebook.centroids)) + second.sum()
    assert float(found.distortion) == pytest.approx(expected, rel=2e-6)


@pytest.mark.slow
def test_distortion_of_many_points_is_accurate():
    points, importance = heavy_tailed(1_000_000)
    result = run(points, importance, 8, num_bins=4096)
    expected = distortion(points, importance, np.asarray(result.centroids))
    assert float(result.distortion) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("form", some_slow(["none", "monotone", "linear"], "none", "linear"))
@pytest.mark.parametrize("num_points", some_slow([EXACT, BINNED], BINNED))
def test_objective_never_rises(form, num_points):
    check_descent(form, *heavy_tailed(num_points, seed=3))


def check_descent(form, points, importance):
    num_points = len(points)
    if num_points == EXACT:
        position, mass = points, importance.astype(np.float64)

        def solve(penalty, beta, **options):
            return run(points, importance, 7, diameter_penalty=penalty, **options)
    else:
        moments = histogram_moments(points, importance, num_bins=EXACT)
        position, mass = restored(moments).position, restored(moments).mass

        def solve(penalty, beta, **options):
            return solve_kmeans(
                moments,
                7,
                beta,
                max_clusters=MAX_CLUSTERS,
                penalty_scale="absolute",
                **options,
            ).codebook

    mean = np.average(position, weights=mass)
    spread = np.sqrt(np.average((position - mean) ** 2, weights=mass))
    for penalty in (0.01, 0.3, 3.0):
        beta = penalty * mass.sum() * (spread if form == "linear" else 1)
        values = []
        for num_iterations in range(12):
            found = solve(penalty, beta, penalty_form=form, num_iterations=num_iterations)
            centroids = np.asarray(found.centroids)
            values.append(objective(position, mass, centroids, beta, form))
        # Centres in float32: a step misses its minimum by rounding, to second order only.
        assert np.all(np.diff(values) <= 1e-6 * values[0]), (penalty, values)


@pytest.mark.slow  # Each step is, in the tests of the diameter.
@pytest.mark.parametrize("form", PENALTY_FORMS)
def test_zero_penalty_is_plain_to_the_bit(form):
    points, importance = heavy_tailed(EXACT, seed=1)
    plain = run(points, importance, 8, penalty_form="none")
    result = run(points, importance, 8, penalty_form=form, diameter_penalty=0.0)
    jax.tree.map(np.testing.assert_array_equal, result, plain)


# Half precision in the form that compiles no other program of these tests.
@pytest.mark.parametrize(
    ("form", "dtype", "num_points"),
    some_slow(
        [(form, jnp.float32, EXACT) for form in PENALTY_FORMS]
        + [("published", jnp.float16, EXACT), ("published", jnp.bfloat16, BINNED)],
        ("none", jnp.float32, EXACT),
        ("published", jnp.float32, EXACT),
        ("linear", jnp.float32, EXACT),
        ("published", jnp.bfloat16, BINNED),
    ),
)
def test_what_is_reported_agrees(form, dtype, num_points, strict_promotion):
    points, importance = heavy_tailed(num_points)
    stored = points.astype(dtype)
    result = run(stored, importance, 6, penalty_form=form, diameter_penalty=0.1)
    assert result.centroids.dtype == dtype
    assert result.assignments.dtype == jnp.uint8
    assert result.distortion.dtype == jnp.float32
    # Rounded first, assigned afterwards: every point is at its nearest stored centre.
    points, centroids = (np.asarray(part).astype(np.float32) for part in (stored, result.centroids))
    assignments = np.asarray(result.assignments)
    np.testing.assert_array_equal(assignments, nearest(points, centroids))
    np.testing.assert_array_equal(result.counts, np.bincount(assignments, minlength=MAX_CLUSTERS))
    assert int(result.num_used) == len(np.unique(assignments))
    assert int(result.num_empty) == 6 - int(result.num_used)
    assert np.all(np.diff(centroids) >= 0)
    assert np.all(centroids[6:] == centroids[5])
    expected = distortion(points, importance, centroids)
    rel = 1e-6 if dtype == jnp.float32 else 1e-5
    assert float(result.distortion) == pytest.approx(expected, rel=rel)
    relative = importance.astype(np.float64).sum()
    if form == "linear":
        mean = np.average(points, weights=importance)
        relative *= np.sqrt(np.average((points - mean) ** 2, weights=importance))
    expected = objective(points, importance, centroids, 0.1 * relative, form)
    assert float(result.objective) == pytest.approx(expected, rel=1e-5)


def test_absolute_penalty_is_taken_as_it_is():
    points, importance = heavy_tailed(EXACT)
    total = float(importance.astype(np.float64).sum())
    relative = run(points, importance, 6, diameter_penalty=0.1)
    # From the quantiles, too.
    absolute = run_from(
        points, importance, 6, padded_start(points, 6), diameter_penalty=0.1 * total
    )
    np.testing.assert_allclose(absolute.centroids, relative.centroids, rtol=1e-5)
    np.testing.assert_allclose(absolute.objective, relative.objective, rtol=1e-5)


@pytest.mark.slow  # Groups of uniform codebooks go the same way; so do penalties of many optima.
def test_batched_equals_one_by_one():
    groups = [heavy_tailed(EXACT, seed) for seed in range(3)]
    points, importance = (np.stack(part) for part in zip(*groups, strict=True))
    clusters = np.array([3, 5, 8], np.int32)
    penalty = np.array([0.0, 0.1, 1.0], np.float32)
    together = run(points, importance, clusters, diameter_penalty=penalty)
    together = jax.tree.map(np.asarray, together)
    for group in range(3):
        alone = run(
            points[group], importance[group], clusters[group], diameter_penalty=penalty[group]
        )
        chosen = jax.tree.map(lambda leaf, group=group: leaf[group], together)
        np.testing.assert_array_equal(chosen.assignments, alone.assignments)
        np.testing.assert_allclose(chosen.centroids, alone.centroids, rtol=1e-6)
        np.testing.assert_allclose(chosen.distortion, alone.distortion, rtol=1e-6)


@pytest.mark.slow
def test_vmap_over_clusters_and_penalty_equals_the_loop():
    points, importance = heavy_tailed(EXACT)
    clusters, penalty = jnp.array([1, 2, 7]), jnp.array([0.0, 0.2])

    def solved(num_clusters, diameter_penalty):
        return run(points, importance, num_clusters, diameter_penalty=diameter_penalty)

    over_penalty = jax.vmap(solved, in_axes=(None, 0))
    mapped = jax.jit(jax.vmap(over_penalty, in_axes=(0, None)))(clusters, penalty)
    broadcast = solved(clusters[:, None], penalty)

    for i, num_clusters in enumerate(clusters):
        for j, diameter_penalty in enumerate(penalty):
            single = solved(num_clusters, diameter_penalty)
            for grid in (mapped, broadcast):
                chosen = jax.tree.map(lambda leaf, i=i, j=j: leaf[i, j], grid)
                np.testing.assert_array_equal(chosen.assignments, single.assignments)
                np.testing.assert_allclose(chosen.centroids, single.centroids, rtol=1e-6)
                assert int(chosen.num_used) == int(single.num_used)


def test_clusters_penalty_and_iterations_compile_nothing():
    points, importance = heavy_tailed(EXACT)
    run(points, importance, 3, diameter_penalty=0.1).distortion.block_until_ready()
    with count_compilations() as num_compilations:
        for num_clusters, penalty, num_iterations in ((4, 0.0, 30), (6, 0.5, 3), (1, 2, 1)):
            run(
                points,
                importance,
                num_clusters,
                diameter_penalty=penalty,
                num_iterations=num_iterations,
            )
        assert num_compilations() == 0


@pytest.mark.parametrize("num_points", [EXACT, BINNED])
def test_invariances(num_points):
    points, importance = heavy_tailed(num_points)
    order = np.random.default_rng(7).permutation(num_points)
    options = {
        "diameter_penalty": 0.05,
        "start": "quantiles" if num_points == EXACT else "coarse_to_fine",
    }
    base = jax.tree.map(np.asarray, run(points, importance, 6, **options))

    permuted = run(points[order], importance[order], 6, **options)
    np.testing.assert_array_equal(permuted.assignments, base.assignments[order])
    np.testing.assert_allclose(permuted.centroids, base.centroids, rtol=1e-5)

    # Powers of two are exact in floating point: the same result to the bit.
    scaled = run(points * np.float32(64), importance * np.float32(0.125), 6, **options)
    np.testing.assert_array_equal(scaled.assignments, base.assignments)
    np.testing.assert_array_equal(scaled.centroids, base.centroids * 64)
    np.testing.assert_allclose(scaled.distortion, base.distortion * 64**2 * 0.125, rtol=1e-6)

    # Shifted points are rounded anew, and an edge of a bin may pass a point.
    shifted = run(points + np.float32(4), importance, 6, **options)
    np.testing.assert_allclose(np.asarray(shifted.centroids) - 4, base.centroids, atol=1e-3)
    np.testing.assert_allclose(shifted.distortion, base.distortion, rtol=1e-3)


def test_points_without_weight_do_not_matter():
    points, importance = heavy_tailed(EXACT - 50)
    extra = np.random.default_rng(1).uniform(points.min(), points.max(), 50).astype(np.float32)
    start = padded_start(points, 6)
    everything = run_from(
        np.concatenate([points, extra]),
        np.concatenate([importance, np.zeros(50, np.float32)]),
        6,
        start,
    )
    # The first point again, at no weight: the shape of the other call.
    alone = run_from(
        np.concatenate([points, np.repeat(points[:1], 50)]),
        np.concatenate([importance, np.zeros(50, np.float32)]),
        6,
        start,
    )
    np.testing.assert_allclose(everything.centroids, alone.centroids, rtol=1e-6)
    np.testing.assert_allclose(everything.distortion, alone.distortion, rtol=1e-6)


def test_doubled_weights_equal_duplicated_points():
    points, importance = heavy_tailed(EXACT // 2)
    start = padded_start(points, 6)
    twice, once = np.concatenate([importance, importance]), np.zeros_like(importance)
    points = np.concatenate([points, points])
    doubled = run_from(points, np.concatenate([2 * importance, once]), 6, start)
    duplicated = run_from(points, twice, 6, start)
    np.testing.assert_array_equal(duplicated.assignments, doubled.assignments)
    np.testing.assert_allclose(duplicated.centroids, doubled.centroids, rtol=1e-6)
    np.testing.assert_allclose(duplicated.distortion, doubled.distortion, rtol=1e-6)


@pytest.mark.parametrize(
    ("num_points", "start"),
    some_slow(
        [
            (EXACT, "quantiles"),
            (BINNED, "quantiles"),
            (EXACT, "coarse_to_fine"),
            (BINNED, "coarse_to_fine"),
        ],
        # Both starts, and both ways to bins, stay.
        (EXACT, "coarse_to_fine"),
        (BINNED, "quantiles"),
    ),
)
@pytest.mark.parametrize("num_clusters", [5, 6, 8])
def test_enough_clusters_leave_no_distortion(num_points, num_clusters, start):
    values = np.array([-3.0, 0.1, 0.10000001, 0.7, 12.5], np.float32)
    rng = np.random.default_rng(0)
    points = np.concatenate([values, rng.choice(values, num_points - len(values))])
    importance = rng.gamma(1.0, size=num_points).astype(np.float32)
    result = run(points, importance, num_clusters, start=start)
    assert float(result.distortion) == 0
    # Two of them are neighbouring floats.
    assert int(result.num_used) == 5
    assert int(result.num_empty) == num_clusters - 5
    quantized = np.asarray(result.centroids)[np.asarray(result.assignments)]
    np.testing.assert_array_equal(quantized, points)


@pytest.mark.parametrize(
    ("values", "num_points"),
    some_slow(
        [([2.5], num_points) for num_points in (1, EXACT, BINNED)]
        + [([-1.0, 3.0], num_points) for num_points in (EXACT, BINNED)],
        ([2.5], 1),
        ([2.5], EXACT),
        ([-1.0, 3.0], EXACT),
    ),
)
def test_degenerate_groups(values, num_points):
    points = np.resize(np.array(values, np.float32), num_points)
    ones = np.ones_like(points)
    result = run(points, ones, 1, start="coarse_to_fine", diameter_penalty=1.0)
    np.testing.assert_allclose(result.centroids, points.mean())
    assert result.assignments.shape == points.shape
    more = run(points, ones, 3, start="coarse_to_fine")
    assert float(more.distortion) == 0
    assert int(more.num_used) == len(np.unique(points))


def test_ties_go_to_the_lower_cluster_and_the_start_needs_no_order():
    points = np.resize(np.array([-1.0, 0.0, 1.0], np.float32), EXACT)
    start = np.array([1.0, -1.0] + [7.0] * (MAX_CLUSTERS - 2), np.float32)
    result = run_from(points, np.ones_like(points), 2, start, num_iterations=0)
    np.testing.assert_array_equal(result.centroids, [-1.0] + [1.0] * (MAX_CLUSTERS - 1))
    np.testing.assert_array_equal(result.assignments, np.resize([0, 0, 1], EXACT))


@pytest.mark.parametrize("form", some_slow(PENALTY_FORMS, "none", "published", "linear"))
def test_empty_cluster_is_reported_and_harmless(form):
    points, importance = heavy_tailed(EXACT)
    start = np.array([-0.1, 0.0, 0.1, 50.0, 60.0, 70.0, 80.0, 90.0])
    once = run_from(
        points,
        importance,
        5,
        start,
        penalty_form=form,
        diameter_penalty=0.01 * importance.sum(),
        num_iterations=1,
    )
    # Brought back to the others, the empty ones do not widen the codebook.
    assert np.all(np.abs(once.centroids) <= np.abs(points).max())
    assert int(once.num_empty) >= 1
    assert int(once.num_used) + int(once.num_empty) == 5


def test_centres_merged_by_the_penalty_are_counted():
    points, importance = heavy_tailed(EXACT)
    result = run(points, importance, 8, diameter_penalty=1e7)
    assert int(result.num_used) == len(np.unique(np.asarray(result.assignments))) < 8
    mean = np.average(points.astype(np.float64), weights=importance)
    np.testing.assert_allclose(result.centroids, mean, atol=1e-4)


def test_float64(x64):
    points, importance = (part.astype(np.float64) for part in heavy_tailed(EXACT))
    # The form that compiles no other program of these tests; without a penalty it is plain.
    result = run(points, importance, 5, num_iterations=9, penalty_form="linear")
    expected = naive_lloyd(points, importance, quantile_start(points, 5), 9)
    assert result.centroids.dtype == jnp.float64
    np.testing.assert_allclose(np.asarray(result.centroids)[:5], expected, rtol=1e-12)
    check_descent("linear", points, importance)


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
def test_tiny_and_huge_importance(factor):
    points, importance = heavy_tailed(EXACT)
    base = run(points, importance, 6, diameter_penalty=0.1)
    result = run(points, importance * np.float32(factor), 6, diameter_penalty=0.1)
    np.testing.assert_allclose(result.centroids, base.centroids, rtol=1e-5, atol=1e-7)
    assert int(result.num_used) == int(base.num_used)


@settings(max_examples=25)
@given(
    st.lists(st.integers(-1000, 1000), min_size=20, max_size=20),
    st.lists(st.integers(0, 4), min_size=20, max_size=20).filter(any),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.03, 10.0]),
)
def test_any_small_group(values, importance, num_clusters, penalty):
    # All of them several times: the size of the other tests.
    points = np.resize(np.array(values, np.float32) / 8, EXACT)
    importance = np.resize(np.array(importance, np.float32), EXACT)
    result = run(points, importance, num_clusters, diameter_penalty=penalty, num_iterations=10)
    centroids = np.asarray(result.centroids)
    assert np.all(np.diff(centroids) >= 0)
    assert points.min() <= centroids[0]
    assert centroids[-1] <= points.max()
    np.testing.assert_array_equal(result.assignments, nearest(points, centroids))
    start = quantile_start(points, num_clusters)
    beta = penalty * importance.sum()
    before = objective(points, importance, start, beta, "monotone")
    assert float(result.objective) <= before * (1 + 1e-5) + 1e-6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"points": [1, 2]}, TypeError, "points must be floating, got int32"),
        ({"points": []}, ValueError, r"at least one point per group, got shape \(0,\)"),
        ({"points": 1.0}, ValueError, r"at least one point per group, got shape \(\)"),
        ({"points": [1.0, np.nan, np.inf]}, ValueError, "points must be finite, got 2 NaN or"),
        ({"importance": [1.0, np.nan]}, ValueError, "importance must be finite, got 1 NaN"),
        ({"importance": [1.0, -1.0]}, ValueError, "importance must be at least 0, got 1"),
        ({"importance": [0.0, 0.0]}, ValueError, "must not be 0 throughout a group, got 1"),
        ({"importance": [1.0] * 3}, ValueError, r"shape of points, \(2,\), or .* got \(3,\)"),
        ({"importance": [1j, 1]}, TypeError, "importance must be real, got complex64"),
        ({"num_clusters": 0}, ValueError, "num_clusters must be at least 1, got 0"),
        ({"num_clusters": 5, "max_clusters": 4}, ValueError, "at most max_clusters = 4, got 5"),
        ({"num_clusters": 2.5}, TypeError, "num_clusters must be an integer, got float"),
        ({"num_clusters": np.array([2])}, ValueError, "max_clusters is required"),
        ({"diameter_penalty": -0.1}, ValueError, "finite and at least 0, got -0.1"),
        ({"penalty_form": "cubic"}, ValueError, r"penalty_form must be one of .* got 'cubic'"),
        ({"penalty_scale": "log"}, ValueError, r"penalty_scale must be one of .* got 'log'"),
        ({"initial_centroids": [1.0]}, ValueError, r"max_clusters = 2 entries .* shape \(1,\)"),
        ({"initial_centroids": [1.0, np.nan]}, ValueError, "initial_centroids must be finite"),
        ({"num_bins": 0}, ValueError, "num_bins must be at least 1, got 0"),
    ],
)
def test_bad_input(arguments, error, message):
    options = {"points": [1.0, 2.0], "num_clusters": 2} | arguments
    options = {
        name: np.array(value) if isinstance(value, list) else value
        for name, value in options.items()
    }
    with pytest.raises(error, match=message):
        kmeans(**options)


def test_traced_clusters_need_a_size():
    with pytest.raises(ValueError, match="max_clusters is required when num_clusters is"):
        jax.jit(lambda k: kmeans(np.ones(3, np.float32), num_clusters=k))(2)


def test_size_of_the_codebook():
    moments = Moments(*4 * [np.ones(3, np.float32)], *4 * [np.float32(1)])
    with pytest.raises(ValueError, match="max_clusters must be at least 1, got 0"):
        solve_kmeans(moments, 1, max_clusters=0)
