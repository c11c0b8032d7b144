import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from promotion import strictly
from quantizer_oracles import count_compilations, heavy_tailed, restored
from scipy.stats import norm

from jaxcomp.quantizers import (
    Moments,
    assign_by_cost,
    cells,
    default_multipliers,
    entropy_constrained,
    histogram_moments,
    kmeans,
    pad_bins,
    solve_entropy_constrained,
)

# One number of cells for nearly all tests, and so one compilation of the solver: as many points
# as cells, or a histogram of more.
EXACT, BINNED = 512, 3000
BINS, LEVELS, SYMBOLS = 64, 8, 12
MULTIPLIERS = np.array([0.003, 0.03, 0.3, 3.0], np.float32)


def run_loosely(points, importance, **options):
    options = {
        "multipliers": MULTIPLIERS,
        "max_clusters": SYMBOLS,
        "num_bins": BINS,
        "num_levels": LEVELS,
    } | options
    return jax.tree.map(np.asarray, entropy_constrained(points, importance, **options))


run = strictly(run_loosely)
joint_moments = strictly(cells.joint_moments)


@strictly
def solve(moments):
    """Solve as `run` does, by the same program."""
    return solve_entropy_constrained(
        moments,
        MULTIPLIERS,
        num_iterations=np.int32(50),
        multiplier_scale="relative",
        method="lagrangian",
        max_clusters=SYMBOLS,
        centroid_dtype=np.dtype(np.float32),
    )


def distortion_and_bits(points, importance, index):
    """Distortion about the weighted centroids, and the entropy of all points, in float64."""
    points, importance = points.astype(np.float64), importance.astype(np.float64)
    distortion = bits = 0.0
    for symbol in np.unique(index):
        here = index == symbol
        centroid = np.average(points[here], weights=importance[here])
        distortion += np.sum(importance[here] * (points[here] - centroid) ** 2)
        bits += here.sum() * np.log2(len(points) / here.sum())
    return distortion, bits


def lagrangian(points, importance, index, multiplier):
    """The distortion plus the price of the entropy."""
    distortion, bits = distortion_and_bits(points, importance, index)
    return distortion + multiplier * bits


def naive_step(points, importance, centroids, lengths, multiplier):
    """One update in float64; symbols that die keep an infinite length."""
    points, importance = points.astype(np.float64), importance.astype(np.float64)
    cost = importance[:, None] * (points[:, None] - centroids[None]) ** 2
    index = np.argmin(cost + multiplier * lengths[None], axis=1)
    centroids, new = centroids.copy(), np.full_like(lengths, np.inf)
    for symbol in np.unique(index):
        here = index == symbol
        centroids[symbol] = np.average(points[here], weights=importance[here])
        new[symbol] = np.log2(len(points) / here.sum())
    return centroids, new


def test_follows_the_naive_iteration(strict_promotion):
    points, importance = heavy_tailed(EXACT)
    start = run(points, importance, num_iterations=0)
    for place in range(len(MULTIPLIERS)):
        multiplier = float(start.multiplier[place])
        used = int(start.num_used[place])
        centroids = np.asarray(start.centroids[place, :used], np.float64)
        lengths = np.asarray(start.length_bits[place, :used], np.float64)
        objective = np.inf
        for num_iterations in (1, 2, 3, 20):
            for _ in range(num_iterations if num_iterations < 20 else 17):
                if num_iterations in (2, 3) and _ > 0:
                    break
                centroids, lengths = naive_step(points, importance, centroids, lengths, multiplier)
            result = run(points, importance, num_iterations=num_iterations)
            alive = np.isfinite(lengths)
            order = np.argsort(centroids[alive])
            used = int(result.num_used[place])
            assert used == alive.sum()
            np.testing.assert_allclose(
                result.centroids[place, :used], centroids[alive][order], rtol=1e-4, atol=1e-6
            )
            np.testing.assert_allclose(
                result.length_bits[place, :used], lengths[alive][order], rtol=1e-5, atol=1e-6
            )
            # Monotone: float32 sums, to a few eps.
            assert float(result.objective[place]) <= objective * (1 + 1e-5)
            objective = float(result.objective[place])


