"""The table of a sweep made short: what its pictures and its report both show.

Variants with their numbers for every network, variants strung into curves, choices made on the
validation set, and the words that methods go by. Knows nothing of drawing or printing.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from jaxcomp.evaluation.statistics import model_interval
from jaxcomp.experiments.sweep.candidates import ESTIMATED_RATIO, MEASURED_RATIO, ratio_column
from jaxcomp.experiments.sweep.claims import Claim
from jaxcomp.experiments.sweep.config import Setting
from jaxcomp.experiments.sweep.importance import IMPORTANCES, importance_name
from jaxcomp.experiments.sweep.methods import METHODS, method_label
from jaxcomp.experiments.sweep.task_words import CLASSIFICATION, TaskWords

__all__ = [
    "BASELINE_NAMES",
    "CONTROL_NAMES",
    "CRITERIA",
    "Curve",
    "Family",
    "Level",
    "Summary",
    "VariantSummary",
    "best_variant",
    "claims_of",
    "control_name",
    "control_names",
    "criterion_of",
    "curves_by_importance",
    "map_names",
    "one_setting",
    "picture_name",
    "summarize",
    "variant_means",
]

BASELINE_NAMES = {
    "uniform": "uniform grid",
    "round_to_nearest": "round to nearest",
    "magnitude_pruning": "magnitude pruning",
}
CONTROL_NAMES = {
    "temperature": "temperature",
    "shrinkage": "outputs shrunk",
    "last_layer_scaled": "last layer scaled",
    "weights_clipped": "weights clipped",
    "early_stopping": "early stopping",
    "dropout": "dropout",
    "dropout_early_stopping": "dropout, stopped early",
    "gaussian_noise": "Gaussian noise",
}
CRITERIA = ("validation_loss", "validation_loss_tempered")

SETTING_COLUMNS = ("dataset", "model", "label_noise")
# More settings than these have no tables and pictures of their own but one.
MOST_IN_FULL = 4
# Only of tables whose settings differ in it.
SIZE_COLUMN = "train_size"
VARIANT_COLUMNS = (
    "variant",
    "kind",
    "method",
    "importance",
    "penalty_form",
    "diameter_penalty",
    "num_clusters",
    "parameter",
    "model_seed",
)
SHOWN_COLUMNS = (
    "train_loss",
    "test_loss",
    "test_loss_tempered",
    "generalization_gap",
    "ratio_estimated",
)
# A table without the column has the same size of codebook in every layer.
ALLOCATION_COLUMN = "allocation"
REQUIRED_COLUMNS = (*SETTING_COLUMNS, *VARIANT_COLUMNS, *SHOWN_COLUMNS, *CRITERIA)

# With up to three penalties nothing is left out.
_MAX_PENALTIES = 3


class Level(NamedTuple):
    """A quantity of one variant over the networks."""

    mean: float
    """Mean; NaN if any network's value is not finite."""
    low: float
    """Lower end of the 95 % t-interval; NaN with fewer than two networks."""
    high: float
    """Upper end."""
    deviation: float
    """Standard deviation between networks (ddof 1); NaN with fewer than two networks."""


