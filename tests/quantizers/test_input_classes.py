from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.quantizers.input_classes import (
    bits_of,
    classes_by_magnitude,
    count_codes,
    length_bits,
)

CLASSES, MAX_CODE = 3, 5
SYMBOLS = np.arange(-MAX_CODE, MAX_CODE + 1)


def layer():
    """Codes (2, 6, 40), of which two inputs are always 0, and levels of their spacings."""
    rng = np.random.default_rng(0)
    width = np.arange(1, 13).reshape(2, 6, 1)[:, ::-1]
    codes = np.round(rng.standard_normal((2, 6, 40)) * width / 5)
    codes = np.clip(codes, -MAX_CODE, MAX_CODE).astype(np.int16)
    is_live = np.ones((2, 6), bool)
    is_live[0, 2] = is_live[1, 5] = False
    codes[~is_live] = 0
    return jnp.asarray(codes), jnp.asarray(is_live), rng.integers(-2, 3, (2, 6)).astype(np.int32)


def entropy_bits(labels):
    """Total bits of labels by their frequencies."""
    _, counts = np.unique(labels, return_counts=True)
    return -np.sum(counts * np.log2(counts / counts.sum()))


@pytest.mark.usefixtures("strict_promotion")
def test_classes_counts_and_bits_are_those_of_numpy():
    codes, is_live, levels = layer()
    classes = classes_by_magnitude(codes, is_live, num_classes=CLASSES)
    live, own = np.asarray(codes)[is_live], np.asarray(classes)[is_live]
    magnitude = np.abs(live).mean(axis=1)
    # Ten inputs: classes of four, three and three, in order.
    np.testing.assert_array_equal(np.bincount(own), [4, 3, 3])
    np.testing.assert_array_equal(own[np.argsort(magnitude)], [0] * 4 + [1] * 3 + [2] * 3)
    counts = count_codes(codes, classes, is_live, num_classes=CLASSES, max_code=MAX_CODE)
    expected = [[np.sum(live[own == c] == s) for s in SYMBOLS] for c in range(CLASSES)]
    np.testing.assert_array_equal(counts, expected)
    bits = bits_of(counts, classes, jnp.asarray(levels), is_live)
    np.testing.assert_allclose(
        bits.codes, sum(entropy_bits(live[own == c]) for c in range(CLASSES)), rtol=1e-5
    )
    num_symbols = [len(np.unique(live[own == c])) for c in range(CLASSES)]
    num_codes = np.bincount(own) * 40
    np.testing.assert_allclose(
        bits.tables, np.sum((np.array(num_symbols) - 1) * np.log2(num_codes) / 2), rtol=1e-6
    )
    labels = np.where(is_live, np.asarray(classes) * 100 + levels, -999)
    np.testing.assert_allclose(bits.labels, entropy_bits(labels), rtol=1e-6)
    np.testing.assert_allclose(bits.total, sum(bits), rtol=1e-6)
    # One class, one level and no input that is always 0: nothing to say.
    everywhere = jnp.ones_like(is_live)
    one = jnp.zeros_like(classes)
    assert bits_of(counts[:1], one, one, everywhere).labels < 1e-4


def test_lengths_are_those_of_a_distribution_that_knows_the_counts():
    counts = jnp.asarray([[0, 3, 900, 96, 0], [0, 0, 0, 0, 0]], jnp.int32)
    lengths = np.asarray(length_bits(counts), np.float64)
    np.testing.assert_allclose(np.sum(2.0**-lengths, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(lengths[0, 2], np.log2(1 / 0.9), atol=1e-3)
    # What has not occurred costs more than what has, and more the larger it is.
    assert lengths[0, 1] < lengths[0, 4]
    assert lengths[1, 2] < lengths[1, 3] < lengths[1, 4]


def test_bits_of_a_sample_stand_for_all_outputs():
    rng = np.random.default_rng(1)
    step = 1000
    codes = np.clip(np.round(rng.standard_normal((1, 30, 4 * step))), -MAX_CODE, MAX_CODE)
    codes = codes.astype(np.int16)
    is_live, one = jnp.ones((1, 30), bool), jnp.zeros((1, 30), jnp.int32)

    @partial(jax.jit, static_argnames="num_times")
    def bits(codes, num_times):
        counts = count_codes(codes, one, is_live, num_classes=1, max_code=MAX_CODE)
        return bits_of(counts, one, one, is_live, num_times=num_times)

    whole = bits(codes, 1.0)
    samples = [bits(codes[..., first::step], float(step)) for first in range(0, step, 10)]
    # Samples so small that their entropy falls short, by 2 % without the correction.
    found = np.array([sample.codes for sample in samples])
    assert abs(found.mean() / whole.codes - 1) < 3 * found.std() / found.mean() / len(found) ** 0.5
    assert found.std() / found.mean() / len(found) ** 0.5 < 0.005
    # A table of the sample's symbols, for all codes.
    num_symbols = len(np.unique(codes[..., ::step]))
    expected = (num_symbols - 1) * np.log2(codes.size) / 2
    np.testing.assert_allclose(samples[0].tables, expected, rtol=1e-6)
    assert samples[0].labels == whole.labels
