import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding_problems import SETTINGS, layer

from jaxcomp.quantizers.hessian_rounding import round_layer, round_layer_to_rate
from jaxcomp.quantizers.rounding_passes import RoundingSettings
from jaxcomp.rate_distortion.gaussian import gaussian_rate

# All tests, or the same program would be traced twice.
pytestmark = pytest.mark.usefixtures("strict_promotion")


def test_a_rounded_layer_is_what_it_says():
    weights, second, importance = layer()
    found = jax.tree.map(
        np.asarray,
        round_layer(weights, second, 0.3, output_importance=importance, settings=SETTINGS),
    )
    values = np.asarray(found.values, np.float64)
    codes = np.asarray(found.codes)
    ratios = 2 ** (np.asarray(found.spacing.levels) / 4)
    own_ratios = np.asarray(found.spacing.ratios)
    np.testing.assert_allclose(own_ratios, ratios, rtol=2.0**-8)
    spacing = found.spacing.scale * own_ratios
    factors = np.asarray(found.factors)[np.clip(np.abs(codes), 1, 3) - 1]
    np.testing.assert_allclose(values, spacing[..., None] * factors * codes, rtol=1e-5)
    # The errors are those of the layer, damped.
    second = np.asarray(second, np.float64)
    live = np.diagonal(second, axis1=1, axis2=2) > 0
    np.testing.assert_array_equal(found.is_live, live)
    mean = np.trace(second, axis1=1, axis2=2) / live.sum(axis=1)
    added = 1e-3 * mean[:, None, None] * live[..., None] * np.eye(24)
    error = np.asarray(weights, np.float64) - values
    damped = np.einsum("gio,gij,gjo->go", error, second + added, error)
    np.testing.assert_allclose(found.errors, damped, rtol=1e-4)
    assert not np.any(codes[~live])
    # The bits are those of its codes.
    assert found.counts.sum() == live.sum() * 40
    used = [
        codes[live & (np.asarray(found.classes) == c)].ravel() for c in range(len(found.counts))
    ]
    counts = [np.bincount(some + SETTINGS.max_code, minlength=511) for some in used]
    np.testing.assert_array_equal(found.counts, counts)
    ideal = -sum(np.sum(n * np.log2(np.maximum(n, 1) / n.sum())) for n in counts)
    np.testing.assert_allclose(found.bits.codes, ideal, rtol=1e-4)
    np.testing.assert_allclose(found.rate_bits, sum(found.bits) / codes.size, rtol=1e-6)


def test_it_comes_out_the_same_twice():
    problem = layer()
    first, second = (
        round_layer(*problem[:2], 0.3, output_importance=problem[2], settings=SETTINGS)
        for _ in range(2)
    )
    np.testing.assert_array_equal(first.codes, second.codes)


@pytest.mark.slow  # Its loop over weights is mapped in the tests of feedback.
def test_mapped_over_layers_equals_a_loop():
    layers = [layer(seed) for seed in range(2)]

    def round_one(weights, second, importance):
        return round_layer(weights, second, 0.3, output_importance=importance, settings=SETTINGS)

    together = jax.vmap(round_one)(*(np.stack(parts) for parts in zip(*layers, strict=True)))
    together = jax.tree.map(np.asarray, together)
    for number, one in enumerate(layers):
        alone = jax.tree.map(np.asarray, round_one(*one))
        np.testing.assert_array_equal(together.codes[number], alone.codes)
        np.testing.assert_allclose(together.bits.total[number], alone.bits.total, rtol=1e-6)
    assert np.any(together.codes[0] != together.codes[1])


def test_one_multiplier_means_the_same_in_all_units():
    weights, second, importance = map(np.asarray, layer())
    found = round_layer(weights, second, 0.3, output_importance=importance, settings=SETTINGS)
    # A layer in other units, whose distortion is 2^8 times as large.
    other = round_layer(
        4 * weights, 8 * second, 0.3 * 256, output_importance=2 * importance, settings=SETTINGS
    )
    np.testing.assert_array_equal(found.codes, other.codes)
    # What counts more is rounded more finely.
    weighed = importance.copy()
    weighed[:, :5] *= 100
    finer = round_layer(weights, second, 0.3, output_importance=weighed, settings=SETTINGS)
    plain = round_layer(weights, second, 30.0, output_importance=weighed, settings=SETTINGS)
    finer, plain = np.asarray(finer.errors), np.asarray(plain.errors)
    assert np.mean(finer[:, :5]) < 0.5 * np.mean(plain[:, :5])
    assert np.mean(plain[:, :5]) / np.mean(plain[:, 5:]) < 0.5


