import jax
import numpy as np
import pytest

from jaxcomp.numerics.checks import check_count, check_positive


@pytest.mark.parametrize("value", [2, np.int64(2), np.uint8(2)])
def test_counts_of_any_integer_type_are_python_integers(value):
    assert check_count("size", value, 2, 2) == 2
    assert type(check_count("size", value)) is int


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((2.0,), TypeError, r"size must be an integer, got 2\.0\.$"),
        ((True,), TypeError, r"size must be an integer, got True\.$"),
        (("3",), TypeError, r"size must be an integer, got '3'\.$"),
        ((0,), ValueError, r"size must be at least 1, got 0\.$"),
        ((1, 2), ValueError, r"size must be at least 2, got 1\.$"),
        ((17, 1, 16), ValueError, r"size must be from 1 to 16, got 17\.$"),
    ],
)
def test_bad_counts(arguments, error, message):
    with pytest.raises(error, match=message):
        check_count("size", *arguments)


def test_positive_numbers():
    check_positive("scale", 1e-300)
    check_positive("scale", np.array([[0.5], [2.0]]))
    jax.jit(lambda scale: check_positive("scale", scale))(-1.0)  # unknown there
    for value, told in ((0, "0"), ([2.0, -0.5, 0.0], "-0.5"), (np.nan, "nan"), (np.inf, "inf")):
        with pytest.raises(ValueError, match=rf"scale must be positive and finite, got {told}\.$"):
            check_positive("scale", value)
