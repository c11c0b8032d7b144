"""What a sweep found, in four lines: for the first screen, the report and `repr`.

What was compressed; the smallest size at no loss; whether anything generalises better; and what
calibration alone would have given. Every choice was made on the validation set; the numbers are
from the test set.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxcomp.experiments.sweep.claims import Claim
from jaxcomp.experiments.sweep.smallest import SmallestNetwork, smaller_words
from jaxcomp.experiments.sweep.summary import CONTROL_NAMES, Summary, best_variant
from jaxcomp.experiments.verdicts import p_words, percent, signed

__all__ = ["Headline", "headline"]


class Headline(NamedTuple):
    """One line for each of the four questions that everybody asks first."""

    compressed: str
    """What was compressed."""
    no_loss: str
    """The smallest size at no loss."""
    better: str
    """Whether anything generalises better than the original."""
    calibration: str
    """What a temperature alone gives, and the best compressed network beside it."""

    def labelled(self) -> list[tuple[str, str]]:
        """The lines with the words that they are announced by."""
        labels = ("compressed", "no loss", "better", "calibration")
        return list(zip(labels, self, strict=True))


def headline(
    summary: Summary, claims: Sequence[Claim], smallest: SmallestNetwork | None
) -> Headline:
    """Say in four lines what one setting of a sweep found.

    Args:
        summary: of the setting.
        claims: about it.
        smallest: the smallest network at no loss, if it was looked for.

    Returns:
        The lines, each of about a hundred characters.
    """
    return Headline(
        _compressed(summary), _no_loss(smallest), _better(claims), _calibration(summary)
    )


def _compressed(summary: Summary) -> str:
    num_variants = len(summary.of("compressed"))
    bits = summary.original.mean("size_bits_estimated")
    size = "" if bits != bits else f" of {bits / 32:,.0f} weights"
    ways = "1 way" if num_variants == 1 else f"{num_variants} ways"
    networks = "1 network" if summary.num_models == 1 else f"{summary.num_models} networks"
    files = ", each a file read again" if summary.has_files else ""
    return f"{networks}{size} ({summary.subject}), in {ways}{files}"


def _no_loss(smallest: SmallestNetwork | None) -> str:
    if smallest is None:
        return "not looked for: nothing was compressed"
    change, low, high = (
        signed(100 * value / smallest.reference_value, 1)
        for value in (smallest.effect, smallest.low, smallest.high)
    )
    numbers = f"tempered test loss {change} % ({low} to {high} %)"
    variant = smaller_words(smallest)
    limit = percent(smallest.margin)
    if smallest.holds:
        return f"{variant}: {numbers}, within {limit}"
    return f"not shown for any size; tested {variant}: {numbers}, not within {limit}"


def _better(claims: Sequence[Claim]) -> str:
    by_name = {claim.name: claim for claim in claims}
    raw = by_name.get("raw loss")
    asked = [by_name[name] for name in ("tempered loss", "accuracy") if name in by_name]
    if not asked:
        return "not tested: no claims were made"
    held = [claim for claim in asked if claim.holds]
    if held:
        told = "; ".join(f"{_movement(claim)}, {p_words(claim.p_adjusted)}" for claim in held)
        return f"yes, {held[0].description}: {told}{_beside_control(held[0])}"
    is_surely_not = all(claim.verdict in ("opposite", "no practical difference") for claim in asked)
    answer = "no" if is_surely_not else "not shown"
    if raw is not None and raw.holds:
        answer += ", only the raw loss falls, which is calibration"
    return f"{answer}: best {', best '.join(map(_movement, asked))}"


def _movement(claim: Claim) -> str:
    before, after = claim.reference_value, claim.value
    if claim.quantity == "accuracy":
        return f"accuracy {100 * after:.2f} % (original {100 * before:.2f} %)"
    return f"tempered test loss {after:.4f} (original {before:.4f})"


def _beside_control(claim: Claim) -> str:
    """Whether something that compresses nothing does better still."""
    if claim.control is None or claim.control_effect is None:
        return ""
    sign = 1 if claim.quantity == "accuracy" else -1
    assert claim.control_low is not None
    assert claim.control_high is not None
    if claim.control_low <= 0 <= claim.control_high or claim.control_effect * sign > 0:
        return ""
    name = CONTROL_NAMES.get(claim.control, claim.control)
    return f"; but {name}, which compresses nothing, does better still"


def _calibration(summary: Summary) -> str:
    original = summary.original
    raw, tempered = original.mean("test_loss"), original.mean("test_loss_tempered")
    alone = (
        f"one temperature alone takes the raw test loss from {raw:.3f} to {tempered:.3f} "
        f"({100 * (tempered / raw - 1) if raw else 0.0:+.0f} %)"
    )
    best = best_variant(summary.of("compressed"), "validation_loss")
    return alone if best is None else f"{alone}, the best variant to {best.mean('test_loss'):.3f}"
