"""Integers, on the host."""

import numpy as np
import pytest

from jaxcomp.numerics.integers import largest_magnitude


@pytest.mark.parametrize(
    ("integers", "expected"),
    [
        ([], 0),
        ([[3, -4], [2, 0]], 4),
        ([5, -4], 5),
        (np.asarray([-128, 127], np.int8), 128),
        (np.asarray([255, 0], np.uint8), 255),
        (np.asarray([-(2**63)]), 2**63),
    ],
)
def test_largest_magnitude(integers, expected):
    """The least of a signed type has none of its own type: `abs` gives it back."""
    assert largest_magnitude(np.asarray(integers, getattr(integers, "dtype", np.int32))) == expected