@dataclass(frozen=True, eq=False)
class VariantSummary:
    """One variant of the sweep and its numbers for every network.

    Attributes:
        name: id of the variant, as in the table.
        kind: original, compressed or control.
        method: what was done to the weights.
        importance: of K-means, e.g. none or gauss_newton.
        penalty_form: none, monotone, published, linear.
        diameter_penalty: its relative strength.
        num_clusters: K; 0 where it does not apply.
        parameter: bits, sparsity, scale, quantile, multiplier or weights in a vector; NaN where
            there is none.
        values: numeric columns of the table, each one number per network, and `zero_one_gap`,
            training minus test accuracy.
        model_seeds: the networks, ascending.
        allocation: equal, or optimal: layers share their bits.
        ratio_column: of files where all variants of the setting have one, else the estimate.
    """

    name: str
    kind: str
    method: str
    importance: str
    penalty_form: str
    diameter_penalty: float
    num_clusters: int
    parameter: float
    values: Mapping[str, Float[np.ndarray, " models"]]
    model_seeds: tuple[int, ...]
    allocation: str = "equal"
    ratio_column: str = ESTIMATED_RATIO

    def mean(self, column: str) -> float:
        """Mean over networks; NaN if the table lacks the column or a value is not finite.

        A variant is not judged by its better networks alone.
        """
        if column not in self._means:
            values = self.values.get(column)
            if values is None or not np.isfinite(values).all():
                self._means[column] = math.nan
            else:
                self._means[column] = float(values.mean())
        return self._means[column]

    @cached_property
    def _means(self) -> dict[str, float]:
        """Means that were asked for: choices ask for the same one again and again."""
        return {}

    def level(self, column: str) -> Level:
        """Mean, interval and spread over networks."""
        mean = self.mean(column)
        if math.isnan(mean) or len(self.values[column]) < 2:
            return Level(mean, math.nan, math.nan, math.nan)
        values = self.values[column]
        interval = model_interval(values)
        return Level(interval.estimate, interval.low, interval.high, float(values.std(ddof=1)))

    def level_against(self, original: "VariantSummary", column: str) -> Level:
        """Mean with the interval of the difference to the same networks' originals around it.

        Networks differ more from each other than most variants differ from their original: this
        interval leaves the first out, and excludes the originals' mean where the difference is
        significant on its own.
        """
        level = self.level(column)
        if self.model_seeds != original.model_seeds or math.isnan(original.mean(column)):
            return level
        if math.isnan(level.mean) or len(self.model_seeds) < 2:
            return level
        interval = model_interval(self.values[column] - original.values[column])
        low, high = interval.low - interval.estimate, interval.high - interval.estimate
        return level._replace(low=level.mean + low, high=level.mean + high)

    @property
    def ratio(self) -> float:
        """Mean of the compression ratio."""
        return self.mean(self.ratio_column)


@dataclass(frozen=True, eq=False)
class Curve:
    """K-means variants that differ in K only, sorted by ratio.

    Attributes:
        importance: e.g. none or gauss_newton.
        penalty_form: none, monotone, published or linear.
        diameter_penalty: relative strength; 0 without a penalty.
        variants: one for every K.
    """

    importance: str
    penalty_form: str
    diameter_penalty: float
    variants: tuple[VariantSummary, ...]

    @property
    def key(self) -> tuple[str, str, float]:
        """What all of its variants have in common."""
        return self.importance, self.penalty_form, self.diameter_penalty

    @property
    def is_penalised(self) -> bool:
        """Whether there is a diameter penalty."""
        return self.diameter_penalty > 0


@dataclass(frozen=True, eq=False)
class Family:
    """Variants of a method other than K-means at equal K, with one importance and one allocation.

    Attributes:
        method: optimal, entropy_constrained, vector or a user's; kmeans with optimal allocation.
        allocation: equal or optimal.
        importance: e.g. none or gauss_newton.
        variants: all of them, sorted by ratio.
    """

    method: str
    allocation: str
    importance: str
    variants: tuple[VariantSummary, ...]

    @property
    def label(self) -> str:
        """What it is called in tables and pictures."""
        importance = importance_name(self.importance).label
        return f"{method_label(self.method, self.allocation)}, {importance}"

    @property
    def plain(self) -> tuple[VariantSummary, ...]:
        """Those without a penalty."""
        return tuple(variant for variant in self.variants if variant.diameter_penalty == 0)


