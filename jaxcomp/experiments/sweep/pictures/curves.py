"""What pictures of a sweep share: curves and points of variants, their looks and legends."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxcomp.experiments import drawing
from jaxcomp.experiments.drawing import INK, UNIFORM_COLOUR, Entry, Style, remark, sample
from jaxcomp.experiments.sweep.importance import IMPORTANCES, importance_name
from jaxcomp.experiments.sweep.methods import method_label, method_name
from jaxcomp.experiments.sweep.summary import (
    BASELINE_NAMES,
    CRITERIA,
    Curve,
    Family,
    Summary,
    VariantSummary,
    best_variant,
    curves_by_importance,
)

POINT_MARKERS = {"round_to_nearest": ("s", False), "magnitude_pruning": ("P", True)}
UNIFORM = Style(UNIFORM_COLOUR, "-", "x", 1.2, True, "bars")
DOTTED = (0, (1, 1.5))
FAMILY_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))


class Frame:
    """What all panels of one setting share."""

    def __init__(self, summary: Summary, curves: Sequence[Curve]) -> None:
        self.summary = summary
        self.curves = curves
        self.styles = _styles(curves)
        self.ratio_low, self.ratio_high = summary.ratio_range

    def lines(self) -> list[tuple[Sequence[VariantSummary], Style]]:
        """Everything drawn as a curve over K: variants and how they look."""
        uniform = self.summary.of("compressed", "uniform")
        lines: list[tuple[Sequence[VariantSummary], Style]] = (
            [(uniform, UNIFORM)] if uniform else []
        )
        lines += [(family.plain, style) for family, style in self.families() if family.plain]
        return lines + [(curve.variants, self.styles[curve.key]) for curve in self.curves]

    def families(self) -> list[tuple[Family, Style]]:
        """Other codebooks and allocations: colour and marker say the method, dashes the importance.

        Markers are open where layers share their bits.
        """
        families = self.summary.families
        importances = list(dict.fromkeys(family.importance for family in families))
        return [
            (
                family,
                Style(
                    method_name(family.method).colour,
                    FAMILY_DASHES[importances.index(family.importance) % len(FAMILY_DASHES)],
                    method_name(family.method).marker,
                    1.2,
                    family.allocation == "equal",
                    "bars",
                ),
            )
            for family in families
        ]

    def is_seen(self, variant: VariantSummary) -> bool:
        """Whether the x axis shows the variant's ratio."""
        return self.ratio_low <= variant.ratio <= self.ratio_high


def require(summary: Summary, columns: Sequence[str]) -> None:
    """Refuse a table without the columns of a picture."""
    missing = [name for name in columns if name not in summary.columns]
    if missing:
        raise ValueError(f"the table lacks the columns {missing} that this picture shows.")


def means(variants: Sequence[VariantSummary], column: str) -> np.ndarray:
    """Mean over networks of every variant."""
    return np.array([variant.mean(column) for variant in variants], dtype=float)


def ratios(variants: Sequence[VariantSummary]) -> np.ndarray:
    """How many times smaller every variant is, mean over networks."""
    return np.array([variant.ratio for variant in variants], dtype=float)


def times_smaller(summary: Summary) -> str:
    """What the axis of ratios shows."""
    if summary.has_files:
        return "times smaller than the original (bytes of files)"
    return "times smaller than 32-bit weights (estimated)"


def _styles(curves: Sequence[Curve]) -> dict[tuple[str, str, float], Style]:
    """Base colour without a penalty; from light to dark, each with its dashes, with one."""
    dashes = ((0, (1, 1.2)), (0, (4, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)))
    markers = "v^sDpX"
    styles = {}
    for importance, members in curves_by_importance(curves):
        base = importance_name(importance).colour
        penalised = [curve for curve in members if curve.is_penalised]
        for curve in members:
            if not curve.is_penalised:
                styles[curve.key] = Style(base, "-", "o", 1.8, True, "band")
                continue
            order = penalised.index(curve)
            share = order / max(len(penalised) - 1, 1)
            styles[curve.key] = Style(
                drawing.shade(base, 0.45 - 0.85 * share),
                dashes[order % len(dashes)],
                markers[order % len(markers)],
                1.3,
                False,
                "bars",
            )
    return styles


