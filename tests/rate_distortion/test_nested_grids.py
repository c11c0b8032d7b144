import numpy as np
import pytest

from jaxcomp.rate_distortion import blahut_arimoto
from jaxcomp.rate_distortion import nested_grids as grids

NUM_PAIRS = 60
GAP_NATS = 0.01


def pairs(seed=0, number=NUM_PAIRS):
    """Heavy-tailed weights, importances over decades, some without any."""
    rng = np.random.default_rng(seed)
    importance = np.exp(2.5 * rng.normal(size=number))
    importance[::10] = 0
    return 0.05 * rng.standard_t(3, number), importance


def slopes_of(points, importance, rates):
    """Slopes at about the given rates, in nats."""
    variance = np.mean(importance * (points - np.average(points, weights=importance)) ** 2)
    return 0.5 * np.exp(2 * np.asarray(rates)) / variance


def problem_at(points, importance, slope, gap_nats=GAP_NATS):
    live = importance > 0
    low, span = points[live].min(), np.ptp(points[live])
    cap = grids.highest_importance(importance[live], points.size, gap_nats)
    split = grids.split_pairs(
        points[live], importance[live], slope, span, cap, points.size, gap_nats
    )
    return grids.Problem(split, slope, low, span)


def split_pairs(problem):
    """The split source written out: probabilities, places and importances of its points."""
    masses, places, heights = [], [], []
    for level, (first, end) in enumerate(problem.ranges):
        place = problem.low + np.arange(problem.lengths[level]) * problem.spacings[level]
        mass = problem.mass[level]
        masses.append(mass.ravel())
        places.append(np.broadcast_to(place, mass.shape).ravel())
        heights.append(np.broadcast_to(problem.nodes[first:end, None], mass.shape).ravel())
    mass, place, height = (np.concatenate(part) for part in (masses, places, heights))
    used = mass > 0
    return mass[used], place[used], height[used]


@pytest.fixture(scope="module")
def solved():
    points, importance = pairs()
    slope = float(slopes_of(points, importance, 0.8))
    problem = problem_at(points, importance, slope)
    q, lower = problem.solve(problem.initial(None), 0.4 * GAP_NATS)
    return points, importance, problem, q, lower


def test_bounds_enclose_a_dense_solution():
    points, importance = pairs()
    slopes = slopes_of(points, importance, [-1.0, 0.0, 0.7, 1.5, 2.5])
    found = grids.bounds_at_slopes(points, importance, slopes, gap_nats=GAP_NATS)
    # Every code of the dense problem is one for the layer; on a grid so fine its own bounds, a
    # millionth apart, are the layer's up to the square of the spacing.
    y = np.linspace(points.min(), points.max(), 1001)
    distances = importance[:, None] * (points[:, None] - y) ** 2
    dense = blahut_arimoto(np.full(NUM_PAIRS, 1 / NUM_PAIRS), distances, slopes)
    least = np.asarray(dense.rate_nats, float) + slopes * np.asarray(dense.distortion, float)
    lower = np.array([point.lagrangian_nats for point in found])
    rate = np.array([point.rate_nats for point in found])
    upper = rate + slopes * np.array([point.distortion for point in found])
    assert np.all(lower <= least + 1e-5)
    assert np.all(upper >= least - 1e-5)
    assert np.all(upper - lower <= 1.2 * GAP_NATS)
    # A source of six dozen pairs has no rate beyond its entropy.
    assert np.all(rate <= np.log(NUM_PAIRS))


@pytest.mark.parametrize("far", [1e6, 1e16])
def test_bounds_enclose_a_dense_solution_with_weights_far_away(far):
    points, importance = pairs()
    slopes = slopes_of(points, importance, [0.0, 0.7, 1.5, 2.5])
    points[[3, 7]] = -far, 0.3 * far
    assert np.all(importance[[3, 7]] > 0)
    # Among the slopes one at which only what is far away counts.
    slopes = np.append(0.1 * NUM_PAIRS / (importance[3] * far**2), slopes)
    found = grids.bounds_at_slopes(points, importance, slopes, gap_nats=GAP_NATS)
    near = np.delete(points, [3, 7])
    y = np.concatenate([np.linspace(near.min(), near.max(), 998), points[[3, 7]]])
    y = np.append(y, np.average(points, weights=importance))
    distances = importance[:, None] * (points[:, None] - y) ** 2
    dense = blahut_arimoto(np.full(NUM_PAIRS, 1 / NUM_PAIRS), distances, slopes)
    least = np.asarray(dense.rate_nats, float) + slopes * np.asarray(dense.distortion, float)
    lower = np.array([point.lagrangian_nats for point in found])
    upper = np.array([point.rate_nats for point in found])
    upper += slopes * np.array([point.distortion for point in found])
    assert np.all(lower <= least + 1e-5)
    assert np.all(upper >= least - 1e-5)
    # What it costs to say which of the weights lie far away, and which of the two it is.
    told = 2 / NUM_PAIRS * (np.log(NUM_PAIRS) + 1)
    assert np.all((upper - lower)[1:] <= 1.2 * GAP_NATS + told)


