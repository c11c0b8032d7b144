"""What a run shows, claim by claim, and what it does not.

Strengths, rates of dropout, the early stop and temperatures are chosen on the *validation set*;
the test set is looked at once, for what was chosen. Test losses are compared in pairs, the same
networks (weights at the start, examples, order) and the same test examples; intervals cross both
(`jaxcomp.evaluation.statistics.crossed_mean`), and p covers the choice on the same networks
(`jaxcomp.experiments.choice`); a rival gets its best variant as it is, which is in its favour. Code
lengths are one number per network, so their intervals are over networks, whose training samples
come from one pool. p is corrected by Holm's procedure over all claims. An effect counts from 3 %
on.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from jaxcomp.evaluation.statistics import Interval, crossed_mean, holm, model_interval
from jaxcomp.experiments.choice import choose, decide_choice
from jaxcomp.experiments.regularization.config import Variant
from jaxcomp.experiments.verdicts import Verdict, decide, p_words, percent, signed

CONFIDENCE = 0.95
PRACTICAL = 0.03

Losses = Mapping[str, Mapping[str, np.ndarray]]
"""Variant -> `loss` and `loss_tempered`, (M, N) on the test set."""


class Claim(NamedTuple):
    """One claim, decided."""

    name: str
    """Short, e.g. `fewer bits, fitted prior` or `test loss, L2`."""
    statement: str
    """What is claimed."""
    unit: str
    """Of the effect: `nats` a test example, or `bits` of a weight or a label."""
    variant: str
    """What it speaks of: a variant, or `l2` for all strengths."""
    reference: str
    """The variant it is compared with, or `labels alone`; empty for a slope."""
    value: float
    """Mean of the variant."""
    reference_value: float
    """Mean of what it is compared with."""
    effect: float
    """The difference, or the slope per factor of ten; claimed negative."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end."""
    p_value: float
    """Two-sided; NaN where one network gives none."""
    p_adjusted: float
    """After Holm's correction."""
    verdict: Verdict
    holds: bool
    sentence: str
    """The result in plain English."""


def claim_from_dict(row: Mapping[str, Any]) -> Claim:
    """Rebuild a claim from its fields as JSON keeps them: no number was NaN."""
    missing = [name for name in Claim._fields if name not in row]
    if missing:
        raise ValueError(f"A stored claim must have every field of Claim, but lacks {missing}.")
    fields: dict[str, Any] = {
        name: math.nan if row[name] is None else row[name] for name in Claim._fields
    }
    return Claim(**fields)


class _Draft(NamedTuple):
    """A claim before the correction for the others."""

    name: str
    statement: str
    unit: str
    variant: str
    reference: str
    value: float
    reference_value: float
    interval: Interval
    p_value: float
    scale: float
    found: "_Found"
    """What was found, for every verdict."""
    remark: str
    """Sentences that follow the numbers."""


class _Found(NamedTuple):
    """The beginning of the sentence for every verdict."""

    holds: str
    opposite: str
    no_difference: str
    not_shown: str

    def of(self, verdict: Verdict) -> str:
        """The words for one verdict."""
        return {
            "holds": self.holds,
            "opposite": self.opposite,
            "no practical difference": self.no_difference,
            "not shown": self.not_shown,
        }[verdict]


def _found(subject: str, better: str, worse: str, unchanged: str, to_be: str) -> _Found:
    """The four sentences about one subject, such as `L2` and `lowers the test loss`."""
    return _Found(
        f"{subject} {better}",
        f"{subject} {worse}",
        f"{subject} {unchanged} by less than {percent(PRACTICAL)}",
        f"{subject} is not shown to {to_be}",
    )


class _Variants:
    """The table by variant: numbers of every network, and the variants of each kind."""

    def __init__(self, table: pd.DataFrame):
        self.by_id = {str(name): rows for name, rows in table.groupby("variant", sort=False)}

    def kind(self, kind: str) -> list[str]:
        return [name for name, rows in self.by_id.items() if rows["kind"].iloc[0] == kind]

    def of(self, variant: str, column: str) -> Float[np.ndarray, "M"]:
        return self.by_id[variant][column].to_numpy(float)

    def strength(self, variant: str) -> float:
        return float(self.by_id[variant]["strength"].iloc[0])

    def label(self, variant: str) -> str:
        return Variant(self.by_id[variant]["kind"].iloc[0], self.strength(variant)).label

    def scores(self, variants: Sequence[str], column: str) -> Float[np.ndarray, "C M"]:
        return np.stack([self.of(variant, column) for variant in variants])

    def best(self, kind: str, column: str = "validation_loss") -> str | None:
        """The variant of a kind that is best on the validation set."""
        names = self.kind(kind)
        return names[choose(self.scores(names, column))] if names else None


