"""Rate control meets limits from below, for sizes that grow smoothly, in steps or nearly."""

import math

import pytest

from jaxcomp.compressed.rate_control import largest_under


def recorded(size_of):
    calls = []

    def try_at(fineness):
        calls.append(fineness)
        return size_of(fineness), f"at {fineness}"

    return try_at, calls


@pytest.mark.parametrize("slope", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("limit", [50.0, 1000.0, 40000.0])
def test_a_smooth_size_uses_the_limit_up(slope, limit):
    try_at, calls = recorded(lambda x: 100 * math.exp(slope * x) + 5)
    found = largest_under(try_at, -30, 30, limit, start=0.5)
    assert found is not None
    assert 0.995 * limit <= found.size <= limit
    assert found.result == f"at {found.fineness}"
    assert len(calls) <= 8


def test_steps_are_met_from_below():
    try_at, _ = recorded(lambda x: float(round(10 * math.exp(x))))
    found = largest_under(try_at, 0, 10, 123.5, spent=0.9999, max_trials=40)
    assert found is not None
    assert found.size == 123


def test_what_scatters_by_a_percent_is_met():
    try_at, _ = recorded(lambda x: 1000 * math.exp(x) * (1 + 0.01 * math.sin(1e4 * x)))
    found = largest_under(try_at, -5, 5, 2000.0, start=0.0)
    assert found is not None
    assert 0.985 * 2000 <= found.size <= 2000


def test_the_ends_are_tried_and_no_more_than_them():
    try_at, calls = recorded(math.exp)
    found = largest_under(try_at, 0, 3, 1000.0, start=1.0)
    assert found is not None
    assert found.fineness == 3 == max(calls)
    assert largest_under(try_at, 0, 3, 0.5, start=1.0) is None
    assert min(calls) == 0


def test_no_more_calls_than_allowed():
    try_at, calls = recorded(lambda x: 1.0 if x < 1 else 1e9)
    found = largest_under(try_at, 0, 2, 100.0, max_trials=5)
    assert found is not None
    assert found.size == 1
    assert len(calls) == 5
