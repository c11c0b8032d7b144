from fractions import Fraction

import jax
import numpy as np
import pytest
from promotion import strict_promotion
from scipy.special import logsumexp

from jaxcomp.rate_distortion import blahut_arimoto, squared_error_curve

NUM_POINTS, NUM_REPRODUCTIONS = 120, 48


def layer(seed=0):
    """Heavy-tailed weights with unequal importances."""
    rng = np.random.default_rng(seed)
    return rng.standard_t(4, NUM_POINTS), rng.gamma(0.5, size=NUM_POINTS) + 1e-4


@jax.jit
def traced(points, importance, slope_nats, probabilities):
    return squared_error_curve(
        points,
        importance,
        slope_nats,
        probabilities=probabilities,
        num_reproductions=NUM_REPRODUCTIONS,
        gap_nats=1e-3,
    )


def solve(points, importance, slope_nats, probabilities=None, reproductions=None):
    """Solve between reproductions that are given; otherwise traced, in strict mode, in float32."""
    if reproductions is not None:
        found = squared_error_curve(
            points, importance, slope_nats, reproductions=reproductions, gap_nats=1e-3
        )
        return jax.tree.map(np.asarray, found)
    if probabilities is None:
        probabilities = np.full(NUM_POINTS, 1 / NUM_POINTS)
    with strict_promotion():
        arguments = (points, importance, slope_nats, probabilities)
        return jax.tree.map(np.asarray, traced(*(np.float32(value) for value in arguments)))


def certified_gap(points, importance, p, s, found, index):
    """The gap in NumPy: the largest c(y) on a grid so fine that nothing is between."""
    y, q = found.reproductions[index], found.output_probabilities[index].astype(float)
    cost = s * importance[:, None] * (points[:, None] - y) ** 2
    with np.errstate(divide="ignore"):
        log_z = logsumexp(np.log(q) - cost, axis=1)
    places = np.linspace(points.min(), points.max(), 5001)
    log_c = logsumexp(
        (np.log(p) - log_z)[:, None] - s * importance[:, None] * (points[:, None] - places) ** 2,
        axis=0,
    )
    distortion = found.distortion[index]
    return found.rate_nats[index] - (-s * distortion - p @ log_z - log_c.max())


def test_gaussian_source():
    points = np.linspace(-5, 5, NUM_POINTS)
    p = np.exp(-(points**2) / 2)
    p /= p.sum()
    slopes = np.array([0.0, 0.6, 1.0, 4.0])
    found = solve(points, np.ones(NUM_POINTS), slopes, probabilities=p)
    np.testing.assert_allclose(
        found.distortion, np.minimum(0.5 / np.maximum(slopes, 0.5), 1), atol=0.01
    )
    expected = np.maximum(-0.5 * np.log(found.distortion), 0)
    # The sampled density is a Gaussian up to e^-12.5.
    np.testing.assert_allclose(found.rate_nats, expected, atol=1.5e-3)
    assert np.all(found.gap_nats <= 1e-3)
    assert np.all(found.converged)


def test_certificate_holds_everywhere_on_the_line():
    points, importance = layer()
    p = np.full(NUM_POINTS, 1 / NUM_POINTS)
    variance = np.mean(importance * (points - np.average(points, weights=importance)) ** 2)
    slopes = 0.5 / variance * np.array([0.0, 1.0, 5.0, 15.0])
    found = solve(points, importance, slopes)
    assert np.all(found.converged)
    assert found.rate_nats[0] == pytest.approx(0, abs=1e-6)
    assert found.distortion[0] == pytest.approx(variance, rel=1e-5)
    for index in range(1, 4):
        gap = certified_gap(points, importance, p, slopes[index], found, index)
        # Its own multipliers may be better than these, never worse by more than it claims.
        assert gap <= 2e-3
        assert found.rate_nats[index] <= np.log(NUM_POINTS)
    # The rate of the channel, from its definition.
    y, q = found.reproductions[2], found.output_probabilities[2].astype(float)
    kernel = q * np.exp(-slopes[2] * importance[:, None] * (points[:, None] - y) ** 2)
    channel = kernel / kernel.sum(axis=1, keepdims=True)
    marginal = p @ channel
    used = channel > 0
    ratio = np.where(used, channel, 1) / np.where(marginal > 0, marginal, 1)
    rate = np.sum(np.where(used, p[:, None] * channel * np.log(np.where(used, ratio, 1)), 0))
    # One more step of the iteration only lowers the Lagrangian, by less than the gap.
    cost = np.sum(p[:, None] * channel * importance[:, None] * (points[:, None] - y) ** 2)
    lagrangian = found.rate_nats[2] + slopes[2] * found.distortion[2]
    assert rate + slopes[2] * cost == pytest.approx(lagrangian, abs=1e-3)