def add_differences(table: pd.DataFrame, losses: Losses) -> pd.DataFrame:
    """Add every variant's test loss minus that without a penalty, paired, with its interval.

    Columns `loss_change`, `loss_change_low` and `loss_change_high`, for curves: nothing was chosen,
    and nothing is corrected for the many variants.
    """
    none = np.asarray(losses["none"]["loss"], np.float64)
    found = {}
    for variant, own in losses.items():
        interval = crossed_mean(np.asarray(own["loss"], np.float64) - none, confidence=CONFIDENCE)
        found[variant] = (interval.estimate, interval.low, interval.high)
    changes = np.array([found[variant] for variant in table["variant"]])
    names = ("loss_change", "loss_change_low", "loss_change_high")
    return table.assign(**dict(zip(names, changes.T, strict=True)))


def evaluate_claims(table: pd.DataFrame, losses: Losses) -> list[Claim]:
    """Decide what a run shows.

    Args:
        table: one row per variant and network.
        losses: on the test set, of every variant.

    Returns:
        The claims, in the order of the questions: bits, descriptions, test loss, zeros.
    """
    variants = _Variants(table)
    drafts = [
        _slope(variants, "bits_per_weight_gaussian", "fewer bits, fitted prior"),
        _slope(variants, "bits_per_weight_implied", "fewer bits, implied prior"),
        *_descriptions(variants),
        *_test_losses(variants, losses),
        *_zeros(variants),
        *_streams(variants),
    ]
    drafts = [draft for draft in drafts if draft is not None]
    p_values = [1.0 if math.isnan(draft.p_value) else draft.p_value for draft in drafts]
    adjusted = holm(p_values)
    return [
        _decided(draft, float(p), len(drafts)) for draft, p in zip(drafts, adjusted, strict=True)
    ]


def _slope(variants: _Variants, column: str, name: str) -> _Draft | None:
    """Bits a weight against the logarithm of the L2 strength, a line for each network."""
    names = variants.kind("l2")
    if len(names) < 2:
        return None
    strengths = np.log10([variants.strength(variant) for variant in names])
    lengths = variants.scores(names, column)
    centred = strengths - strengths.mean()
    slopes = centred @ (lengths - lengths.mean(axis=0)) / (centred @ centred)
    interval = model_interval(slopes)
    changes = np.diff(lengths, axis=0) < 0
    prior = "a fitted Gaussian code" if "gaussian" in column else "the prior that it implies"
    first, last = lengths[0].mean(), lengths[-1].mean()
    remark = (
        f"A weight costs {first:.2f} bits at {variants.label(names[0])} and {last:.2f} at "
        f"{variants.label(names[-1])}; the next stronger penalty was cheaper in {changes.sum()} of "
        f"{changes.size} cases."
    )
    if "gaussian" in column:
        remark += f" Without a penalty: {variants.of('none', column).mean():.2f} bits."
    else:
        remark += (
            f" A narrower prior alone brings {-0.5 * math.log2(10):.2f}, whatever the weights are."
        )
    return _Draft(
        name,
        f"the more L2, the fewer bits a weight costs under {prior}",
        "bits a weight for ten times the strength",
        "l2",
        "",
        float(last),
        float(first),
        interval,
        interval.p_value,
        float(first),
        _found(
            f"Under {prior}, more L2",
            "means fewer bits",
            "means more bits",
            "changes the bits",
            "mean fewer bits",
        ),
        remark,
    )


def _descriptions(variants: _Variants) -> list[_Draft]:
    """Do weights pay for themselves? Weights and labels together against the labels alone.

    Every network gets the strength that describes its labels shortest: a receiver need not know
    it, so that this minimum is the length of a code, and not chosen to please.
    """
    drafts = []
    for kind, symbol in (("l2", "L2"), ("l1", "L1")):
        names = variants.kind(kind)
        if not names:
            continue
        lengths = variants.scores(names, "description_bits")
        alone = variants.of(names[0], "uniform_label_bits")
        num_labels = variants.of(names[0], "num_train")
        own, beside = lengths.min(axis=0) / num_labels, alone / num_labels
        interval = model_interval(own - beside)
        shortest = names[choose(lengths)]
        chosen = variants.best(kind)
        assert chosen is not None
        told = [
            f"{variants.of(variant, 'description_bits').mean():,.0f} bits at "
            f"{variants.label(variant)}{how} "
            f"({variants.of(variant, 'description_weight_bits').mean():,.0f} of weights, "
            f"{variants.of(variant, 'description_label_bits').mean():,.0f} of labels given them)"
            for variant, how in ((shortest, ""), (chosen, ", which the validation set chose"))
        ]
        remark = (
            f"The {num_labels[0]:,.0f} training labels take {alone.mean():,.0f} bits without a "
            f"network, {' and '.join(told)}."
        )
        drafts.append(
            _Draft(
                f"weights pay, {symbol}",
                f"weights under {symbol} and labels given them are shorter than the labels alone",
                "bits a label",
                shortest,
                "labels alone",
                float(own.mean()),
                float(beside.mean()),
                interval,
                interval.p_value,
                float(beside.mean()),
                _found(
                    f"{symbol}: describing the weights",
                    "saves more than it costs",
                    "costs more than it saves",
                    "changes the description of the labels",
                    "save more than it costs",
                ),
                remark,
            )
        )
    return drafts


