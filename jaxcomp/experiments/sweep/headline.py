"""What a sweep found, in four lines: for the first screen, the report and `repr`.

What was compressed; the smallest size at no loss; whether anything generalises better; and what
calibration alone would have given. Every choice was made on the validation set; the numbers are
from the test set.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxcomp.experiments.sweep.claims import Claim
from jaxcomp.experiments.sweep.smallest import SmallestNetwork, smaller_words
from jaxcomp.experiments.sweep.summary import Summary, best_variant, control_name
from jaxcomp.experiments.sweep.task_words import LOSS, TEMPERED, TaskWords
from jaxcomp.experiments.sweep.words import value_words
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
    """What calibration alone gives, and the best compressed network beside it."""

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
        _compressed(summary),
        _no_loss(smallest, summary.words),
        _better(claims, summary.words),
        _calibration(summary),
    )


def _compressed(summary: Summary) -> str:
    num_variants = len(summary.of("compressed"))
    bits = summary.original.mean("size_bits_estimated")
    size = "" if bits != bits else f" of {bits / 32:,.0f} weights"
    ways = "1 way" if num_variants == 1 else f"{num_variants} ways"
    networks = "1 network" if summary.num_models == 1 else f"{summary.num_models} networks"
    files = ", each a file read again" if summary.has_files else ""
    return f"{networks}{size} ({summary.subject}), in {ways}{files}"


def _no_loss(smallest: SmallestNetwork | None, words: TaskWords) -> str:
    if smallest is None:
        return "not looked for: nothing was compressed"
    change, low, high = (
        signed(100 * value / smallest.scale, 1)
        for value in (smallest.effect, smallest.low, smallest.high)
    )
    numbers = f"{words.tempered} test loss {change} %{words.relative_to} ({low} to {high} %)"
    variant = smaller_words(smallest)
    limit = percent(smallest.margin)
    if smallest.holds:
        return f"{variant}: {numbers}, within {limit}"
    return f"not shown for any size; tested {variant}: {numbers}, not within {limit}"


def _better(claims: Sequence[Claim], words: TaskWords) -> str:
    by_name = {claim.name: claim for claim in claims}
    raw = by_name.get("raw loss")
    score = words.score.name.replace("_", " ")
    asked = [by_name[name] for name in ("tempered loss", score) if name in by_name]
    if not asked:
        return "not tested: no claims were made"
    held = [claim for claim in asked if claim.holds]
    if held:
        told = "; ".join(
            f"{_movement(claim, words)}, {p_words(claim.p_adjusted)}" for claim in held
        )
        return f"yes, {held[0].description}: {told}{_beside_control(held[0], words)}"
    is_surely_not = all(claim.verdict in ("opposite", "no practical difference") for claim in asked)
    answer = "no" if is_surely_not else "not shown"
    if raw is not None and raw.holds:
        answer += ", only the raw loss falls, which is calibration"
    return f"{answer}: best {', best '.join(_movement(claim, words) for claim in asked)}"


def _movement(claim: Claim, words: TaskWords) -> str:
    quantity = words.quantity(claim.quantity)
    after, before = (value_words(v, quantity) for v in (claim.value, claim.reference_value))
    name = f"{words.tempered} test loss" if quantity == TEMPERED else quantity.label
    return f"{name} {after} (original {before})"


def _beside_control(claim: Claim, words: TaskWords) -> str:
    """Whether something that compresses nothing does better still."""
    if claim.control is None or claim.control_effect is None:
        return ""
    sign = words.quantity(claim.quantity).claimed_sign
    assert claim.control_low is not None
    assert claim.control_high is not None
    if claim.control_low <= 0 <= claim.control_high or claim.control_effect * sign > 0:
        return ""
    return f"; but {control_name(claim.control)}, which compresses nothing, does better still"


def _calibration(summary: Summary) -> str:
    words, original = summary.words, summary.original
    raw, alone = original.mean("test_loss"), original.mean("test_loss_tempered")
    if not words.control_is_calibration:
        control = best_variant(summary.of("control", words.control), "validation_loss")
        if control is None:
            return f"not looked for: no {words.control} was run"
        alone = control.mean("test_loss")
    scale = words.scale(LOSS, raw)
    change = 100 * (alone - raw) / scale if scale else 0.0
    told = (
        f"{words.control_words} alone takes the raw test loss from {raw:.3f} to {alone:.3f} "
        f"({change:+.0f} %{words.relative_to})"
    )
    best = best_variant(summary.of("compressed"), "validation_loss")
    return told if best is None else f"{told}, the best variant to {best.mean('test_loss'):.3f}"
