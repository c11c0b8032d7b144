"""Prior codes and bits back under 64-bit types: the same streams, and float64 where it comes in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bits_back_problems import payload, random_posterior
from slow_cases import some_slow

from jaxcomp import bits_back, coding

FAMILIES = (coding.Gaussian, coding.Laplace, coding.SpikeAndSlab, coding.ScaleMixture)
WEIGHTS = np.random.default_rng(0).normal(0, 0.1, 3000)
STEP = 0.02


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("family", "dtype"),
    some_slow(
        [(family, dtype) for family in FAMILIES for dtype in (np.float32, np.float64)],
        *((family, np.float32) for family in FAMILIES[1:]),
    ),
)
def test_codes_of_weights(family, dtype):
    weights = WEIGHTS.astype(dtype)
    prior = coding.fit(weights, family, step=STEP)
    bits = coding.code_length_bits(weights, prior, step=STEP)
    assert bits.dtype == dtype
    words = coding.encode(weights, prior, step=STEP)
    decoded = coding.decode(words, prior, like=weights)
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, coding.quantize(weights, step=STEP))
    # Within 1 % and a constant, as in 32 bits.
    assert 32 * len(words) == pytest.approx(float(np.sum(bits)), rel=0.01, abs=32 * 7)


def test_a_stream_of_32_bits_is_read_under_64_and_the_other_way_round():
    weights, prior = WEIGHTS.astype(np.float32), coding.Gaussian(0.1)
    words = coding.encode(weights, prior, step=STEP)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(coding.encode(weights, prior, step=STEP), words)
        inside = coding.decode(words, prior, like=weights)
    np.testing.assert_array_equal(inside, coding.decode(words, prior, like=weights))


@pytest.mark.usefixtures("x64")
def test_penalties_rates_and_steps():
    h = jax.device_put(np.asarray([0.5, 2.0, 8.0]))
    assert h.dtype == jnp.float64
    rate = coding.l2_rate_nats(h, 1.5)
    assert rate.dtype == jnp.float64
    exact = 0.5 * np.log1p(np.array([0.5, 2.0, 8.0]) / 1.5).sum()
    assert float(rate) == pytest.approx(exact, rel=1e-14)
    assert float(coding.prior_precision_from_rate(h, rate)) == pytest.approx(1.5, rel=1e-12)
    assert float(coding.prior_precision_from_weight_decay(0.01, 600)) == pytest.approx(6, rel=1e-15)
    chosen = coding.optimal_step(h, per_weight=True)
    np.testing.assert_allclose(chosen.step, np.sqrt(12 / np.asarray(h)), rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_back(dtype):
    posterior = jax.tree.map(lambda leaf: leaf.astype(dtype), random_posterior(800))
    prior, content = coding.Gaussian(0.12), payload(700)
    words = bits_back.encode(posterior, prior, content, step=0.01).words
    with jax.enable_x64(True):
        message = bits_back.encode(posterior, prior, content, step=0.01)
        # The coder works on the host: the default of JAX plays no part.
        np.testing.assert_array_equal(message.words, words)
        decoded = bits_back.decode(message, bits_back.KnownPosterior(posterior, prior))
        np.testing.assert_array_equal(decoded.payload, content)
        assert decoded.weights.dtype == dtype
        kl = bits_back.kl_nats(posterior, prior)
        assert kl.dtype == dtype
        mean, scale = (np.asarray(leaf, np.float64) for leaf in posterior)
        exact = np.log(0.12 / scale) + (scale**2 + mean**2) / (2 * 0.12**2) - 0.5
        assert float(kl) == pytest.approx(exact.sum(), rel=1e-5)


@pytest.mark.usefixtures("x64")
def test_variational_training_runs():
    def loss_fn(params, batch):
        return jnp.sum(jnp.square(batch - params["w"]))

    config = bits_back.VariationalConfig(num_steps=3)
    fitted = bits_back.fit(
        loss_fn, lambda key: {"w": jnp.zeros(2)}, np.ones((4, 2)), jax.random.key(0), config=config
    )
    assert fitted.posterior.mean["w"].dtype == jnp.float64
    elbo = bits_back.negative_elbo(loss_fn, fitted, np.ones((4, 2)), jax.random.key(1))
    assert np.isfinite(float(elbo.total))