@pytest.mark.parametrize(
    ("method", "num_points"), [("lagrangian", EXACT), ("lagrangian", BINNED), ("uniform", EXACT)]
)
def test_what_is_reported_agrees(method, num_points):
    points, importance = heavy_tailed(num_points)
    result = run(points, importance, method=method)
    mean = np.average(points.astype(np.float64), weights=importance)
    scale = np.sum(importance * (points - mean) ** 2) / num_points
    np.testing.assert_allclose(result.multiplier, MULTIPLIERS * scale, rtol=1e-5)
    for place in range(len(MULTIPLIERS)):
        counts, used = np.asarray(result.counts[place]), int(result.num_used[place])
        assert counts.sum() == num_points
        assert np.all(counts[:used] > 0)
        assert np.all(counts[used:] == 0)
        share = counts[:used] / num_points
        np.testing.assert_allclose(
            result.length_bits[place, :used], -np.log2(share), rtol=1e-5, atol=1e-6
        )
        assert np.all(np.isinf(result.length_bits[place, used:]))
        rate = -np.sum(share * np.log2(share))
        assert float(result.rate_bits[place]) == pytest.approx(rate, rel=1e-5, abs=1e-6)
        expected = float(result.distortion[place]) + num_points * rate * float(
            result.multiplier[place]
        )
        assert float(result.objective[place]) == pytest.approx(expected, rel=1e-5)
        centroids = np.asarray(result.centroids[place])
        assert np.all(np.diff(centroids) >= 0)
        assert np.all(centroids[used:] == centroids[used - 1])
    # More expensive bits: fewer of them.
    assert np.all(np.diff(result.rate_bits) <= 1e-6)
    assert np.all(np.diff(result.distortion) >= -1e-6 * np.asarray(result.distortion[:-1]))


def test_the_iteration_beats_the_uniform_grid_it_starts_from():
    points, importance = heavy_tailed(EXACT, seed=2)
    uniform = run(points, importance, method="uniform")
    best = run(points, importance)
    assert np.all(best.objective <= uniform.objective * (1 + 1e-5))
    # Importances of such different sizes are worth much to an encoder that sees them.
    assert float(best.objective[1]) < 0.95 * float(uniform.objective[1])


@pytest.mark.parametrize("num_points", [EXACT, BINNED])
def test_raw_points_cost_no_more_than_their_cells(num_points):
    points, importance = heavy_tailed(num_points, seed=3)
    result = run(points, importance)
    index = np.asarray(
        assign_by_cost(points, importance, result.centroids, result.length_bits, result.multiplier)
    )
    assert index.dtype == np.uint8
    for place in range(len(MULTIPLIERS)):
        multiplier = float(result.multiplier[place])
        lengths = np.asarray(result.length_bits[place], np.float64)
        centroids = np.asarray(result.centroids[place], np.float64)
        with np.errstate(invalid="ignore"):
            cost = importance[:, None] * (points[:, None].astype(np.float64) - centroids) ** 2
        cost = cost + multiplier * lengths[None]
        chosen = cost[np.arange(num_points), index[place]]
        np.testing.assert_allclose(chosen, cost.min(axis=1), rtol=1e-5, atol=1e-12)
        # Each point by itself beats whole cells, by what importance varies within them.
        assert chosen.sum() <= float(result.objective[place]) * (1 + 1e-5)
        assert chosen.sum() >= (0.97 if num_points > EXACT else 1 - 1e-5) * float(
            result.objective[place]
        )
        assert lagrangian(points, importance, index[place], multiplier) <= chosen.sum() * 1.00001


def partitions(number):
    """All ways to put so many points into unlabelled clusters."""
    if number == 0:
        yield ()
        return
    for rest in partitions(number - 1):
        for cluster in range(max(rest, default=-1) + 2):
            yield (*rest, cluster)


