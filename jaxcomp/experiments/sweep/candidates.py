"""Variants of a sweep as candidates for a claim: numbers to choose by, losses to test on.

What is chosen is chosen on the validation set; the losses on the test set are looked at for it
alone. Axes: `C` candidates, `M` networks, `N` test examples.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxcomp.experiments.choice import choose
from jaxcomp.experiments.sweep.config import Setting
from jaxcomp.experiments.sweep.task_words import CLASSIFICATION, Quantity, TaskWords

if TYPE_CHECKING:
    import pandas as pd


class VariantLosses(NamedTuple):
    """One variant on the test set, per network and example: `M` networks in the table's order."""

    loss: NDArray[np.floating[Any]]
    """`(M, N)` loss in nats."""
    loss_tempered: NDArray[np.floating[Any]]
    """`(M, N)` the same with each network's calibration, fitted on the validation set."""
    score: NDArray[Any]
    """`(M, N)` the task's score: of a classifier bool, whether the highest logit is the label's."""


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
ALLOCATION = "allocation"
MEASURED_RATIO, ESTIMATED_RATIO = "ratio", "ratio_estimated"
_COLUMNS = (
    "variant",
    "model_seed",
    *_DESCRIPTION_COLUMNS,
    "size_bits_estimated",
)


class JudgedVariant(NamedTuple):
    """One variant of the table: what it is, and its numbers per network."""

    name: str
    is_about: dict[str, Any]
    sizes: NDArray[np.float64]  # (M,) bits of files, or estimated
    validation: dict[str, NDArray[np.float64]]  # by name of the quantity, each (M,)

    @property
    def bits(self) -> float:
        """Size, mean over the networks."""
        return float(self.sizes.mean())


class Candidate(NamedTuple):
    """A variant and what it is compared with, as weights over variants that sum to 1."""

    variant: JudgedVariant
    reference: tuple[tuple[float, JudgedVariant], ...]
    is_outside: bool = False

    def validation_difference(self, quantity: Quantity) -> NDArray[np.float64]:
        """Variant minus reference on the validation set, (M,)."""
        return self.variant.validation[quantity.name] - sum(
            weight * variant.validation[quantity.name] for weight, variant in self.reference
        )


class JudgedSetting(NamedTuple):
    """The table of one data set, model and label noise, by variant."""

    name: str
    variants: tuple[JudgedVariant, ...]
    original: JudgedVariant
    has_files: bool  # whether sizes are those of files
    words: TaskWords

    def scale(self, quantity: Quantity, original: float) -> float:
        """Return what a change is compared with; see `TaskWords.scale`."""
        return self.words.scale(quantity, original)

    def of_kind(self, kind: str) -> list[JudgedVariant]:
        """Variants of one kind, in the table's order."""
        return [variant for variant in self.variants if variant.is_about["kind"] == kind]


def ratio_column(table: "Mapping[Any, Any] | pd.DataFrame") -> str:
    """Return which column of a table says how many times smaller its variants are.

    `ratio`, of files, if all compressed variants have one; else `ratio_estimated`.
    """
    if MEASURED_RATIO not in table:
        return ESTIMATED_RATIO
    ratios = np.asarray(table[MEASURED_RATIO], np.float64)
    measured = np.isfinite(ratios[np.asarray(table["kind"]) == "compressed"])
    return MEASURED_RATIO if len(measured) and measured.all() else ESTIMATED_RATIO


