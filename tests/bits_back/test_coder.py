import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from bits_back_problems import learned, payload, random_posterior

from jaxcomp import bits_back
from jaxcomp.bits_back import KnownPosterior, Labels, Posterior
from jaxcomp.coding import Gaussian, Laplace

PRIOR = Gaussian(0.15)
LN2 = np.log(2)


@hypothesis.settings(max_examples=120)
@hypothesis.given(
    weights=st.lists(
        # At the finest step below, a scale of 2^6 is too wide for the coder, and refused.
        st.tuples(st.floats(-3, 3, width=32), st.floats(-12, 5)),
        min_size=1,
        max_size=12,
    ),
    words=st.lists(st.sampled_from([0, 1, 2**32 - 1, 0xDEADBEEF, 12345]), max_size=6),
    log_step=st.integers(-14, 3),
    prior=st.sampled_from([Gaussian(0.5), Laplace(0.1), Gaussian(1e-3)]),
)
def test_weights_and_payload_come_back_bit_for_bit(weights, words, log_step, prior):
    posterior = Posterior(
        np.float32([mean for mean, _ in weights]), np.float32([2.0**s for _, s in weights])
    )
    content = np.concatenate([np.asarray(words, np.uint32), payload(24)])[:: (-1) ** len(words)]
    message = bits_back.encode(posterior, prior, content, step=2.0**log_step)
    decoded = bits_back.decode(message, KnownPosterior(posterior, prior))
    np.testing.assert_array_equal(decoded.payload, content)
    assert decoded.labels is None
    np.testing.assert_array_equal(decoded.weights / 2.0**log_step % 1, 0)
    again = bits_back.decode(message.words, KnownPosterior(posterior, prior))
    np.testing.assert_array_equal(again.weights, decoded.weights)


def test_net_of_a_draw_is_its_log_ratio():
    posterior = random_posterior(10_000)
    for step in (0.2, 0.02, 2e-4):
        message = bits_back.encode(posterior, PRIOR, payload(8000), step=step)
        weights = bits_back.decode(message, KnownPosterior(posterior, PRIOR)).weights
        ratio = bits_back.log_ratio_bits(posterior, PRIOR, weights, step=step)
        # Two words of the coder.
        assert message.num_net_bits == pytest.approx(ratio, abs=64)
        assert message.num_net_bits == message.num_gross_bits - message.num_initial_bits
        size = 32 * len(message.words) - message.num_frame_bits - 32 * 8000
        assert message.num_net_bits <= size <= message.num_net_bits + 64


def test_mean_net_is_the_discretized_divergence():
    posterior = random_posterior(1000)
    for step in (0.1, 0.01):
        nets = np.array(
            [
                bits_back.encode(posterior, PRIOR, payload(1000, seed), step=step).num_net_bits
                for seed in range(60)
            ]
        )
        expected = bits_back.discretized_kl(posterior, PRIOR, step=step).kl_nats / LN2
        standard_error = np.std(nets, ddof=1) / np.sqrt(len(nets))
        assert abs(np.mean(nets) - expected) < 4 * standard_error + 1
        assert standard_error < 0.01 * expected


def test_report_over_three_orders_of_magnitude():
    posterior, num = random_posterior(3000), 3000
    steps = 0.1 * 4.0 ** -np.arange(6)
    found = bits_back.report(posterior, PRIOR, payload(8000), steps=steps)
    limit = found.kl_nats[0] / LN2
    # Fine steps: within 1 % of KL(q || p), from below, and flat.
    fine = found.discretized_kl_nats[2:] / LN2
    assert np.all((0.99 * limit < fine) & (fine < limit))
    deviation = 1.5 * np.sqrt(num)  # of one draw's log-ratio, about 1 bit per weight
    assert np.all(np.abs(found.net_bits[2:] - limit) < 4 * deviation)
    # Gross and refund grow by two bits per weight where the step is quartered.
    for part in (found.gross_bits, found.refund_bits):
        np.testing.assert_allclose(np.diff(part)[2:] / num, 2, atol=8 * deviation / num)
    # Coarse steps cost less than the density says.
    assert found.net_bits[0] < 0.9 * limit
    np.testing.assert_array_equal(found.net_bits, found.gross_bits - found.refund_bits)