def draw_curve(
    axis: Axes,
    frame: Frame,
    variants: Sequence[VariantSummary],
    column: str,
    style: Style,
    factor: float = 1.0,
    *,
    zorder: float = 3.0,
) -> None:
    """Draw variants over their ratios, with intervals of the difference to the originals."""
    if not variants:
        return
    places = ratios(variants)
    original = frame.summary.original
    values = factor * np.array(
        [variant.level_against(original, column)[:3] for variant in variants]
    )
    mean, low, high = values.T
    if style.interval == "band":
        axis.fill_between(places, low, high, color=style.colour, alpha=0.15, linewidth=0, zorder=2)
    elif style.interval == "bars" and np.isfinite(low).any():
        axis.vlines(
            places, low, high, color=style.colour, linewidth=0.8, alpha=0.45, zorder=zorder - 0.5
        )
    axis.plot(
        places,
        mean,
        color=style.colour,
        linestyle=style.dashes,
        linewidth=style.width,
        marker=style.marker,
        markersize=4.2,
        markerfacecolor=style.colour if style.is_filled else "white",
        markeredgewidth=1.0,
        zorder=zorder,
    )


def count_words(count: int) -> str:
    """How many variants."""
    return "1 variant" if count == 1 else f"{count} variants"


def curve_groups(frame: Frame) -> list[tuple[str, list[Entry]]]:
    """Legend entries of the K-means curves, one group per importance."""
    groups: list[tuple[str, list[Entry]]] = []
    all_curves = dict(curves_by_importance(frame.summary.curves))
    for importance, shown in curves_by_importance(frame.curves):
        family = all_curves[importance]
        variants = [variant for curve in family for variant in curve.variants]
        best = {
            name: best_variant(variants, criterion)
            for name, criterion in zip(("raw", frame.summary.words.tempered), CRITERIA, strict=True)
        }
        entries: list[Entry] = []
        for curve in shown:
            praised = [name for name, variant in best.items() if variant in curve.variants]
            label = f"penalty {curve.diameter_penalty:g}" if curve.is_penalised else "no penalty"
            if curve.is_penalised and frame.summary.has_several_forms:
                label += f", {curve.penalty_form}"
            if praised:
                label += f" (best {' and '.join(praised)})"
            style = frame.styles[curve.key]
            entries.append(
                sample(
                    label,
                    style.colour,
                    dashes=style.dashes,
                    marker=style.marker,
                    filled=style.is_filled,
                )
            )
        num_hidden = len(family) - len(entries)
        if num_hidden:
            more = "penalty" if num_hidden == 1 else "penalties"
            entries.append(remark(f"{num_hidden} more {more} in the table"))
        groups.append((f"K-means, {importance_name(importance).label}", entries))
    return groups


def family_groups(frame: Frame) -> list[tuple[str, list[Entry]]]:
    """Legend entries of other codebooks and allocations; no group if there are none."""
    entries = [
        sample(
            family.label,
            style.colour,
            dashes=style.dashes,
            marker=style.marker,
            filled=style.is_filled,
        )
        for family, style in frame.families()
        if family.plain
    ]
    return [("Other codebooks", entries)] if entries else []


def scatter_groups(
    variants: Sequence[VariantSummary],
) -> Iterator[tuple[str, str, str, bool, list[VariantSummary]]]:
    """Label, colour, marker, whether filled, and members, for the picture of the prediction."""
    kmeans = [
        variant
        for variant in variants
        if (variant.method, variant.allocation) == ("kmeans", "equal")
    ]
    for name in dict.fromkeys([*IMPORTANCES, *(variant.importance for variant in kmeans)]):
        members = [variant for variant in kmeans if variant.importance == name]
        label, colour = f"K-means, {importance_name(name).label}", importance_name(name).colour
        plain = [variant for variant in members if variant.diameter_penalty == 0]
        penalised = [variant for variant in members if variant.diameter_penalty > 0]
        yield label, colour, "o", True, plain
        yield f"{label}, penalty", colour, "o", False, penalised
    for method, allocation in dict.fromkeys(
        (variant.method, variant.allocation) for variant in variants
    ):
        if method not in BASELINE_NAMES and (method, allocation) != ("kmeans", "equal"):
            looks = method_name(method)
            members = [
                variant
                for variant in variants
                if (variant.method, variant.allocation) == (method, allocation)
            ]
            label = method_label(method, allocation)
            yield label, looks.colour, looks.marker, allocation == "equal", members
    others = {"uniform": ("x", True), **POINT_MARKERS}
    for name, (marker, filled) in others.items():
        members = [variant for variant in variants if variant.method == name]
        colour = UNIFORM_COLOUR if name == "uniform" else INK
        yield BASELINE_NAMES[name], colour, marker, filled, members
