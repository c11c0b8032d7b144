"""Choosing the best of many on one sample, and testing it honestly on another.

The validation set holds other examples than the test set but the *same networks*: a candidate
that happens to suit these networks suits them on the test set as well. So p is the larger of two:
that of the chosen candidate, and that of the same test when each half of the networks is evaluated
in what the *other* half chose (and against the reference that it chose, where that is a choice
too); it is 1 if the two effects differ in sign. One network has no halves: the statement is about
that network.

Axes: `C` candidates, `M` networks, `N` test examples.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxcomp.evaluation.statistics import Interval, crossed_mean


class Decided(NamedTuple):
    """The chosen candidate, its effect on the test set, and how sure that is."""

    place: int
    """Of the candidate."""
    interval: Interval
    """Of the effect, crossed over networks and examples."""
    p_value: float
    """Two-sided, covering the choice on the same networks."""


def choose(scores: Float[np.ndarray, "C M"], models: slice = slice(None)) -> int:
    """Return the candidate with the lowest mean score over some of the networks."""
    return int(np.argmin(np.asarray(scores)[:, models].mean(axis=1)))


def decide_choice(
    scores: Float[np.ndarray, "C M"],
    difference_fn: Callable[..., Float[np.ndarray, "M N"]],
    *references: Float[np.ndarray, "R M"],
    confidence: float = 0.95,
) -> Decided:
    """Choose the candidate with the lowest score and test its difference to a reference.

    Args:
        scores: on the validation set, lower is better.
        difference_fn: candidate -> its losses on the test set minus the reference's; with
            `references` also the number of the reference.
        *references: scores of the references that one is chosen among likewise, the lowest; none
            if it is given.
        confidence: of the interval.

    Returns:
        Choice, interval and p.
    """

    def chosen(models: slice = slice(None)) -> list[int]:
        return [choose(own, models) for own in (scores, *references)]

    place = choose(scores)
    difference = np.asarray(difference_fn(*chosen()), np.float64)
    interval = crossed_mean(difference, confidence=confidence)
    if len(difference) < 2:
        return Decided(place, interval, interval.p_value)
    exchanged = np.empty_like(difference)
    for half, other in (
        (slice(0, None, 2), slice(1, None, 2)),
        (slice(1, None, 2), slice(0, None, 2)),
    ):
        exchanged[half] = difference_fn(*chosen(other))[half]
    check = crossed_mean(exchanged, confidence=confidence)
    agree = interval.estimate * check.estimate > 0
    p_value = max(interval.p_value, check.p_value) if agree else 1.0
    return Decided(place, interval, p_value)