def test_close_to_brute_force_on_few_points():
    ratios = []
    for seed in range(6):
        points, importance = heavy_tailed(6, seed)
        moments = pad_bins(joint_moments(points, importance), EXACT)
        result = solve(moments)
        costs = np.array(
            [distortion_and_bits(points, importance, np.array(index)) for index in partitions(6)]
        )
        for place in range(len(MULTIPLIERS)):
            optimum = np.min(costs @ [1, float(result.multiplier[place])])
            ratios.append(float(result.objective[place]) / optimum)
    assert min(ratios) >= 1 - 1e-5
    # An iteration ends in local optima, as K-means does; most often in the best one.
    assert np.median(ratios) <= 1.02
    assert np.mean(ratios) <= 1.2


@pytest.mark.slow
def test_high_rate_theory():
    rng = np.random.default_rng(0)
    points = rng.standard_normal(1 << 18).astype(np.float32)
    variance = np.var(points.astype(np.float64))
    multipliers = np.array([2 * np.log(2) * 4.0**-4.5, 2 * np.log(2) * 4.0**-1], np.float32)
    options = {"multipliers": multipliers, "max_clusters": 128, "num_bins": 4096}
    uniform = run(points, None, method="uniform", **options)
    distortion = np.asarray(uniform.distortion, np.float64) / points.size
    excess = np.asarray(uniform.rate_bits) - 0.5 * np.log2(variance / distortion)
    # Gish and Pierce: 1/2 log2(2 pi e / 12) bits above the rate-distortion function. At 4 bits
    # and 2^18 points the empirical entropy is good to 0.001 bit, 4096 bins to another 0.001.
    assert excess[0] == pytest.approx(0.5 * np.log2(2 * np.pi * np.e / 12), abs=4e-3)
    # At high rate the slope is that of 4^-R: D = multiplier / (2 ln 2) per weight.
    per_weight = float(uniform.multiplier[0]) / (2 * np.log(2))
    # The steps tried are 13 % apart, so that the best one misses by half of that, squared.
    assert distortion[0] == pytest.approx(per_weight, rel=0.14)
    # At one bit the gap is smaller.
    assert 0 < excess[1] < 0.2546
    # A fixed-rate quantizer: Panter and Dite's constant, approached from below.
    start = np.sqrt(3 * variance) * norm.ppf((np.arange(128) + 0.5) / 128)
    fixed = kmeans(points, num_clusters=128, num_iterations=100, initial_centroids=start)
    constant = float(fixed.distortion) / points.size / variance * 128**2
    assert 0.95 * np.sqrt(3) * np.pi / 2 < constant < 1.005 * np.sqrt(3) * np.pi / 2
    # At equal distortion entropy coding saves 1/2 log2(6 sqrt(3) pi / (2 pi e)) = 0.467 bit.
    matched = 0.5 * np.log2(variance * points.size / float(fixed.distortion)) + excess[0]
    assert np.log2(128) - matched == pytest.approx(0.467, abs=0.03)


def test_invariances():
    points, importance = heavy_tailed(EXACT, seed=6)
    base = run(points, importance)
    # Powers of two are exact in floating point, at any magnitude.
    for scale in (2.0**-110, 2.0**50):
        scaled = run(points * np.float32(scale), importance * np.float32(2.0**12))
        np.testing.assert_array_equal(scaled.rate_bits, base.rate_bits)
        np.testing.assert_array_equal(scaled.centroids, base.centroids * np.float32(scale))
    order = np.random.default_rng(0).permutation(EXACT)
    permuted = run(points[order], importance[order])
    np.testing.assert_allclose(permuted.objective, base.objective, rtol=1e-6)
    # A point without importance takes the cheapest symbol: its value does not matter.
    silent = np.where(np.arange(EXACT) < 50, 0, importance).astype(np.float32)
    one = run(points, silent, method="lagrangian", num_iterations=200)
    index = assign_by_cost(points, silent, one.centroids, one.length_bits, one.multiplier)
    assert np.all(np.asarray(index)[1, :50] == np.argmin(one.length_bits[1]))