@dataclass(frozen=True, eq=False)
class Summary:
    """One setting (dataset, model, label noise) of a sweep.

    Attributes:
        name: short and safe in a file name.
        description: what was trained, in a few words, e.g.
            `mnist, mlp: 20 networks, 30 % label noise`.
        subject: the same without the number of networks, e.g. `mnist, mlp, 30 % label noise`.
        num_models: networks.
        columns: of the table.
        original: the variant of the uncompressed networks.
        variants: all variants, in the table's order.
        has_files: whether ratios are those of files; else they are estimates.
        words: of the task.
    """

    name: str
    description: str
    subject: str
    num_models: int
    columns: frozenset[str]
    original: VariantSummary
    variants: tuple[VariantSummary, ...]
    has_files: bool = False
    words: TaskWords = CLASSIFICATION

    def of(self, kind: str, method: str | None = None) -> list[VariantSummary]:
        """Variants of one kind (and method), sorted by ratio."""
        return [
            variant for variant in self._by_kind.get(kind, ()) if method in (None, variant.method)
        ]

    def variant(self, name: str) -> VariantSummary | None:
        """The variant of a name; None if there is none."""
        return self._by_name.get(name)

    @cached_property
    def _by_kind(self) -> dict[str, list[VariantSummary]]:
        groups: dict[str, list[VariantSummary]] = {}
        for variant in sorted(self.variants, key=lambda variant: variant.ratio):
            groups.setdefault(variant.kind, []).append(variant)
        return groups

    @cached_property
    def _by_name(self) -> dict[str, VariantSummary]:
        return {variant.name: variant for variant in self.variants}

    @cached_property
    def curves(self) -> list[Curve]:
        """K-means curves with equal K: by importance, without a penalty first, then by strength."""
        variants = [
            variant for variant in self.of("compressed", "kmeans") if variant.allocation == "equal"
        ]
        forms = list(dict.fromkeys(["none", *(variant.penalty_form for variant in variants)]))
        importances = list(
            dict.fromkeys([*IMPORTANCES, *(variant.importance for variant in variants)])
        )
        groups: dict[tuple[str, str, float], list[VariantSummary]] = {}
        for variant in variants:
            key = (variant.importance, variant.penalty_form, variant.diameter_penalty)
            groups.setdefault(key, []).append(variant)
        curves = [Curve(*key, tuple(members)) for key, members in groups.items()]
        return sorted(
            curves,
            key=lambda curve: (
                importances.index(curve.importance),
                forms.index(curve.penalty_form),
                curve.diameter_penalty,
            ),
        )

    @cached_property
    def families(self) -> list[Family]:
        """All other codebooks and allocations: by method, allocation, importance."""
        groups: dict[tuple[str, str, str], list[VariantSummary]] = {}
        for variant in self.of("compressed"):
            if variant.method not in BASELINE_NAMES and (variant.method, variant.allocation) != (
                "kmeans",
                "equal",
            ):
                key = (variant.method, variant.allocation, variant.importance)
                groups.setdefault(key, []).append(variant)
        methods = list(dict.fromkeys([*METHODS, *(key[0] for key in groups)]))
        importances = list(dict.fromkeys([*IMPORTANCES, *(key[2] for key in groups)]))
        order = sorted(
            groups, key=lambda key: (methods.index(key[0]), key[1], importances.index(key[2]))
        )
        return [Family(*key, tuple(groups[key])) for key in order]

    def main_curves(self, keep_variants: Collection[str] = ()) -> list[Curve]:
        """Curves without the penalties that are too many to tell apart.

        For every importance and form of penalty those best on the validation set (raw and
        tempered) and those of the variants to keep stay; where there is one form only, the smallest
        and the largest as well. Of three or fewer penalties, all do.
        """
        groups: dict[tuple[str, str], list[Curve]] = {}
        for curve in self.curves:
            groups.setdefault(curve.key[:2], []).append(curve)
        kept = {
            curve.key
            for members in groups.values()
            for curve in self._main_of(members, keep_variants)
        }
        return [curve for curve in self.curves if curve.key in kept]

    def plain_curve(self) -> Curve | None:
        """The first curve without a penalty: unweighted K-means, if that is in the sweep."""
        return next((curve for curve in self.curves if not curve.is_penalised), None)

    @cached_property
    def has_several_forms(self) -> bool:
        """Whether penalties of several forms are in the sweep, so that they need naming."""
        return len({curve.penalty_form for curve in self.curves if curve.is_penalised}) > 1

    @cached_property
    def ratio_range(self) -> tuple[float, float]:
        """Range of ratios to show: that of all curves without a penalty, from integers upwards.

        A strong penalty can merge all centroids of a layer: the ratio is then in the thousands and
        the network knows nothing, which would squeeze everything else together. So would K = 1.
        """
        variants = [
            variant
            for variant in self.of("compressed")
            if variant.method != "magnitude_pruning"
            and variant.num_clusters != 1
            and variant.ratio > 0
        ]
        # An entropy coder alone can spend next to nothing.
        plain = [
            variant.ratio
            for variant in variants
            if variant.diameter_penalty == 0 and variant.method != "entropy_constrained"
        ]
        ratios = [variant.ratio for variant in variants]
        if not ratios:
            return 0.9, 10.0
        highest = max(plain or ratios)
        low, high = min(ratios), max(ratio for ratio in ratios if ratio < 1.5 * highest)
        # At least a factor of two and a half, so that some ticks are in sight.
        margin = max(1.12, math.sqrt(2.5 * low / high))
        return low / margin, high * margin

    def _main_of(self, family: list[Curve], keep_variants: Collection[str]) -> list[Curve]:
        """The main ones of the curves that share an importance and a form of penalty."""
        if not self.has_several_forms and len(family) <= _MAX_PENALTIES:
            return family
        variants = [variant for curve in family for variant in curve.variants]
        wanted = {
            best.name for criterion in CRITERIA if (best := best_variant(variants, criterion))
        }
        wanted |= set(keep_variants)
        return [
            curve
            for curve in family
            if not curve.is_penalised
            or (not self.has_several_forms and curve in (family[0], family[-1]))
            or any(variant.name in wanted for variant in curve.variants)
        ]


