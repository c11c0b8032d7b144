"""How much of the fall of the raw test loss calibration alone would have given."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from jaxcomp.evaluation.statistics import Interval, crossed_mean
from jaxcomp.experiments.sweep.candidates import (
    Candidate,
    JudgedSetting,
    VariantLosses,
    against_original,
    best,
    checked_losses,
    difference,
    read_table,
    values_of,
)
from jaxcomp.experiments.sweep.task_words import CLASSIFICATION, LOSS, TEMPERED, TaskWords
from jaxcomp.experiments.sweep.words import amount_words, ends_words, signed_words
from jaxcomp.experiments.verdicts import percent

if TYPE_CHECKING:
    import pandas as pd


class CalibrationShare(NamedTuple):
    """How much of the fall of the raw test loss is calibration, for the variant of claim 1."""

    setting: str
    """Name of the data set, model and label noise."""
    variant: str
    """The compressed variant with the lowest raw loss on the validation set."""
    raw: Interval
    """Change of the raw test loss against the original, nats."""
    tempered: Interval
    """Change of the test loss when both networks have their best temperature, nats."""
    share: float | None
    """`1 - tempered / raw`: 1 if nothing is left when both are tempered, above 1 if the loss then
    rises. None if the raw loss did not clearly fall."""
    sentence: str
    """The result in plain English."""


def calibration_share(
    table: "pd.DataFrame",
    losses: Callable[[str], VariantLosses],
    *,
    words: TaskWords = CLASSIFICATION,
    confidence: float = 0.95,
    practical: float = 0.03,
) -> CalibrationShare | None:
    """Say which part of the fall of the raw test loss a single temperature would have given.

    For the variant of claim 1: the change of the test loss against the original, raw and when both
    are tempered. What remains of the fall in the second is not calibration. Descriptive: no
    correction for several claims enters.

    Args:
        table: as for `evaluate_claims`.
        losses: as for `evaluate_claims`.
        words: of the task.
        confidence: of the intervals.
        practical: the relative effect from which a difference counts.

    Returns:
        The two changes and their comparison; None if nothing was compressed.

    Raises:
        ValueError: as for `evaluate_claims`.
    """
    setting = read_table(table, words)
    load = checked_losses(losses, setting.original)
    candidates = against_original(setting, LOSS)
    if not candidates:
        return None
    chosen = candidates[best(candidates, LOSS)]
    share = share_of(chosen, setting, load, confidence, practical)
    if share.share is None:
        return share
    fall = amount_words(-share.raw.estimate, LOSS)
    head = f"The raw test loss fell by {fall} nats ({ends_words(share.raw)})"
    return share._replace(sentence=f"{head}. {share.sentence}")


def share_of(
    chosen: Candidate,
    setting: JudgedSetting,
    load: Callable[[str], VariantLosses],
    confidence: float,
    practical: float,
) -> CalibrationShare:
    """Compare the raw with the tempered change; the sentence follows one about the raw change."""
    raw, tempered = (
        crossed_mean(difference(chosen, quantity, load), confidence=confidence)
        for quantity in (LOSS, TEMPERED)
    )
    scale = setting.scale(LOSS, float(values_of(setting.original, LOSS, load).mean()))
    clearly_falls = raw.high < 0 and abs(raw.estimate) >= practical * scale
    share = 1 - tempered.estimate / raw.estimate if clearly_falls else None
    return CalibrationShare(
        setting=setting.name,
        variant=chosen.variant.name,
        raw=raw,
        tempered=tempered,
        share=share,
        sentence=_sentence(raw, tempered, share, setting.words.fitted),
    )


def _sentence(raw: Interval, tempered: Interval, share: float | None, fitted: str) -> str:
    if share is None:
        return (
            f"The raw test loss does not clearly fall ({signed_words(raw.estimate, LOSS)} nats, "
            f"{ends_words(raw)}): there is no improvement to put down to calibration."
        )
    amount = amount_words(abs(tempered.estimate), LOSS)
    if tempered.low > 0:
        return (
            f"With {fitted} for both networks it rises by {amount} nats "
            f"({ends_words(tempered)}): the improvement is calibration, and {fitted} alone "
            "gives more."
        )
    if tempered.high >= 0:
        return (
            f"With {fitted} for both networks it changes by "
            f"{signed_words(tempered.estimate, LOSS)} nats ({ends_words(tempered)}): no "
            "improvement beyond calibration is shown."
        )
    part = f"about {percent(share, 2)}" if share > 0 else "none"
    return (
        f"With {fitted} for both networks it still falls by {amount} nats "
        f"({ends_words(tempered)}): {part} of the improvement is calibration."
    )
