import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantizer_oracles import count_compilations

from jaxcomp.quantizers import prune_by_magnitude
from jaxcomp.quantizers.pruning import _num_pruned


def naive(weights, num_pruned):
    flat = weights.ravel().copy()
    flat[np.argsort(np.abs(flat), kind="stable")[:num_pruned]] = 0
    return flat.reshape(weights.shape)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("sparsity", [0.0, 0.01, 0.5, 0.9, 1.0])
def test_matches_sorting(dtype, sparsity, strict_promotion):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((30, 10)).astype(np.float32)
    weights[:5] = np.round(weights[:5])  # ties, of both signs, and zeros
    weights = jnp.asarray(weights).astype(dtype)
    pruned = prune_by_magnitude(weights, sparsity)
    assert pruned.dtype == dtype
    expected = naive(np.asarray(weights.astype(jnp.float32)), round(sparsity * 300))
    np.testing.assert_array_equal(pruned.astype(jnp.float32), expected)


def test_float64(x64):
    weights = np.random.default_rng(0).standard_normal(101)
    np.testing.assert_array_equal(prune_by_magnitude(weights, 0.3), naive(weights, 30))


def test_counts_beyond_what_float32_counts():
    for number in (2**24 + 3, 2**31 + 5, 2**32 - 1):
        for sparsity in (0.9, 1 / 3, 1.0):
            assert int(_num_pruned(sparsity, num_weights=number)) == round(sparsity * number)


@pytest.mark.parametrize("power", [-149, 120])
def test_any_scale(power):
    weights = np.random.default_rng(0).integers(-40, 40, 101)
    scaled = np.ldexp(weights.astype(np.float32), power)  # subnormal, or near the largest float
    pruned = np.asarray(prune_by_magnitude(scaled, 0.5))
    assert pruned.tobytes() == np.ldexp(naive(weights, 50).astype(np.float32), power).tobytes()


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_all_equal(value):
    pruned = prune_by_magnitude(np.full(7, value, np.float32), 3 / 7)
    np.testing.assert_array_equal(pruned, [0, 0, 0, value, value, value, value])


def test_sparsity_compiles_nothing_and_vmaps():
    weights = np.random.default_rng(0).standard_normal((2, 40)).astype(np.float32)
    fractions = jnp.array([0.25, 0.75])
    alone = [prune_by_magnitude(weights[0], 0.25)]
    with count_compilations() as num_compilations:
        alone.append(prune_by_magnitude(weights[1], 0.75))
        assert num_compilations() == 0
    together = jax.vmap(prune_by_magnitude)(weights, fractions)
    np.testing.assert_array_equal(together, np.stack(alone))


@pytest.mark.parametrize(
    ("weights", "sparsity", "error", "message"),
    [
        (np.arange(3), 0.5, TypeError, "weights must be floating, got int32"),
        (np.array([np.nan, 1.0]), 0.5, ValueError, "weights must be finite, got 1 NaN"),
        (np.ones(3), 1.5, ValueError, "sparsity must lie between 0 and 1, got 1.5"),
        (np.ones(3), -0.1, ValueError, "sparsity must lie between 0 and 1, got -0.1"),
    ],
)
def test_bad_input(weights, sparsity, error, message):
    with pytest.raises(error, match=message):
        prune_by_magnitude(weights, sparsity)
