from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantizer_oracles import heavy_tailed

from jaxcomp.quantizers import histogram_moments
from jaxcomp.quantizers.histograms import LOG2_LARGEST, histogram_with_edges
from jaxcomp.quantizers.one_pass import is_one_large_group, moments_in_one_pass

NUM_POINTS, NUM_BINS, NUM_PADDING = 1 << 18, 256, 1000


@jax.jit
def in_one_pass(points, weights, num_padding):
    return moments_in_one_pass(
        points, weights, num_padding, num_bins=NUM_BINS, log2_largest=LOG2_LARGEST
    )


def passed(points, weights):
    return in_one_pass(points[None], weights[None], jnp.int32(NUM_PADDING))


@pytest.fixture(scope="module")
def problem():
    points, importance = heavy_tailed(NUM_POINTS)
    # Copies of the first point behind the others, and points without importance.
    points[-NUM_PADDING:], importance[-NUM_PADDING:] = points[0], 0
    importance[:100] = 0
    return points, importance


def test_is_the_general_histogram_up_to_rounding(problem):
    found = passed(*problem)
    assert found.is_sound
    general, _ = histogram_with_edges(
        *problem, num_bins=NUM_BINS, num_padding=jnp.int32(NUM_PADDING)
    )
    for name, one in found._asdict().items():
        if name in ("num_points", "exponent", "mass_exponent"):
            np.testing.assert_array_equal(one[0], getattr(general, name))
        elif name != "is_sound":
            expected = np.asarray(getattr(general, name))
            unit = np.max(np.abs(expected))
            np.testing.assert_allclose(one[0], expected, rtol=1e-5, atol=1e-8 * unit)
    assert int(found.num_points.sum()) == NUM_POINTS - NUM_PADDING


def _with(place, value):
    def changed(points, weights):
        points[place] = value
        return points, weights

    return changed


def _few_values(points, weights):
    return np.sign(points), weights


def _narrow_far_from_most(points, weights):
    # Half of them so close together that squares of distances from the others say nothing.
    points[::2] = 1e6 * (1 + 1e-6 * points[::2])
    return points, weights


def _tiny_weight(points, weights):
    weights[5] = 1e-40
    return points, weights


@pytest.mark.parametrize(
    "changed",
    [_with(7, 1e30), _with(7, 1e-40), _few_values, _narrow_far_from_most, _tiny_weight],
    ids=["outlier", "subnormal", "few_values", "far_and_narrow", "subnormal_weight"],
)
def test_says_where_it_is_not_enough(problem, changed):
    points, weights = changed(*(part.copy() for part in problem))
    assert not passed(points, weights.astype(np.float32)).is_sound


def test_what_is_not_enough_goes_the_general_way(problem):
    points, weights = _with(7, 1e30)(*(part.copy() for part in problem))
    fill = {"num_bins": NUM_BINS, "num_padding": jnp.int32(NUM_PADDING)}
    jax.tree.map(
        np.testing.assert_array_equal,
        histogram_moments(points, weights, **fill),
        histogram_with_edges(points, weights, **fill)[0],
    )


def test_points_without_importance_hold_their_mean(problem):
    points, weights = (part.copy() for part in problem)
    lowest = points.min()
    points[:3], weights[:3] = lowest * np.float32([3, 3.01, 3.02]), 0
    points[-NUM_PADDING:] = points[0]
    found = passed(points, weights)
    assert found.is_sound
    alone = np.cumsum(found.num_points[0]) <= 3
    count = np.asarray(found.num_points[0])[alone]
    position = np.ldexp(np.asarray(found.position[0], np.float64), int(found.exponent[0]))[alone]
    assert count.sum() == 3
    assert np.sum(count * position) == pytest.approx(np.sum(points[:3], dtype=np.float64), rel=1e-6)
    np.testing.assert_array_equal(found.mass[0][alone], 0)
    np.testing.assert_array_equal(found.deviation[0][alone], 0)


def test_which_groups():
    large = jax.ShapeDtypeStruct((NUM_POINTS,), jnp.float32)
    holds = partial(is_one_large_group, num_bins=NUM_BINS)
    assert holds(large, large)
    assert holds(large, None)
    assert not holds(jax.ShapeDtypeStruct((2, NUM_POINTS), jnp.float32), None)
    assert not holds(jax.ShapeDtypeStruct((NUM_POINTS - 1,), jnp.float32), None)
    assert not holds(jax.ShapeDtypeStruct((NUM_POINTS,), jnp.float16), None)
    assert not holds(large, jax.ShapeDtypeStruct((), jnp.float32))
