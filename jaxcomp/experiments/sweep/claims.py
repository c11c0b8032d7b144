"""What a sweep shows, claim by claim, and what it does not.

A sweep has many variants, and the best of many looks good by luck. So a claim is decided as
follows.

- The variant it speaks of, every temperature and the best control are chosen on the *validation
  set*; the test set is looked at once, for that variant.
- The effect is the mean over networks and test examples of compressed minus reference, from the
  loss matrices. Its interval crosses both (`jaxcomp.evaluation.statistics.crossed_mean`).
- The validation set holds other examples but the *same networks*. A variant chosen because it
  happens to suit these networks suits them on the test set as well: with 48 variants and 10
  networks that alone makes a test at 5 % reject a true null up to half the time. Therefore p is the
  larger of two: the crossed test of the chosen variant, and the same test when each half of the
  networks is evaluated in the variant that the *other* half chose; it is 1 if the two effects
  differ in sign. (One network has no halves: the claim is about that network, whose variant other
  examples chose.)
- p is corrected by Holm's procedure over all the claims made.

An effect counts from 3 % on. Losses in nats, accuracies as fractions, sizes in bits: of files where
all compressed variants have one, else estimated.
"""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from jaxcomp.evaluation.statistics import Interval, crossed_mean, holm
from jaxcomp.experiments.choice import decide_choice
from jaxcomp.experiments.sweep.calibration import CalibrationShare, share_of
from jaxcomp.experiments.sweep.candidates import (
    ALLOCATION,
    Candidate,
    JudgedSetting,
    JudgedVariant,
    VariantLosses,
    against_original,
    best,
    checked_losses,
    controls_of,
    difference,
    is_penalised,
    read_table,
    scores,
    usable,
    values_of,
)
from jaxcomp.experiments.sweep.task_words import (
    CLASSIFICATION,
    LOSS,
    TEMPERED,
    Quantity,
    TaskWords,
)
from jaxcomp.experiments.sweep.words import (
    amount_words,
    change_words,
    describe,
    ends_words,
    relative_words,
    signed_words,
    value_words,
)
from jaxcomp.experiments.verdicts import Verdict, decide, p_words, percent

if TYPE_CHECKING:
    import pandas as pd


class Claim(NamedTuple):
    """One claim about one setting, decided."""

    name: str
    """`raw loss`, `tempered loss`, `accuracy` (or another score of the task), `penalty, raw loss`,
    `penalty, tempered loss` or `beyond controls`."""
    statement: str
    """What is claimed."""
    setting: str
    """Name of the data set, model and label noise."""
    variant: str
    """The compressed variant, chosen on the validation set."""
    description: str
    """The same in words, e.g. `K-means, K = 8`."""
    reference: tuple[str, ...]
    """What it is compared with: the original, or one or two unpenalised variants at equal bits."""
    reference_weights: tuple[float, ...]
    """Shares of the reference variants in the comparison; they sum to 1."""
    num_candidates: int
    """Variants (or pairs) the choice was made among."""
    quantity: str
    """What the effect is a difference of: `loss` and `loss_tempered` in nats, or the score of the
    task, such as `accuracy`, as a fraction."""
    value: float
    """The variant's mean on the test set."""
    reference_value: float
    """The reference's mean on the test set."""
    effect: float
    """`value - reference_value`: claimed negative for losses, positive for the accuracy."""
    low: float
    """Lower end of the interval of the effect, crossed over networks and examples."""
    high: float
    """Upper end."""
    relative_effect: float | None
    """Effect over the original's mean loss, or over the original's *error rate* for the accuracy:
    a rise from 98 to 98.5 % is half a per cent of the accuracy but removes a quarter of the errors.
    Losses of a regression are over half a nat, which makes it a share of the squared error.
    None if the original's value is 0."""
    p_value: float
    """Two-sided, covering the choice of the variant on the same networks."""
    p_adjusted: float
    """After Holm's correction over all claims made together."""
    holds: bool
    """Whether the verdict is `holds`."""
    verdict: Verdict
    """`holds` and `opposite`: significant, and at least 3 % in the claimed or the other direction.
    `no practical difference`: below 3 %, and significant or with an interval that stays below 3 %.
    `not shown`: neither."""
    degrees_of_freedom: float
    """Of the interval."""
    num_models: int
    """M. If 1, the claim is about this one network."""
    num_examples: int
    """N, test examples."""
    control: str | None
    """The best control on the validation set, which compresses nothing; None if none was run."""
    control_variant: str | None
    """Its variant."""
    control_effect: float | None
    """Compressed minus control, in the units of `effect`."""
    control_low: float | None
    """Lower end of the interval of `control_effect`."""
    control_high: float | None
    """Upper end."""
    confidence: float
    """Of both intervals; one minus the level of the tests."""
    sentence: str
    """The result in plain English."""