def test_any_payload_draws_from_the_posterior():
    posterior = random_posterior(4000)
    for content in (np.zeros(3000, np.uint32), np.full(3000, 2**32 - 1, np.uint32)):
        message = bits_back.encode(posterior, PRIOR, content, step=0.001)
        decoded = bits_back.decode(message, KnownPosterior(posterior, PRIOR))
        np.testing.assert_array_equal(decoded.payload, content)
        z = (decoded.weights - posterior.mean) / posterior.scale
        assert abs(np.mean(z)) < 4 / np.sqrt(4000)
        assert np.std(z) == pytest.approx(1, abs=4 / np.sqrt(8000))


def test_a_payload_too_short_is_refused_and_enough_is_enough():
    posterior = random_posterior(2000)
    needed = bits_back.payload_bits(posterior, step=0.01)
    entropy = bits_back.discretized_kl(posterior, PRIOR, step=0.01).entropy_bits
    assert entropy < needed < 1.1 * entropy
    for seed in range(5):
        enough = payload(-(-needed // 32), seed)
        message = bits_back.encode(posterior, PRIOR, enough, step=0.01)
        assert message.num_initial_bits < needed
        short = enough[: int(0.9 * entropy / 32)]
        before = short.copy()
        expected = f"payload must hold about {needed} bits to draw these 2000 weights"
        with pytest.raises(ValueError, match=f"{expected}, got {32 * len(short)}"):
            bits_back.encode(posterior, PRIOR, short, step=0.01)
        np.testing.assert_array_equal(short, before)
    with pytest.raises(ValueError, match="payload must hold about"):
        bits_back.encode(posterior, PRIOR, np.zeros(0, np.uint32), step=0.01)


@pytest.mark.slow
def test_drawn_weights_have_the_loss_of_the_posterior():
    code, labels, fitted = learned()
    batch = code.inputs, labels
    elbo = bits_back.negative_elbo(code.loss_fn, fitted, batch, jax.random.key(1), num_samples=64)
    losses = []
    for seed in range(16):
        message = bits_back.encode(fitted.posterior, fitted.prior, payload(2000, seed), step=1e-4)
        weights = bits_back.decode(message, KnownPosterior(fitted.posterior, fitted.prior)).weights
        losses.append(len(labels) * float(code.loss_fn(weights, batch)))
    standard_error = np.hypot(np.std(losses, ddof=1) / 4, float(elbo.standard_error))
    assert abs(np.mean(losses) - float(elbo.loss)) < 4 * standard_error


def test_labels_travel_with_the_weights():
    rng = np.random.default_rng(0)
    posterior = Posterior(
        rng.normal(size=(5, 3)).astype(np.float32), np.full((5, 3), 0.1, np.float32)
    )
    inputs, values = rng.normal(size=(200, 5)), rng.integers(0, 3, 200)

    def logits_fn(weights):
        return inputs @ weights

    plain = bits_back.encode(posterior, PRIOR, payload(50), step=0.01)
    message = bits_back.encode(
        posterior, PRIOR, payload(50), step=0.01, labels=Labels(values, logits_fn)
    )
    decoded = bits_back.decode(message, KnownPosterior(posterior, PRIOR, logits_fn))
    np.testing.assert_array_equal(decoded.labels, values)
    np.testing.assert_array_equal(decoded.payload, payload(50))
    logits = logits_fn(decoded.weights)
    log_sums = np.log(np.exp(logits).sum(axis=1))
    cross_entropy = np.sum(log_sums - logits[np.arange(200), values]) / LN2
    assert message.num_net_bits - plain.num_net_bits == pytest.approx(cross_entropy, abs=4)
    with pytest.raises(ValueError, match="give the receiver a logits_fn"):
        bits_back.decode(message, KnownPosterior(posterior, PRIOR))


def test_damage_or_another_receiver_is_an_error():
    posterior = random_posterior(300)
    message = bits_back.encode(posterior, PRIOR, payload(200), step=0.01)
    receiver = KnownPosterior(posterior, PRIOR)
    rng = np.random.default_rng(0)
    for place in range(0, len(message.words), 5):
        damaged = message.words.copy()
        damaged[place] ^= np.uint32(1 << rng.integers(32))
        with pytest.raises(ValueError, match=r"cut or altered|another stream"):
            bits_back.decode(damaged, receiver)
    for length in (0, 1, 5, len(message.words) - 1):
        with pytest.raises(ValueError, match=r"cut or altered|another stream"):
            bits_back.decode(message.words[:length], receiver)
    others = [
        KnownPosterior(Posterior(posterior.mean * 2, posterior.scale), PRIOR),
        KnownPosterior(Posterior(posterior.mean, 1.01 * posterior.scale), PRIOR),
        KnownPosterior(posterior, Gaussian(0.2)),
    ]
    for other in others:
        with pytest.raises(ValueError, match="The payload does not come back"):
            bits_back.decode(message, other)


P = random_posterior(4)
ENOUGH = payload(20)


@pytest.mark.parametrize("num_bytes", [65_535, 65_536, 70_000])
def test_side_information_of_any_length(num_bytes):
    query, content = random_posterior(9), payload(20)
    message = bits_back.encode(query, Gaussian(0.1), content, step=0.01, side=bytes(num_bytes))
    decoded = bits_back.decode(message, bits_back.KnownPosterior(query, Gaussian(0.1)))
    np.testing.assert_array_equal(decoded.payload, content)


@pytest.mark.parametrize(
    "query",
    [
        bits_back.Posterior({}, {}),
        bits_back.Posterior(0.1, 0.2),
        bits_back.Posterior(np.float32(0.1), np.float32(0.2)),
        bits_back.Posterior(
            {"a": np.zeros((0, 3)), "b": np.ones(1)}, {"a": np.zeros((0, 3)), "b": np.ones(1)}
        ),
        # On the edge of two cells, all but without spread.
        bits_back.Posterior(np.array([0.15, -0.05]), np.full(2, 1e-300)),
        bits_back.Posterior(np.float32([1e-42]), np.float32([1e-42])),
    ],
)
def test_trees_of_all_kinds_come_back(query):
    content = payload(20)
    message = bits_back.encode(query, Gaussian(0.3), content, step=0.1)
    decoded = bits_back.decode(message, bits_back.KnownPosterior(query, Gaussian(0.3)))
    np.testing.assert_array_equal(decoded.payload, content)
    assert jax.tree.map(np.shape, decoded.weights) == jax.tree.map(np.shape, query.mean)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: bits_back.encode(P, PRIOR, ENOUGH, step=0.0),
            ValueError,
            "step must be positive and finite, got 0",
        ),
        (
            lambda: bits_back.encode(P, PRIOR, ENOUGH, step=1e-12),
            ValueError,
            "step must be at least the largest",
        ),
        (
            lambda: bits_back.encode(P, PRIOR, ENOUGH.astype(float), step=0.1),
            ValueError,
            "one axis of uint32",
        ),
        (
            lambda: bits_back.encode(P, Gaussian(0.0), ENOUGH, step=0.1),
            ValueError,
            "scale must be positive",
        ),
        (
            lambda: bits_back.encode(Posterior(P.mean, 0 * P.scale), PRIOR, ENOUGH, step=0.1),
            ValueError,
            "scale of a posterior must be positive",
        ),
        (
            lambda: bits_back.encode(
                P, PRIOR, ENOUGH, step=0.1, labels=Labels([0.5], lambda w: np.zeros((1, 2)))
            ),
            TypeError,
            "labels must be integers",
        ),
        (
            lambda: bits_back.encode(
                P, PRIOR, ENOUGH, step=0.1, labels=Labels([0, 1], lambda w: np.zeros((1, 2)))
            ),
            ValueError,
            "one for each row of the logits",
        ),
        (
            lambda: bits_back.encode(
                P, PRIOR, ENOUGH, step=0.1, labels=Labels([2], lambda w: np.zeros((1, 2)))
            ),
            ValueError,
            "labels must lie between 0 and 1, got 2",
        ),
        (
            lambda: bits_back.encode(
                P, PRIOR, ENOUGH, step=0.1, labels=Labels([1], lambda w: np.full((1, 2), np.nan))
            ),
            ValueError,
            "logits must be finite",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
