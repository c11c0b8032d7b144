import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcomp.quantizers.problems import CHUNK, SMALL_CHUNK, problem_of, survey
from jaxcomp.quantizers.scales import Rows


def problem(weights, importance=None):
    return problem_of(weights, exponent=survey(weights)[1], importance=importance)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("size", [1, SMALL_CHUNK, CHUNK + 5, CHUNK + 2 * SMALL_CHUNK + 7])
def test_every_weight_is_dealt_out_once_and_sizes_are_two(size, group):
    weights = np.arange(size, dtype=np.float32)
    places, points, sizes = [], [], set()
    for place, chunk in problem(weights).chunks(group):
        count = place.stop - place.start
        assert int(chunk.num_padding) == len(chunk.points) - count
        assert int(chunk.is_point().sum()) == count
        assert np.all(np.asarray(chunk.points[count:]) == chunk.points[0])
        places.append(np.arange(place.start, place.stop))
        points.append(np.asarray(chunk.points[:count]))
        sizes.add(len(chunk.points))
    np.testing.assert_array_equal(np.concatenate(places), np.arange(size))
    np.testing.assert_array_equal(
        np.ldexp(np.concatenate(points), problem(weights).exponent), weights
    )
    assert sizes <= {CHUNK // group * group, SMALL_CHUNK // group * group}


def test_a_sample_is_all_of_a_small_tensor_and_evenly_spread_over_a_large_one():
    weights = np.arange(1000, dtype=np.float32)
    small = problem(weights).sample(1024)
    np.testing.assert_array_equal(small.points[:1000], weights)
    assert int(small.num_padding) == 24
    large = problem(weights).sample(100)
    np.testing.assert_array_equal(large.points, weights[::10])


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    st.sampled_from(["tensor", "channel"]),
    st.sampled_from([None, 1, 2, 5]),
    st.integers(-1, 0),
)
def test_rows_of_places_are_those_of_split(shape, scale, group_size, axis):
    rows = Rows(scale, group_size, axis)
    places = np.arange(math.prod(shape)).reshape(shape)
    # Which place stands in which row, the filling aside.
    cut = np.asarray(rows.split(jnp.asarray(places + 1, jnp.int32)))
    own = rows.of_places(places.ravel(), shape)
    for row, content in enumerate(cut):
        np.testing.assert_array_equal(np.sort(content[content > 0]) - 1, np.flatnonzero(own == row))
    assert rows.number(shape) == len(cut)
    np.testing.assert_array_equal(rows.sizes(shape), np.count_nonzero(cut, axis=1))
    numbers = np.arange(len(cut))
    for start in range(places.size):
        for stop in range(start + 1, places.size + 1):
            run = rows.of_run(numbers, slice(start, stop), shape)
            np.testing.assert_array_equal(run, own[start:stop])


@pytest.mark.parametrize(
    "rows", [Rows("tensor"), Rows("channel"), Rows("channel", None, 0), Rows("channel", 7)]
)
def test_what_rows_have_is_combined_over_chunks(rows):
    given = problem(np.random.default_rng(0).normal(size=(11, CHUNK // 20)).astype(np.float32))
    cut = np.asarray(rows.split(given.weights), np.float64)
    np.testing.assert_array_equal(
        given.over_rows(np.abs, np.maximum, rows), np.abs(cut).max(axis=1)
    )
    np.testing.assert_allclose(
        given.over_rows(np.square, np.add, rows), np.square(cut).sum(axis=1), rtol=1e-12
    )
    scaled = given.with_scales(rows, np.arange(1, len(cut) + 1, dtype=np.float32))
    chunks = [chunk for _, chunk in scaled.chunks()]
    dealt = np.concatenate([np.broadcast_to(c.scale, c.points.shape) for c in chunks])
    own = rows.of_places(np.arange(given.size), given.shape)
    np.testing.assert_array_equal(dealt[: given.size], own + 1)


def test_survey_finds_what_is_not_finite_and_the_largest_octave():
    values = np.ones(CHUNK + 3, np.float32)
    values[-1] = -1e-40
    assert survey(values) == (0, 0)
    values[-2] = -3e38
    assert survey(values) == (0, 127)
    values[:2] = np.nan, np.inf
    assert survey(values) == (2, 0)
    assert survey(np.zeros(3, jnp.bfloat16)) == (0, 0)
    assert survey(np.full(3, 6, jnp.bfloat16)) == (0, 2)


def test_doubles_stay_doubles_where_jax_has_them():
    weights = np.array([1.0 + 2**-40, 3.0])
    assert problem(weights).dtype == np.float32
    with jax.enable_x64(True):
        given = problem(weights)
        (_, chunk) = next(given.chunks())
        assert chunk.points.dtype == np.float64
        assert float(chunk.points[0]) == weights[0]


def test_weights_in_another_order_of_memory_are_put_in_order_once():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    turned = np.asfortranarray(values)
    given = problem(turned, turned + 1)
    assert given.weights.flags.c_contiguous
    assert given.importance is not None
    assert given.importance.flags.c_contiguous
    (_, chunk) = next(given.chunks())
    np.testing.assert_array_equal(chunk.points[:12], values.ravel())
    np.testing.assert_array_equal(chunk.importance[:12], values.ravel() + 1)
    assert problem(np.float32(2.0)[()] * np.ones((), np.float32)).shape == ()
