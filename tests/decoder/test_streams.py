"""Integer tables by formulas of another origin, and streams that declare what they cannot hold."""

import math

import numpy as np
import pytest
from decoder_oracles import pushed

from jaxcomp.decoder import FormatError
from jaxcomp.decoder import streams as decoder
from jaxcomp.decoder.streams import Stack, parametric, power, symbols, whole_frequencies


def test_powers_are_those_of_two():
    lengths = np.arange(0, 64 * 256)
    exact = [math.ldexp(2.0 ** (-(int(n) % 256) / 256), 38 - int(n) // 256) for n in lengths]
    np.testing.assert_allclose(power(lengths)[:-256], np.floor(exact)[:-256], atol=1)
    assert power(np.asarray([10**9]))[0] == power(np.asarray([63 * 256 - 1]))[0]


def test_logistic_and_its_inverse():
    odds = np.arange(-3071, 3072)
    exact = 2**16 / (1 + 2.0 ** (-odds / 256))
    np.testing.assert_allclose(decoder._CHANCE, np.clip(exact, 16, 65520), atol=1)
    for q in (0, 1, 100, 2048, 4000, 4095):
        least = next((x for x in odds if decoder._CHANCE[x + 3071] >= 16 * q + 8), 3071)
        assert decoder._ODDS[q] == least


def test_levels_are_half_octaves():
    def level(n):
        if n < 2:
            return 2 * n
        digits = f"{n:b}"
        return min(2 * len(digits) - 1 + int(digits[1]), 15)

    assert decoder._LEVEL.tolist() == [level(n) for n in range(4096)]


@pytest.mark.parametrize("weights", [[1], [1, 1], [3, 1, 1 << 25], [1 << 38] * 3, [1] * 65_536])
def test_whole_frequencies(weights):
    found = whole_frequencies(np.asarray(weights, np.int64))
    assert found.sum() == 1 << 24
    assert found.min() >= 1
    exact = np.asarray(weights) / sum(weights) * (1 << 24)
    assert np.abs(found - exact).max() <= len(weights) + 2


def test_parametric_frequencies_are_laws():
    d = np.abs(np.arange(41) - 20.0)
    for linear, square, peak in ((1 << 11, 0, 0), (0, 1 << 15, 0), (1 << 10, 1 << 12, 24)):
        law = 2.0 ** -(linear * d / 4096 + square * d**2 / 2**20 - peak / 16 * (d == 0))
        found = parametric(41, 20, linear, square, peak) / 2**24
        np.testing.assert_allclose(found, law / law.sum(), rtol=0.02, atol=1e-6)


def test_largest_numbers_do_not_overflow():
    found = parametric(1 << 16, 0, 1 << 26, 1 << 26, -128)
    assert found.min() >= 1
    assert found.sum() == 1 << 24


@pytest.mark.parametrize(
    ("data", "size", "count", "message"),
    [
        (b"\1\0", 4, 3, "a stream ends in a zero byte"),
        (b"", 256, 10_000, "more numbers than its bytes can hold"),
        (b"", 256, 1 << 41, "more numbers than the limit"),
        (pushed((0, 2), (7, 3), (6, 3)), 6, 2, "a symbol is not of its alphabet"),
        (pushed((2, 2), (7, 4)), 6, 2, "a centre is not among its symbols"),
        (pushed((3, 2), (1, 4), (0, 4)), 6, 2, "its contexts are wrong"),
        (pushed((3, 2), (1, 4), (1, 4)), 1000, 2, "its contexts are wrong"),
        (pushed((3, 2), (1, 4), (1, 4), (1, 1)), 6, 5, "its rows are not whole"),
        (pushed((2, 2), *[(15, 4)] * 21, (1, 1)), 6, 5, "a number has no end"),
        (pushed((1, 2), (0, 8)), 6, 5, "a table of frequencies is wrong"),
        (pushed((1, 2), (255, 8), *[(1, 1)] * 400), 6, 5, "a table of frequencies is wrong"),
    ],
)  # fmt: skip
def test_wrong_streams(data, size, count, message):
    with pytest.raises(FormatError, match=message):
        symbols(Stack(data, 1 << 30), size, count, 4)


def test_what_is_left_over_is_refused():
    stack = Stack(pushed((1, 2), (3, 4)), 100)
    assert stack.small(2) == 1
    with pytest.raises(FormatError, match="does not end where its numbers do"):
        stack.finish()


def test_without_constriction_a_sentence_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ImportError, match=r"install jaxcomp\[coding\]"):
        Stack(b"", 1)
