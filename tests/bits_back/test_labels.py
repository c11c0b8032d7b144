import jax
import numpy as np
import pytest
from bits_back_problems import init_network, learned, payload, predict
from scipy.special import gammaln

from jaxcomp import bits_back
from jaxcomp.bits_back import LabelCode, Relearner


def test_a_receiver_with_inputs_and_seed_gets_labels_and_payload():
    code, labels, fitted = learned()
    content = payload(1000)
    message = bits_back.send_labels(code, labels, content, fitted=fitted)
    # A receiver of its own, made from what both ends agree on and nothing else.
    receiver = Relearner(
        LabelCode(code.inputs, predict, init_network, code.config, code.seed, code.step)
    )
    decoded = bits_back.decode(message.words, receiver)
    np.testing.assert_array_equal(decoded.labels, labels)
    np.testing.assert_array_equal(decoded.payload, content)
    # Far shorter than the uniform code, frame included.
    assert message.num_net_bits + message.num_frame_bits < 0.75 * len(labels) * np.log2(10)


@pytest.mark.slow
def test_total_is_the_negative_evidence_bound():
    code, labels, fitted = learned()
    elbo = bits_back.negative_elbo(
        code.loss_fn, fitted, (code.inputs, labels), jax.random.key(7), num_samples=4096
    )
    nets = np.array(
        [
            bits_back.send_labels(code, labels, payload(1000, seed), fitted=fitted).num_net_bits
            for seed in range(1100)
        ]
    )
    expected = float(elbo.total) / np.log(2)
    standard_error = np.hypot(
        np.std(nets, ddof=1) / np.sqrt(len(nets)), float(elbo.standard_error) / np.log(2)
    )
    # 4 bytes say the prior, the stack rounds to a bit. One per cent is three standard errors.
    assert standard_error < 0.01 / 3 * expected
    assert np.mean(nets) - 32 == pytest.approx(expected, rel=0.01)


def test_another_seed_is_an_error():
    code, labels, fitted = learned()
    message = bits_back.send_labels(code, labels, payload(1000), fitted=fitted)
    other = LabelCode(code.inputs, predict, init_network, code.config, seed=1)
    with pytest.raises(ValueError, match="The payload does not come back"):
        bits_back.decode(message, Relearner(other))


def test_prequential_code_in_closed_form():
    # A model that counts labels, with one pseudo-count each.
    labels = np.random.default_rng(0).choice(3, 60, p=[0.7, 0.2, 0.1])

    def logits_fn(num_known):
        counts = np.bincount(labels[:num_known], minlength=3) + 1.0
        return np.tile(np.log(counts), (60, 1))

    ends = list(range(1, 61))
    found = bits_back.prequential_bits(logits_fn, labels, num_classes=3, block_ends=ends)
    # Laplace's rule of succession, in any order: 2 n_1! n_2! n_3! / 62!.
    counts = np.bincount(labels, minlength=3)
    exact = (gammaln(63) - gammaln(3) - gammaln(counts + 1).sum()) / np.log(2)
    assert found == pytest.approx(exact, rel=1e-9)
    assert bits_back.prequential_bits(
        logits_fn, labels, num_classes=3, block_ends=[60]
    ) == pytest.approx(60 * np.log2(3))
    for ends in ([], [30], [30, 30, 60], [0, 60]):
        with pytest.raises(ValueError, match="block_ends must ascend from at least 1 to the 60"):
            bits_back.prequential_bits(logits_fn, labels, num_classes=3, block_ends=ends)


def test_bad_input():
    code, labels, fitted = learned()
    with pytest.raises(TypeError, match="labels must be integers, got float64"):
        bits_back.send_labels(code, labels.astype(float), payload(10), fitted=fitted)
    with pytest.raises(ValueError, match="labels must be one for each of 600 inputs"):
        bits_back.send_labels(code, labels[1:], payload(10), fitted=fitted)
    with pytest.raises(ValueError, match="payload must hold about"):
        bits_back.send_labels(code, labels, payload(10), fitted=fitted)
    message = bits_back.encode(
        fitted.posterior, fitted.prior, payload(1000), step=0.01, side=b"\x80" * 4
    )
    with pytest.raises(ValueError, match="holds no labels to learn the posterior from"):
        bits_back.decode(message, Relearner(code))
