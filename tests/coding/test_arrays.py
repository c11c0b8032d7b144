"""Arrays that are kept bit for bit: never longer than they were, and short where they can be."""

import ml_dtypes
import numpy as np
import pytest
from tree_problems import entropy

from jaxcomp.checkpoints.tensors import with_own_dtype
from jaxcomp.coding.arrays import write_numbers, write_parts
from jaxcomp.coding.streams import StackWriter
from jaxcomp.compressed.format import plain
from jaxcomp.decoder.arrays import Parts, decode_bare, numbers
from jaxcomp.decoder.streams import Stack


def stream_of(values):
    stored, name = plain(values)
    writer = StackWriter()
    write_parts(writer, Parts(stored), name, stored.shape, "best")
    data = writer.to_bytes()
    (found,) = decode_bare(data, [(name, stored.shape)])
    assert with_own_dtype(found, name).tobytes() == values.tobytes()
    return data


@pytest.mark.parametrize("count", [0, 1, 2, 10, 300, 5000])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int64", "complex128"])
def test_random_bits_are_never_longer_than_they_were(dtype, count):
    data = np.random.default_rng(count).bytes(count * np.dtype(dtype).itemsize)
    assert len(stream_of(np.frombuffer(data, dtype))) <= len(data) + 5


def test_bfloat16_within_a_hundredth_of_its_planes():
    rng = np.random.default_rng(0)
    weights = (0.05 * rng.standard_t(5, (384, 256))).astype(np.float32).astype(ml_dtypes.bfloat16)
    planes = weights.view(np.uint8).reshape(-1, 2)
    ideal = weights.size / 8 * (entropy(planes[:, 0]) + entropy(planes[:, 1]))
    assert ideal < len(stream_of(weights)) < 1.01 * ideal


def test_float32_of_a_layer_loses_its_exponents():
    weights = np.random.default_rng(1).normal(0, 0.05, 20_000).astype(np.float32)
    assert len(stream_of(weights)) < 0.87 * weights.nbytes


def test_small_integers_in_wide_types_are_short():
    steps = np.random.default_rng(2).integers(0, 7, 3000)
    assert len(stream_of(steps)) < 3000 * np.log2(7) / 8 + 60


def test_what_is_mostly_zero_costs_its_places():
    rng = np.random.default_rng(3)
    values = np.where(rng.random(20_000) < 0.05, rng.normal(size=20_000), 0).astype(np.float32)
    values[7] = -0.0
    there = np.count_nonzero(values.view(np.uint32))
    ideal = (entropy(values.view(np.uint32) != 0) * values.size + 32 * there) / 8
    assert len(stream_of(values)) < ideal


@pytest.mark.parametrize("dtype", ["int2", "int4", "uint2", "uint4", "bool"])
def test_short_types_are_packed(dtype):
    width = 1 if dtype == "bool" else int(dtype[-1])
    values = np.random.default_rng(4).integers(0, 1 << width, 1000)
    stored = values.astype(bool) if dtype == "bool" else values.astype(np.uint8)
    stored = with_own_dtype(stored, dtype)
    assert len(stream_of(stored)) <= 1000 * width // 8 + 5


def test_numbers_are_read_as_they_were_written():
    values = np.arange(-5, 300, dtype=np.int16)
    writer = StackWriter()
    write_numbers(writer, values, "int16", 256)
    stack = Stack(writer.to_bytes(), 1 << 20)
    np.testing.assert_array_equal(numbers(stack, "int16", values.size, 256), values)
    stack.finish()