def summarize(table: pd.DataFrame, words: TaskWords = CLASSIFICATION) -> list[Summary]:
    """Return every setting of a table, in its order.

    Rows of kind `sensitivity` (one layer at a time) belong to another table and are left out.

    Args:
        table: as `SweepResult.table`.
        words: of the task.

    Raises:
        ValueError: if it lacks a column or the rows of the originals.
    """
    required = [*REQUIRED_COLUMNS, words.score.name]
    missing = [name for name in required if name not in table.columns]
    if missing:
        raise ValueError(f"the table lacks the columns {missing}: pass the table of a SweepResult.")
    columns: dict[str, Any] = {str(name): table[name].to_numpy() for name in table.columns}
    sizes = columns.get(SIZE_COLUMN)
    rows: dict[Setting, list[int]] = {}
    for row in np.flatnonzero(columns["kind"] != "sensitivity").tolist():
        dataset, model, noise = (columns[name][row] for name in SETTING_COLUMNS)
        size = None if sizes is None else int(sizes[row])
        rows.setdefault(Setting(str(dataset), str(model), float(noise), size), []).append(row)
    if not rows:
        raise ValueError("the table has no rows of the original networks: pass all of its rows.")
    return [
        _summarize_setting(setting, {name: v[members] for name, v in columns.items()}, words)
        for setting, members in rows.items()
    ]


def one_setting(table: pd.DataFrame, words: TaskWords = CLASSIFICATION) -> Summary:
    """The summary of a table with one setting; several are a `ValueError`."""
    summaries = summarize(table, words)
    if len(summaries) != 1:
        raise ValueError(
            f"a picture shows one setting, the table has {[s.name for s in summaries]}: "
            "filter its rows first, or use save_figures."
        )
    return summaries[0]


def rows_where(table: pd.DataFrame, **values: object) -> pd.DataFrame:
    """Return the rows whose columns have the given values."""
    keep = pd.Series(True, index=table.index)
    for column, value in values.items():
        keep &= table[column] == value
    return table.loc[keep]