def read_table(table: "pd.DataFrame", words: TaskWords = CLASSIFICATION) -> JudgedSetting:
    """Read the table of one setting of a task.

    Raises:
        ValueError: if it lacks a column, mixes settings, has no single original or variants of
            different networks.
    """
    identity = ("setting",) if "setting" in table.columns else _SETTING_COLUMNS
    validation = [f"validation_{quantity.name}" for quantity in words.quantities]
    needed = (*_COLUMNS, *validation)
    missing = [name for name in (*identity, *needed) if name not in table.columns]
    if missing:
        raise ValueError(f"The table lacks the columns {missing} that the claims are made from.")
    settings = list(dict.fromkeys(zip(*(table[name].tolist() for name in identity), strict=True)))
    if len(settings) != 1:
        raise ValueError(
            "Claims are made for one data set, model and label noise at a time, got the settings "
            f"{settings}: select the rows of one of them."
        )
    columns = {name: table[name].to_numpy() for name in needed}
    columns[ALLOCATION] = (
        table[ALLOCATION].to_numpy()
        if ALLOCATION in table.columns
        else np.full(len(table), "equal", object)
    )
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(columns["variant"]):
        rows.setdefault(str(name), []).append(row)
    are_measured = ratio_column(table) == MEASURED_RATIO
    size_bits = 8 * table["size_bytes"] if are_measured else table["size_bits_estimated"]
    columns["size_bits"] = size_bits.to_numpy()
    variants = tuple(_read_variant(name, rows[name], columns, words) for name in rows)
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
    return JudgedSetting(str(name), variants, originals[0], are_measured, words)


def _read_variant(
    name: str, rows: list[int], columns: Mapping[str, NDArray[Any]], words: TaskWords
) -> JudgedVariant:
    return JudgedVariant(
        name=name,
        is_about={
            column: columns[column][rows[0]] for column in (*_DESCRIPTION_COLUMNS, ALLOCATION)
        },
        sizes=columns["size_bits"][rows].astype(np.float64),
        validation={
            quantity.name: columns[f"validation_{quantity.name}"][rows].astype(np.float64)
            for quantity in words.quantities
        },
    )


def checked_losses(
    losses: Callable[[str], VariantLosses], original: JudgedVariant
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


def against_original(setting: JudgedSetting, quantity: Quantity) -> list[Candidate]:
    """Every compressed variant beside the original."""
    candidates = [
        Candidate(variant, ((1.0, setting.original),)) for variant in setting.of_kind("compressed")
    ]
    return usable(candidates, quantity)


def controls_of(setting: JudgedSetting, quantity: Quantity) -> list[Candidate]:
    """Every control, which compresses nothing, beside the original."""
    controls = [
        Candidate(variant, ((1.0, setting.original),)) for variant in setting.of_kind("control")
    ]
    return usable(controls, quantity)


def is_penalised(variant: JudgedVariant) -> bool:
    """Whether the diameter of its codebooks was penalised."""
    return variant.is_about["penalty_form"] != "none" and variant.is_about["diameter_penalty"] > 0


def usable(candidates: list[Candidate], quantity: Quantity) -> list[Candidate]:
    """Candidates whose numbers are finite."""
    return [c for c in candidates if np.all(np.isfinite(c.validation_difference(quantity)))]


def best(candidates: Sequence[Candidate], quantity: Quantity) -> int:
    """Index of the variant that is best on the validation set, mean over the networks."""
    return choose(scores(candidates, quantity))


def scores(candidates: Sequence[Candidate], quantity: Quantity) -> NDArray[np.float64]:
    """What the choice minimises, (C, M).

    By its own value, not by its advantage over the reference: a penalty that helps most where both
    networks are ruined answers nobody's question.
    """
    values = [candidate.variant.validation[quantity.name] for candidate in candidates]
    return -quantity.claimed_sign * np.asarray(values)


def values_of(
    variant: JudgedVariant, quantity: Quantity, load: Callable[[str], VariantLosses]
) -> NDArray[Any]:
    """Losses or scores of a variant on the test set, (M, N)."""
    found = load(variant.name)
    matrix = {"loss": found.loss, "loss_tempered": found.loss_tempered}.get(quantity.name)
    return np.asarray(found.score if matrix is None else matrix, dtype=np.float64)


def difference(
    candidate: Candidate, quantity: Quantity, load: Callable[[str], VariantLosses]
) -> NDArray[np.float64]:
    """Variant minus reference on the test set, (M, N)."""
    return values_of(candidate.variant, quantity, load) - sum(
        weight * values_of(variant, quantity, load) for weight, variant in candidate.reference
    )
