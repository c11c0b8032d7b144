"""Rate control: the finest compression whose size keeps to a limit, by sizes as they really are.

What a file needs is known once it is written, and is nearly, not quite, a monotone function of the
one number that says how fine the compression is. That number is found by false position in the
logarithm of the size, between one that is known to be too coarse and one that is too fine.
"""

import math
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

_Result = TypeVar("_Result")

SPENT = 0.995
"""A result that uses this share of a limit is not improved."""

# What is aimed at, over the limit: sizes scatter, and half of what aims at it would be above.
_AIM = 0.998
# Where nothing is known of the slope: the logarithm of the size over that of a limit in bits.
_FIRST_SLOPE = 1.0
_LEAST_SLOPE = 0.05


class Trial(NamedTuple, Generic[_Result]):
    """One attempt.

    Attributes:
        fineness: the number that was tried.
        size: what it needs.
        result: what came of it.
    """

    fineness: float
    size: float
    result: _Result


def largest_under(
    try_at: Callable[[float], tuple[float, _Result]],
    low: float,
    high: float,
    limit: float,
    *,
    start: float | None = None,
    slope: float = _FIRST_SLOPE,
    spent: float = SPENT,
    max_trials: int = 12,
) -> Trial[_Result] | None:
    """Return the finest of some trials whose size is at most a limit.

    Args:
        try_at: fineness -> (size, result); the size grows with the fineness, roughly. Fineness is
            a logarithm: of a limit in bits, of a step or of a multiplier, with a minus where less
            is finer.
        low: least fineness.
        high: most.
        limit: on the size, > 0; met from below.
        start: where to begin; by default in the middle.
        slope: of log size over fineness, as far as it is known before.
        spent: share of the limit with which one is content.
        max_trials: most calls of `try_at`.

    Returns:
        The largest trial within the limit; None if none of them was.
    """
    best: Trial[_Result] | None = None
    under: tuple[float, float] | None = None  # fineness and log size over the aim, of neighbours
    over: tuple[float, float] | None = None
    before: tuple[float, float] | None = None
    at = min(max((low + high) / 2 if start is None else start, low), high)
    for _ in range(max_trials):
        size, result = try_at(at)
        excess = math.log(max(size, 1e-300) / (_AIM * limit))
        if size <= limit:
            if best is None or size > best.size:
                best = Trial(at, size, result)
            if size >= spent * limit or at >= high:
                break
            under = at, excess
        else:
            if at <= low:
                break
            over = at, excess
        if before is not None and at != before[0]:
            slope = (excess - before[1]) / (at - before[0])
        before = at, excess
        following = _next(under, over, slope)
        following = min(max(following, low), high)
        if abs(following - at) < 1e-7:
            break
        at = following
    return best


def _next(
    under: tuple[float, float] | None, over: tuple[float, float] | None, slope: float
) -> float:
    """Return where the size is as it should be, by what is known on both sides."""
    if under is None or over is None:
        known = under if over is None else over
        assert known is not None
        # A little further than it takes, so that the other side is known then.
        move = -known[1] / max(slope, _LEAST_SLOPE)
        return known[0] + 1.1 * move + math.copysign(1e-3, move)
    if over[0] <= under[0]:  # not monotone here: less than what was enough before
        return under[0] + 0.1 * (over[0] - under[0])
    width, rise = over[0] - under[0], over[1] - under[1]
    share = -under[1] / rise if rise > 0 else 0.5
    # Not at the ends, where false position may stay for ever.
    return under[0] + width * min(max(share, 0.03), 0.97)