def test_splitting_keeps_means(solved):
    points, importance, problem, _, _ = solved
    mass, place, height = split_pairs(problem)
    assert mass.sum() + problem.free == pytest.approx(1)
    lowered = np.minimum(importance, problem.nodes[0])
    assert mass @ height == pytest.approx(lowered.mean(), rel=1e-9)
    # Whatever the reproduction: the distortion of the split pairs is more by the same amount.
    for y in (-0.2, 0.0, 0.31):
        distortion = np.mean(lowered * (points - y) ** 2)
        assert mass @ (height * (place - y) ** 2) == pytest.approx(distortion + problem.excess)
    # Lowering the largest importances costs what it may.
    cost = 0.5 * np.log(importance[importance > 0] / lowered[importance > 0]).sum() / NUM_PAIRS
    assert 0 <= cost <= 0.1 * GAP_NATS + 1e-12


def test_the_certificate_holds_between_grid_points(solved):
    _, _, problem, q, lower = solved
    mass, place, height = split_pairs(problem)
    y = problem.low + np.arange(problem.lengths[-1]) * problem.spacings[-1]
    z = np.exp(-problem.slope * height[:, None] * (place[:, None] - y) ** 2) @ q
    value = -mass @ np.log(z)
    dense = np.linspace(y[0], y[-1], 20 * (y.size - 1) + 1)
    c = problem.free + (mass / z) @ np.exp(
        -problem.slope * height[:, None] * (place[:, None] - dense) ** 2
    )
    # The same by convolutions and interpolation.
    normalisers = problem.normalisers(q)
    multipliers = [m / n for m, n in zip(problem.mass, normalisers, strict=True)]
    np.testing.assert_allclose(problem.certificates(multipliers), c[::20], rtol=1e-3)
    exact = value - np.log(c.max()) - problem.slope * problem.excess
    # What may hide between the grid points has been taken off.
    assert exact - 5e-4 <= lower <= exact


def test_a_channel_of_few_reproductions_is_exact(solved):
    points, importance, problem, q, _ = solved
    rate, distortion = problem.channel(q)
    y = problem.low + np.arange(q.size) * problem.spacings[-1]
    cost = importance[:, None] * (points[:, None] - y) ** 2
    joint = q * np.exp(-problem.slope * cost)
    joint = joint / joint.sum(axis=1, keepdims=True) / NUM_PAIRS
    mutual = joint * np.log(joint / joint.sum(axis=0) * NUM_PAIRS)
    assert distortion == pytest.approx(np.sum(joint * cost), rel=1e-5)
    assert rate == pytest.approx(np.sum(mutual), rel=1e-5)


def test_no_channel_lies_below_the_bounds():
    # Two of three weights next to each other, and weights of few values: the logarithms that are
    # interpolated elsewhere have poles there.
    rng = np.random.default_rng(2)
    sources = [
        (np.array([9.99999329e-31, 9.99998183e-31, 2.69185914e-39]), np.ones(3)),
        (np.array([0.99999e-6, 1.000001e-6, 0.0]), np.ones(3)),
        (np.append(rng.normal(size=30), 1e4), np.ones(31)),
        (0.1 * rng.integers(0, 5, 500), rng.gamma(1.0, size=500)),
    ]
    for points, importance in sources:
        slopes = slopes_of(points, importance, np.linspace(-0.5, 4, 12))
        found = grids.bounds_at_slopes(points, importance, slopes, gap_nats=0.07)
        rate, distortion, lower = (np.array(column) for column in zip(*found, strict=True))
        assert np.all(lower <= np.min(rate + slopes[:, None] * distortion, axis=1))
        # Nor anything else that is possible: sending one of the values, nearest or lossless.
        _, counts = np.unique(points, return_counts=True)
        shares = counts / points.size
        assert np.all(lower <= -np.sum(shares * np.log(shares)) * (1 + 1e-12))


