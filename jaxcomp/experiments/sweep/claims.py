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

An effect counts from 3 % on. Losses in nats, accuracies as fractions, sizes in bits.
"""

import bisect
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from jaxcomp.evaluation.statistics import Interval, crossed_mean, holm
from jaxcomp.experiments.choice import choose, decide_choice
from jaxcomp.experiments.sweep.config import Setting
from jaxcomp.experiments.sweep.importance import importance_name
from jaxcomp.experiments.sweep.methods import METHODS
from jaxcomp.experiments.verdicts import Verdict, decide, p_words, percent, signed

if TYPE_CHECKING:
    import pandas as pd

Quantity = Literal["loss", "loss_tempered", "accuracy"]


class VariantLosses(NamedTuple):
    """One variant on the test set, per network and example: `M` networks in the table's order."""

    loss: NDArray[np.floating[Any]]
    """`(M, N)` cross-entropy in nats."""
    loss_tempered: NDArray[np.floating[Any]]
    """`(M, N)` the same with each network's temperature, fitted on the validation set."""
    correct: NDArray[np.bool_]
    """`(M, N)` bool: the highest logit is the label's. A temperature does not change it."""


class Claim(NamedTuple):
    """One claim about one setting, decided."""

    name: str
    """`raw loss`, `tempered loss`, `accuracy`, `penalty, raw loss` or `penalty, tempered loss`."""
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
    quantity: Quantity
    """What the effect is a difference of: a loss in nats, or the accuracy as a fraction."""
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


class SmallestNetwork(NamedTuple):
    """The smallest compressed network whose test loss is as low as the original's.

    As low means: with a temperature for original and compressed network, the 95 % interval of the
    change stays below the margin. It speaks of the networks at hand. Where the interval does not
    stay below, `holds` is false, and the candidate is told with its numbers.
    """

    setting: str
    """Name of the data set, model and label noise."""
    variant: str
    """The candidate, chosen on the validation set."""
    description: str
    """The same in words."""
    ratio: float
    """Bits of 32-bit weights over its estimated bits, mean over the networks."""
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
    margin: float
    """The rise that counts as a loss, as a share of `reference_value`."""
    holds: bool
    """Whether the upper end stays below the margin."""
    accuracy_effect: float
    """Change of the test accuracy, as a fraction; reported, not tested."""
    accuracy_low: float
    """Lower end of its interval."""
    accuracy_high: float
    """Upper end."""
    num_models: int
    """M; all numbers are means over these networks."""
    confidence: float
    """Of the intervals."""
    sentence: str
    """The result in plain English."""


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


_SEPARATOR = " | "
# Of the margin: a rise that large on the validation set leaves room for chance on the test set.
_TOLERATED = 0.25
_OPTIONAL_FIELDS = (
    "relative_effect",
    "control",
    "control_variant",
    "control_effect",
    "control_low",
    "control_high",
)
_SETTING_COLUMNS = ("dataset", "model", "label_noise")
_DESCRIPTION_COLUMNS = (
    "kind",
    "method",
    "importance",
    "penalty_form",
    "diameter_penalty",
    "num_clusters",
    "parameter",
)
# A table without the column has the same size of codebook in every layer.
_ALLOCATION = "allocation"
_VALIDATION_COLUMNS: dict[Quantity, str] = {
    "loss": "validation_loss",
    "loss_tempered": "validation_loss_tempered",
    "accuracy": "validation_accuracy",
}
_COLUMNS = (
    "variant",
    "model_seed",
    *_DESCRIPTION_COLUMNS,
    "size_bits_estimated",
    *_VALIDATION_COLUMNS.values(),
)


class _Variant(NamedTuple):
    """One variant of the table: what it is, and its numbers per network."""

    name: str
    is_about: dict[str, Any]
    sizes: NDArray[np.float64]  # (M,) bits
    validation: dict[Quantity, NDArray[np.float64]]  # each (M,)

    @property
    def bits(self) -> float:
        """Size, mean over the networks."""
        return float(self.sizes.mean())


class _Candidate(NamedTuple):
    """A variant and what it is compared with, as weights over variants that sum to 1."""

    variant: _Variant
    reference: tuple[tuple[float, _Variant], ...]
    is_outside: bool = False

    def validation_difference(self, quantity: Quantity) -> NDArray[np.float64]:
        """Variant minus reference on the validation set, (M,)."""
        return self.variant.validation[quantity] - sum(
            weight * variant.validation[quantity] for weight, variant in self.reference
        )


