import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from promotion import strictly
from quantizer_oracles import heavy_tailed, restored
from slow_cases import some_slow

from jaxcomp.quantizers import histograms, pad_bins
from jaxcomp.quantizers.bins import PointBins

# One program with importances and one without for most tests.
NUM_POINTS, NUM_BINS, FEW = 20_000, 256, 200
histogram_moments = strictly(histograms.histogram_moments)
histogram_with_edges = strictly(histograms.histogram_with_edges)


@pytest.mark.parametrize(
    ("num_points", "is_weighted"),
    some_slow(
        [(FEW, True), (FEW, False), (NUM_POINTS, True), (NUM_POINTS, False)],
        (FEW, False),
        (NUM_POINTS, True),
    ),
)
def test_totals_match_the_points(num_points, is_weighted, strict_promotion):
    points, importance = heavy_tailed(num_points)
    weights = importance if is_weighted else None
    moments = histogram_moments(points, weights, num_bins=NUM_BINS)

    assert moments.position.shape == (min(num_points, NUM_BINS),)
    assert moments.num_points.dtype == jnp.int32
    assert int(moments.num_points.sum()) == num_points
    w, h = points.astype(np.float64), importance.astype(np.float64) if is_weighted else 1.0
    h = np.broadcast_to(h, w.shape)
    m = restored(moments)
    assert np.sum(m.mass) == pytest.approx(h.sum(), rel=1e-6)
    assert np.sum(m.mass * m.position) == pytest.approx(
        np.sum(h * w), abs=1e-6 * np.sum(h * abs(w))
    )
    squares = np.sum(m.mass * m.position**2 + m.second)
    assert squares == pytest.approx(np.sum(h * w**2), rel=1e-5)
    assert np.all(np.diff(m.position) >= 0)
    assert m.minimum == points.min()
    assert m.maximum == points.max()
    # The bins are fine: what happens inside them is a small part of the spread.
    assert np.sum(m.second) < 1e-3 * np.sum(h * (w - np.average(w, weights=h)) ** 2)


def test_few_points_are_kept_exactly():
    # Some of them, and then the last again and again without weight: the size of the other tests.
    few = [0.5, -1.0, 0.5, 2.0, 0.5, -1.0]
    points = np.pad(np.array(few, np.float32), (0, FEW - 6), mode="edge")
    importance = np.pad(np.array([1, 2, 3, 4, 5, 6], np.float32), (0, FEW - 6))
    moments = restored(histogram_moments(points, importance, num_bins=NUM_BINS))
    np.testing.assert_array_equal(moments.position, np.pad([-1, 0.5, 2], (0, FEW - 3), mode="edge"))
    np.testing.assert_array_equal(moments.num_points, np.pad([FEW - 4, 3, 1], (0, FEW - 3)))
    np.testing.assert_array_equal(moments.mass, np.pad([8, 9, 4], (0, FEW - 3)))
    np.testing.assert_array_equal(moments.second, 0)


def test_few_values_of_many_points_are_kept_exactly():
    values = np.array([-0.7, 0.1, 0.3, 5.3], np.float32)
    rng = np.random.default_rng(0)
    points = rng.choice(values, NUM_POINTS)
    importance = rng.gamma(1.0, size=points.size).astype(np.float32)
    moments = restored(histogram_with_edges(points, importance, num_bins=NUM_BINS)[0])
    np.testing.assert_array_equal(moments.position[moments.num_points > 0], values)
    np.testing.assert_array_equal(moments.second, 0)


def test_an_outlier_does_not_swallow_the_bins():
    points = np.random.default_rng(0).standard_normal(NUM_POINTS).astype(np.float32)
    points[0] = 1e4
    moments = restored(histogram_moments(points, num_bins=NUM_BINS))
    # Equal bins would be 39 standard deviations wide.
    assert np.sum(moments.second) < 1e-3 * np.sum(points[1:].astype(np.float64) ** 2)


@pytest.mark.slow
def test_bins_follow_heavy_tails():
    # So many that only some of them give the density.
    num_points, num_bins = 1_500_000, 4096
    points = np.random.default_rng(0).standard_t(3, num_points).astype(np.float32)
    moments = restored(histogram_moments(points, num_bins=num_bins))
    # Panter and Dite: the best fine bins leave N (integral of f^(1/3))^3 / (12 B^2).
    integral = 3**0.5 * (2 / (np.pi * 3**0.5)) ** (1 / 3) * scipy.special.beta(1 / 2, 1 / 6)
    assert np.sum(moments.second) < 1.5 * num_points * integral**3 / (12 * num_bins**2)


@pytest.mark.parametrize("value", [0.0, -3.25, 1e30])
def test_constant_group(value):
    points = np.full(NUM_POINTS, value, np.float32)
    moments = restored(histogram_moments(points, num_bins=NUM_BINS))
    assert np.count_nonzero(moments.num_points) == 1
    np.testing.assert_array_equal(moments.position[moments.num_points > 0], np.float32(value))
    np.testing.assert_array_equal(moments.second, 0)
    assert float(moments.mass.sum()) == NUM_POINTS


