"""Leaves in the form in which they are stored, and back."""

import ml_dtypes
import numpy as np
import pytest
from file_problems import DTYPES, any_bits, bits_of, golden_tree

from jaxcomp.checkpoints.tensors import with_own_dtype
from jaxcomp.compressed.format import leaf_of, parts_of, plain
from jaxcomp.compressed.tensors import CompressedTensor
from jaxcomp.decoder import FormatError
from jaxcomp.decoder.arrays import Parts, values_of
from jaxcomp.decoder.files import Entry


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_plain_arrays_are_those_of_numpy(dtype):
    values = any_bits(dtype, (5, 4))
    stored, name = plain(values)
    assert stored.dtype.kind in "biufc"
    assert name == np.dtype(dtype).name
    assert bits_of(with_own_dtype(stored, name)) == bits_of(values)


def entry_of(method, dtype, shape):
    return Entry(dtype, shape, method, "", "", "w", 0, 0, 0)


def test_leaves_and_parts_say_the_same():
    tree = golden_tree()
    number = 0
    for leaf, layout in zip(tree.leaves, tree.layout.leaves, strict=True):
        if not isinstance(leaf, CompressedTensor):
            continue
        number += 1
        parts = parts_of(leaf, layout)
        entry = entry_of(layout.method.name, layout.dtype.name, layout.shape)
        again, own = leaf_of(parts, entry, layout.paths)
        assert own == layout
        for one, other in zip(again[:4], leaf[:4], strict=True):
            assert (one is None) == (other is None)
            assert one is None or bits_of(one) == bits_of(other)
    assert number == 7


def test_weights_in_bfloat16_are_rounded_to_the_nearest():
    codes = np.arange(-128, 128).astype(np.int8).reshape(1, 256)
    scales = np.asarray([[1.2345678]], np.float32)
    parts = Parts(codes, False, 256, (False, 0, 0), scales)
    found = values_of(parts, "bfloat16", (1, 256)).view(ml_dtypes.bfloat16)
    exact = (codes * scales).astype(ml_dtypes.bfloat16)
    assert bits_of(found) == bits_of(exact)


def test_three_codes_are_not_integers_of_some_bits():
    parts = Parts(np.zeros((2, 2), np.int8), False, 3, (False, 0, 0), np.ones((1, 1), np.float32))
    with pytest.raises(FormatError, match="is not what round_to_nearest makes"):
        leaf_of(parts, entry_of("round_to_nearest", "float32", (2, 2)), ("w",))


def test_unknown_methods_are_refused():
    with pytest.raises(FormatError, match="the method 'lattice' is unknown"):
        leaf_of(Parts(np.zeros(2, np.float32)), entry_of("lattice", "float32", (2,)), ("w",))