def test_new_points_multipliers_and_iterations_compile_nothing():
    points, importance = heavy_tailed(EXACT)
    run(points, importance)
    with count_compilations() as num_compilations:
        run(*heavy_tailed(EXACT, seed=1))
        run(points, importance, multipliers=MULTIPLIERS * 2, num_iterations=7)
        assert num_compilations() == 0


@pytest.mark.slow  # Groups of uniform codebooks go the same way.
def test_batched_equals_one_by_one():
    groups = [heavy_tailed(EXACT, seed) for seed in range(2)]
    points, importance = (np.stack(part) for part in zip(*groups, strict=True))
    # Several groups, and one axis of multipliers for all.
    together = run_loosely(points, importance)
    for place, group in enumerate(groups):
        single = run(*group)
        chosen = jax.tree.map(lambda leaf, place=place: leaf[place], together)
        np.testing.assert_allclose(chosen.objective, single.objective, rtol=1e-4)
        np.testing.assert_allclose(chosen.rate_bits, single.rate_bits, atol=1e-3)


@pytest.mark.slow  # That cells lose little beside points is tested above.
def test_moments_of_other_makers_serve_as_well():
    points, importance = heavy_tailed(BINNED)
    one_dimensional = solve(histogram_moments(points, importance, num_bins=BINS * LEVELS))
    joint = run(points, importance)
    # Without the importances of single points the encoder has less to choose. (At the first
    # multiplier the few intervals of value matter more.)
    assert np.all(joint.objective[1:] < one_dimensional.objective[1:])
    assert float(joint.objective[2]) < 0.95 * float(one_dimensional.objective[2])


def test_joint_moments_add_up():
    points, importance = heavy_tailed(BINNED)
    importance[::10] = 0
    moments = joint_moments(points, importance, num_bins=BINS, num_levels=LEVELS)
    assert moments.position.shape == (BINS * LEVELS,)
    found = restored(moments)
    position, mass = found.position, found.mass
    assert np.all(np.diff(position) >= 0)
    assert int(np.sum(moments.num_points)) == BINNED
    weights, values = importance.astype(np.float64), points.astype(np.float64)
    assert mass.sum() == pytest.approx(weights.sum(), rel=1e-6)
    assert np.sum(mass * position) == pytest.approx(np.sum(weights * values), rel=1e-4, abs=1e-3)
    total = np.sum(mass * position**2) + np.sum(found.second)
    assert total == pytest.approx(np.sum(weights * values**2), rel=1e-5)


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["normal", "constant", "two", "ties", "huge", "tiny", "offset"]),
)
def test_any_points_give_a_finite_curve_that_is_not_above_one_centre(seed, kind):
    rng = np.random.default_rng(seed)
    points, importance = heavy_tailed(EXACT, seed)
    points = {
        "normal": points,
        "constant": np.full(EXACT, points[0]),
        "two": np.where(rng.random(EXACT) < 0.3, points[0], points[1]),
        "ties": np.round(points * 20) / 20,
        "huge": points * 1e18,
        "tiny": points * 1e-40,
        "offset": points + 1000,
    }[kind].astype(np.float32)
    result = run(points, importance)
    for leaf in (result.rate_bits, result.distortion, result.objective, result.centroids):
        assert np.all(np.isfinite(leaf))
    mean = np.average(points.astype(np.float64), weights=importance)
    single = np.sum(importance.astype(np.float64) * (points - mean) ** 2)
    eps = np.sum(importance) * (np.abs(points).max() * 1e-6) ** 2
    assert np.all(np.asarray(result.objective, np.float64) <= single * (1 + 1e-4) + eps)
    assert np.all(np.asarray(result.rate_bits) <= np.log2(SYMBOLS) + 1e-6)
    if kind == "constant":
        assert np.all(result.num_used == 1)
        assert np.all(result.rate_bits == 0)


