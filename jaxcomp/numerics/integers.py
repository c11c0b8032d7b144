"""Integers, on the host."""

from typing import Any

from jaxtyping import Int


def largest_magnitude(integers: Int[Any, "..."]) -> int:
    """Return the largest magnitude, 0 if there is none; without another array of as many."""
    return max(int(integers.max(initial=0)), -int(integers.min(initial=0)))