def test_rate_and_distortion_are_those_of_the_very_pairs(solved, monkeypatch):
    monkeypatch.setattr(grids, "_MAX_SUMMED", 0)
    points, importance, problem, q, _ = solved
    rate, distortion = problem.channel(q)
    live = importance > 0
    w, h = points[live], np.minimum(importance, problem.nodes[0])[live]
    y = problem.low + np.arange(q.size) * problem.spacings[-1]
    square = (w[:, None] - y) ** 2
    kernel = q * np.exp(-problem.slope * h[:, None] * square)
    channel = kernel / kernel.sum(axis=1, keepdims=True)
    spent = np.sum(importance[live, None] * channel * square) / NUM_PAIRS
    # With q in place of the channel's own output distribution the rate is an upper bound.
    used = channel > 0
    ratio = np.where(used, channel, 1) / np.where(used, q, 1)
    nats = np.sum(channel * np.log(ratio)) / NUM_PAIRS
    assert distortion == pytest.approx(spent, rel=2e-3)
    assert rate == pytest.approx(nats, abs=1e-3)


def test_many_gaussian_weights_meet_the_closed_form():
    rng = np.random.default_rng(1)
    points = rng.normal(size=20_000)
    slopes = 0.5 * np.exp(2 * np.array([0.0, 0.5, 1.5, 2.5, 3.5]))
    found = grids.bounds_at_slopes(points, np.ones(points.size), slopes, gap_nats=0.014)
    for slope, point in zip(slopes, found, strict=True):
        # R + s D at D = 1 / (2 s) of the density; its sample has the variance of a sample.
        expected = 0.5 * np.log(2 * slope * points.var()) + 0.5
        assert point.lagrangian_nats <= expected + 2e-3
        assert point.rate_nats + slope * point.distortion >= expected - 0.03
        assert point.rate_nats + slope * point.distortion - point.lagrangian_nats < 0.016


def test_low_rates_of_heavy_tails_are_certified_too():
    # Most of the reproductions die out within a step; those taken away wrongly must come back.
    rng = np.random.default_rng(0)
    points, importance = rng.standard_t(6, 20_000), np.exp(2 * rng.normal(size=20_000))
    variance = np.mean(importance * (points - np.average(points, weights=importance)) ** 2)
    slopes = np.array([0.2, 0.35, 0.5, 0.8]) / variance
    for slope, point in zip(
        slopes, grids.bounds_at_slopes(points, importance, slopes, gap_nats=0.014), strict=True
    ):
        assert point.rate_nats + slope * point.distortion - point.lagrangian_nats < 0.014
        assert point.lagrangian_nats <= slope * variance


def test_extremes(monkeypatch):
    monkeypatch.setattr(grids, "_MAX_GRID", 4096)
    points, importance = pairs()
    # Slope 0, a slope without any gain, and one beyond all grids.
    found = grids.bounds_at_slopes(
        points, importance, np.array([0.0, 1e-9, 1e12]), gap_nats=GAP_NATS
    )
    mean = np.average(points, weights=importance)
    constant = np.mean(importance * (points - mean) ** 2)
    for point in found[:2]:
        assert point.rate_nats == 0
        assert point.distortion == pytest.approx(constant)
        assert point.lagrangian_nats == pytest.approx(0, abs=1e-9)
    assert found[2].lagrangian_nats <= np.log(NUM_PAIRS) + 1e-6
    # Equal weights cost nothing; one heavy weight among thousands of light ones little.
    same = grids.bounds_at_slopes(np.ones(5), np.ones(5), np.array([3.0]), gap_nats=GAP_NATS)
    assert same == [grids.Bounds(0.0, 0.0, 0.0)]
    towering = np.where(np.arange(NUM_PAIRS) == 7, 1e12, importance)
    (found,) = grids.bounds_at_slopes(
        points, towering, slopes_of(points, importance, [1.0]), gap_nats=GAP_NATS
    )
    assert 0 < found.lagrangian_nats <= np.log(NUM_PAIRS)
    # No grid resolves it, but to send every weight as it is costs so much and no more.
    assert found.rate_nats <= np.log(NUM_PAIRS)
    coarse = np.round(points, 1)
    (found,) = grids.bounds_at_slopes(coarse, importance, np.array([1e9]), gap_nats=GAP_NATS)
    counts = np.unique(coarse[importance > 0], return_counts=True)[1]
    # Weights without importance take any of the values, in these proportions, and cost nothing.
    entropy = -np.sum(counts / NUM_PAIRS * np.log(counts / counts.sum()))
    assert found.rate_nats == pytest.approx(entropy)
    assert found.distortion == 0
    assert found.lagrangian_nats <= entropy + 1e-9
