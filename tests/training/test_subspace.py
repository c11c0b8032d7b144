"""Networks in a random subspace: bits that stay, and P as a dense matrix."""

import jax
import numpy as np
import pytest

from jaxcomp.training import Dense, KroneckerSum, LowRank, random_signs, random_words

LIKE = {"a": np.zeros((2, 2, 3), np.float32), "b": np.full(5, 0.5, np.float32)}


def reference_words(places, seed):
    """The same by Python's integers, which have no width."""

    def mixed(word):
        word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
        word = (word ^ word >> 13) * 0xC2B2AE35 % 2**32
        return word ^ word >> 16

    first, second = mixed(seed), mixed(seed ^ 0x9E3779B9)
    return [mixed(mixed((place * 0x9E3779B9 + first) % 2**32) ^ second) for place in places]


def test_bits_are_pinned():
    golden = [
        0x1B4BD2ED, 0xCEDEAF50, 0xBE7842CD, 0x73ACD9EA, 0x08CA60B2, 0x718C3B12, 0x2850F98E,
        0x60F0CA20,
    ]  # fmt: skip
    places = np.arange(8, dtype=np.uint32)
    assert random_words(places, 7).tolist() == golden == reference_words(range(8), 7)
    assert np.asarray(random_words(jax.device_put(places), 7)).tolist() == golden
    last = np.asarray([2**32 - 1], np.uint32)
    assert random_words(last, 2**32 - 1).tolist() == reference_words([2**32 - 1], 2**32 - 1)
    assert random_signs(7, (2, 4)).tolist() == [[-1, 1, 1, -1], [-1, -1, -1, -1]]
    with pytest.raises(ValueError, match=r"seed must lie between 0 and 2\^32 - 1, got -1"):
        random_words(places, -1)


def test_signs_are_random():
    count = 1 << 14
    signs = random_signs(3, (count, 24)).astype(np.float64)
    other = random_signs(4, (count, 24)).astype(np.float64)
    products = np.concatenate([signs.T @ signs - count * np.eye(24), signs.T @ other])
    # Sums of independent signs have the variance of their number; six standard deviations.
    assert np.abs(products).max() < 6 * np.sqrt(count)
    assert np.abs(signs.sum(0)).max() < 6 * np.sqrt(count)


@pytest.mark.parametrize("subspace", [Dense(4, seed=1), KroneckerSum(4, seed=1), LowRank(2, 1)])
def test_networks_move_by_a_linear_map(subspace):
    signs, zeros = subspace.signs(LIKE), subspace.coordinates(LIKE)
    flat, unflatten = jax.flatten_util.ravel_pytree(zeros)

    @jax.jit
    def weights(theta):
        return jax.flatten_util.ravel_pytree(subspace.expand(LIKE, unflatten(theta), signs))[0]

    start = np.concatenate([leaf.ravel() for leaf in LIKE.values()])
    np.testing.assert_array_equal(weights(flat), start)
    matrix = np.asarray(jax.jit(jax.jacobian(weights))(flat))
    np.testing.assert_allclose(matrix, dense(subspace, signs), rtol=1e-6, atol=1e-7)
    theta = np.linspace(-1, 1, len(flat)).astype(np.float32)
    np.testing.assert_allclose(weights(theta), start + matrix @ theta, rtol=1e-5, atol=1e-6)


def dense(subspace, signs):
    """P as the docstrings say it."""
    match subspace:
        case Dense():
            return signs / np.sqrt(17)
        case KroneckerSum():
            one = np.ones((5, 1))
            return (np.kron(one, signs[0]) + np.kron(signs[1], one))[:17] / np.sqrt(2 * 17)
    a, b = np.kron(*signs["a"]) / np.sqrt(12), signs["b"][0] / np.sqrt(5)
    return np.block([[a, np.zeros((12, 2))], [np.zeros((5, 4)), b]])


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"dimension must be at most 10, twice the side"):
        KroneckerSum(11).signs(LIKE)
    with pytest.raises(ValueError, match=r"more than 2\^31 entries; take KroneckerSum or LowRank"):
        random_signs(0, (1 << 20, 1 << 12))
    with pytest.raises(ValueError, match="no weights"):
        Dense(2).signs({})
