"""The policy for negative and vanishing curvature, against NumPy and by its invariants."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.curvature import CurvaturePolicy, DiagonalEstimate, LeafReport

pytestmark = pytest.mark.usefixtures("strict_promotion")


def noisy_diagonal(seed=0, shape=(40, 5), mean=1.0):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=shape)
    return (mean + 3.0 * (noise - noise.mean())).astype(np.float32)


def numbers(report):
    return tuple(np.asarray(x).item() for x in report)


def test_entries_below_the_floor_are_raised_to_it_and_counted():
    diagonal = {"noisy": noisy_diagonal(), "fine": np.float32([1.0, 2.0, 3.0])}

    importance, report = CurvaturePolicy(relative_floor=0.1).apply(diagonal)

    h = np.asarray(diagonal["noisy"], np.float64)
    np.testing.assert_allclose(importance["noisy"], np.maximum(h, 0.1 * h.mean()), rtol=1e-5)
    assert importance["noisy"].shape == (40, 5)
    expected = (200, int(np.sum(h < 0.1 * h.mean())), int(np.sum(h < 0)), 0, False, False)
    assert numbers(report["noisy"]) == expected
    assert expected[1] > expected[2] > 0
    np.testing.assert_array_equal(importance["fine"], diagonal["fine"])
    assert numbers(report["fine"]) == (3, 0, 0, 0, False, False)


def test_mean_of_the_positive_part_serves_where_the_signed_mean_does_not():
    importance, report = CurvaturePolicy(relative_floor=0.5).apply(np.float32([4.0, -6.0, -1.0]))
    np.testing.assert_allclose(importance, [4.0, 0.5 * 4 / 3, 0.5 * 4 / 3], rtol=1e-6)
    assert numbers(report) == (3, 2, 2, 0, False, False)


@pytest.mark.parametrize(("value", "num_negative"), [(0.0, 0), (-2.0, 3)])
def test_leaf_without_positive_curvature_falls_back_to_ones(value, num_negative):
    diagonal = [np.full(3, value, np.float32), np.float32([1.0, 2.0])]
    importance, report = CurvaturePolicy().apply(diagonal)
    np.testing.assert_array_equal(importance[0], np.ones(3))
    assert numbers(report[0]) == (3, 3, num_negative, 3 - num_negative, True, False)
    assert numbers(report[1]) == (2, 0, 0, 0, False, False)


def test_empty_and_scalar_leaves():
    importance, report = CurvaturePolicy().apply(
        {"empty": np.zeros((0, 4), np.float32), "scalar": 2.0}
    )
    assert importance["empty"].shape == (0, 4)
    assert numbers(report["empty"]) == (0, 0, 0, 0, True, False)
    np.testing.assert_array_equal(importance["scalar"], np.float32(2.0))


def test_floor_of_zero_clips_at_zero():
    importance, _ = CurvaturePolicy(relative_floor=0.0).apply(np.float32([2.0, -1.0, 0.0]))
    np.testing.assert_array_equal(importance, [2.0, 0.0, 0.0])


def rarely_seen(seed=3):
    """Rows of an embedding of which 9 of 10 were never met, and noise in the others."""
    h = np.random.default_rng(seed).normal(1.0, 0.8, (20, 3)).astype(np.float32)
    h[np.arange(20) % 10 != 0] = 0.0
    return h


@pytest.mark.parametrize("zeros", ["mean", "floor"])
def test_zeros_of_a_leaf_that_has_mostly_such_get_the_mean_of_the_leaf(zeros):
    diagonal = {"embedding": rarely_seen(), "dense": rarely_seen()[:2]}
    diagonal["dense"][1] = 0.5
    policy = CurvaturePolicy(relative_floor=0.1, zeros=zeros)
    importance, report = jax.device_get(policy.apply(diagonal))

    h = np.asarray(diagonal["embedding"], np.float64)
    floor = 0.1 * h.mean()
    expected = np.maximum(h, floor)
    expected[h == 0] = h.mean() if zeros == "mean" else floor
    np.testing.assert_allclose(importance["embedding"], expected, rtol=1e-6)
    assert int(report["embedding"].num_zero) == np.sum(h == 0) == 54
    assert report["embedding"].is_mostly_zero
    assert not report["dense"].is_mostly_zero
    of_models = jax.jit(jax.vmap(policy.apply_traced))
    found = jax.device_get(of_models(jax.tree.map(lambda x: x[None], diagonal)))
    np.testing.assert_array_equal(found.importance["embedding"][0], importance["embedding"])


def test_half_of_a_leaf_may_be_zero():
    half = np.float32([0.0] * 5 + [1.0] * 4 + [6.0])
    importance, report = CurvaturePolicy(relative_floor=0.5).apply(half)
    np.testing.assert_allclose(importance, [0.5] * 5 + [1.0] * 4 + [6.0])
    assert (int(report.num_zero), bool(report.is_mostly_zero)) == (5, False)


def test_blocks_that_were_never_met_get_the_mean_too():
    blocks, expected = np.zeros((10, 2, 2), np.float32), np.tile(0.6 * np.eye(2), (10, 1, 1))
    blocks[[1, 6]] = expected[[1, 6]] = np.diag([2.0, 4.0])
    importance, report = CurvaturePolicy(relative_floor=0.0).apply_blocks(blocks)
    np.testing.assert_allclose(importance, expected, rtol=1e-6)
    assert (int(report.num_zero), bool(report.is_mostly_zero)) == (16, True)


def test_zeros_are_checked():
    with pytest.raises(ValueError, match=r"zeros must be one of \('mean', 'floor'\), got 'median'"):
        CurvaturePolicy(zeros="median")


def test_estimate_stands_for_its_mean():
    diagonal = noisy_diagonal()
    estimate = DiagonalEstimate(diagonal, np.ones_like(diagonal))
    bare, whole = (CurvaturePolicy().apply(x) for x in (diagonal, estimate))
    np.testing.assert_array_equal(bare.importance, whole.importance)
    assert isinstance(whole.report, LeafReport)


@pytest.mark.parametrize("seed", range(3))
def test_result_follows_the_scale_and_keeps_the_order(seed):
    policy, diagonal = CurvaturePolicy(), noisy_diagonal(seed)
    importance = np.asarray(policy.apply(diagonal).importance)
    assert np.all(importance > 0)
    np.testing.assert_allclose(policy.apply(8 * diagonal).importance, 8 * importance, rtol=1e-6)
    order = np.argsort(np.ravel(diagonal))
    assert np.all(np.diff(np.ravel(importance)[order]) >= 0)


@pytest.mark.parametrize("value", [3e38, 1e38, 1e-30])
def test_entries_at_the_ends_of_the_range(value):
    diagonal = np.float32(value) * np.asarray([1.0] * 9 + [-1.0], np.float32)
    importance, report = CurvaturePolicy().apply(diagonal)
    np.testing.assert_allclose(importance, value * np.asarray([1.0] * 9 + [0.008]), rtol=1e-6)
    assert numbers(report) == (10, 1, 1, 0, False, False)
    blocks = diagonal[:, None, None] * np.asarray([[[1.0, 0.25], [0.25, 1.0]]], np.float32)
    found, _ = CurvaturePolicy(relative_floor=0.0).apply_blocks(blocks)
    found = np.asarray(found)
    np.testing.assert_allclose(found[:9], blocks[:9], rtol=1e-5)
    np.testing.assert_allclose(found[9] / value, np.zeros((2, 2)), atol=1e-6)


def test_traced_form_is_the_eager_one_and_vmap_is_a_loop_over_models():
    policy = CurvaturePolicy()
    models = {
        "w": np.stack([noisy_diagonal(0), 5 * noisy_diagonal(1), np.zeros((40, 5), np.float32)])
    }
    mapped = jax.device_get(jax.jit(jax.vmap(policy.apply_traced))(models))
    for i in range(3):
        one = policy.apply(jax.tree.map(lambda x, i=i: x[i], models))
        np.testing.assert_allclose(mapped.importance["w"][i], one.importance["w"], rtol=1e-6)
        report = jax.tree.map(lambda x, i=i: x[i], mapped.report["w"])
        assert numbers(report) == numbers(one.report["w"])


def test_policy_is_a_static_argument():
    @partial(jax.jit, static_argnames=("policy",))
    def total(diagonal, *, policy):
        return jnp.sum(policy.apply_traced(diagonal).importance)

    value = total(np.float32([1.0, -1.0, 3.0]), policy=CurvaturePolicy(relative_floor=0.5))
    np.testing.assert_allclose(value, 4.5)


def test_dtypes():
    assert CurvaturePolicy().apply(np.ones(2, jnp.bfloat16)).importance.dtype == np.float32
    assert CurvaturePolicy().apply(np.ones(3)).importance.dtype == np.float32


@pytest.mark.usefixtures("x64")
def test_double_precision_is_kept():
    importance, _ = CurvaturePolicy().apply(np.asarray([1.0, -1.0, 3.0]))
    assert importance.dtype == np.float64
    np.testing.assert_allclose(importance, [1.0, 0.01, 3.0], rtol=1e-15)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_curvature_that_is_not_finite_is_refused_by_name(bad):
    diagonal = {"a": np.ones(2, np.float32), "b": [np.float32([1.0, bad])]}
    with pytest.raises(ValueError, match=r"curvature\['b'\]\[0\] has 1 NaN or infinite entries"):
        CurvaturePolicy().apply(diagonal)


def test_nan_is_not_hidden_by_the_traced_form():
    importance, report = CurvaturePolicy().apply_traced(np.float32([np.nan, -1.0]))
    assert np.all(np.isnan(np.asarray(importance)))
    assert not report.is_fallback


@pytest.mark.parametrize("floor", [-0.1, float("nan"), float("inf"), "0.1"])
def test_floor_is_checked(floor):
    with pytest.raises(ValueError, match="relative_floor must be a finite number >= 0, got"):
        CurvaturePolicy(relative_floor=floor)


def test_blocks_get_eigenvalues_of_at_least_the_floor():
    half = np.random.default_rng(5).normal(size=(6, 3, 3))
    blocks = (half + np.swapaxes(half, 1, 2) + 0.5 * np.eye(3)).astype(np.float32)
    estimate = DiagonalEstimate({"w": blocks}, {"w": np.ones_like(blocks)})

    importance, report = jax.device_get(CurvaturePolicy(relative_floor=0.1).apply_blocks(estimate))

    values, vectors = np.linalg.eigh(blocks.astype(np.float64))
    floor = 0.1 * values.mean()
    assert floor > 0
    expected = np.einsum("bij,bj,bkj->bik", vectors, np.maximum(values, floor), vectors)
    np.testing.assert_allclose(importance["w"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(importance["w"], np.swapaxes(importance["w"], 1, 2))
    counts = 18, int(np.sum(values < floor)), int(np.sum(values < 0)), 0, False, False
    assert numbers(report["w"]) == counts
    assert counts[2] > 0


def test_blocks_without_positive_curvature_fall_back_to_unit_matrices():
    importance, report = CurvaturePolicy(relative_floor=0.1).apply_blocks(
        np.zeros((6, 3, 3), np.float32)
    )
    np.testing.assert_allclose(importance, np.broadcast_to(np.eye(3), (6, 3, 3)), atol=1e-6)
    assert numbers(report) == (18, 18, 0, 18, True, False)


def test_blocks_must_be_square():
    with pytest.raises(
        ValueError, match=r"blocks\['w'\] must have the shape \(..., m, m\), got \(4, 3\)"
    ):
        CurvaturePolicy().apply_blocks({"w": np.ones((4, 3), np.float32)})