@pytest.mark.slow  # Exactly so in double precision, below.
def test_absolute_multipliers_are_taken_as_they_are():
    points, importance = heavy_tailed(EXACT)
    relative = run(points, importance, method="uniform")
    absolute = run(
        points,
        importance,
        method="uniform",
        multipliers=relative.multiplier,
        multiplier_scale="absolute",
    )
    np.testing.assert_allclose(absolute.multiplier, relative.multiplier, rtol=1e-6)
    np.testing.assert_allclose(absolute.objective, relative.objective, rtol=1e-6)


def test_default_multipliers_span_the_curve():
    values = default_multipliers()
    assert np.all(np.diff(values) > 0)
    assert values[0] == pytest.approx(2 * np.log(2) / 4**6)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"points": np.ones(3, np.int32)}, TypeError, "points must be floating, got int32"),
        ({"points": np.full(3, np.nan)}, ValueError, "points must be finite"),
        ({"importance": -np.ones(3)}, ValueError, "at least 0, got 3 negative of 3"),
        ({"importance": np.zeros(3)}, ValueError, "must not be 0 throughout a group"),
        ({"multipliers": np.float32([-1.0])}, ValueError, "multipliers must be finite and at leas"),
        ({"multipliers": np.float32(1.0)}, ValueError, "multipliers must have at least one entry"),
        ({"multipliers": np.ones(2, int)}, TypeError, "multipliers must be floating"),
        ({"method": "rounded"}, ValueError, "method must be one of"),
        ({"multiplier_scale": "log"}, ValueError, "multiplier_scale must be one of"),
        ({"max_clusters": 0}, ValueError, "max_clusters must be at least 1, got 0"),
        ({"num_bins": 0}, ValueError, "num_bins must be at least 1, got 0"),
        ({"num_levels": 0}, ValueError, "num_levels must be at least 1, got 0"),
    ],
)
def test_bad_input(changes, error, message):
    arguments = {"points": np.arange(3, dtype=np.float32), "importance": None} | changes
    with pytest.raises(error, match=message):
        entropy_constrained(**arguments)


def test_solver_checks_its_sizes():
    moments = Moments(*4 * [np.ones(3, np.float32)], *4 * [np.float32(1)])
    with pytest.raises(ValueError, match="max_clusters must be at least 1, got 0"):
        solve_entropy_constrained(moments, MULTIPLIERS, max_clusters=0)


@pytest.mark.slow
def test_half_precision_centroids_are_measured_as_stored():
    points, importance = heavy_tailed(EXACT)
    points = jnp.asarray(points, jnp.bfloat16)
    result = run(points, importance, method="uniform")
    assert result.centroids.dtype == jnp.bfloat16
    values = np.asarray(points, np.float64)
    for place in range(len(MULTIPLIERS)):
        used = int(result.num_used[place])
        centroids = np.asarray(result.centroids[place, :used], np.float64)
        edges = np.cumsum(np.asarray(result.counts[place, :used]))[:-1]
        order = np.argsort(values, kind="stable")
        index = np.searchsorted(edges, np.arange(EXACT), side="right")
        expected = np.sum(importance[order] * (values[order] - centroids[index]) ** 2)
        assert float(result.distortion[place]) == pytest.approx(expected, rel=1e-5)


def test_double_precision(x64):
    points, importance = (part.astype(np.float64) for part in heavy_tailed(EXACT))
    mean = np.average(points, weights=importance)
    multipliers = MULTIPLIERS * np.sum(importance * (points - mean) ** 2) / EXACT
    result = run_loosely(points, importance, multipliers=multipliers, multiplier_scale="absolute")
    assert result.centroids.dtype == jnp.float64
    np.testing.assert_allclose(result.multiplier, multipliers, rtol=1e-14)
    assert np.any(result.converged)
    index = assign_by_cost(
        points, importance, result.centroids, result.length_bits, result.multiplier
    )
    for place in range(len(MULTIPLIERS)):
        if bool(result.converged[place]):
            expected = lagrangian(
                points, importance, np.asarray(index[place]), float(result.multiplier[place])
            )
            assert float(result.objective[place]) == pytest.approx(expected, rel=1e-10)