@pytest.mark.slow
def test_a_coarse_grid_claims_more_than_is_true():
    points, importance = layer(1)
    grid = np.linspace(points.min(), points.max(), 17)
    slopes = np.array([0.0, 1.0, 8.0, 60.0])
    on_grid = blahut_arimoto(
        np.full(NUM_POINTS, 1 / NUM_POINTS),
        importance[:, None] * (points[:, None] - grid) ** 2,
        slopes,
    )
    given = solve(points, importance, slopes, reproductions=grid)
    np.testing.assert_allclose(given.rate_nats, on_grid.rate_nats, atol=1e-3)
    np.testing.assert_array_equal(given.reproductions[0], grid.astype(np.float32))
    # On the grid alone the bounds meet; over the reals there is far better.
    assert on_grid.converged[3]
    assert given.gap_nats[3] > 0.2
    free = solve(points, importance, np.array([0.0, 1.0, 3.0, 200.0]))
    tangents = (
        given.rate_nats[:, None]
        - given.gap_nats[:, None]
        - slopes[:, None] * (free.distortion - given.distortion[:, None])
    )
    assert np.all(tangents <= free.rate_nats + 1e-5)
    claims = np.asarray(on_grid.rate_nats)[:, None] - slopes[:, None] * (
        free.distortion - np.asarray(on_grid.distortion)[:, None]
    )
    assert np.any(claims > free.rate_nats + 0.1)


def test_tangents_claim_no_more_after_rounding():
    # The same computation without the last step: in 64 bits nothing is left to round.
    points, importance = layer(1)
    grid = np.linspace(points.min(), points.max(), 17)
    slopes = np.array([0.7, 2.0, 9.0, 50.0])
    rounded = solve(points, importance, slopes, reproductions=grid)
    with jax.enable_x64(True):
        exact = solve(points, importance, slopes, reproductions=grid)
    assert (rounded.rate_nats.dtype, exact.rate_nats.dtype) == (np.float32, np.float64)
    for s, *points in zip(slopes, *rounded[:3], *exact[:3], strict=True):
        slope, rate, distortion, gap, *wide = (Fraction(float(value)) for value in (s, *points))
        assert rate >= wide[0]
        assert distortion >= wide[1]
        assert rate - gap + slope * distortion <= wide[0] - wide[2] + slope * wide[1]


def test_importance_is_not_a_probability():
    # Few weights matter, and they lie together: as pairs they cost little; as a distribution they
    # would be the whole source.
    rng = np.random.default_rng(0)
    importance = np.where(np.arange(NUM_POINTS) < NUM_POINTS // 8, 1.0, 1e-4)
    points = np.where(
        importance == 1, rng.normal(size=NUM_POINTS), 0.01 * rng.normal(size=NUM_POINTS)
    )
    slopes = np.array([0.0, 10.0, 20.0, 40.0])
    pairs = solve(points, importance, slopes)
    wrong = solve(points, np.ones(NUM_POINTS), slopes, probabilities=importance / importance.sum())
    assert pairs.converged[3]
    # A quantizer that spends bits on the few only: sixteen levels for them, one for the rest.
    levels = np.quantile(points[importance == 1], (np.arange(16) + 0.5) / 16)
    nearest = np.argmin(np.abs(points[:, None] - levels), axis=1)
    nearest[importance < 1] = np.argmin(np.abs(levels))
    share = np.bincount(nearest) / NUM_POINTS
    rate = -np.sum(share[share > 0] * np.log(share[share > 0]))
    distortion = np.mean(importance * (points - levels[nearest]) ** 2)
    limit = np.max(pairs.rate_nats - pairs.gap_nats - slopes * (distortion - pairs.distortion))
    scaled = distortion / importance.mean()
    claim = np.max(wrong.rate_nats - wrong.gap_nats - slopes * (scaled - wrong.distortion))
    assert limit <= rate
    assert claim > 1.5 * rate


def test_weights_without_importance():
    points, importance = layer(2)
    importance[::3] = 0
    slopes = np.array([0.0, 0.5, 2.0, 8.0])
    found = solve(points, importance, slopes)
    # They are free, wherever they are.
    moved = solve(np.where(importance > 0, points, 30.0), importance, slopes)
    np.testing.assert_allclose(found.rate_nats, moved.rate_nats, atol=2e-3)
    np.testing.assert_allclose(found.distortion, moved.distortion, atol=5e-3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.array([1.0, np.nan]), 1.0, np.ones(1)), {}, "points must be finite, got 1 NaN"),
        ((np.ones(2), -1.0, np.ones(1)), {}, "importance must be at least 0, got -1"),
        ((np.ones(2), np.ones(3), np.ones(1)), {}, "importance must have the shape of points"),
        ((np.ones(2), 1.0, 1.0), {}, "slope_nats must have an axis of slopes"),
        ((np.ones(2), 1.0, np.array([np.inf])), {}, "slope_nats must be finite, got 1"),
        ((np.ones(2), 1.0, -np.ones(1)), {}, "slope_nats must be at least 0, got -1"),
        ((np.ones(2), 1.0, np.ones(1)), {"num_reproductions": 4}, "must be at least 8, got 4"),
        ((np.ones(2), 1.0, np.ones(1)), {"probabilities": np.ones(2)}, "must sum to 1"),
        ((np.ones((2, 2)), 1.0, np.ones((3, 1))), {}, "must broadcast, got shapes"),
        ((np.ones(0), 1.0, np.ones(1)), {}, "points must hold at least one point"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        squared_error_curve(*arguments, **options)