_SEPARATOR = " | "
_OPTIONAL_FIELDS = (
    "relative_effect",
    "control",
    "control_variant",
    "control_effect",
    "control_low",
    "control_high",
)


class _Question(NamedTuple):
    """A claim before it is decided."""

    name: str
    statement: str
    quantity: Quantity
    candidates: tuple[Candidate, ...]


class _Answer(NamedTuple):
    """A claim before the correction for the other claims."""

    question: _Question
    chosen: Candidate
    interval: Interval
    p_value: float
    value: float
    reference_value: float
    original_value: float
    control: JudgedVariant | None
    control_interval: Interval | None
    calibration: CalibrationShare | None


def evaluate_claims(
    table: "pd.DataFrame",
    losses: Callable[[str], VariantLosses],
    *,
    words: TaskWords = CLASSIFICATION,
    confidence: float = 0.95,
    practical: float = 0.03,
) -> list[Claim]:
    """Decide what a sweep shows, for one data set, model and label noise.

    The claims: (1) compression lowers the raw test loss; (2) it does when original and compressed
    network both have their best temperature; (3) it raises the accuracy; (4) the diameter penalty
    beats the same K-means without it at equal bits, raw and tempered. Claims 1 to 3 speak of
    the compressed variant with the best mean of that quantity on the validation set (the first in
    the table if there are several).

    Claim 4 compares a penalised K-means variant with the unpenalised K-means variants of its
    importance. The baseline at equal bits mixes the two whose mean sizes (`size_bytes`, or
    `size_bits_estimated` without files) enclose the variant's, in the proportion that gives its
    mean size: what a coin would reach that picks one of the two quantizers for each network. Beyond
    the last unpenalised variant the nearest one is taken, and the sentence says so. The penalised
    variant that is best on the validation set is tested.

    Claims without candidates (no compressed variant, no penalised one) are not made and do not
    enter the correction. Variants with a number that is not finite are no candidates.

    Args:
        table: one row per variant and network, of a single setting (named by the column `setting`,
            else by `dataset`, `model` and `label_noise`), with one variant of kind "original";
            every variant lists the same `model_seed`s in the same order. Other kinds are ignored.
        losses: gives a variant's test losses and scores, `(M, N)`; called once per variant needed,
            which are few.
        words: of the task.
        confidence: of the intervals; one minus the level of the tests.
        practical: the relative effect from which a difference counts.

    Returns:
        The claims made, in the order above.

    Raises:
        ValueError: if the table lacks a column, mixes settings, has no single original or variants
            of different networks, or if a loss matrix does not fit the table.
    """
    setting = read_table(table, words)
    load = checked_losses(losses, setting.original)
    questions = [question for question in _questions(setting) if question.candidates]
    answers = [_answer(question, setting, load, confidence, practical) for question in questions]
    adjusted = holm([answer.p_value for answer in answers])
    return [
        _claim(answer, float(p), len(answers), setting, confidence, practical)
        for answer, p in zip(answers, adjusted, strict=True)
    ]


