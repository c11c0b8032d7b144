"""When a claim holds, and how its numbers are written in a sentence.

An effect counts if it is significant after the correction for all claims made together *and* large
enough to matter; a small one that is certainly small is a finding too.
"""

import math
from typing import Literal

from jaxcomp.evaluation.statistics import Interval

Verdict = Literal["holds", "opposite", "no practical difference", "not shown"]
"""`holds` and `opposite`: significant, and large enough to matter, in the claimed or the other
direction. `no practical difference`: too small to matter, and significant or with an interval that
stays so. `not shown`: neither."""


def decide(
    interval: Interval,
    scale: float,
    *,
    is_significant: bool,
    claimed_sign: int,
    practical: float,
) -> Verdict:
    """Decide one claim.

    Args:
        interval: of the effect.
        scale: what the effect is compared with, in its units.
        is_significant: after the correction for several claims.
        claimed_sign: of the effect, 1 or -1.
        practical: share of the scale from which an effect matters.

    Returns:
        The verdict.
    """
    threshold = practical * max(scale, 0.0)
    is_large = abs(interval.estimate) >= threshold and interval.estimate != 0
    if is_large:
        if not is_significant:
            return "not shown"
        return "holds" if interval.estimate * claimed_sign > 0 else "opposite"
    is_surely_small = max(abs(interval.low), abs(interval.high)) < threshold
    # No difference at all, on any network or example, is certainly none that matters.
    is_zero = interval.low == interval.high == 0
    if is_significant or is_surely_small or is_zero:
        return "no practical difference"
    return "not shown"


def p_words(p_value: float) -> str:
    """A p-value in a sentence."""
    if math.isnan(p_value):
        return "one network gives no p"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def percent(share: float, digits: int = 4) -> str:
    """A fraction in per cent."""
    return f"{100 * share:.{digits}g} %"


def signed(difference: float, digits: int) -> str:
    """A difference with its sign; what is rounded to zero has none."""
    told = f"{difference:+.{digits}f}"
    return told if any(digit in "123456789" for digit in told) else told[1:]
