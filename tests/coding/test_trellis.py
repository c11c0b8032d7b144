"""Integers on paths come back whole, by the decoder and by a plain one, and are short."""

import numpy as np
import pytest
from decoder_oracles import PlainStack, pushed
from file_problems import path_of_numbers

from jaxcomp.coding.sizes import trellis_size
from jaxcomp.coding.streams import StackWriter, table_head
from jaxcomp.coding.trellis import in_order, path_of, symbol_counts, trellis_stream
from jaxcomp.decoder import FormatError
from jaxcomp.decoder.arrays import ordered
from jaxcomp.decoder.streams import Stack, advance, trellis


def numbers(shape, deviation=2.0, seed=0):
    """Numbers whose rows have spreads of their own."""
    rng = np.random.default_rng(seed)
    spread = deviation * np.exp(rng.normal(0, 0.8, (shape[0], 1)))
    return np.round(rng.normal(0, spread, shape)).astype(np.int64).reshape(-1)


def integers(rows, columns, order=1, **options):
    """Integers of a matrix that obey a trellis, row by row."""
    own = numbers((rows, columns), **options)
    if order == 1:
        return path_of_numbers(own, columns)
    turned = path_of_numbers(own.reshape(rows, columns).T.reshape(-1), rows)
    return turned.reshape(columns, rows).T.reshape(-1)


def test_states_follow_one_by_one():
    found = integers(48, 20).reshape(-1, 240)
    states = np.zeros(240, np.int64)
    for row in found:
        np.testing.assert_array_equal(row & 1, states[: len(row)] & 1)
        states = np.asarray([advance(*pair) for pair in zip(states.tolist(), row, strict=True)])


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("effort", ["fast", "best"])
@pytest.mark.parametrize("shape", [(60, 33), (5, 300), (1, 256), (700, 1)])
def test_integers_come_back(shape, effort, order):
    values = integers(*shape, order)
    most = int(np.abs(values).max())
    writer = trellis_stream(values, most, shape[1], order, effort)
    data = writer.to_bytes()
    for kind in (Stack, PlainStack):
        stack = kind(data, 1 << 20)
        found = ordered(stack, most, values.size, shape[1], order)
        stack.finish()
        np.testing.assert_array_equal(found, values)
    assert 8 * len(data) <= writer.size_bits + 31 + 1e-3 * values.size


def test_tables_cost_little_above_the_entropy_given_the_parity():
    values = integers(300, 256)
    counts = symbol_counts(values)
    size = trellis_size(counts, num_scales=0)
    ideal, bits = 0.0, trellis_stream(values, 1000, 256, 1).size_bits
    for parity in range(2):
        _, own = np.unique(values[values & 1 == parity], return_counts=True)
        ideal -= np.sum(own * np.log2(own / own.sum()))
    assert size.entropy_bits == pytest.approx(ideal)
    assert ideal < bits < ideal + 1.3 * size.codebook_bits
    assert ideal < size.description_bits < 1.01 * bits


def test_contexts_learn_what_each_row_is_like_column_by_column():
    values = integers(200, 300, order=2, deviation=3.0)
    fast, best = (trellis_stream(values, 200, 300, 2, effort) for effort in ("fast", "best"))
    assert set(best.bits_by_code) == {"c"}
    assert best.size_bits < 0.93 * fast.size_bits


def test_counts_are_in_the_order_of_magnitudes():
    assert symbol_counts(np.asarray([0, 1, 1, -2, 2, 2, 2, 0])).tolist() == [2, 2, 0, 3, 1, 0, 0]


@pytest.mark.parametrize("value", [1, -7, 2])
def test_integers_off_the_path_are_found(value):
    values = integers(60, 33)
    values[500] += value
    width = in_order(values, 33, 1)[1]
    assert path_of(integers(60, 33), width) is not None
    assert path_of(values, width) is None
    assert trellis_stream(values, 100, 33, 1) is None


def test_what_is_nearly_nothing_is_left_to_other_codes():
    assert trellis_stream(np.zeros(0, np.int64), 3, 5, 2) is None
    for most in (0, 3):
        assert trellis_stream(np.zeros(10_000, np.int64), most, 100, 1) is None


def two_tables(*symbols, odd=(1, 0, 1)):
    """A stream of one row of numbers by tables of -1, 0 and 1, how often they are odd as given."""
    writer = StackWriter()
    writer.small(0, 1)
    head, _, frequencies = table_head(np.ones(3, np.int64))
    writer.append(head)
    writer.append(table_head(np.asarray(odd))[0])
    writer.of_table(np.asarray(symbols), frequencies)
    return writer.to_bytes()


@pytest.mark.parametrize(
    ("data", "most", "count", "message"),
    [
        (b"", 3, 1 << 41, "more numbers than the limit"),
        (b"", 3, 1 << 25, "more numbers than its bytes can hold"),
        (pushed((1, 1), (0, 4)), 3, 2, "its contexts are wrong"),
        (pushed((1, 1), (1, 4)), 3000, 2, "its contexts are wrong"),
        (pushed((0, 1), (0, 8)), 3, 5, "a table of frequencies is wrong"),
        (two_tables(2, 2, 2), 1, 3, "an integer is not of its alphabet"),
        (two_tables(2, 2, 2, odd=(1, 1, 1)), 2, 3, "a table is wrong"),
    ],
)  # fmt: skip
def test_wrong_streams(data, most, count, message):
    with pytest.raises(FormatError, match=message):
        trellis(Stack(data, 1 << 30), most, count, 4)
