"""Does compression give what nothing else gives? One question for each setting of a sweep.

The original, a temperature, shrunken or clipped weights, noise, early stopping, dropout: whatever
compresses nothing and is as good answers the question with no. The compressed variant and the best
of all these are both chosen on the validation set by the tempered loss; the difference of their
test losses is tested once for each setting, crossed over networks and examples, and p is corrected
by Holm's procedure over all settings.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxcomp.evaluation.statistics import Interval, holm
from jaxcomp.experiments.choice import choose, decide_choice
from jaxcomp.experiments.sweep.candidates import (
    Candidate,
    VariantLosses,
    against_original,
    checked_losses,
    controls_of,
    difference,
    read_table,
    scores,
    values_of,
)
from jaxcomp.experiments.sweep.claims import Claim
from jaxcomp.experiments.sweep.task_words import CLASSIFICATION, TEMPERED, TaskWords
from jaxcomp.experiments.sweep.words import change_words, describe, value_words
from jaxcomp.experiments.verdicts import decide, p_words, percent

if TYPE_CHECKING:
    import pandas as pd

NAME = "beyond controls"
"""Of the claim."""
_STATEMENT = "Compression lowers the {} test loss below that of whatever compresses nothing."


class Undecided(NamedTuple):
    """The claim of one setting, but for what depends on the other settings."""

    claim: Claim
    """With its own p, and no sentence."""
    interval: Interval
    """Of its effect."""
    scale: float
    """What the effect is compared with, nats: the original's tempered loss."""
    control: str
    """The best control in words."""
    practical: float
    """Share of `scale` from which a difference counts."""
    words: TaskWords
    """Of the task."""


def beyond_controls(
    table: "pd.DataFrame",
    losses: Callable[[str], VariantLosses],
    *,
    words: TaskWords = CLASSIFICATION,
    confidence: float = 0.95,
    practical: float = 0.03,
) -> Undecided | None:
    """Test the best compressed variant against the best that compresses nothing.

    Args:
        table: of one setting, as for `evaluate_claims`.
        losses: likewise.
        words: of the task.
        confidence: of the interval; one minus the level of the test.
        practical: the relative effect from which a difference counts.

    Returns:
        What `decided` makes a claim of; None if nothing was compressed, or no control was run.

    Raises:
        ValueError: as `evaluate_claims`.
    """
    setting = read_table(table, words)
    load = checked_losses(losses, setting.original)
    candidates = against_original(setting, TEMPERED)
    controls = controls_of(setting, TEMPERED)
    if not candidates or not controls:
        return None
    own, others = scores(candidates, TEMPERED), scores(controls, TEMPERED)

    def change(place: int, control: int) -> np.ndarray:
        pair = Candidate(candidates[place].variant, ((1.0, controls[control].variant),))
        return difference(pair, TEMPERED, load)

    place, interval, p_value = decide_choice(own, change, others, confidence=confidence)
    chosen, control = candidates[place].variant, controls[choose(others)].variant
    value = float(values_of(chosen, TEMPERED, load).mean())
    scale = setting.scale(TEMPERED, float(values_of(setting.original, TEMPERED, load).mean()))
    claim = Claim(
        name=NAME,
        statement=_STATEMENT.format(words.tempered),
        setting=setting.name,
        variant=chosen.name,
        description=describe(chosen, words),
        reference=(control.name,),
        reference_weights=(1.0,),
        num_candidates=len(candidates),
        quantity=TEMPERED.name,
        value=value,
        reference_value=value - interval.estimate,
        effect=interval.estimate,
        low=interval.low,
        high=interval.high,
        relative_effect=interval.estimate / scale if scale > 0 else None,
        p_value=p_value,
        p_adjusted=p_value,
        holds=False,
        verdict="not shown",
        degrees_of_freedom=interval.degrees_of_freedom,
        num_models=interval.num_models,
        num_examples=interval.num_examples,
        control=str(control.is_about["method"]),
        control_variant=control.name,
        control_effect=interval.estimate,
        control_low=interval.low,
        control_high=interval.high,
        confidence=confidence,
        sentence="",
    )
    return Undecided(claim, interval, scale, describe(control, words), practical, words)


def decided(found: Sequence[Undecided]) -> list[Claim]:
    """Decide the claims of all settings together: p is corrected over them.

    Args:
        found: one for each setting.

    Returns:
        The claims, in their order.
    """
    adjusted = holm([own.claim.p_value for own in found])
    return [_decided(own, float(p), len(found)) for own, p in zip(found, adjusted, strict=True)]


def _decided(own: Undecided, p_adjusted: float, num_settings: int) -> Claim:
    claim, interval, share = own.claim, own.interval, percent(own.practical)
    verdict = decide(
        interval,
        own.scale,
        is_significant=p_adjusted < 1 - claim.confidence,
        claimed_sign=-1,
        practical=own.practical,
    )
    said = {
        "holds": f"compression lowers the test loss below that of {own.control}",
        "opposite": f"{own.control} lowers the test loss below that of compression",
        "no practical difference": f"compression and {own.control} differ by less than {share}",
        "not shown": f"compression is not shown to lower the test loss below that of {own.control}",
    }[verdict]
    relative = "" if claim.relative_effect is None else f", {100 * claim.relative_effect:+.1f} %"
    relative += own.words.relative_to
    allowances = "both choices" + (f" and {num_settings} settings" if num_settings > 1 else "")
    sentence = (
        f"With {own.words.fitted} for all networks, {said}: {value_words(claim.value, TEMPERED)} "
        f"against {value_words(claim.reference_value, TEMPERED)} "
        f"({change_words(interval, TEMPERED, claim.confidence)}{relative}, "
        f"{p_words(p_adjusted)}). Tested: {claim.description}. The p-value allows for {allowances}."
    )
    return claim._replace(
        p_adjusted=p_adjusted, holds=verdict == "holds", verdict=verdict, sentence=sentence
    )
