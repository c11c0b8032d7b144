"""Streams of symbols come back whole, by the decoder and by a plain one, and are short."""

import numpy as np
import pytest
from decoder_oracles import PlainStack
from tree_problems import entropy

from jaxcomp.coding import streams
from jaxcomp.coding.streams import StackWriter, _by_contexts, write_symbols
from jaxcomp.decoder.streams import Stack, symbols


def gaussian_codes(shape, size, deviation, seed=0):
    rng = np.random.default_rng(seed)
    codes = np.round(rng.normal(0, deviation, shape)) + size // 2
    return np.clip(codes, 0, size - 1).astype(np.int64)


def rows_of_two_kinds():
    """Every other row is nearly zero, and a quarter of the rows all zero."""
    codes = gaussian_codes((64, 300), 32, 4.0)
    codes[::2] = gaussian_codes((32, 300), 32, 0.4, seed=1)
    codes[40:56] = 16
    return codes


CASES = {
    "nothing": (np.zeros(0, np.int64), 7),
    "one": (np.asarray([4]), 7),
    "alphabet of one": (np.zeros(9, np.int64), 1),
    "all alike": (np.full(1000, 3), 7),
    "any bytes": (np.random.default_rng(0).integers(0, 256, 3000), 256),
    "more than a chunk": (np.arange(70_000) % 600, 600),
    "gaussian": (gaussian_codes(4000, 33, 3.0), 33),
    "sparse": ((np.random.default_rng(1).random((90, 50)) < 0.02).astype(np.int64), 2),
    "wide alphabet": (gaussian_codes(300, 1000, 90.0), 1000),
    "wider than 16 bits": (np.asarray([0, 65_535, 65_536, 99_999, 3]), 100_000),
    "rows": (rows_of_two_kinds(), 32),
}


def written(values, size, effort="best"):
    writer = StackWriter()
    columns = values.shape[-1] if values.ndim > 1 else 256
    write_symbols(writer, values.reshape(-1), size, columns, effort)
    return writer, writer.to_bytes(), columns


@pytest.mark.parametrize("effort", ["fast", "best"])
@pytest.mark.parametrize("name", CASES)
def test_symbols_come_back(name, effort):
    values, size = CASES[name]
    writer, data, columns = written(values, size, effort)
    for kind in (Stack, PlainStack):
        if kind is PlainStack and values.size > 5000:
            continue
        stack = kind(data, 1 << 20)
        found = symbols(stack, size, values.size, columns)
        stack.finish()
        np.testing.assert_array_equal(found, values.reshape(-1))
    assert 8 * len(data) <= writer.size_bits + 31 + 1e-3 * values.size
    assert not data.endswith(b"\0")


@pytest.mark.parametrize(
    ("code", "name"),
    [("p", "any bytes"), ("t", "gaussian"), ("d", "wide alphabet"), ("c", "rows")],
)
def test_the_shortest_code_is_taken(code, name):
    writer, _, _ = written(*CASES[name])
    assert set(writer.bits_by_code) == {code}


def test_a_table_costs_little_above_the_entropy():
    rng = np.random.default_rng(2)
    for size, share in ((6, 0.3), (40, 0.05), (256, 0.01)):
        codes = np.minimum(rng.geometric(share, 50_000), size) - 1
        codes = rng.permutation(size)[codes]
        _, data, _ = written(codes, size, "fast")
        ideal = entropy(codes) * len(codes) / 8
        assert ideal - 1 < len(data) < ideal + 1.2 * size + 20


@pytest.mark.parametrize("size", [1, 2, 40, 9000])
def test_a_table_has_the_precision_that_is_shortest_when_written(size):
    counts = np.random.default_rng(size).geometric(1e-3, size) - 1
    counts[0] = 5
    used = np.flatnonzero(counts)
    heads = []
    for precision, (bits, frequencies) in enumerate(streams._tables(counts, used)):
        head = streams.StackWriter()
        streams._write_table(head, counts, precision)
        assert bits == pytest.approx(head.size_bits)
        heads.append(head.size_bits + streams.table_bits(counts[used], frequencies))
    head, _, frequencies = streams.table_head(counts)
    assert head.size_bits + streams.table_bits(counts[used], frequencies) == min(heads)


@pytest.mark.parametrize("law", ["gaussian", "laplace", "spike"])
def test_three_numbers_say_as_much_as_a_table_of_a_small_tensor(law):
    rng = np.random.default_rng(3)
    draw = {
        "gaussian": rng.normal(0, 12, 400),
        "laplace": rng.laplace(0, 12, 400),
        "spike": rng.laplace(0, 12, 400) * (rng.random(400) < 0.5),
    }[law]
    codes = np.clip(np.round(draw), -127, 127).astype(np.int64) + 128
    writer, data, _ = written(codes, 256, "fast")
    assert set(writer.bits_by_code) == {"d"}
    # The entropy of so few symbols is less than that of the law: they overfit it.
    assert len(data) < (entropy(codes) + 0.45) * len(codes) / 8


def test_contexts_learn_what_rows_are_like():
    codes = rows_of_two_kinds()
    _, data, _ = written(codes, 32)
    halves = [entropy(codes[1::2]) * codes[1::2].size, entropy(codes[::2]) * codes[::2].size]
    assert len(data) < 0.8 * entropy(codes) * codes.size / 8
    assert len(data) < 1.03 * sum(halves) / 8


def test_columns_are_as_good_as_rows():
    codes = rows_of_two_kinds()
    sizes = [len(written(turned, 32)[1]) for turned in (codes, np.ascontiguousarray(codes.T))]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.002)


def test_zero_rows_cost_next_to_nothing():
    few = np.zeros((1000, 256), np.int64)
    few[:10] = gaussian_codes((10, 256), 16, 2.0) - 8
    sizes = [_by_contexts(0, 256, rows.reshape(-1), 8, 8, 2).size_bits for rows in (few[:10], few)]
    assert sizes[1] < sizes[0] + 16


@pytest.mark.parametrize("mask", [1, 2, 4, 8, 5, 15])
def test_every_mixture_of_models_comes_back(mask):
    codes = rows_of_two_kinds()[:20, :90]
    signed = codes.reshape(-1) - 16
    data = _by_contexts(0, 90, signed, 16, 16, mask).to_bytes()
    stack = Stack(data, 1 << 20)
    np.testing.assert_array_equal(symbols(stack, 32, codes.size, 90), codes.reshape(-1))


def test_mixing_is_better_than_any_of_its_models():
    rng = np.random.default_rng(4)
    deviations = np.exp(rng.normal(0, 0.7, (60, 1)) + rng.normal(0, 0.7, (1, 300)))
    codes = np.round(rng.normal(0, deviations)).astype(np.int64).reshape(-1)
    codes = np.clip(codes, -31, 31)
    sizes = {m: _by_contexts(0, 300, codes, 31, 31, m).size_bits for m in (1, 2, 4, 8, 15)}
    assert sizes[15] < min(sizes[m] for m in (1, 2, 4, 8))


@pytest.mark.parametrize("name", CASES)
def test_the_length_is_known_without_the_coder(name, monkeypatch):
    writer, data, _ = written(*CASES[name])
    assert writer.num_bytes() == len(data)

    def missing():
        raise ImportError

    monkeypatch.setattr("jaxcomp.coding.streams.coders", missing)
    assert len(data) <= writer.num_bytes() <= len(data) + 4
