import jax.numpy as jnp
import numpy as np
import pytest
from quantizer_oracles import nearest, quantile_start
from scipy import stats
from slow_cases import some_slow

from jaxcomp.rate_distortion import (
    LayerCurve,
    add_curves,
    distance_to_limit,
    layer_curve,
    layer_source,
    limits,
    network_curve,
)
from jaxcomp.rate_distortion.limits import lower_envelope, upper_hull

NUM_WEIGHTS = 240
OPTIONS = {"num_slopes": 8, "max_bits": 3.0, "gap_bits": 5e-3}


def weights_of(seed=0, number=NUM_WEIGHTS):
    rng = np.random.default_rng(seed)
    weights = (0.05 * rng.standard_t(4, number)).astype(np.float32)
    importance = (rng.gamma(1.0, size=number) + 1e-3).astype(np.float32)
    return weights, importance


def operational_points(weights, importance):
    """Rates (bits per weight) and distortions of weighted K-means, in NumPy."""
    points, mass = (np.asarray(part, np.float64) for part in (weights, importance))
    rates, distortions = [], []
    for num_clusters in (1, 2, 4, 8):
        centres = quantile_start(points, num_clusters).astype(np.float64)
        for _ in range(20):
            index = nearest(points, centres)
            for cluster in np.unique(index):
                own = index == cluster
                # About a member: the centre of one weight far away is that weight.
                offset = points[own] - points[own][0]
                centres[cluster] = points[own][0] + np.average(offset, weights=mass[own])
            centres.sort()
        index = nearest(points, centres)
        rates.append(stats.entropy(np.bincount(index), base=2))
        distortions.append(np.sum(mass * (points - centres[index]) ** 2))
    return np.array(rates), np.array(distortions)


@pytest.fixture(scope="module")
def curve():
    return layer_curve(*weights_of(), **OPTIONS)


def test_quantizers_lie_above_the_limit(curve):
    rates, distortions = operational_points(*weights_of())
    found = distance_to_limit(curve, rates, distortions)
    assert np.all(found.excess_bits >= -1e-6)
    assert np.all(found.excess_bits[1:] < 1.5)
    # The certified limit is below the curve through achievable points, and close to it: slopes a
    # factor apart leave (ln factor)^2 / 16 nats between tangents and curve.
    assert np.all(found.limit_bits <= found.curve_bits + 1e-6)
    factor = curve.slope_nats[2] / curve.slope_nats[1]
    slack = np.log(factor) ** 2 / 16 / np.log(2)
    gap = found.curve_bits - found.limit_bits
    assert np.all(gap <= 3 * slack + curve.gap_bits.max())
    np.testing.assert_array_equal(found.excess_bits, found.rate_bits - found.limit_bits)
    # Nor do the channels of the curve itself.
    own = distance_to_limit(curve, curve.rate_bits, curve.distortion)
    assert np.all(own.excess_bits >= -1e-12)
    # One cluster at the weighted mean is the end of the curve.
    assert found.limit_bits[0] == pytest.approx(0, abs=1e-9)
    assert curve.rate_bits[0] == pytest.approx(0, abs=1e-5)
    assert curve.distortion[0] == pytest.approx(distortions[0], rel=1e-4)


@pytest.mark.parametrize("far", some_slow([1e6, 1e30], 1e6))
def test_weights_far_away_leave_the_limit_of_the_others(far):
    weights, importance = weights_of()
    weights[[3, 7]] = -far, 0.3 * far
    found = layer_curve(weights, importance, **OPTIONS)
    assert found.rate_bits[-1] > 2.5
    # Two clusters hold what is far away.
    rates, distortions = (points[2:] for points in operational_points(weights, importance))
    reached = distance_to_limit(found, rates, distortions)
    assert np.all(reached.excess_bits >= 0)
    # No code of all weights needs less for the others than their own limit.
    others = [np.delete(values, [3, 7]) for values in (weights, importance)]
    alone = layer_curve(*others, slope_nats=found.slope_nats[2:], gap_bits=5e-3)
    limit = distance_to_limit(alone, rates, distortions).limit_bits
    share = (NUM_WEIGHTS - 2) / NUM_WEIGHTS
    np.testing.assert_array_less(share * limit - 0.02, reached.limit_bits)
    # Nor is it more by more than what it takes to say where they are.
    told = 2 / NUM_WEIGHTS * np.log2(NUM_WEIGHTS * np.e)
    np.testing.assert_array_less(reached.limit_bits, share * limit + told + 0.02)
    assert np.all(reached.shannon_bits < rates)
    assert found.live_share == pytest.approx(share)


