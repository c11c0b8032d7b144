"""Codes of networks: lengths against scipy, streams that decode, descriptions by brute force."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxcomp import bounds, coding
from jaxcomp.experiments.regularization import codes, measure_codes
from jaxcomp.experiments.regularization.config import Variant
from jaxcomp.experiments.regularization.files import write_rounded

RNG = np.random.default_rng(0)
DENSE = {"a": RNG.normal(0, 0.1, (60, 50)).astype(np.float32)}
SPARSE = {"a": np.where(RNG.random((60, 50)) < 0.9, 0, DENSE["a"]).astype(np.float32)}
STEP = 1 / 64


def test_lengths_and_streams():
    variant = Variant("l2", 0.05)
    found = measure_codes(DENSE, variant, num_examples=400, step=STEP)
    rounded = np.rint(DENSE["a"] / STEP) * STEP
    for name, scale in (("implied", (400 * 0.05) ** -0.5), ("gaussian", None)):
        scale = scale or float(np.sqrt(np.mean(DENSE["a"].astype(float) ** 2)))
        law = stats.norm(0, scale)
        mass = law.cdf(rounded + STEP / 2) - law.cdf(rounded - STEP / 2)
        parameters = 0 if name == "implied" else 32
        assert found.bits[name] == pytest.approx(-np.log2(mass).sum() + parameters, rel=1e-4)
        # Within 1 % and a constant: header, checksums, step, words of the coder.
        assert found.size_bytes[name] == pytest.approx(found.bits[name] / 8, rel=0.01, abs=40)


@pytest.mark.parametrize("step", [0.01, 0.001, 1e-4, 0.3, 100.0])
def test_streams_decode_at_steps_that_are_no_powers_of_two(step):
    # Next to the middle between multiples, as networks of some ten thousand weights have some.
    middle = np.float32((np.arange(-40, 40) + 0.5) * step)
    near = [np.nextafter(middle, np.float32(end)) for end in (-np.inf, np.inf)]
    tree = {"w": np.concatenate([[np.float32(0.114999995)], middle, *near])}
    found = measure_codes(tree, Variant("l2", 0.001), num_examples=600, step=step)
    assert all(size > 0 for size in found.size_bytes.values())


def test_zeros_shorten_a_stream_only_where_there_are_any():
    dense = measure_codes(DENSE, Variant("none"), num_examples=400, step=STEP)
    sparse = measure_codes(SPARSE, Variant("l1", 1e-3), num_examples=400, step=STEP)
    assert math.isnan(dense.bits["implied"])
    assert math.isnan(dense.size_bytes["implied"])
    assert dense.bits["spike"] == pytest.approx(dense.bits["gaussian"], rel=0.01)
    assert sparse.bits["spike"] < 0.5 * min(sparse.bits["gaussian"], sparse.bits["laplace"])
    assert sparse.size_bytes["spike"] < 0.5 * sparse.size_bytes["gaussian"]


def test_implied_priors():
    assert float(codes.implied_prior(Variant("l2", 0.01), 100).scale) == pytest.approx(1.0)
    assert float(codes.implied_prior(Variant("l1", 0.01), 100).scale) == pytest.approx(1.0)
    assert codes.implied_prior(Variant("early stopping"), 100) is None


@pytest.mark.parametrize("name", codes.FITTED)
def test_weights_that_are_all_zero_cost_next_to_nothing(name):
    weights = np.zeros(2000, np.float32)
    bits = codes.code_bits(weights, codes.fitted_prior(weights, name, 0.1), 0.1)
    assert 0 <= bits < 2 * len(weights)
    if name == "spike":
        assert bits < 2


def test_the_shortest_description_is_the_least_sum():
    steps = 2.0 ** -np.arange(1, 5)
    weight_bits = RNG.uniform(100, 900, (3, 4))
    label_bits = RNG.uniform(10, 300, 4)
    found = codes.shortest_description(weight_bits, label_bits, steps)
    sums = {
        (name, step): weight_bits[f, t] + label_bits[t] + math.log2(12)
        for f, name in enumerate(codes.FITTED)
        for t, step in enumerate(steps)
    }
    assert found.bits == pytest.approx(min(sums.values()))
    assert (found.code, found.step) == min(sums, key=sums.__getitem__)
    assert found.bits == pytest.approx(found.weight_bits + found.label_bits)
    broken = np.where(np.arange(4) == int(-math.log2(found.step)) - 1, np.nan, label_bits)
    assert codes.shortest_description(weight_bits, broken, steps).bits > found.bits


def test_the_certificate_counts_the_bytes_of_the_file():
    errors, steps = np.array([0.6, 0.05, 0.02, 0.0]), 2.0 ** -np.arange(1, 5)
    ideal = codes.fitted_bits(codes.flat(SPARSE), steps)
    found = codes.certificate(SPARSE, errors, ideal, num_examples=2000, delta=0.05)
    wanted = []
    for place, error in enumerate(errors):
        size = len(write_rounded(SPARSE, place + 1, effort="best"))
        bits = 8 * size + np.log2(size) + np.log2(size + 1)
        wanted.append(float(bounds.occam(error, bits, num_examples=2000, delta=0.05)))
    best = int(np.argmin(wanted))
    assert found.bound == pytest.approx(wanted[best], rel=1e-6)
    assert max(wanted) > found.bound
    assert found.step == steps[best]
    assert found.size_bytes == len(write_rounded(SPARSE, best + 1, effort="best"))
    assert found.ideal_bytes == ideal[:, best].min() / 8


def test_a_file_that_decodes_to_another_network_certifies_nothing(monkeypatch):
    monkeypatch.setattr(codes, "read_rounded", lambda data, like: {"a": 2 * like["a"]})
    with pytest.raises(RuntimeError, match="does not decode to it"):
        codes.certificate(SPARSE, np.zeros(1), np.ones((1, 1)), num_examples=9, delta=0.05)


def test_fitted_bits_charge_the_prior():
    weights = codes.flat(SPARSE)
    table = codes.fitted_bits(weights, np.array([0.1]))
    prior = coding.fit(weights, coding.Laplace)
    expected = np.asarray(coding.code_length_bits(weights, prior, step=0.1)).sum() + 32
    assert table[list(codes.FITTED).index("laplace"), 0] == pytest.approx(expected, rel=1e-5)