def variant_means(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over networks of every numeric column, one row per variant, in the table's order.

    A NaN of one network makes the mean NaN: a variant is not judged by its better networks alone.
    """
    numeric = list(table.select_dtypes(["number", "bool"]).columns)
    variants: Any = table.groupby("variant", sort=False)
    texts = variants[[c for c in table.columns if c not in numeric and c != "variant"]].first()
    # Pandas before 3.0 has no mean of a group that does not skip NaN.
    is_whole = variants[numeric].count().eq(variants.size(), axis=0)
    numbers = variants[numeric].mean().where(is_whole)
    means = pd.concat([texts, numbers], axis=1).reset_index()
    return means.reindex(columns=table.columns)


def best_variant(variants: Iterable[VariantSummary], criterion: str) -> VariantSummary | None:
    """Return the variant with the lowest mean `criterion`; None if no variant has a finite one."""
    usable = [variant for variant in variants if not math.isnan(variant.mean(criterion))]
    return min(usable, key=lambda variant: variant.mean(criterion), default=None)


def criterion_of(column: str) -> str:
    """The quantity of the validation set by which a choice is made for a column shown."""
    return "validation_loss_tempered" if column.endswith("_tempered") else "validation_loss"


def claims_of(claims: Sequence[Claim] | None, name: str, num_settings: int) -> list[Claim]:
    """The claims about one setting; with one setting in all, every claim is about it."""
    return [c for c in claims or () if num_settings == 1 or c.setting == name]


def picture_name(stem: str, name: str, num_settings: int) -> str:
    """File name of a picture without suffix; the setting's name is in it if there are several."""
    return stem if num_settings == 1 else f"{stem}-{name}"


def map_names(table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return data set and model of every map by the name of its file."""
    kinds = list(dict.fromkeys(zip(table["dataset"], table["model"], strict=True)))
    if len(kinds) == 1:
        return {"map": kinds[0]}
    return {f"map-{dataset}-{model}": (dataset, model) for dataset, model in kinds}


def control_names(summary: Summary) -> dict[str, str]:
    """Return what the controls of a sweep are called: the known ones, then a user's."""
    methods = dict.fromkeys([*CONTROL_NAMES, *(v.method for v in summary.of("control"))])
    return {method: control_name(method) for method in methods}


def control_name(method: str) -> str:
    """Return what a control is called."""
    return CONTROL_NAMES.get(method, method.replace("_", " "))


def curves_by_importance(curves: Sequence[Curve]) -> Iterator[tuple[str, list[Curve]]]:
    """Yield each importance with its curves, in the order given."""
    for importance in dict.fromkeys(curve.importance for curve in curves):
        yield importance, [curve for curve in curves if curve.importance == importance]


def _summarize_setting(
    setting: Setting, columns: Mapping[str, np.ndarray], words: TaskWords
) -> Summary:
    numeric = [
        name
        for name, values in columns.items()
        if values.dtype.kind in "fiub"
        and name not in (*SETTING_COLUMNS, SIZE_COLUMN, *VARIANT_COLUMNS)
    ]
    allocation = columns.get(ALLOCATION_COLUMN, np.full(len(columns["variant"]), "equal", object))
    if "train_accuracy" in columns:
        gap = columns["train_accuracy"] - columns["accuracy"]
        columns, numeric = {**columns, "zero_one_gap": gap}, [*numeric, "zero_one_gap"]
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(columns["variant"].tolist()):
        rows.setdefault(str(name), []).append(row)
    ratio = ratio_column(columns)
    variants: list[VariantSummary] = []
    seeds = columns["model_seed"]
    for name, found in rows.items():
        members = sorted(found, key=lambda row: int(seeds[row]))
        first = {column: columns[column][members[0]] for column in VARIANT_COLUMNS}
        variants.append(
            VariantSummary(
                name=name,
                kind=str(first["kind"]),
                method=str(first["method"]),
                importance=str(first["importance"]),
                penalty_form=str(first["penalty_form"]),
                diameter_penalty=float(first["diameter_penalty"]),
                num_clusters=int(first["num_clusters"]),
                parameter=float(first["parameter"]),
                values={column: columns[column][members].astype(float) for column in numeric},
                model_seeds=tuple(int(seed) for seed in seeds[members]),
                allocation=str(allocation[members[0]]),
                ratio_column=ratio,
            )
        )
    original = next((variant for variant in variants if variant.kind == "original"), None)
    if original is None:
        raise ValueError(
            f"the table has no rows of the original networks of {setting.name}: pass all rows."
        )
    num_models = len(set(seeds.tolist()))
    return Summary(
        name=str(columns["setting"][0]) if "setting" in columns else setting.name,
        description=_describe(setting, num_models),
        subject=_subject(setting),
        num_models=num_models,
        columns=frozenset(columns),
        original=original,
        variants=tuple(variants),
        has_files=ratio == MEASURED_RATIO,
        words=words,
    )


def _describe(setting: Setting, num_models: int) -> str:
    networks = "1 network" if num_models == 1 else f"{num_models} networks"
    named, origin = _names(setting)
    return f"{named}: {networks}, {origin}"


def _subject(setting: Setting) -> str:
    return ", ".join(_names(setting))


def _names(setting: Setting) -> tuple[str, str]:
    """What was trained, and on which labels."""
    # A network that was trained elsewhere comes with no name of its data.
    if setting.dataset == "given":
        return setting.model, "trained elsewhere"
    noise = setting.label_noise
    labels = f"{100 * noise:g} % label noise" if noise > 0 else "clean labels"
    size = "" if setting.train_size is None else f", {setting.train_size:,} examples"
    return f"{setting.dataset}, {setting.model}{size}", labels
