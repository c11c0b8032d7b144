"""The Hessian of linear regression against autodiff in float64, and exact sums of many rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.curvature import linear_regression_hessian

pytestmark = pytest.mark.usefixtures("strict_promotion")


def make_features(shape=(37, 5), seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rows_per_chunk", [8, 37, 1000])
def test_autodiff_in_double_precision(rows_per_chunk):
    features = make_features(dtype=np.float64)

    def loss(weights):
        targets = jnp.linspace(-1.0, 1.0, features.shape[0])
        return jnp.mean(jnp.square(features @ weights - targets))

    hessian = linear_regression_hessian(features, rows_per_chunk=rows_per_chunk)
    assert hessian.dtype == np.float64
    expected = jax.jit(jax.hessian(loss))(np.ones(5))
    np.testing.assert_allclose(hessian, expected, rtol=1e-12, atol=1e-13)


def test_chunks_of_rows_from_a_generator_do_not_matter():
    features = make_features()
    expected = 2 / 37 * features.astype(np.float64).T @ features.astype(np.float64)
    lengths = [8, 8, 8, 8, 5]
    chunks = np.split(features, np.cumsum(lengths)[:-1])
    for given in ((chunk for chunk in chunks), chunks, features, jax.device_put(features)):
        hessian = linear_regression_hessian(given, rows_per_chunk=8)
        assert hessian.dtype == np.float32
        # Products of 37 pairs, each rounded once: a few units in the last place of |X|^T |X|.
        np.testing.assert_allclose(hessian, expected, rtol=1e-6, atol=2e-6)
        np.testing.assert_array_equal(hessian, np.swapaxes(hessian, 0, 1))


def test_leading_axes_and_vmap_are_a_loop_over_data_sets():
    features = make_features((2, 3, 20, 4))
    together = linear_regression_hessian(features, rows_per_chunk=8)
    mapped = jax.jit(jax.vmap(jax.vmap(lambda x: linear_regression_hessian(x, rows_per_chunk=8))))
    np.testing.assert_allclose(mapped(features), together, rtol=1e-6)
    for i, j in np.ndindex(2, 3):
        one = linear_regression_hessian(features[i, j], rows_per_chunk=8)
        np.testing.assert_allclose(together[i, j], one, rtol=1e-6, atol=1e-6)


def test_many_rows_add_no_rounding_error():
    features = np.random.default_rng(1).uniform(1, 2, size=(300_000, 1)).astype(np.float32)
    expected = 2 * np.mean(np.square(features.astype(np.float64)))
    hessian = linear_regression_hessian(features, rows_per_chunk=64)
    # Sums of 64 positive terms, then no further error; 300,000 in a row would be off by 1e-4.
    np.testing.assert_allclose(hessian[0, 0], expected, rtol=32 * np.finfo(np.float32).eps)


def test_half_precision_features_are_summed_in_float32():
    features = make_features().astype(jnp.bfloat16)
    wide = np.asarray(features, np.float64)
    hessian = linear_regression_hessian(features)
    assert hessian.dtype == np.float32
    np.testing.assert_allclose(hessian, 2 / 37 * wide.T @ wide, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (3, TypeError, r"features must be an array \(..., n, d\) or an iterable .* got int"),
        (np.ones(3, np.float32), ValueError, r"at least the two axes .* got shape \(3,\)"),
        (np.ones((3, 2), int), TypeError, "features must be floating, got int64; convert it"),
        (np.ones((0, 2), np.float32), ValueError, r"at least one row, got shape \(0, 2\)"),
        ([], ValueError, "at least one row, got an iterable without rows"),
        ([[1.0]], TypeError, r"features\[0\] must be an array, got list"),
        (
            [np.ones((3, 2), np.float32), np.ones((3, 1), np.float32)],
            ValueError,
            r"must agree but in their numbers of rows, got float32 with the other axes \(2,\) "
            r"and, in features\[1\], float32 with \(1,\)",
        ),
        ([np.full((2, 2), np.nan, np.float32)], ValueError, "has 4 NaN or infinite entries of 4"),
    ],
)
def test_bad_features_are_named(features, error, message):
    with pytest.raises(error, match=message):
        linear_regression_hessian(features)


def test_chunk_is_checked():
    with pytest.raises(ValueError, match="rows_per_chunk must be at least 1, got 0"):
        linear_regression_hessian(make_features(), rows_per_chunk=0)