def test_shannon_bound_is_near_at_high_rates(curve):
    # An empirical source of 240 weights has no density; as if it had, 0.2 bit is what spacings of
    # so few weights can tell.
    found = distance_to_limit(curve, 0.0, curve.distortion[-2])
    assert float(found.shannon_bits) == pytest.approx(float(found.curve_bits), abs=0.3)


def test_histogram_of_a_large_layer():
    weights, importance = weights_of(1, 6000)
    importance[:600] = 0
    source = layer_source(weights, importance, max_pairs=500)
    assert len(source.points) <= 500
    assert source.probabilities.sum() == pytest.approx(1)
    w, h = weights.astype(float), importance.astype(float)
    assert source.probabilities @ source.importance == pytest.approx(h.mean())
    dead = source.importance == 0
    assert source.probabilities[dead].sum() == pytest.approx(0.1)
    # Whatever constant code: the distortion of the pairs plus the inner part is that of the
    # weights, exactly.
    for y in (0.0, -0.3, 2.0):
        pairs = source.probabilities @ (source.importance * (source.points - y) ** 2)
        assert pairs + source.inner_distortion == pytest.approx(np.mean(h * (w - y) ** 2))
    fine = layer_source(weights, importance, max_pairs=2000)
    # Four times the intervals, a sixteenth of the inner distortion; empty cells cost some of it.
    assert fine.inner_distortion < source.inner_distortion / 6
    exact = layer_source(weights, importance, max_pairs=6000)
    np.testing.assert_array_equal(exact.points, w)
    assert exact.inner_distortion == 0


def test_histogram_of_a_layer_with_weights_far_away():
    weights, importance = weights_of(1, 6000)
    plain = layer_source(weights, importance, max_pairs=500)
    weights[[5, 70, 71]] = 1e12, -3e30, -2e30
    source = layer_source(weights, importance, max_pairs=500)
    assert len(source.points) <= 500
    assert source.inner_distortion < 1.1 * plain.inner_distortion
    np.testing.assert_array_equal(np.sort(source.points)[:2], np.float32([-3e30, -2e30]))
    # Many of them share a quarter of the pairs.
    weights[::40] = np.geomspace(1e6, 1e9, 150)
    many = layer_source(weights, importance, max_pairs=500)
    assert len(many.points) <= 500
    near = np.abs(many.points) < 1e5
    assert 300 < near.sum() < 400


def test_layers_add_at_equal_slopes(curve):
    other = layer_curve(*weights_of(5), slope_nats=curve.slope_nats, **OPTIONS)
    both = add_curves([curve, other])
    assert both.num_weights == 2 * NUM_WEIGHTS
    np.testing.assert_allclose(both.rate_bits, (curve.rate_bits + other.rate_bits) / 2)
    np.testing.assert_allclose(both.distortion, curve.distortion + other.distortion)
    # Quantizers of both layers together are above the limit of both.
    rates, distortions = zip(
        *(operational_points(*weights_of(seed)) for seed in (0, 5)), strict=True
    )
    found = distance_to_limit(both, np.mean(rates, axis=0), np.sum(distortions, axis=0))
    assert np.all(found.excess_bits >= -1e-6)
    with pytest.raises(ValueError, match="curves must share their slope_nats"):
        add_curves([curve, other._replace(slope_nats=2 * curve.slope_nats)])
    with pytest.raises(ValueError, match="at least one curve, got none"):
        add_curves([])


@pytest.mark.parametrize("number", [11, 1000, 1001])
def test_the_entropy_of_spacings_is_that_of_scipy(number):
    sample = np.random.default_rng(number).normal(size=number)
    assert limits._entropy_of_spacings(sample) == pytest.approx(stats.differential_entropy(sample))


def test_a_network_is_its_layers_together():
    layers = {"a": weights_of(2), "b": weights_of(3, 60)}
    layers["dead"] = (layers["b"][0], np.zeros(60))
    whole = network_curve(layers, num_slopes=6, max_bits=2.0, gap_bits=0.01)
    assert whole.num_weights == NUM_WEIGHTS + 120
    assert whole.slope_nats.size == 6
    alone = [
        layer_curve(*layers[name], slope_nats=whole.slope_nats, gap_bits=0.005) for name in "ab"
    ]
    both = add_curves(alone)
    # Weights without importance cost nothing; either is within its gap of the truth.
    share = both.num_weights / whole.num_weights
    steps = whole.slope_nats / np.log(2) / whole.num_weights
    lagrangians = [
        share * both.rate_bits + steps * both.distortion,
        whole.rate_bits + steps * whole.distortion,
    ]
    np.testing.assert_allclose(*lagrangians, atol=whole.gap_bits.max() + both.gap_bits.max())
    assert np.all(whole.gap_bits <= 0.02)
    assert whole.live_share == pytest.approx(share * both.live_share)
    assert whole.entropy_nats == pytest.approx(both.entropy_nats)
    assert whole.rate_bits[-1] > 1
    with pytest.raises(ValueError, match="at least one with some importance, got none"):
        network_curve({"dead": layers["dead"]})