@pytest.fixture(scope="module")
def gaussian():
    """Weights, and S of correlated inputs of several sizes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 32)) * np.exp(0.4 * rng.standard_normal(32))
    weights = rng.standard_normal((1, 32, 4096))
    return jnp.asarray(weights, jnp.float32), jnp.asarray(x.T @ x / 100, jnp.float32)[None]


def gap_bits(gaussian, exponent):
    """Bits per weight above the rate-distortion function at about 4 bits."""
    weights, second = gaussian
    eigenvalues = np.linalg.eigvalsh(np.asarray(second[0], np.float64))
    # A table for each input, which knows its width.
    settings = RoundingSettings(exponents=(exponent,), slopes=(1.0,), num_classes=32, max_code=255)
    found = round_layer_to_rate(weights, second, 4.0, damping=1e-6, settings=settings)
    np.testing.assert_allclose(found.rate_bits, 4, rtol=0.01)
    limit = gaussian_rate(jnp.asarray(eigenvalues, jnp.float32), 1.0, jnp.mean(found.errors))
    # The entropy of few codes is too small by half a nat for every symbol but one.
    missing = np.sum(np.sum(found.counts > 0, axis=1) - 1) / 2
    nats = np.log(2) * found.bits.codes + missing
    return float(nats / found.codes.size - limit / 32) / np.log(2), found


@pytest.mark.slow
def test_gaussian_weights_cost_a_quarter_of_a_bit_above_the_limit(gaussian):
    with_spacings, _ = gap_bits(gaussian, 1.0)
    one_step, found = gap_bits(gaussian, 0.0)
    # 1/2 log2(2 pi e / 12) from above, and what a finite rate and ratios of 2^(1/4) add.
    assert 0.2546 < with_spacings < 0.27
    pivots = np.linalg.cholesky(np.asarray(gaussian[1][0], np.float64)).diagonal()
    gain = 0.5 * np.log2(np.mean(pivots**2)) - np.mean(np.log2(pivots))
    np.testing.assert_allclose(one_step - with_spacings, gain, atol=0.02)
    assert gain > 0.15
    assert jnp.all(found.spacing.levels == 0)


def test_bad_layers_are_refused():
    weights, second, importance = map(np.asarray, layer())
    unknown = weights.copy()
    unknown[0, 0, 0] = np.nan
    with pytest.raises(
        ValueError, match=r"\(1, inputs, outputs\) for a dense layer, got shape \(24"
    ):
        round_layer(weights[0], second, 1.0)
    with pytest.raises(ValueError, match=r"second_moments must have shape \(2, 24, 24\)"):
        round_layer(weights, second[:1], 1.0)
    with pytest.raises(ValueError, match="multiplier must be positive and finite, got 0"):
        round_layer(weights, second, 0.0)
    with pytest.raises(ValueError, match="rate_bits must be positive"):
        round_layer_to_rate(weights, second, -1.0)
    with pytest.raises(ValueError, match="weights must be finite, got 1 NaN"):
        round_layer(unknown, second, 1.0)
    with pytest.raises(ValueError, match="output_importance must be at least 0, got -1"):
        round_layer(weights, second, 1.0, output_importance=-np.ones_like(importance))
    with pytest.raises(ValueError, match="must not be 0 for all outputs"):
        round_layer(weights, second, 1.0, output_importance=0 * importance)
    with pytest.raises(ValueError, match="damping must be finite and at least 0, got -1"):
        round_layer(weights, second, 1.0, damping=-1.0)
    for bad in (-second, second + 1e3 * (1 - np.eye(24, dtype=np.float32))):
        with pytest.raises(ValueError, match="second_moments must be positive semi-definite"):
            round_layer(weights, bad, 1.0)
    with pytest.raises(TypeError, match="weights must be floating"):
        round_layer(np.ones((1, 2, 2), np.int32), second, 1.0)
