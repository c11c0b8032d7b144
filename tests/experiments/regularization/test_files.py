"""Rounded networks in a few bytes: they come back, at about the ideal length."""

import jax
import numpy as np
import pytest

from jaxcomp import coding
from jaxcomp.decoder import FormatError
from jaxcomp.experiments.regularization.codes import FITTED, code_bits, fitted_prior, flat
from jaxcomp.experiments.regularization.files import read_rounded, write_rounded

RNG = np.random.default_rng(0)


def network(scale=0.1, zeros=0.0):
    kernel = RNG.normal(0, scale, (60, 50)) * (RNG.random((60, 50)) >= zeros)
    return {
        "hidden": {"bias": np.zeros(50, np.float32), "kernel": kernel.astype(np.float32)},
        "output": {"kernel": RNG.normal(3, scale, (50, 10)).astype(np.float32)},
        "none": np.zeros((0, 4), np.float32),
    }


@pytest.mark.parametrize("effort", ["fast", "best"])
@pytest.mark.parametrize("exponent", [1, 8, 16])
def test_the_rounded_network_comes_back(exponent, effort):
    params = network()
    found = read_rounded(write_rounded(params, exponent, effort=effort), params)
    expected = coding.quantize(params, step=2.0**-exponent)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("zeros", "exponent"), [(0.0, 4), (0.0, 7), (0.9, 6)])
def test_it_is_as_long_as_the_best_fitted_code_ideally(zeros, exponent):
    weights = network(zeros=zeros)["hidden"]
    step = 2.0**-exponent
    vector = flat(weights)
    ideal = min(code_bits(vector, fitted_prior(vector, name, step), step) for name in FITTED)
    size = 8 * len(write_rounded(weights, exponent))
    # Three numbers follow the weights as well as a fitted law; a table those with a spike.
    assert 0.98 * ideal < size < 1.01 * ideal + 200


def test_contexts_shorten_what_has_dead_rows():
    rows = RNG.normal(0, 0.1, (60, 50)) * (RNG.random((60, 1)) < 0.3)
    params = {"a": rows.astype(np.float32), "b": np.full(3, 0.25, np.float32)}
    fast, best = (write_rounded(params, 5, effort=effort) for effort in ("fast", "best"))
    assert len(best) < 0.9 * len(fast)
    np.testing.assert_array_equal(read_rounded(best, params)["b"], params["b"])


def test_a_damaged_or_foreign_file_is_told():
    params = network()
    data = write_rounded(params, 6)
    for bad in (b"", data[:-3], data + b"\1", data[:1000] + b"\0" + data[1001:]):
        try:
            found = read_rounded(bad, params)
        except FormatError:
            continue
        # Without a checksum the numbers may be others, but never the same ones.
        assert not np.array_equal(found["hidden"]["kernel"], read_rounded(data, params))
    with pytest.raises(FormatError):
        read_rounded(data, {"a": np.zeros(7, np.float32)})
