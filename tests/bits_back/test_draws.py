import numpy as np
import pytest
from bits_back_problems import payload
from constriction import stream
from scipy import stats

from jaxcomp.bits_back.draws import SUPPORT_DEVIATIONS, draw, put_back

NUM_WEIGHTS = 20_000


def uniform_stack(seed=0, num_words=60_000):
    return stream.stack.AnsCoder(payload(num_words, seed), seal=True)


def gaussians(low, high, seed=0):
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.uniform(np.log(low), np.log(high), NUM_WEIGHTS))
    return rng.normal(0, 10 * high, NUM_WEIGHTS), scale


@pytest.mark.parametrize(("low", "high"), [(1e-3, 0.1), (0.1, 20), (50, 70), (20, 1e5)])
def test_draws_follow_the_posterior_and_go_back(low, high):
    mean, scale = gaussians(low, high)
    stack = uniform_stack()
    before = stack.num_valid_bits()
    index = draw(stack, mean, scale)
    # What left the stack is -log2 of the cell masses.
    z = (index[:, None] + np.array([-0.5, 0.5]) - mean[:, None]) / scale[:, None]
    flip = np.where(z[:, :1] > 0, -1.0, 1.0)
    mass = np.abs(np.diff(stats.norm.cdf(z * flip), axis=1))
    ideal = -np.sum(np.log2(mass))
    assert before - stack.num_valid_bits() == pytest.approx(ideal, abs=64)
    # A cell is in the support if any part of it is within reach.
    reach = np.maximum(np.abs(index - mean) - 0.5, 0) / scale
    assert reach.max() < 8
    # Randomised within their cells, the draws are standard Gaussian.
    within = np.random.default_rng(1).uniform(size=NUM_WEIGHTS)
    lower, upper = stats.norm.cdf(z).T
    assert stats.kstest(lower + within * (upper - lower), "uniform").pvalue > 1e-3
    put_back(stack, mean, scale, index)
    np.testing.assert_array_equal(stack.get_compressed(unseal=True), payload(60_000))


def test_one_wide_support_leaks_and_ours_does_not():
    # The trap: every cell of the support has at least 2^-24, and there are many cells.
    mean, scale = np.zeros(NUM_WEIGHTS), np.full(NUM_WEIGHTS, 200.0)
    wide = stream.model.QuantizedGaussian(-(2**15), 2**15 - 1)
    leaky = uniform_stack().decode(wide, mean, scale)
    assert np.abs(leaky / scale).max() > 30
    assert np.sum(np.abs(leaky / scale) > 8) > 10
    ours = draw(uniform_stack(), mean, scale)
    assert np.abs(ours / scale).max() < 8
    assert np.std(ours / scale) == pytest.approx(1, abs=4 / np.sqrt(2 * NUM_WEIGHTS))
    assert np.std(leaky / scale) > 1.2


def test_interleaving_is_biased_and_drawing_all_first_is_not():
    # Decoding a weight right after encoding the one before gets back the bits just pushed.
    mean, scale, num = 20.0, 8.0, 3000
    q = stream.model.QuantizedGaussian(-128, 127, mean, scale)
    p = stream.model.QuantizedGaussian(-128, 127, 0.0, 40.0)
    stack, interleaved = uniform_stack(), []
    for _ in range(num):
        interleaved.append(stack.decode(q))
        stack.encode_reverse(np.int32(interleaved[-1:]), p)
    ours = draw(uniform_stack(), np.full(num, mean), np.full(num, scale))

    def p_value(drawn):
        dither = np.random.default_rng(0).uniform(-0.5, 0.5, num)
        return stats.kstest((drawn + dither - mean) / np.sqrt(scale**2 + 1 / 12), "norm").pvalue

    assert p_value(np.asarray(interleaved)) < 1e-10
    assert p_value(ours) > 1e-3


def test_a_narrow_posterior_takes_no_bits_in_the_middle_of_a_cell_and_one_at_its_edge():
    stack = uniform_stack()
    before = stack.num_valid_bits()
    index = draw(stack, np.full(100, 7.2), np.full(100, 1e-3))
    assert np.all(index == 7)
    assert stack.num_valid_bits() == before
    index = draw(stack, np.full(1000, 7.5), np.full(1000, 1e-6))
    assert set(index.tolist()) == {7, 8}
    assert before - stack.num_valid_bits() == pytest.approx(1000, abs=2)


def test_a_cell_that_was_not_drawn_is_refused():
    mean, scale = np.zeros(10), np.ones(10)
    beyond = np.full(10, int(2 * SUPPORT_DEVIATIONS))
    with pytest.raises(ValueError, match="outside the support of its posterior"):
        put_back(uniform_stack(), mean, scale, beyond)
