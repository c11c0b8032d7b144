"""What a file says of itself beside its arrays: how it was made, and what they lost."""

import math

import numpy as np
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