def test_envelope_and_hull_of_a_known_curve():
    # R(D) = -1/2 ln D of a Gaussian, at slopes s = 1 / (2 D).
    distortion = np.geomspace(1e-3, 1, 12)
    rate, slopes = -0.5 * np.log(distortion), 0.5 / distortion
    query = np.array([[0.002, 0.01], [0.3, 3.0]])
    expected = np.maximum(-0.5 * np.log(query), 0)
    below, above = (
        lower_envelope(rate, distortion, slopes, query),
        upper_hull(rate, distortion, query),
    )
    assert np.all(below <= expected + 1e-12)
    assert np.all(above >= expected - 1e-12)
    assert np.all(above - below < 0.1)
    np.testing.assert_allclose(lower_envelope(rate, distortion, slopes, distortion), rate)
    np.testing.assert_allclose(upper_hull(rate, distortion, distortion), rate)
    # A point above the chord of its neighbours does not lift the hull; none is left of the first.
    bumped = rate + np.where(np.arange(12) == 5, 0.5, 0)
    assert upper_hull(bumped, distortion, distortion)[5] < rate[5] + 0.2
    assert upper_hull(rate, distortion, np.array(1e-4)) == np.inf


def test_gaussian_layer_meets_the_closed_form():
    # The quantiles of a Gaussian: R(D) = 1/2 log2(v / D) up to what 240 points can show.
    quantiles = stats.norm.ppf((np.arange(NUM_WEIGHTS) + 0.5) / NUM_WEIGHTS)
    found = layer_curve(quantiles, **OPTIONS)
    assert isinstance(found, LayerCurve)
    shares = found.distortion / found.distortion[0]
    inside = (found.rate_bits > 0.3) & (found.rate_bits < 2)
    expected = 0.5 * np.log2(1 / shares[inside])
    np.testing.assert_allclose(found.rate_bits[inside], expected, atol=0.03)


def test_short_dtype_and_dead_weights(curve):
    weights, importance = weights_of()
    source = layer_source(jnp.asarray(weights, jnp.bfloat16), importance)
    np.testing.assert_allclose(source.points, weights, rtol=2**-8)
    half = curve._replace(live_share=0.5, entropy_nats=0.0, mean_log_importance=0.0)
    found = distance_to_limit(half, 0.0, NUM_WEIGHTS * 0.5 * 1e-4)
    expected = 0.5 * (-0.5 * np.log2(2 * np.pi * np.e * 1e-4))
    assert float(found.shannon_bits) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((np.arange(3),), {}, TypeError, "weights must be floating, got int64"),
        ((np.ones(0),), {}, ValueError, "at least one weight, got none"),
        ((np.ones(2), np.ones(3)), {}, ValueError, "importance must have the shape of weights"),
        ((np.ones(2), -np.ones(2)), {}, ValueError, "importance must be at least 0, got -1"),
        ((np.ones(2), np.zeros(2)), {}, ValueError, "importance must not be 0 throughout"),
        ((np.array([1.0, np.inf]),), {}, ValueError, "weights must be finite, got 1 NaN"),
        ((np.ones(2),), {"gap_bits": 0.0}, ValueError, "gap_nats must be positive, got 0"),
        ((np.ones(2),), {"slope_nats": 1.0}, ValueError, "a vector of finite numbers, got shape"),
        ((np.ones(2),), {"slope_nats": [np.inf]}, ValueError, "must be finite, got inf"),
        ((np.ones(2),), {"num_slopes": 2}, ValueError, "num_slopes must be at least 3, got 2"),
        ((np.ones(2),), {"max_bits": 0.0}, ValueError, "max_bits must be a positive finite"),
    ],
)
def test_bad_layers(arguments, options, error, message):
    with pytest.raises(error, match=message):
        layer_curve(*arguments, **options)


def test_bad_histogram():
    with pytest.raises(ValueError, match="max_pairs must be at least twice"):
        layer_source(np.ones(2), max_pairs=8)


def test_bad_points(curve):
    with pytest.raises(ValueError, match="distortion must be at least 0, got -1"):
        distance_to_limit(curve, 1.0, -1.0)
    with pytest.raises(ValueError, match="rate_bits and distortion must broadcast"):
        distance_to_limit(curve, np.ones(2), np.ones(3))
