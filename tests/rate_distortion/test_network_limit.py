"""The limit at distortions that are asked for, against the whole curve."""

import numpy as np
import pytest

from jaxcomp.rate_distortion import NetworkLimit, distance_to_limit, network_curve

GAP_BITS = 0.04


@pytest.fixture(scope="module")
def layers():
    rng = np.random.default_rng(3)
    wide = rng.standard_t(4, 3000), rng.lognormal(sigma=1.5, size=3000)
    far = 0.1 * rng.normal(size=500), rng.lognormal(size=500)
    far[0][:3] = 1e7
    return {"wide": wide, "far": far, "dead": (rng.normal(size=300), np.zeros(300))}


@pytest.fixture(scope="module")
def curve(layers):
    return network_curve(layers, num_slopes=8, max_bits=3.0, gap_bits=GAP_BITS)


def limit_of(layers):
    return NetworkLimit(layers, num_slopes=8, max_bits=3.0, gap_bits=GAP_BITS)


def test_it_is_that_of_the_whole_curve_to_within_the_gap(layers, curve):
    limit = limit_of(layers)
    distortion = np.concatenate([curve.distortion[2:] * factor for factor in (0.8, 1.0, 1.25)])
    whole = distance_to_limit(curve, 9.0, distortion)
    found = np.array([limit.limit_bits(own) for own in distortion])
    assert np.all(found <= whole.curve_bits + 1e-3)  # no code is below what is certified
    gap = GAP_BITS + np.max(curve.gap_bits - GAP_BITS, initial=0.0)
    np.testing.assert_allclose(found, whole.limit_bits, atol=gap)
    shannon = [limit.shannon_bits(own) for own in distortion]
    np.testing.assert_allclose(shannon, whole.shannon_bits, rtol=1e-12)


def test_what_was_asked_before_changes_nothing(layers, curve):
    asked = curve.distortion[[3, 5]]
    one, other = limit_of(layers), limit_of(layers)
    forward = [one.limit_bits(own) for own in asked]
    backward = [other.limit_bits(own) for own in asked[::-1]]
    assert forward == backward[::-1]


def test_far_from_the_curve_there_is_no_rate_or_all_of_it(layers, curve):
    limit = limit_of(layers)
    assert limit.limit_bits(2 * curve.distortion[0]) == 0.0
    lossless = limit.limit_bits(0.0)
    assert curve.rate_bits[-1] - GAP_BITS < lossless < np.log2(limit.num_weights)


def test_bad_input_is_refused(layers):
    with pytest.raises(ValueError, match="distortion must be at least 0"):
        limit_of(layers).limit_bits(-1.0)
    with pytest.raises(ValueError, match="some importance"):
        NetworkLimit({"dead": layers["dead"]})
