"""Both ways to add up by an index against NumPy, on few shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.numerics import segments

NUM_GROUPS, N = 2, 40_000


@pytest.fixture(scope="module")
def numbers():
    rng = np.random.default_rng(0)
    index = rng.integers(0, 37, (NUM_GROUPS, N)).astype(np.int32)
    # Index 11 does not occur.
    index[index == 11] = 12
    return rng.standard_normal((NUM_GROUPS, N)).astype(np.float32), index


@pytest.mark.usefixtures("strict_promotion")
@pytest.mark.parametrize("side_by_side", [False, True])
def test_products_and_comparisons(numbers, side_by_side, monkeypatch):
    if side_by_side:
        monkeypatch.setattr(segments, "chunk_bytes", lambda: 2**26)
    values, index = numbers
    is_counted = values > 0
    counts = jax.jit(lambda i, c: segments.counts_by_products(i, 37, c))(index, is_counted)
    sums = jax.jit(lambda v, i: segments.sums_by_products(v, i, 37))(values, index)
    least, most = (
        jax.jit(
            lambda v, i, is_least=is_least: segments.extremes_by_comparison(
                v, i, 37, is_least=is_least
            )
        )(values, index)
        for is_least in (True, False)
    )
    for group in range(NUM_GROUPS):
        own, place = values[group], index[group]
        np.testing.assert_array_equal(counts[group], np.bincount(place[own > 0], minlength=37))
        np.testing.assert_allclose(
            sums[group], np.bincount(place, own.astype(np.float64), 37), atol=1e-3
        )
        expected = np.full(37, np.inf, np.float32)
        np.minimum.at(expected, place, own)
        np.testing.assert_array_equal(least[group], expected)
        expected = np.full(37, -np.inf, np.float32)
        np.maximum.at(expected, place, own)
        np.testing.assert_array_equal(most[group], expected)


def test_counts_beyond_the_integers_of_float32_are_exact():
    # A total that is kept in float32 would stop at 2^24.
    number = (1 << 24) + 3
    counts = jax.jit(lambda: segments.counts_by_products(jnp.zeros((1, number), jnp.int32), 1))()
    assert int(counts[0, 0]) == number


@pytest.mark.usefixtures("strict_promotion")
def test_branches_agree(numbers, accelerator_branches):
    values, index = numbers[0][0, :500], numbers[1][0, :500].copy()
    index[:3] = 37  # out of range: does not count

    def of(values, index):
        inside = jnp.minimum(index, 36)
        return (
            segments.segment_sum(values, index, 37),
            segments.segment_sum(inside, index, 37),
            segments.segment_counts(values > 0, inside, 37),
            segments.segment_min(values, inside, 37),
            segments.segment_max(values, inside, 37),
        )

    on_cpu = jax.jit(of)(values, index)
    with accelerator_branches():
        elsewhere = jax.jit(of)(values, index)
    np.testing.assert_allclose(elsewhere[0], on_cpu[0], atol=1e-5)
    for ours, theirs in zip(elsewhere[1:], on_cpu[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_look_up_is_differentiated_by_products(numbers, accelerator_branches):
    values, index = numbers[0][:, :300], numbers[1][:, :300]

    def of(table, values, index):
        def loss(table):
            return jnp.sum(values * jnp.sin(segments.look_up(table, index)))

        return jax.value_and_grad(loss)(table), jax.jvp(loss, (table,), (jnp.cos(table),))

    table = jnp.arange(37, dtype=jnp.float32)
    on_cpu = jax.jit(of)(table, values, index)
    with accelerator_branches():
        elsewhere = jax.jit(of)(table, values, index)
        several = jax.jit(jax.vmap(of, in_axes=(None, 0, 0)))(table, values, index)
    assert jax.tree.leaves(several)[1].shape == (NUM_GROUPS, 37)
    for ours, theirs in zip(jax.tree.leaves(elsewhere), jax.tree.leaves(on_cpu), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)