class _Setting(NamedTuple):
    name: str
    variants: tuple[_Variant, ...]
    original: _Variant

    def of_kind(self, kind: str) -> list[_Variant]:
        return [variant for variant in self.variants if variant.is_about["kind"] == kind]


class _Question(NamedTuple):
    """A claim before it is decided."""

    name: str
    statement: str
    quantity: Quantity
    candidates: tuple[_Candidate, ...]


class _Answer(NamedTuple):
    """A claim before the correction for the other claims."""

    question: _Question
    chosen: _Candidate
    interval: Interval
    p_value: float
    value: float
    reference_value: float
    original_value: float
    control: _Variant | None
    control_interval: Interval | None
    calibration: CalibrationShare | None


def evaluate_claims(
    table: "pd.DataFrame",
    losses: Callable[[str], VariantLosses],
    *,
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
    importance. The baseline at equal bits mixes the two whose mean `size_bits_estimated` enclose
    the variant's, in the proportion that gives its mean size: what a coin would reach that picks
    one of the two quantizers for each network. Beyond the last unpenalised variant the nearest one
    is taken, and the sentence says so. The penalised variant that is best on the validation set is
    tested.

    Claims without candidates (no compressed variant, no penalised one) are not made and do not
    enter the correction. Variants with a number that is not finite are no candidates.

    Args:
        table: one row per variant and network, of a single setting (named by the column `setting`,
            else by `dataset`, `model` and `label_noise`), with one variant of kind "original";
            every variant lists the same `model_seed`s in the same order. Other kinds are ignored.
        losses: gives a variant's test losses and hits, `(M, N)`; called once per variant needed,
            which are few.
        confidence: of the intervals; one minus the level of the tests.
        practical: the relative effect from which a difference counts.

    Returns:
        The claims made, in the order above.

    Raises:
        ValueError: if the table lacks a column, mixes settings, has no single original or variants
            of different networks, or if a loss matrix does not fit the table.
    """
    setting = _read_table(table)
    load = _checked_losses(losses, setting.original)
    questions = [question for question in _questions(setting) if question.candidates]
    answers = [_answer(question, setting, load, confidence, practical) for question in questions]
    adjusted = holm([answer.p_value for answer in answers])
    return [
        _claim(answer, float(p), len(answers), setting, confidence, practical)
        for answer, p in zip(answers, adjusted, strict=True)
    ]


def calibration_share(
    table: "pd.DataFrame",
    losses: Callable[[str], VariantLosses],
    *,
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
        confidence: of the intervals.
        practical: the relative effect from which a difference counts.

    Returns:
        The two changes and their comparison; None if nothing was compressed.

    Raises:
        ValueError: as for `evaluate_claims`.
    """
    setting = _read_table(table)
    load = _checked_losses(losses, setting.original)
    candidates = _against_original(setting, "loss")
    if not candidates:
        return None
    chosen = candidates[_best(candidates, "loss")]
    share = _calibration_share(chosen, setting, load, confidence, practical)
    if share.share is None:
        return share
    fall = _amount(-share.raw.estimate, "loss")
    head = f"The raw test loss fell by {fall} nats ({_ends(share.raw)})"
    return share._replace(sentence=f"{head}. {share.sentence}")


def smallest_without_loss(
    table: "pd.DataFrame",
    losses: Callable[[str], VariantLosses],
    *,
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
        confidence: of the two-sided intervals.
        margin: the rise that counts as a loss, as a share of the original's tempered loss.

    Returns:
        The candidate with its test; None if nothing was compressed.

    Raises:
        ValueError: as for `evaluate_claims`.
    """
    setting = _read_table(table)
    load = _checked_losses(losses, setting.original)
    candidates = _against_original(setting, "loss_tempered")
    if not candidates:
        return None
    # By size: the first that is good enough is the smallest.
    candidates.sort(key=lambda candidate: candidate.variant.bits)
    allowed = _TOLERATED * margin * float(setting.original.validation["loss_tempered"].mean())
    rises = [c.validation_difference("loss_tempered").mean() for c in candidates]
    chosen = next(
        (c for c, rise in zip(candidates, rises, strict=True) if rise <= allowed),
        candidates[int(np.argmin(rises))],
    )

    def change(quantity: Quantity) -> Interval:
        mean = _difference(chosen, quantity, load).mean(axis=0, keepdims=True)
        return crossed_mean(mean, confidence=confidence)

    interval, accuracy = change("loss_tempered"), change("accuracy")
    reference_value = float(_matrix(setting.original, "loss_tempered", load).mean())
    found = SmallestNetwork(
        setting=setting.name,
        variant=chosen.variant.name,
        description=_describe(chosen.variant),
        ratio=float(np.mean(setting.original.sizes / chosen.variant.sizes)),
        num_candidates=len(candidates),
        effect=interval.estimate,
        low=interval.low,
        high=interval.high,
        reference_value=reference_value,
        margin=margin,
        holds=interval.high < margin * reference_value,
        accuracy_effect=accuracy.estimate,
        accuracy_low=accuracy.low,
        accuracy_high=accuracy.high,
        num_models=len(setting.original.sizes),
        confidence=confidence,
        sentence="",
    )
    return found._replace(sentence=_smallest_sentence(found))


def smallest_from_dict(row: Mapping[str, Any]) -> SmallestNetwork:
    """Rebuild a result of `smallest_without_loss` from its fields.

    Raises:
        ValueError: if a field is missing.
    """
    missing = [name for name in SmallestNetwork._fields if name not in row]
    if missing:
        raise ValueError(f"A stored smallest network must have every field, but lacks {missing}.")
    return SmallestNetwork(**{name: row[name] for name in SmallestNetwork._fields})


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


def _read_table(table: "pd.DataFrame") -> _Setting:
    identity = ("setting",) if "setting" in table.columns else _SETTING_COLUMNS
    missing = [name for name in (*identity, *_COLUMNS) if name not in table.columns]
    if missing:
        raise ValueError(f"The table lacks the columns {missing} that the claims are made from.")
    settings = list(dict.fromkeys(zip(*(table[name].tolist() for name in identity), strict=True)))
    if len(settings) != 1:
        raise ValueError(
            "Claims are made for one data set, model and label noise at a time, got the settings "
            f"{settings}: select the rows of one of them."
        )
    columns = {name: table[name].to_numpy() for name in _COLUMNS}
    columns[_ALLOCATION] = (
        table[_ALLOCATION].to_numpy()
        if _ALLOCATION in table.columns
        else np.full(len(table), "equal", object)
    )
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(columns["variant"]):
        rows.setdefault(str(name), []).append(row)
    variants = tuple(_read_variant(name, rows[name], columns) for name in rows)
    originals = [variant for variant in variants if variant.is_about["kind"] == "original"]
    if len(originals) != 1:
        raise ValueError(
            "The table must have exactly one variant of kind 'original', "
            f"got {[variant.name for variant in originals]}."
        )
    networks = columns["model_seed"][rows[originals[0].name]].tolist()
    for name, members in rows.items():
        if columns["model_seed"][members].tolist() != networks:
            raise ValueError(
                f"Every variant must list the networks of the original in the same order, "
                f"{networks}, but variant {name!r} has {columns['model_seed'][members].tolist()}."
            )
    name = settings[0][0]
    if len(identity) > 1:
        name = Setting(*settings[0]).name
    return _Setting(str(name), variants, originals[0])


def _read_variant(name: str, rows: list[int], columns: Mapping[str, NDArray[Any]]) -> _Variant:
    return _Variant(
        name=name,
        is_about={
            column: columns[column][rows[0]] for column in (*_DESCRIPTION_COLUMNS, _ALLOCATION)
        },
        sizes=columns["size_bits_estimated"][rows].astype(np.float64),
        validation={
            quantity: columns[column][rows].astype(np.float64)
            for quantity, column in _VALIDATION_COLUMNS.items()
        },
    )


def _checked_losses(
    losses: Callable[[str], VariantLosses], original: _Variant
) -> Callable[[str], VariantLosses]:
    """Load each variant once and refuse matrices that do not belong together."""
    shape = (original.validation["loss"].size, np.shape(losses(original.name).loss)[-1])

    @functools.cache
    def load(name: str) -> VariantLosses:
        found = losses(name)
        for field, matrix in zip(VariantLosses._fields, found, strict=True):
            if np.shape(matrix) != shape:
                raise ValueError(
                    f"The {field} of variant {name!r} must have one row per network of the table "
                    f"and one column per test example, {shape}, got {np.shape(matrix)}."
                )
            if not np.all(np.isfinite(matrix)):
                raise ValueError(f"The {field} of variant {name!r} has values that are not finite.")
        return found

    return load


def _questions(setting: _Setting) -> list[_Question]:
    def question(name: str, statement: str, quantity: Quantity, *, penalty: bool) -> _Question:
        find = _at_equal_bits if penalty else _against_original
        return _Question(name, statement, quantity, tuple(find(setting, quantity)))

    return [
        question("raw loss", "Compression lowers the test loss.", "loss", penalty=False),
        question(
            "tempered loss",
            "Compression lowers the test loss when the original and the compressed network both "
            "have their best temperature.",
            "loss_tempered",
            penalty=False,
        ),
        question("accuracy", "Compression raises the test accuracy.", "accuracy", penalty=False),
        question(
            "penalty, raw loss",
            "At equal bits, the diameter penalty lowers the test loss below that of K-means "
            "with the same importance and without it.",
            "loss",
            penalty=True,
        ),
        question(
            "penalty, tempered loss",
            "At equal bits and best temperatures, the diameter penalty lowers the test loss below "
            "that of K-means with the same importance and without it.",
            "loss_tempered",
            penalty=True,
        ),
    ]


def _against_original(setting: _Setting, quantity: Quantity) -> list[_Candidate]:
    candidates = [
        _Candidate(variant, ((1.0, setting.original),)) for variant in setting.of_kind("compressed")
    ]
    return _usable(candidates, quantity)


def _at_equal_bits(setting: _Setting, quantity: Quantity) -> list[_Candidate]:
    """Pair each penalised K-means variant with the unpenalised curve of its importance."""
    variants = [
        c
        for c in setting.of_kind("compressed")
        if (c.is_about["method"], c.is_about[_ALLOCATION]) == ("kmeans", "equal")
    ]
    candidates = []
    by_size: dict[str, dict[int, _Variant]] = {}
    for variant in variants:
        if not _is_penalised(variant):
            curve = by_size.setdefault(str(variant.is_about["importance"]), {})
            # A penalty of strength 0, in whatever form, is the same quantizer again.
            curve.setdefault(int(variant.is_about["num_clusters"]), variant)
    curves = {
        name: sorted(curve.values(), key=lambda variant: variant.bits)
        for name, curve in by_size.items()
    }
    # Once for each curve, not for each pair.
    bits = {name: [variant.bits for variant in curve] for name, curve in curves.items()}
    for variant in filter(_is_penalised, variants):
        name = str(variant.is_about["importance"])
        if curves.get(name) and math.isfinite(variant.bits):
            candidates.append(_interpolated(variant, curves[name], bits[name]))
    return _usable(candidates, quantity)


def _is_penalised(variant: _Variant) -> bool:
    return variant.is_about["penalty_form"] != "none" and variant.is_about["diameter_penalty"] > 0


def _interpolated(
    variant: _Variant, curve: Sequence[_Variant], bits: Sequence[float]
) -> _Candidate:
    """Mix the two neighbours on a curve sorted by bits to the size of the variant."""
    size = variant.bits
    upper = bisect.bisect_left(bits, size)
    if upper == 0:
        return _Candidate(variant, ((1.0, curve[0]),), is_outside=size < bits[0])
    if upper == len(curve):
        return _Candidate(variant, ((1.0, curve[-1]),), is_outside=True)
    below, above = curve[upper - 1], curve[upper]
    share = (size - bits[upper - 1]) / (bits[upper] - bits[upper - 1])
    if share == 1:
        return _Candidate(variant, ((1.0, above),))
    return _Candidate(variant, ((1 - share, below), (share, above)))


def _usable(candidates: list[_Candidate], quantity: Quantity) -> list[_Candidate]:
    return [c for c in candidates if np.all(np.isfinite(c.validation_difference(quantity)))]


def _best(candidates: Sequence[_Candidate], quantity: Quantity) -> int:
    """Index of the variant that is best on the validation set, mean over the networks."""
    return choose(_scores(candidates, quantity))


def _scores(candidates: Sequence[_Candidate], quantity: Quantity) -> NDArray[np.float64]:
    """What the choice minimises, (C, M).

    By its own value, not by its advantage over the reference: a penalty that helps most where both
    networks are ruined answers nobody's question.
    """
    values = [candidate.variant.validation[quantity] for candidate in candidates]
    return -_claimed_sign(quantity) * np.asarray(values)


def _claimed_sign(quantity: Quantity) -> int:
    return 1 if quantity == "accuracy" else -1


def _matrix(
    variant: _Variant, quantity: Quantity, load: Callable[[str], VariantLosses]
) -> NDArray[Any]:
    found = load(variant.name)
    matrix = {
        "loss": found.loss,
        "loss_tempered": found.loss_tempered,
        "accuracy": found.correct,
    }[quantity]
    return np.asarray(matrix, dtype=np.float64)


def _difference(
    candidate: _Candidate, quantity: Quantity, load: Callable[[str], VariantLosses]
) -> NDArray[np.float64]:
    """Variant minus reference on the test set, (M, N)."""
    return _matrix(candidate.variant, quantity, load) - sum(
        weight * _matrix(variant, quantity, load) for weight, variant in candidate.reference
    )


def _answer(
    question: _Question,
    setting: _Setting,
    load: Callable[[str], VariantLosses],
    confidence: float,
    practical: float,
) -> _Answer:
    quantity = question.quantity
    place, interval, p_value = decide_choice(
        _scores(question.candidates, quantity),
        lambda number: _difference(question.candidates[number], quantity, load),
        confidence=confidence,
    )
    chosen = question.candidates[place]
    value = float(_matrix(chosen.variant, quantity, load).mean())
    control, control_interval = None, None
    controls = [
        _Candidate(variant, ((1.0, setting.original),)) for variant in setting.of_kind("control")
    ]
    controls = _usable(controls, quantity)
    if controls:
        control = controls[_best(controls, quantity)].variant
        against_control = _Candidate(chosen.variant, ((1.0, control),))
        control_interval = crossed_mean(
            _difference(against_control, quantity, load), confidence=confidence
        )
    return _Answer(
        question=question,
        chosen=chosen,
        interval=interval,
        p_value=p_value,
        value=value,
        reference_value=value - interval.estimate,
        original_value=float(_matrix(setting.original, quantity, load).mean()),
        control=control,
        control_interval=control_interval,
        calibration=_calibration_share(chosen, setting, load, confidence, practical)
        if question.name == "raw loss"
        else None,
    )


def _claim(
    answer: _Answer,
    p_adjusted: float,
    num_claims: int,
    setting: _Setting,
    confidence: float,
    practical: float,
) -> Claim:
    question, interval = answer.question, answer.interval
    original = answer.original_value
    scale = 1 - original if question.quantity == "accuracy" else original
    relative = interval.estimate / scale if scale > 0 else None
    verdict = decide(
        interval,
        scale,
        is_significant=p_adjusted < 1 - confidence,
        claimed_sign=_claimed_sign(question.quantity),
        practical=practical,
    )
    against_control = answer.control_interval
    return Claim(
        name=question.name,
        statement=question.statement,
        setting=setting.name,
        variant=answer.chosen.variant.name,
        description=_describe(answer.chosen.variant),
        reference=tuple(variant.name for _, variant in answer.chosen.reference),
        reference_weights=tuple(weight for weight, _ in answer.chosen.reference),
        num_candidates=len(question.candidates),
        quantity=question.quantity,
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
            answer, verdict, relative, p_adjusted, num_claims, confidence, practical
        ),
    )


def _sentence(
    answer: _Answer,
    verdict: Verdict,
    relative: float | None,
    p_adjusted: float,
    num_claims: int,
    confidence: float,
    practical: float,
) -> str:
    question, chosen, interval = answer.question, answer.chosen, answer.interval
    quantity = question.quantity
    is_accuracy = quantity == "accuracy"
    is_penalty = chosen.reference[0][1].is_about["kind"] != "original"
    actor = "the diameter penalty" if is_penalty else "compression"
    subject = "the test accuracy" if is_accuracy else "the test loss"
    aim, opposite = ("raise", "lowers") if is_accuracy else ("lower", "raises")
    scale = "the error rate" if is_accuracy else subject
    found = {
        "holds": f"{actor} {aim}s {subject}",
        "opposite": f"{actor} {opposite} {subject}",
        "no practical difference": f"{actor} changes {scale} by less than {percent(practical)}",
        "not shown": f"{actor} is not shown to {aim} {subject}",
    }[verdict]
    conditions = []
    if is_penalty:
        conditions.append(f"at {'the nearest' if chosen.is_outside else 'equal'} bits")
    if quantity == "loss_tempered":
        conditions.append("with a temperature for both networks")
    before, after = (_value(v, quantity) for v in (answer.reference_value, answer.value))
    movement = f"{after} with it, {before} without" if is_penalty else f"from {before} to {after}"
    head = ", ".join([" and ".join(conditions), found] if conditions else [found])
    numbers = (
        f"{_change(interval, quantity, confidence)}"
        f"{_relative_words(relative, is_accuracy)}, {p_words(p_adjusted)}"
    )
    parts = [f"{head[0].upper()}{head[1:]}: {movement} ({numbers})."]
    calibration = answer.calibration
    if verdict == "holds" and calibration is not None and calibration.share is not None:
        parts.append(calibration.sentence)
    return " ".join([*parts, *_choice_words(answer, num_claims), *_control_words(answer)])


def _choice_words(answer: _Answer, num_claims: int) -> list[str]:
    num_candidates, num_models = len(answer.question.candidates), answer.interval.num_models
    choice = (
        f"chosen among {num_candidates} variants on the validation set"
        if num_candidates > 1
        else "the only variant"
    )
    networks = "this one network" if num_models == 1 else f"{num_models} networks"
    words = [f"Tested: {_describe(answer.chosen.variant)}, {choice}, on {networks}."]
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


def _control_words(answer: _Answer) -> list[str]:
    interval, control = answer.control_interval, answer.control
    if interval is None or control is None:
        return []
    quantity = answer.question.quantity
    excludes_zero = interval.low > 0 or interval.high < 0
    subject = f"The best control, which compresses nothing ({_describe(control)}),"
    if not excludes_zero:
        return [
            f"{subject} cannot be told apart from it: difference "
            f"{_signed(interval.estimate, quantity)}{_unit(quantity)} "
            f"({_ends(interval, quantity)})."
        ]
    is_variant_better = interval.estimate * _claimed_sign(quantity) > 0
    low, high = sorted((abs(interval.low), abs(interval.high)))
    return [
        f"{subject} is {'worse' if is_variant_better else 'better'} by "
        f"{_amount(abs(interval.estimate), quantity)}{_unit(quantity)} "
        f"({_amount(low, quantity)} to {_amount(high, quantity)})."
    ]


def _calibration_share(
    chosen: _Candidate,
    setting: _Setting,
    load: Callable[[str], VariantLosses],
    confidence: float,
    practical: float,
) -> CalibrationShare:
    """Compare the raw with the tempered change; the sentence follows one about the raw change."""
    raw, tempered = (
        crossed_mean(_difference(chosen, quantity, load), confidence=confidence)
        for quantity in ("loss", "loss_tempered")
    )
    original_loss = float(_matrix(setting.original, "loss", load).mean())
    clearly_falls = raw.high < 0 and abs(raw.estimate) >= practical * original_loss
    share = 1 - tempered.estimate / raw.estimate if clearly_falls else None
    return CalibrationShare(
        setting=setting.name,
        variant=chosen.variant.name,
        raw=raw,
        tempered=tempered,
        share=share,
        sentence=_calibration_sentence(raw, tempered, share),
    )


def _calibration_sentence(raw: Interval, tempered: Interval, share: float | None) -> str:
    if share is None:
        return (
            f"The raw test loss does not clearly fall ({_signed(raw.estimate, 'loss')} nats, "
            f"{_ends(raw)}): there is no improvement to put down to calibration."
        )
    amount = _amount(abs(tempered.estimate), "loss")
    if tempered.low > 0:
        return (
            f"With a temperature for both networks it rises by {amount} nats ({_ends(tempered)}): "
            "the improvement is calibration, and a temperature alone gives more."
        )
    if tempered.high >= 0:
        return (
            "With a temperature for both networks it changes by "
            f"{_signed(tempered.estimate, 'loss')} nats ({_ends(tempered)}): no improvement beyond "
            "calibration is shown."
        )
    part = f"about {percent(share, 2)}" if share > 0 else "none"
    return (
        f"With a temperature for both networks it still falls by {amount} nats "
        f"({_ends(tempered)}): {part} of the improvement is calibration."
    )


def _smallest_sentence(found: SmallestNetwork) -> str:
    scale = found.reference_value
    change, low, high = (100 * v / scale for v in (found.effect, found.low, found.high))
    numbers = (
        f"with a temperature for both networks its test loss changes by {signed(change, 1)} % "
        f"({percent(found.confidence)} interval {signed(low, 1)} to {signed(high, 1)} %)"
    )
    accuracy = (
        f"Its accuracy changes by {_signed(found.accuracy_effect, 'accuracy')} points "
        f"({_signed(found.accuracy_low, 'accuracy')} to "
        f"{_signed(found.accuracy_high, 'accuracy')})."
    )
    whom = "this network" if found.num_models == 1 else f"these {found.num_models} networks"
    variant = f"{found.ratio:.1f}x smaller ({found.description})"
    limit = percent(found.margin)
    if found.holds:
        return (
            f"{variant} at no loss, for {whom}: {numbers}, below the margin of {limit}. {accuracy}"
        )
    doubt = f"a loss of {limit} or more is not ruled out"
    if found.low > found.margin * scale:
        doubt = f"a loss of more than {limit}"
    return f"Not shown for any size. Tested: {variant}; {numbers}; {doubt}. {accuracy}"


def _describe(variant: _Variant) -> str:
    """Say what a variant is; its name if the method is not known here."""
    about = variant.is_about
    clusters, parameter = int(about["num_clusters"]), float(about["parameter"])
    method = str(about["method"])
    kmeans = importance_name(str(about["importance"])).sentence
    kmeans = METHODS[method].sentence.format(kmeans) if method in METHODS else kmeans
    allocated = ", bits shared between layers" if about[_ALLOCATION] != "equal" else ""
    penalty = (
        f", {about['penalty_form']} diameter penalty {float(about['diameter_penalty']):g}"
        if _is_penalised(variant)
        else ""
    )
    described = {
        "original": "the original",
        "kmeans": f"{kmeans}, K = {clusters}{penalty}{allocated}",
        "optimal": f"{kmeans}, K = {clusters}{penalty}{allocated}",
        "entropy_constrained": f"{kmeans}, multiplier {parameter:g}{allocated}",
        "vector": f"{kmeans}, K = {clusters}",
        "uniform": f"uniform quantization, K = {clusters}",
        "round_to_nearest": f"rounding to {parameter:g} bits",
        "magnitude_pruning": f"magnitude pruning, sparsity {parameter:g}",
        "temperature": "one temperature",
        "last_layer_scaled": f"the last layer's weights times {parameter:g}",
        "weights_clipped": f"weights clipped at quantile {parameter:g}",
        "gaussian_noise": f"Gaussian noise as large as the error of K-means, K = {clusters}",
        "early_stopping": "early stopping",
    }
    return described.get(method, variant.name)


def _relative_words(relative: float | None, is_accuracy: bool) -> str:
    if relative is None:
        return ""
    if is_accuracy:
        return f", error rate {-100 * relative:+.1f} %"
    return f", {100 * relative:+.1f} % of the original loss"


def _change(interval: Interval, quantity: Quantity, confidence: float) -> str:
    return (
        f"{_signed(interval.estimate, quantity)}{_unit(quantity)}, "
        f"{percent(confidence)} interval {_ends(interval, quantity)}"
    )


def _ends(interval: Interval, quantity: Quantity = "loss") -> str:
    return f"{_signed(interval.low, quantity)} to {_signed(interval.high, quantity)}"


def _value(value: float, quantity: Quantity) -> str:
    return f"{100 * value:.2f} %" if quantity == "accuracy" else f"{value:.4f}"


def _signed(difference: float, quantity: Quantity) -> str:
    return signed(100 * difference, 2) if quantity == "accuracy" else signed(difference, 4)


def _amount(difference: float, quantity: Quantity) -> str:
    return _signed(difference, quantity).lstrip("+")


def _unit(quantity: Quantity) -> str:
    return " points" if quantity == "accuracy" else " nats"
