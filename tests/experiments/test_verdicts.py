"""When a claim holds: significance and size, in both directions."""

import pytest

from jaxcomp.evaluation.statistics import Interval
from jaxcomp.experiments.settings import as_tuple, check_counts, check_names, integer
from jaxcomp.experiments.verdicts import decide, p_words, percent


def interval(estimate, half_width):
    return Interval(estimate, estimate - half_width, estimate + half_width, 0.5, 4.0, 5, 100)


@pytest.mark.parametrize(
    ("estimate", "half_width", "is_significant", "verdict"),
    [
        (-0.10, 0.02, True, "holds"),
        (0.10, 0.02, True, "opposite"),
        (-0.10, 0.20, False, "not shown"),
        (-0.01, 0.005, True, "no practical difference"),
        (-0.01, 0.015, False, "no practical difference"),
        (-0.01, 0.10, False, "not shown"),
        (0.0, 0.0, False, "no practical difference"),
    ],
)
def test_decide(estimate, half_width, is_significant, verdict):
    found = decide(
        interval(estimate, half_width),
        1.0,
        is_significant=is_significant,
        claimed_sign=-1,
        practical=0.03,
    )
    assert found == verdict


def test_words():
    assert p_words(1e-5) == "p < 0.001"
    assert p_words(0.0312) == "p = 0.031"
    assert p_words(float("nan")) == "one network gives no p"
    assert percent(0.03) == "3 %"


def test_settings():
    assert as_tuple("a", "axis") == ("a",)
    assert as_tuple([2, 1, 2], "axis") == (2, 1)
    with pytest.raises(ValueError, match="axis must be a value or a non-empty sequence"):
        as_tuple([], "axis")
    assert integer(3.0, "count") == 3
    for value in (True, 2.5):
        with pytest.raises(ValueError, match="count must be an integer, got"):
            integer(value, "count")
    with pytest.raises(ValueError, match="unknown kind 'c': choose from a, b"):
        check_names("kind", ("a", "c"), ("a", "b"))
    with pytest.raises(ValueError, match="real must be at least 1, got 0"):
        check_counts(0, ("real",))
