"""Budgets: which operating point of every tensor, so that all of them together keep to a limit.

A budget is a number of bits for the compressed tensors in their file, or a bound on their
distortion. Points are chosen on the curves by one slope for all tensors
(`jaxcomp.quantizers.allocation`). What curves promise is an estimate, so that the choice is
repeated with what the codes really take (`jaxcomp.compressed.points`).

Axes: `L` tensors, `M` points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxcomp.quantizers.allocation import allocate_rates


@dataclass(frozen=True)
class Budget:
    """A limit on a compressed tree, in bits of its tensors or in distortion.

    Attributes:
        name: as the caller calls it.
        value: as the caller gave it.
        bits: most bits of the compressed tensors, kept leaves out; None for a limit in distortion.
        distortion: most `sum h (w - c)^2`, likewise.
    """

    name: str
    value: float
    bits: float | None = None
    distortion: float | None = None

    @property
    def limit(self) -> float:
        """The limit, in bits or distortion."""
        return self.bits if self.bits is not None else self.distortion or 0.0

    def at(self, limit: float) -> "Budget":
        """Return the same budget with another limit."""
        if self.bits is not None:
            return replace(self, bits=limit)
        return replace(self, distortion=limit)


def budget_of(
    given: dict[str, Any], *, num_weights: int, original_bits: int, kept_bits: int
) -> Budget | None:
    """Return the one budget that was given, if any.

    Args:
        given: the arguments by name, None for what was not given.
        num_weights: of the compressed tensors.
        original_bits: of the whole tree.
        kept_bits: of the file without the compressed tensors.

    Raises:
        TypeError: if a budget is no number.
        ValueError: if there are two, one is not positive and finite, or the kept leaves alone
            exceed it.
    """
    set_ones = {name: value for name, value in given.items() if value is not None}
    if not set_ones:
        return None
    if len(set_ones) > 1:
        raise ValueError(f"one budget at a time, got {', '.join(set_ones)}; leave out all but one.")
    ((name, value),) = set_ones.items()
    if not isinstance(value, int | float | np.number) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    value = float(value)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value:g}.")
    if name == "max_distortion":
        return Budget(name, value, distortion=value)
    if name == "bits_per_weight":
        return Budget(name, value, bits=value * num_weights)
    total = 8 * value if name == "size_bytes" else original_bits / value
    if total <= kept_bits:
        largest = f"{math.ceil(kept_bits / 8):,} bytes"
        raise ValueError(
            f"{name} is {value:g}, but the header and the leaves that are kept take {largest} "
            f"alone, of the tree's {math.ceil(original_bits / 8):,}; allow more, or compress more "
            "leaves by `select`."
        )
    return Budget(name, value, bits=total - kept_bits)


def choose(
    size_bits: Sequence[Float[np.ndarray, " points"]],
    distortion: Sequence[Float[np.ndarray, " points"]],
    budget: Budget,
) -> Int[np.ndarray, " tensors"]:
    """Return the point of every tensor; those that are nearest to it, if none keep to the budget.

    Args:
        size_bits: of the points of every tensor.
        distortion: likewise.
        budget: the limit.
    """
    rates, costs = list(size_bits), list(distortion)
    limit = max(budget.limit, least_of(rates, costs, budget))
    if budget.bits is not None:
        return np.asarray(allocate_rates(rates, costs, budget_bits=limit).places)
    return np.asarray(allocate_rates(rates, costs, max_distortion=limit).places)


def least_of(
    size_bits: Sequence[Float[np.ndarray, " points"]],
    distortion: Sequence[Float[np.ndarray, " points"]],
    budget: Budget,
) -> float:
    """Return what the coarsest points take of a budget in bits, or the finest in distortion."""
    values = size_bits if budget.bits is not None else distortion
    return math.fsum(float(np.min(own)) for own in values)
