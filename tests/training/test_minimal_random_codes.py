"""Budgets by closed forms of float64, choices by brute force, both decoders to the same bits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import lambertw, softmax
from slow_cases import some_slow

from jaxcomp.decoder import random_codes
from jaxcomp.training import (
    Posterior,
    decode,
    encode,
    initial_posterior,
    kl_nats,
    random_code,
    sampled_weights,
)
from jaxcomp.training.minimal_random_codes import log_precision


@pytest.fixture(scope="module")
def network():
    draw = np.random.default_rng(0)
    return {
        "bias": np.zeros(7, np.float32),
        "kernel": (0.2 * draw.normal(size=(30, 7))).astype(np.float32),
    }


@pytest.fixture(scope="module")
def trained(network):
    """A code of 20 blocks, the last ones with a value less, and a posterior far from its start."""
    code = random_code(network, index_bytes=20, block_bits=8, seed=5, sharing=1)
    start = initial_posterior(code, network)
    draw = np.random.default_rng(1)
    moved = [draw.normal(size=own.shape).astype(np.float32) for own in start]
    return code, Posterior(
        *(np.asarray(own) + np.float32(1.5) * move for own, move in zip(start, moved, strict=True))
    )


def test_log_precision_is_lamberts_function():
    excess = np.concatenate([np.geomspace(1e-8, 30, 40), [0]]).astype(np.float32)
    found = np.asarray(jax.jit(log_precision)(excess))
    expected = -np.log(-lambertw(-np.exp(-1 - excess.astype(np.float64))).real)
    # Near 0 SciPy's own argument loses half of its digits.
    np.testing.assert_allclose(found, np.where(excess > 1e-4, expected, found), rtol=1e-6)
    v = np.asarray(found, np.float64)
    small = v**2 / 2 - v**3 / 6 + v**4 / 24
    left = np.where(v < 1e-2, small, v + np.expm1(-v))
    np.testing.assert_allclose(left, excess, rtol=1e-6)
    slope = jax.jit(jax.vmap(jax.grad(log_precision)))(excess[:-1])
    np.testing.assert_allclose(slope, -1 / np.expm1(-v[:-1]), rtol=1e-6)


def test_relative_entropies_are_exactly_their_budgets(trained):
    code, posterior = trained
    found = np.asarray(kl_nats(code, posterior), np.float64)
    used = random_codes.is_used(code.layout)
    shares = np.where(used, np.asarray(posterior.shares, np.float64), -np.inf)
    budgets = 8 * np.log(2) * softmax(shares, axis=1)
    np.testing.assert_allclose(found, budgets, rtol=2e-6, atol=1e-30)
    assert not np.any(found[~used])
    # And by means and variances of the samples themselves, at places of large budgets.
    mean, deviation = moments(code, posterior)
    expected = (deviation**2 + mean**2 - 1) / 2 - np.log(deviation)
    np.testing.assert_allclose(expected[used], budgets[used], rtol=1e-5, atol=1e-7)


def moments(code, posterior):
    """Means and standard deviations by their definition, in float64."""
    used = random_codes.is_used(code.layout)
    t, shares = (np.asarray(own, np.float64) for own in posterior[:2])
    budgets = 8 * np.log(2) * softmax(np.where(used, shares, -np.inf), axis=1)
    mean = np.sqrt(2 * budgets) * np.tanh(t)
    variance = -lambertw(-np.exp(mean**2 - 2 * budgets - 1)).real
    return mean, np.sqrt(np.where(used, variance, 1))


def test_samples_have_these_moments_and_derivatives(trained):
    code, posterior = trained
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = jax.jit(jax.vmap(partial(sampled_weights, code), (None, 0)))(posterior, keys)
    flat = np.concatenate([np.asarray(own).reshape(2000, -1) for own in drawn.values()], axis=1)
    place, _ = random_codes.slots(code.layout)
    mean, deviation = (own.reshape(-1)[place] for own in moments(code, posterior))
    scales = np.repeat(np.exp(np.asarray(posterior.log_scales)), code.layout.sizes)
    error = (flat / scales).mean(axis=0) - mean
    assert np.abs(error / deviation).max() < 5 / np.sqrt(2000)
    assert np.abs((flat / scales).std(axis=0) / deviation - 1).max() < 5 / np.sqrt(2 * 2000)
    slopes = jax.jit(
        jax.grad(lambda own, key: jnp.sum(sampled_weights(code, own, key)["kernel"] ** 2))
    )(posterior, jax.random.key(0))
    assert all(np.isfinite(own).all() and np.any(own) for own in slopes)


def test_choices_are_those_of_importance_weights():
    """By brute force over all candidates of one block."""
    code = random_code({"w": np.zeros(3, np.float32)}, index_bytes=1, block_bits=5, seed=3)
    posterior = Posterior(
        np.float32([[0.4, -0.2, 1.0]]), np.float32([[0.0, 1.0, -1.0]]), np.zeros(1, np.float32)
    )
    mean, deviation = (own[0] for own in _moments_of(posterior))
    candidates = np.stack(
        [random_codes.deviates(code.layout, np.asarray([own]))[0] for own in range(32)]
    ).astype(np.float64)
    logarithms = candidates**2 / 2 - ((candidates - mean) / deviation) ** 2 / 2
    expected = softmax(logarithms.sum(axis=1))
    keys = jax.random.split(jax.random.key(1), 20_000)
    indices = jax.jit(jax.vmap(lambda key: encode(code, posterior, key).indices[0]))(keys)
    counts = np.bincount(np.asarray(indices), minlength=32)
    likely = expected > 1e-4
    chi_square = np.sum((counts - 20_000 * expected)[likely] ** 2 / (20_000 * expected[likely]))
    degrees = likely.sum() - 1
    assert abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees)
    assert counts[~likely].sum() < 20


def _moments_of(posterior):
    budgets = 5 * np.log(2) * softmax(np.asarray(posterior.shares, np.float64), axis=1)
    mean = np.sqrt(2 * budgets) * np.tanh(np.asarray(posterior.means, np.float64))
    return mean, np.sqrt(-lambertw(-np.exp(mean**2 - 2 * budgets - 1)).real)


@pytest.mark.parametrize("sharing", some_slow([1, 4], 1))
def test_both_decoders_return_the_evaluated_network(network, sharing):
    code = random_code(network, index_bytes=20, block_bits=8, seed=5, sharing=sharing)
    posterior, key = initial_posterior(code, network), jax.random.key(2)
    some = encode(code, posterior, key, stop=11)
    assert np.all(np.asarray(some.indices)[:11] >= 0)
    assert np.all(np.asarray(some.indices)[11:] == -1)
    # What is trained on moves neither what is coded nor the scales.
    moved = jax.tree.map(lambda own: np.asarray(own) + np.float32(0.3), posterior)
    coded = encode(code, moved, key, some, start=11)
    np.testing.assert_array_equal(np.asarray(coded.indices)[:11], np.asarray(some.indices)[:11])
    np.testing.assert_array_equal(coded.scales, jax.jit(jnp.exp)(posterior.log_scales))
    evaluated = sampled_weights(code, moved, jax.random.key(3), coded)
    of_numpy = random_codes.values_of(
        code.layout, np.asarray(coded.indices), np.asarray(coded.scales)
    )
    decoded = decode(code, coded)
    for trees in zip(
        *(jax.tree.leaves(own) for own in (evaluated, decoded, of_numpy)), strict=True
    ):
        np.testing.assert_array_equal(trees[0], trees[1])
        np.testing.assert_array_equal(trees[1], trees[2])


@pytest.mark.slow
def test_seeds_go_through_vmap(trained):
    code, posterior = trained
    pair = jax.tree.map(lambda own: jnp.stack([own, 0.5 * own]), posterior)
    keys = jax.random.split(jax.random.key(4), 2)
    both = jax.vmap(partial(encode, code))(pair, keys)
    alone = encode(code, jax.tree.map(lambda own: own[1], pair), keys[1])
    # Sums of another order may choose another of two candidates that are alike.
    assert np.mean(np.asarray(both.indices[1]) == np.asarray(alone.indices)) > 0.8


def test_more_weights_than_bits_share_values(network):
    assert random_code(network, index_bytes=20).layout.sharing == 5  # 217 weights, 160 bits
    assert random_code(network, index_bytes=200, block_bits=8).layout.sharing == 1


def test_what_cannot_be_coded_is_refused(network, trained):
    with pytest.raises(ValueError, match="a budget below one bit has no candidate"):
        random_code(network, index_bytes=20, block_bits=0)
    with pytest.raises(ValueError, match="at least one index of 12 bits, got 1"):
        random_code(network, index_bytes=1)
    with pytest.raises(ValueError, match="choose at most 217 bytes"):
        random_code(network, index_bytes=300, block_bits=8)
    with pytest.raises(ValueError, match="seed must lie"):
        random_code(network, index_bytes=20, seed=-1)
    with pytest.raises(TypeError, match="got int32 at 'step'"):
        random_code({**network, "step": np.int32(3)}, index_bytes=20)
    code, posterior = trained
    coded = encode(code, posterior, jax.random.key(0), stop=3)
    with pytest.raises(ValueError, match="encode them all"):
        decode(code, coded)
    other = code._replace(layout=code.layout._replace(seed=6))
    with pytest.raises(ValueError, match="encoded with another seed"):
        decode(other, coded)
