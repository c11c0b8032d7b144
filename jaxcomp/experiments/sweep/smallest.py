"""The smallest compressed network at no loss, tested once."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxcomp.evaluation.statistics import Interval, crossed_mean
from jaxcomp.experiments.sweep.candidates import (
    VariantLosses,
    against_original,
    checked_losses,
    difference,
    read_table,
    values_of,
)
from jaxcomp.experiments.sweep.task_words import CLASSIFICATION, TEMPERED, Quantity, TaskWords
from jaxcomp.experiments.sweep.words import describe, signed_words
from jaxcomp.experiments.verdicts import percent, signed

if TYPE_CHECKING:
    import pandas as pd

# Of the margin: a rise that large on the validation set leaves room for chance on the test set.
_TOLERATED = 0.25


class SmallestNetwork(NamedTuple):
    """The smallest compressed network whose test loss is as low as the original's.

    As low means: with the best calibration of original and compressed network, the 95 % interval of
    the change stays below the margin. It speaks of the networks at hand. Where the interval does
    not stay below, `holds` is false, and the candidate is told with its numbers.
    """

    setting: str
    """Name of the data set, model and label noise."""
    variant: str
    """The candidate, chosen on the validation set."""
    description: str
    """The same in words."""
    ratio: float
    """How many times smaller, mean over the networks: bytes of the arrays over those of its file;
    without files bits of 32-bit weights over its estimated bits."""
    size_bytes: float | None
    """Of its file, mean over the networks; None without files."""
    num_candidates: int
    """Variants the choice was made among."""
    effect: float
    """Change of the tempered test loss against the original, nats."""
    low: float
    """Lower end of its interval over test examples."""
    high: float
    """Upper end."""
    reference_value: float
    """The original's tempered test loss, nats."""
    scale: float
    """What changes are compared with, nats: that loss, or for a regression half a nat."""
    margin: float
    """The rise that counts as a loss, as a share of `scale`."""
    holds: bool
    """Whether the upper end stays below the margin."""
    score_effect: float
    """Change of the task's score, of the test accuracy as a fraction; reported, not tested."""
    score_low: float
    """Lower end of its interval."""
    score_high: float
    """Upper end."""
    num_models: int
    """M; all numbers are means over these networks."""
    confidence: float
    """Of the intervals."""
    sentence: str
    """The result in plain English."""


def smallest_without_loss(
    table: "pd.DataFrame",
    losses: Callable[[str], VariantLosses],
    *,
    words: TaskWords = CLASSIFICATION,
    confidence: float = 0.95,
    margin: float = 0.03,
) -> SmallestNetwork | None:
    """Find the smallest compressed network at no loss, and test it once.

    A test of non-inferiority. The candidate is the smallest variant whose tempered loss on the
    validation set, mean over the networks, rises by at most a quarter of the margin (a quarter,
    so that chance on the test set seldom undoes it); if there is none, the variant that rises
    least. It is tested once: on the test set the interval of its mean change has to stay below the
    margin.

    The statement is about the networks at hand. Examples that nothing was chosen on decide it, so
    the choice needs no allowance; the interval is over examples and says nothing about networks
    that are yet to be trained, of which the claims speak. It does not enter their correction.

    Args:
        table: as for `evaluate_claims`.
        losses: as for `evaluate_claims`.
        words: of the task.
        confidence: of the two-sided intervals.
        margin: the rise that counts as a loss, as a share of the original's tempered loss
            (of half a nat for a regression).

    Returns:
        The candidate with its test; None if nothing was compressed.

    Raises:
        ValueError: as for `evaluate_claims`.
    """
    setting = read_table(table, words)
    load = checked_losses(losses, setting.original)
    candidates = against_original(setting, TEMPERED)
    if not candidates:
        return None
    # By size: the first that is good enough is the smallest.
    candidates.sort(key=lambda candidate: candidate.variant.bits)
    on_validation = float(setting.original.validation[TEMPERED.name].mean())
    allowed = _TOLERATED * margin * setting.scale(TEMPERED, on_validation)
    rises = [c.validation_difference(TEMPERED).mean() for c in candidates]
    chosen = next(
        (c for c, rise in zip(candidates, rises, strict=True) if rise <= allowed),
        candidates[int(np.argmin(rises))],
    )

    def change(quantity: Quantity) -> Interval:
        mean = difference(chosen, quantity, load).mean(axis=0, keepdims=True)
        return crossed_mean(mean, confidence=confidence)

    interval, score = change(TEMPERED), change(words.score)
    reference_value = float(values_of(setting.original, TEMPERED, load).mean())
    scale = setting.scale(TEMPERED, reference_value)
    found = SmallestNetwork(
        setting=setting.name,
        variant=chosen.variant.name,
        description=describe(chosen.variant, words),
        ratio=float(np.mean(setting.original.sizes / chosen.variant.sizes)),
        size_bytes=chosen.variant.bits / 8 if setting.has_files else None,
        num_candidates=len(candidates),
        effect=interval.estimate,
        low=interval.low,
        high=interval.high,
        reference_value=reference_value,
        scale=scale,
        margin=margin,
        holds=interval.high < margin * scale,
        score_effect=score.estimate,
        score_low=score.low,
        score_high=score.high,
        num_models=len(setting.original.sizes),
        confidence=confidence,
        sentence="",
    )
    return found._replace(sentence=_sentence(found, words))


def smaller_words(found: SmallestNetwork) -> str:
    """Say how small the candidate is, and what was done to it."""
    size, told = found.size_bytes, found.description
    if size is not None:
        told = f"{f'{size / 1000:,.1f} kB' if size >= 10_000 else f'{size:,.0f} bytes'}, {told}"
    return f"{found.ratio:.1f}x smaller ({told})"


def smallest_from_dict(row: Mapping[str, Any]) -> SmallestNetwork:
    """Rebuild a result of `smallest_without_loss` from its fields.

    Raises:
        ValueError: if a field is missing.
    """
    missing = [name for name in SmallestNetwork._fields if name not in row]
    if missing:
        raise ValueError(f"A stored smallest network must have every field, but lacks {missing}.")
    return SmallestNetwork(**{name: row[name] for name in SmallestNetwork._fields})


def _sentence(found: SmallestNetwork, words: TaskWords) -> str:
    scale, score = found.scale, words.score
    change, low, high = (100 * v / scale for v in (found.effect, found.low, found.high))
    numbers = (
        f"with {words.fitted} for both networks its test loss changes by {signed(change, 1)} %"
        f"{words.relative_to} "
        f"({percent(found.confidence)} interval {signed(low, 1)} to {signed(high, 1)} %)"
    )
    beside = (
        f"Its {score.label} changes by {signed_words(found.score_effect, score)}"
        f"{score.difference_unit} ({signed_words(found.score_low, score)} to "
        f"{signed_words(found.score_high, score)})."
    )
    whom = "this network" if found.num_models == 1 else f"these {found.num_models} networks"
    variant = smaller_words(found)
    limit = percent(found.margin)
    if found.holds:
        return f"{variant} at no loss, for {whom}: {numbers}, below the margin of {limit}. {beside}"
    doubt = f"a loss of {limit} or more is not ruled out"
    if found.low > found.margin * scale:
        doubt = f"a loss of more than {limit}"
    return f"Not shown for any size. Tested: {variant}; {numbers}; {doubt}. {beside}"