def claims_table(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """Return the claims as flat rows of strings, numbers and None, for JSON or CSV.

    Several reference variants are joined by " | ". `claim_from_dict` is the inverse.

    Args:
        claims: as returned by `evaluate_claims`.

    Returns:
        One dictionary per claim, keys as the fields of `Claim`.
    """
    return [
        claim._asdict()
        | {
            "reference": _SEPARATOR.join(claim.reference),
            "reference_weights": _SEPARATOR.join(repr(w) for w in claim.reference_weights),
        }
        for claim in claims
    ]


def claim_from_dict(row: Mapping[str, Any]) -> Claim:
    """Rebuild a claim from a row of `claims_table`, also one read back from JSON or CSV.

    Args:
        row: the fields by name; None, NaN and "" all stand for a missing number.

    Returns:
        The claim.

    Raises:
        ValueError: if a field is missing or the verdict is unknown.
    """
    missing = [name for name in Claim._fields if name not in row]
    if missing:
        raise ValueError(
            f"A stored claim must have every field of Claim, but {missing} are missing."
        )
    if row["verdict"] not in get_args(Verdict):
        raise ValueError(
            f"The verdict of a stored claim must be one of {list(get_args(Verdict))}, "
            f"got {row['verdict']!r}."
        )
    fields: dict[str, Any] = {name: row[name] for name in Claim._fields}
    for name in _OPTIONAL_FIELDS:
        value = fields[name]
        fields[name] = None if value is None or value == "" or value != value else value
    fields["reference"] = tuple(str(row["reference"]).split(_SEPARATOR))
    fields["reference_weights"] = tuple(
        float(weight) for weight in str(row["reference_weights"]).split(_SEPARATOR)
    )
    fields["holds"] = row["verdict"] == "holds"
    return Claim(**fields)


def _questions(setting: JudgedSetting) -> list[_Question]:
    def question(name: str, statement: str, quantity: Quantity, *, penalty: bool) -> _Question:
        find = _at_equal_bits if penalty else against_original
        return _Question(name, statement, quantity, tuple(find(setting, quantity)))

    words = setting.words
    score = words.score
    direction = "raises" if score.is_higher_better else "lowers"
    return [
        question("raw loss", "Compression lowers the test loss.", LOSS, penalty=False),
        question(
            "tempered loss",
            "Compression lowers the test loss when the original and the compressed network both "
            f"have their best {words.calibration}.",
            TEMPERED,
            penalty=False,
        ),
        question(
            score.name.replace("_", " "),
            f"Compression {direction} the test {score.label}.",
            score,
            penalty=False,
        ),
        question(
            "penalty, raw loss",
            "At equal bits, the diameter penalty lowers the test loss below that of K-means "
            "with the same importance and without it.",
            LOSS,
            penalty=True,
        ),
        question(
            "penalty, tempered loss",
            f"At equal bits and best {words.calibration}s, the diameter penalty lowers the test "
            "loss below that of K-means with the same importance and without it.",
            TEMPERED,
            penalty=True,
        ),
    ]


def _at_equal_bits(setting: JudgedSetting, quantity: Quantity) -> list[Candidate]:
    """Pair each penalised K-means variant with the unpenalised curve of its importance."""
    variants = [
        c
        for c in setting.of_kind("compressed")
        if (c.is_about["method"], c.is_about[ALLOCATION]) == ("kmeans", "equal")
    ]
    candidates = []
    by_size: dict[str, dict[int, JudgedVariant]] = {}
    for variant in variants:
        if not is_penalised(variant):
            curve = by_size.setdefault(str(variant.is_about["importance"]), {})
            # A penalty of strength 0, in whatever form, is the same quantizer again.
            curve.setdefault(int(variant.is_about["num_clusters"]), variant)
    curves = {
        name: sorted(curve.values(), key=lambda variant: variant.bits)
        for name, curve in by_size.items()
    }
    # Once for each curve, not for each pair.
    bits = {name: [variant.bits for variant in curve] for name, curve in curves.items()}
    for variant in filter(is_penalised, variants):
        name = str(variant.is_about["importance"])
        if curves.get(name) and math.isfinite(variant.bits):
            candidates.append(_interpolated(variant, curves[name], bits[name]))
    return usable(candidates, quantity)


def _interpolated(
    variant: JudgedVariant, curve: Sequence[JudgedVariant], bits: Sequence[float]
) -> Candidate:
    """Mix the two neighbours on a curve sorted by bits to the size of the variant."""
    size = variant.bits
    upper = bisect.bisect_left(bits, size)
    if upper == 0:
        return Candidate(variant, ((1.0, curve[0]),), is_outside=size < bits[0])
    if upper == len(curve):
        return Candidate(variant, ((1.0, curve[-1]),), is_outside=True)
    below, above = curve[upper - 1], curve[upper]
    share = (size - bits[upper - 1]) / (bits[upper] - bits[upper - 1])
    if share == 1:
        return Candidate(variant, ((1.0, above),))
    return Candidate(variant, ((1 - share, below), (share, above)))


def _answer(
    question: _Question,
    setting: JudgedSetting,
    load: Callable[[str], VariantLosses],
    confidence: float,
    practical: float,
) -> _Answer:
    quantity = question.quantity
    place, interval, p_value = decide_choice(
        scores(question.candidates, quantity),
        lambda number: difference(question.candidates[number], quantity, load),
        confidence=confidence,
    )
    chosen = question.candidates[place]
    value = float(values_of(chosen.variant, quantity, load).mean())
    control, control_interval = None, None
    controls = controls_of(setting, quantity)
    if controls:
        control = controls[best(controls, quantity)].variant
        against_control = Candidate(chosen.variant, ((1.0, control),))
        control_interval = crossed_mean(
            difference(against_control, quantity, load), confidence=confidence
        )
    return _Answer(
        question=question,
        chosen=chosen,
        interval=interval,
        p_value=p_value,
        value=value,
        reference_value=value - interval.estimate,
        original_value=float(values_of(setting.original, quantity, load).mean()),
        control=control,
        control_interval=control_interval,
        calibration=share_of(chosen, setting, load, confidence, practical)
        if question.name == "raw loss"
        else None,
    )


def _claim(
    answer: _Answer,
    p_adjusted: float,
    num_claims: int,
    setting: JudgedSetting,
    confidence: float,
    practical: float,
) -> Claim:
    question, interval = answer.question, answer.interval
    original = answer.original_value
    scale = setting.scale(question.quantity, original)
    relative = interval.estimate / scale if scale > 0 else None
    verdict = decide(
        interval,
        scale,
        is_significant=p_adjusted < 1 - confidence,
        claimed_sign=question.quantity.claimed_sign,
        practical=practical,
    )
    against_control = answer.control_interval
    return Claim(
        name=question.name,
        statement=question.statement,
        setting=setting.name,
        variant=answer.chosen.variant.name,
        description=describe(answer.chosen.variant, setting.words),
        reference=tuple(variant.name for _, variant in answer.chosen.reference),
        reference_weights=tuple(weight for weight, _ in answer.chosen.reference),
        num_candidates=len(question.candidates),
        quantity=question.quantity.name,
        value=answer.value,
        reference_value=answer.reference_value,
        effect=interval.estimate,
        low=interval.low,
        high=interval.high,
        relative_effect=relative,
        p_value=answer.p_value,
        p_adjusted=p_adjusted,
        holds=verdict == "holds",
        verdict=verdict,
        degrees_of_freedom=interval.degrees_of_freedom,
        num_models=interval.num_models,
        num_examples=interval.num_examples,
        control=None if answer.control is None else str(answer.control.is_about["method"]),
        control_variant=None if answer.control is None else answer.control.name,
        control_effect=None if against_control is None else against_control.estimate,
        control_low=None if against_control is None else against_control.low,
        control_high=None if against_control is None else against_control.high,
        confidence=confidence,
        sentence=_sentence(
            answer, setting, verdict, relative, p_adjusted, num_claims, confidence, practical
        ),
    )


def _sentence(
    answer: _Answer,
    setting: JudgedSetting,
    verdict: Verdict,
    relative: float | None,
    p_adjusted: float,
    num_claims: int,
    confidence: float,
    practical: float,
) -> str:
    question, chosen, interval = answer.question, answer.chosen, answer.interval
    quantity, words = question.quantity, setting.words
    is_penalty = chosen.reference[0][1].is_about["kind"] != "original"
    actor = "the diameter penalty" if is_penalty else "compression"
    subject = f"the test {quantity.label}"
    aim, opposite = ("raise", "lowers") if quantity.is_higher_better else ("lower", "raises")
    scale = f"the {quantity.deficit}" if quantity.deficit else subject
    found = {
        "holds": f"{actor} {aim}s {subject}",
        "opposite": f"{actor} {opposite} {subject}",
        "no practical difference": f"{actor} changes {scale} by less than {percent(practical)}",
        "not shown": f"{actor} is not shown to {aim} {subject}",
    }[verdict]
    conditions = []
    if is_penalty:
        conditions.append(f"at {'the nearest' if chosen.is_outside else 'equal'} bits")
    if quantity == TEMPERED:
        conditions.append(f"with {words.fitted} for both networks")
    before, after = (value_words(v, quantity) for v in (answer.reference_value, answer.value))
    movement = f"{after} with it, {before} without" if is_penalty else f"from {before} to {after}"
    head = ", ".join([" and ".join(conditions), found] if conditions else [found])
    numbers = (
        f"{change_words(interval, quantity, confidence)}"
        f"{relative_words(relative, quantity, words)}, {p_words(p_adjusted)}"
    )
    parts = [f"{head[0].upper()}{head[1:]}: {movement} ({numbers})."]
    calibration = answer.calibration
    if verdict == "holds" and calibration is not None and calibration.share is not None:
        parts.append(calibration.sentence)
    return " ".join(
        [*parts, *_choice_words(answer, num_claims, words), *_control_words(answer, words)]
    )


def _choice_words(answer: _Answer, num_claims: int, task: TaskWords) -> list[str]:
    num_candidates, num_models = len(answer.question.candidates), answer.interval.num_models
    choice = (
        f"chosen among {num_candidates} variants on the validation set"
        if num_candidates > 1
        else "the only variant"
    )
    networks = "this one network" if num_models == 1 else f"{num_models} networks"
    words = [f"Tested: {describe(answer.chosen.variant, task)}, {choice}, on {networks}."]
    if num_models == 1:
        words.append("Nothing is said about other networks.")
    # For one network the choice needs no allowance: other examples made it.
    allowances = ["this choice"] if num_models > 1 and num_candidates > 1 else []
    allowances += [f"{num_claims} claims"] if num_claims > 1 else []
    if allowances:
        words.append(f"The p-value allows for {' and '.join(allowances)}.")
    if answer.chosen.is_outside:
        words.append(
            "No variant without the penalty is as small or as large: the nearest stands in."
        )
    return words


def _control_words(answer: _Answer, words: TaskWords) -> list[str]:
    interval, control = answer.control_interval, answer.control
    if interval is None or control is None:
        return []
    quantity = answer.question.quantity
    excludes_zero = interval.low > 0 or interval.high < 0
    subject = f"The best control, which compresses nothing ({describe(control, words)}),"
    if not excludes_zero:
        return [
            f"{subject} cannot be told apart from it: difference "
            f"{signed_words(interval.estimate, quantity)}{quantity.difference_unit} "
            f"({ends_words(interval, quantity)})."
        ]
    is_variant_better = interval.estimate * quantity.claimed_sign > 0
    low, high = sorted((abs(interval.low), abs(interval.high)))
    return [
        f"{subject} is {'worse' if is_variant_better else 'better'} by "
        f"{amount_words(abs(interval.estimate), quantity)}{quantity.difference_unit} "
        f"({amount_words(low, quantity)} to {amount_words(high, quantity)})."
    ]