def _test_losses(variants: _Variants, losses: Losses) -> list[_Draft]:
    """The chosen penalties against no penalty, raw and tempered, and L2 against its rivals."""
    drafts = []
    for kind, symbol in (("l2", "L2"), ("l1", "L1")):
        if variants.kind(kind):
            statement = f"{symbol} lowers the test loss"
            drafts.append(
                _loss_claim(variants, losses, kind, "none", f"test loss, {symbol}", statement)
            )
    if variants.kind("l2"):
        drafts.append(
            _loss_claim(
                variants,
                losses,
                "l2",
                "none",
                "tempered loss, L2",
                "L2 lowers the test loss when both networks have their best temperature",
                quantity="loss_tempered",
            )
        )
        for kind in ("temperature", "early stopping", "dropout", "l1"):
            rival = variants.best(kind)
            if rival is not None:
                told = variants.label(rival)
                drafts.append(
                    _loss_claim(
                        variants,
                        losses,
                        "l2",
                        rival,
                        f"L2 against {kind.replace('l1', 'L1')}",
                        f"L2 has a lower test loss than {told}",
                    )
                )
        # A temperature costs nothing, so the other rivals may have one as well.
        for kind in ("early stopping", "dropout"):
            rival = variants.best(kind, "validation_loss_tempered")
            if rival is not None:
                told = variants.label(rival)
                drafts.append(
                    _loss_claim(
                        variants,
                        losses,
                        "l2",
                        rival,
                        f"L2 against {kind}, tempered",
                        f"L2 has a lower test loss than {told} when both have their best "
                        "temperature",
                        quantity="loss_tempered",
                    )
                )
    return drafts


def _loss_claim(
    variants: _Variants,
    losses: Losses,
    kind: str,
    reference: str,
    name: str,
    statement: str,
    *,
    quantity: str = "loss",
) -> _Draft:
    names = variants.kind(kind)
    symbol = kind.upper()
    with_temperature = "With a temperature for both, " if quantity == "loss_tempered" else ""
    if reference == "none":
        found = _found(
            f"{with_temperature}{symbol}",
            "lowers the test loss",
            "raises the test loss",
            "changes the test loss",
            "lower the test loss",
        )
    else:
        rival = variants.label(reference)
        found = _Found(
            f"{with_temperature}{symbol} has a lower test loss than {rival}",
            f"{with_temperature}{symbol} has a higher test loss than {rival}",
            f"{with_temperature}{symbol} and {rival} differ by less than {percent(PRACTICAL)}",
            f"{with_temperature}{symbol} is not shown to have a lower test loss than {rival}",
        )
    column = "validation_loss_tempered" if quantity == "loss_tempered" else "validation_loss"
    beside = np.asarray(losses[reference][quantity], np.float64)

    def difference(place: int) -> Float[np.ndarray, "M N"]:
        return np.asarray(losses[names[place]][quantity], np.float64) - beside

    decided = decide_choice(variants.scores(names, column), difference, confidence=CONFIDENCE)
    chosen = names[decided.place]
    remark = f"{variants.label(chosen)} was chosen among {len(names)} on the validation set."
    if len(names) > 1 and decided.place in (0, len(names) - 1):
        remark += " It is at the end of the range: a wider one may do better."
    value = float(np.mean(losses[chosen][quantity], dtype=np.float64))
    none = float(np.mean(losses["none"][quantity], dtype=np.float64))
    return _Draft(
        name,
        statement,
        "nats",
        chosen,
        reference,
        value,
        value - decided.interval.estimate,
        decided.interval,
        decided.p_value,
        none,
        found,
        remark,
    )