def test_range_that_overflows():
    points = np.linspace(-3e38, 3e38, NUM_POINTS).astype(np.float32)
    moments = restored(histogram_moments(points, num_bins=NUM_BINS))
    assert np.all(np.isfinite(moments.position))
    assert np.count_nonzero(moments.num_points) == NUM_BINS


def test_batched_equals_one_by_one():
    groups = [heavy_tailed(NUM_POINTS, seed) for seed in range(3)]
    points, importance = (np.stack(part) for part in zip(*groups, strict=True))
    together, _ = histogram_with_edges(points[None], importance[None], num_bins=NUM_BINS)
    assert together.position.shape == (1, 3, NUM_BINS)
    together = jax.tree.map(np.asarray, together)
    for group in range(3):
        alone, _ = histogram_with_edges(points[group], importance[group], num_bins=NUM_BINS)
        jax.tree.map(
            lambda a, b, g=group: np.testing.assert_array_equal(a[0, g], b), together, alone
        )


def test_padding():
    points, importance = heavy_tailed(FEW)
    moments = histogram_moments(points, importance, num_bins=NUM_BINS)
    padded = pad_bins(moments, FEW + 3)
    assert padded.position.shape == (FEW + 3,)
    np.testing.assert_array_equal(restored(padded).position[FEW:], points.max())
    for name in ("num_points", "mass", "deviation"):
        np.testing.assert_array_equal(np.asarray(getattr(padded, name))[FEW:], 0)
    with pytest.raises(ValueError, match="num_bins must be at least the 200 bins there are, got 5"):
        pad_bins(moments, 5)


@pytest.mark.parametrize("value", some_slow([0.1, 1.0], 1.0))
def test_masses_do_not_drift(value):
    # One by one in float32, 150,000 times 0.1 are 0.1 % off. As many as are taken in one pass, and
    # in tests of passes.
    exact = 300_000 * float(np.float32(value))
    points = np.tile(np.array([0.0, 1.0], np.float32), 150_000)
    weights = np.full(points.size, value, np.float32)
    moments = restored(histogram_moments(points, weights, num_bins=NUM_BINS))
    mass = moments.mass[moments.num_points > 0]
    assert mass.shape == (2,)
    np.testing.assert_allclose(mass, exact / 2, rtol=1e-6)


def test_bad_input():
    with pytest.raises(TypeError, match="points must be floating, got int32"):
        histogram_moments(np.arange(3))
    with pytest.raises(ValueError, match=r"at least one point along .* got shape \(2, 0\)"):
        histogram_moments(np.zeros((2, 0), np.float32))
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        histogram_moments(np.zeros(2, np.float32), num_bins=0)


@pytest.mark.parametrize(
    ("num_bins", "num_groups", "num_points"),
    [(1, 2, 20_000), (7, 2, 20_000), (300, 2, 20_000), (7, 100, 700)],
)
def test_sums_by_products_equal_sums_by_scatter(num_bins, num_groups, num_points):
    rng = np.random.default_rng(0)
    index = rng.integers(0, num_bins, (num_groups, num_points)).astype(np.int32)
    values = rng.standard_normal(index.shape).astype(np.float32)
    bins = PointBins.of(jax.device_put(index), num_bins)
    expected = [
        np.bincount(i, v.astype(np.float64), num_bins) for i, v in zip(index, values, strict=True)
    ]
    for sums in (bins.sum_by_products, bins.sum_by_scatter):
        # Rounding of 20,000 terms of size 1.
        np.testing.assert_allclose(jax.jit(sums)(values), expected, atol=1e-2 / num_bins + 1e-4)


def test_bins_do_not_overlap():
    points, importance = heavy_tailed(NUM_POINTS)
    moments, edges = histogram_with_edges(points, importance, num_bins=NUM_BINS)
    lowest, highest = (np.asarray(part) for part in edges)
    assert np.all(highest[:-1] <= lowest[1:])
    is_inside = (lowest <= moments.position) & (moments.position <= highest)
    assert np.all(is_inside | (moments.num_points == 0))
    assert lowest[0] == moments.minimum
    assert highest[-1] == moments.maximum


@pytest.mark.parametrize("dtype", some_slow([jnp.float16, jnp.bfloat16], jnp.bfloat16))
def test_one_bin_per_value_of_short_dtypes(dtype):
    rng = np.random.default_rng(0)
    points = (rng.standard_normal(70_000) * 4).astype(np.float32).astype(dtype)
    points[:2] = -0.0
    moments, _ = histogram_with_edges(points, None, by_value=True)
    values, counts = np.unique(points.astype(np.float32), return_counts=True)
    is_occupied = np.asarray(moments.num_points) > 0
    np.testing.assert_array_equal(restored(moments).position[is_occupied], values)
    np.testing.assert_array_equal(moments.num_points[is_occupied], counts)
    assert np.all(np.diff(moments.position) >= 0)
    with pytest.raises(TypeError, match="by_value needs points of a 16-bit dtype, got float32"):
        histogram_with_edges(np.ones(3, np.float32), by_value=True)
