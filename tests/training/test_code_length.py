"""The price of bits against distribution functions, quadrature, and real streams."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit

from jaxcomp.compressed import from_integers, to_bytes
from jaxcomp.training import (
    Prior,
    bits_of,
    initial_latents,
    rounded,
    weights_and_bits,
)

PRIOR = Prior(np.float32([1.5, 0.3, -1.0]), np.log(np.float32([0.1, 0.6, 2.5])))


@pytest.fixture(scope="module")
def network():
    """Weights of few levels in an order without structure, and biases."""
    draw = np.random.default_rng(0)
    kernel = draw.laplace(scale=0.4, size=(200, 150)) * (draw.random((200, 150)) < 0.3)
    bias = draw.normal(size=150)
    return {"bias": bias.astype(np.float32), "kernel": kernel.astype(np.float32)}


def distribution(x):
    shares = np.exp(np.asarray(PRIOR.logits, np.float64))
    scales = np.exp(np.asarray(PRIOR.log_scales, np.float64))
    x = np.asarray(x, np.float64)[..., None]
    return (shares / shares.sum() * expit(x / scales)).sum(-1)


def test_bits_are_those_of_differences_of_the_distribution():
    x = np.asarray([-3.2, -1.0, 0.0, 0.4, 0.5, 2.0, 7.0])
    everywhere = np.concatenate([x, np.arange(-63.0, 64.0), [400.0]]).astype(np.float32)
    found = np.asarray(jax.jit(bits_of)(everywhere, PRIOR), np.float64)
    expected = -np.log2(distribution(x + 0.5) - distribution(x - 0.5))
    np.testing.assert_allclose(found[:7], expected, rtol=2e-5)
    # Whole numbers share the whole; far out a logarithm of float32 is still one.
    assert np.sum(2.0 ** -found[7:-1]) == pytest.approx(1, abs=1e-5)
    assert 20 < found[-1] < 400


def test_slope_is_that_of_the_mean_over_the_uniform_noise(network):
    latents = initial_latents(
        {"w": np.float32([-2.3, -0.6, 0.0, 0.2, 0.5, 1.4, 3.0])}, steps=1.0, select="*"
    )
    latents = latents._replace(priors={"w": PRIOR})
    u = (np.arange(4000) + 0.5) / 4000 - 0.5

    def mean_bits(weights):
        noisy = weights[:, None] + u
        return -np.log2(distribution(noisy + 0.5) - distribution(noisy - 0.5)).mean(axis=1)

    weights = np.asarray(latents.weights["w"], np.float64)
    expected = (mean_bits(weights + 1e-4) - mean_bits(weights - 1e-4)) / 2e-4
    found = jax.jit(jax.grad(lambda own: weights_and_bits(own)[1], allow_int=True))(latents)
    np.testing.assert_allclose(found.weights["w"], expected, atol=2e-3)
    # One draw has the same mean.
    keys = jax.random.split(jax.random.key(0), 4000)
    slopes = jax.jit(jax.vmap(jax.grad(lambda own, key: weights_and_bits(own, key)[1]), (None, 0)))(
        latents, keys
    )
    drawn = np.asarray(slopes.weights["w"])
    error = drawn.std(axis=0) / np.sqrt(4000)
    assert np.all(np.abs(drawn.mean(axis=0) - expected) < 5 * error + 1e-3)


def test_weights_are_integers_times_steps_and_differentiate_as_latents(network):
    latents = initial_latents(network, select="*")

    def product(own):
        params, _ = weights_and_bits(own)
        return jnp.sum(params["kernel"] * network["kernel"]), params

    (value, params), slope = jax.jit(jax.value_and_grad(product, has_aux=True))(latents)
    step = np.exp(np.asarray(latents.log_steps["kernel"]))
    kernel = np.asarray(network["kernel"])
    np.testing.assert_allclose(slope.weights["kernel"], step * kernel, rtol=1e-5)
    assert float(slope.log_steps["kernel"]) == pytest.approx(float(value), rel=1e-4)
    stored = rounded(latents)
    np.testing.assert_array_equal(params["bias"], stored.integers["bias"] * stored.steps["bias"])


def test_seeds_go_through_vmap(network):
    pair = jax.tree.map(lambda leaf: np.stack([leaf, 2 * np.asarray(leaf)]), network)

    @jax.jit
    @jax.vmap
    def priced(network):
        return weights_and_bits(initial_latents(network, select="*"))

    params, bits = jax.tree.map(np.asarray, priced(pair))
    # The step follows the size of the weights.
    np.testing.assert_allclose(params["kernel"][1], 2 * params["kernel"][0], rtol=1e-5)
    assert float(bits[0]) == pytest.approx(float(bits[1]), rel=1e-5)


def test_trained_prices_are_lengths_of_streams(network):
    """Without structure for its contexts the stream is within a hundredth of the price."""
    latents = initial_latents({"kernel": network["kernel"]}, select="*")
    adam = optax.adam(0.03)

    @jax.jit
    def fitted(latents):
        def step(_, state):
            own, moments = state
            slope = jax.grad(lambda priors: weights_and_bits(latents._replace(priors=priors))[1])(
                own
            )
            moves, moments = adam.update(slope, moments)
            return jax.tree.map(jnp.add, own, moves), moments

        start = latents.priors, adam.init(latents.priors)
        return latents._replace(priors=jax.lax.fori_loop(0, 400, step, start)[0])

    latents = fitted(latents)
    params, bits = weights_and_bits(latents)
    tree = from_integers(params, *rounded(latents))
    size = 8 * len(to_bytes(tree, container="bare", effort="best"))
    assert size == pytest.approx(float(bits), rel=0.01)


def test_what_cannot_be_coded_is_refused(network):
    with pytest.raises(ValueError, match="no leaf is coded"):
        initial_latents({"bias": network["bias"]})
    with pytest.raises(ValueError, match="positive and finite"):
        initial_latents(network, steps=0.0)
    with pytest.raises(ValueError, match="none for 'kernel'"):
        initial_latents(network, steps={"bias": 1.0})