def _zeros(variants: _Variants) -> list[_Draft]:
    """What a spike at zero saves over the best code without one, in the chosen networks."""
    drafts = []
    for kind, symbol in (("l1", "L1"), ("l2", "L2")):
        chosen = variants.best(kind)
        if chosen is None:
            continue
        plain = np.minimum(
            variants.of(chosen, "bits_per_weight_gaussian"),
            variants.of(chosen, "bits_per_weight_laplace"),
        )
        spike = variants.of(chosen, "bits_per_weight_spike")
        interval = model_interval(spike - plain)
        size = {
            name: variants.of(chosen, f"bytes_{name}").mean()
            for name in ("gaussian", "laplace", "spike", "smaller")
        }
        strongest = variants.kind(kind)[-1]
        saved = (
            1
            - variants.of(strongest, "bits_per_weight_spike").mean()
            / np.minimum(
                variants.of(strongest, "bits_per_weight_gaussian"),
                variants.of(strongest, "bits_per_weight_laplace"),
            ).mean()
        )
        remark = (
            f"{percent(variants.of(chosen, 'zero_share').mean(), 3)} of the weights are exactly "
            "zero. "
            f"Real streams: {min(size['gaussian'], size['laplace']):,.0f} bytes without a spike, "
            f"{size['spike']:,.0f} with one, {size['smaller']:,.0f} with dead parts removed. At "
            f"the strongest, {variants.label(strongest)}, a spike saves {percent(saved, 3)}: there "
            f"{percent(variants.of(strongest, 'zero_share').mean(), 3)} are exactly zero and "
            f"{percent(variants.of(strongest, 'zero_cell_share').mean(), 3)} round to it."
        )
        drafts.append(
            _Draft(
                f"zeros, {symbol}",
                f"zeros shorten the stream of {variants.label(chosen)}",
                "bits a weight",
                chosen,
                chosen,
                float(spike.mean()),
                float(plain.mean()),
                interval,
                interval.p_value,
                float(plain.mean()),
                _found(
                    f"Zeros under {variants.label(chosen)}",
                    "shorten the code",
                    "lengthen the code",
                    "change the code",
                    "shorten the code",
                ),
                remark,
            )
        )
    return drafts


def _streams(variants: _Variants) -> list[_Draft]:
    """Whether the real stream of the chosen network is shorter under L1 than under L2."""
    one, other = variants.best("l1"), variants.best("l2")
    if one is None or other is None:
        return []
    column = "bytes_smaller"
    scale = 8 / variants.of(one, "num_weights")[0]
    own, beside = variants.of(one, column) * scale, variants.of(other, column) * scale
    interval = model_interval(own - beside)
    return [
        _Draft(
            "stream, L1 against L2",
            f"the real stream of {variants.label(one)} is shorter than that of "
            f"{variants.label(other)}",
            "bits a weight",
            one,
            other,
            float(own.mean()),
            float(beside.mean()),
            interval,
            interval.p_value,
            float(beside.mean()),
            _found(
                f"The stream of {variants.label(one)}",
                f"is shorter than that of {variants.label(other)}",
                f"is longer than that of {variants.label(other)}",
                f"differs from that of {variants.label(other)}",
                f"be shorter than that of {variants.label(other)}",
            ),
            f"{variants.of(one, column).mean():,.0f} bytes against "
            f"{variants.of(other, column).mean():,.0f}, dead parts removed from both, at one "
            "step.",
        )
    ]


def _decided(draft: _Draft, p_adjusted: float, num_claims: int) -> Claim:
    interval = draft.interval
    verdict = decide(
        interval,
        draft.scale,
        is_significant=p_adjusted < 1 - CONFIDENCE,
        claimed_sign=-1,
        practical=PRACTICAL,
    )
    is_nats = draft.unit == "nats"
    digits = 4 if is_nats else 3
    ends = f"95 % interval {signed(interval.low, digits)} to {signed(interval.high, digits)}"
    if math.isnan(interval.low):
        ends = "one network gives no interval"
    p_told = p_words(p_adjusted)
    if verdict == "not shown" and interval.low * interval.high > 0:
        p_told += f" with the choice and all {num_claims} claims allowed for"
    numbers = f"{signed(interval.estimate, digits)} {draft.unit}, {ends}, {p_told}"
    if draft.reference:
        numbers = f"{draft.value:.{digits}f} against {draft.reference_value:.{digits}f} ({numbers})"
    sentence = f"{draft.found.of(verdict)}: {numbers}. {draft.remark}"
    return Claim(
        draft.name,
        draft.statement,
        draft.unit,
        draft.variant,
        draft.reference,
        draft.value,
        draft.reference_value,
        interval.estimate,
        interval.low,
        interval.high,
        draft.p_value,
        p_adjusted,
        verdict,
        verdict == "holds",
        sentence,
    )
