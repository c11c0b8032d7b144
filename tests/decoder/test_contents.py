"""What a file says of itself beside its arrays: how it was made, and what they lost."""

import math

import numpy as np
import random_codes_problems
from file_problems import kept

from jaxcomp import inspect
from jaxcomp.compressed import to_bytes
from jaxcomp.decoder.contents import ERRORS

ARRAYS = {"w": np.zeros((2, 3)), "b": np.zeros(3)}


def inspected(made):
    return inspect(to_bytes(kept(ARRAYS), made=made))


def test_errors_that_a_file_states():
    contents = inspected({"method": "kmeans", ERRORS: {"w": 0.25}})
    assert [entry.path for entry in contents.entries] == ["b", "w"]
    assert contents.entries[1].mean_squared_error == 0.25
    assert math.isnan(contents.entries[0].mean_squared_error)
    text = str(contents)
    assert "MSE" in text
    assert "0.25" in text
    assert 'made by {"method": "kmeans"}' in text  # the errors are in the table
    told = contents.to_dict()
    assert told["entries"][1]["mean_squared_error"] == 0.25
    assert told["size_bytes"] == contents.size_bytes


def test_whatever_else_stands_there():
    strange = ([1.0], {"w": "much"}, {"w": 10**400}, None)
    for made in (None, "by hand", *({ERRORS: errors} for errors in strange)):
        contents = inspected(made)
        assert math.isnan(contents.entries[1].mean_squared_error)
        assert "MSE" not in str(contents)


def test_random_codes():
    data = random_codes_problems.file_bytes()
    contents = inspect(data)
    code = contents.code
    assert code is not None
    assert [(entry.path, entry.shape) for entry in contents.entries] == [
        ("first/kernel", (3, 4)),
        ("list/0", (5,)),
    ]
    # Four of the six values are of the first array: of four bytes of indices two, and its scale.
    assert [entry.size_bytes for entry in contents.entries] == [6, 6]
    assert (code.num_blocks, code.block_bits, code.sharing, code.index_bytes) == (4, 7, 3, 4)
    assert contents.size_bytes == len(data) == 4 + 8 + contents.overhead_bytes
    assert code.bits_per_weight == 8 * len(data) / 17
    assert code.ratio == 4 * 17 / len(data) == contents.original_bytes / len(data)
    assert contents.to_dict()["code"]["scale_bytes"] == 8
    assert "4 blocks with an index of 7 bits, 4 bytes; scales 8 bytes; 3 weights sh" in str(
        contents
    )
    assert inspected(None).to_dict()["code"] is None
