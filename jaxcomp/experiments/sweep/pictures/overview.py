"""The first picture of a sweep: does compression cost anything, and does it help?

Two panels with one scale: the test loss as the networks answer, and with the best temperature for
each, both against the compression ratio. At 1x, left, stand the original and what compresses
nothing; a black line carries the original's loss to the right.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxcomp.experiments import drawing
from jaxcomp.experiments.drawing import GREY, INK, SMALL, UNIFORM_COLOUR, Entry, sample
from jaxcomp.experiments.sweep.claims import Claim
from jaxcomp.experiments.sweep.importance import importance_name
from jaxcomp.experiments.sweep.methods import method_name
from jaxcomp.experiments.sweep.pictures.curves import times_smaller
from jaxcomp.experiments.sweep.smallest import SmallestNetwork
from jaxcomp.experiments.sweep.summary import (
    BASELINE_NAMES,
    Level,
    Summary,
    VariantSummary,
    best_variant,
    control_name,
    criterion_of,
    one_setting,
)
from jaxcomp.experiments.sweep.task_words import CLASSIFICATION, TaskWords
from jaxcomp.experiments.verdicts import p_words, percent, signed

__all__ = ["overview_figure", "plot_sweep"]

MAX_CURVES = 3
OTHERS = "#b3b3b3"
NO_LOSS = drawing.GREEN


class _Panel(NamedTuple):
    column: str
    claim: str
    title: str


PANELS = (
    _Panel("test_loss", "raw loss", "Raw: as the networks answer"),
    _Panel("test_loss_tempered", "tempered loss", "{}: calibration taken out"),
)


class _Curve(NamedTuple):
    """One way to compress, without a penalty, from large to small."""

    label: str
    colour: str
    marker: str
    variants: Sequence[VariantSummary]


def plot_sweep(
    table: pd.DataFrame,
    *,
    claims: Sequence[Claim] = (),
    smallest: SmallestNetwork | None = None,
    words: TaskWords = CLASSIFICATION,
) -> Figure:
    """Draw the test loss of one setting, raw and tempered, against the compression ratio.

    Means over networks. Curves are the first ways to compress, without a penalty; grey dots are
    all other variants. Bands and bars are 95 % intervals of the difference to the same networks'
    originals. The control is the one best on the validation set, and so are the star, which a
    claim is about, and the smallest network at no loss.

    Args:
        table: rows of one setting, columns as in `SweepResult.table`; losses in nats.
        claims: of the same setting.
        smallest: of the same setting.
        words: of the task.

    Returns:
        A figure of 8 by 4.7 inches, shown by notebooks as it is.

    Raises:
        ValueError: if the table has several settings or none, lacks columns or the originals.
    """
    return overview_figure(one_setting(table, words), claims, smallest)


def overview_figure(
    summary: Summary, claims: Sequence[Claim], smallest: SmallestNetwork | None
) -> Figure:
    """The same, of a table made short."""
    words = summary.words
    explanation = f"Below the solid line is better than the original. {words.short_explanation}"
    if summary.num_models > 1:
        explanation += " Bands and bars: 95 % interval of the difference to the original."
    figure = drawing.new_figure(8.0, 4.7, summary.description, explanation)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    curves = _curves(summary)
    by_name = {claim.name: claim for claim in claims}
    low, high = _limits(summary, curves, by_name)
    for axis, panel in zip(axes, PANELS, strict=True):
        axis.set_ylim(low, high)
        drawing.ratio_axis(axis, 0.88, max(2.5, summary.ratio_range[1]))
        drawing.plain_linear_axis(axis)
        _draw_panel(axis, panel, summary, curves, by_name.get(panel.claim), smallest)
        title = panel.title.format(words.tempered.capitalize())
        drawing.panel_title(axis, title, *_verdict(by_name.get(panel.claim)))
        drawing.axis_labels(axis, x=times_smaller(summary))
    drawing.axis_labels(axes[0], y=f"test loss [nats per {words.per}]")
    num_left_out = sum(
        variant.ratio > axes[0].get_xlim()[1] for variant in summary.of("compressed")
    )
    entries = _legend(summary, curves, claims, smallest, num_left_out)
    # Three columns, filled one after the other.
    height = max(1, -(-len(entries) // 3))
    columns = [("", entries[start : start + height]) for start in range(0, len(entries), height)]
    drawing.legend_below(figure, columns)
    return figure


def _curves(summary: Summary) -> list[_Curve]:
    """The first ways to compress without a penalty: K-means, other codebooks, a uniform grid."""
    found = []
    for curve in summary.curves:
        if not curve.is_penalised:
            name = importance_name(curve.importance)
            found.append(_Curve(f"K-means, {name.label}", name.colour, "o", curve.variants))
    for family in summary.families:
        looks = method_name(family.method)
        found.append(_Curve(family.label, looks.colour, looks.marker, family.plain))
    uniform = summary.of("compressed", "uniform")
    found.append(_Curve(BASELINE_NAMES["uniform"], UNIFORM_COLOUR, "x", uniform))
    return [curve for curve in found if curve.variants][:MAX_CURVES]


def _others(summary: Summary, curves: Sequence[_Curve]) -> list[VariantSummary]:
    drawn = {variant.name for curve in curves for variant in curve.variants}
    return [variant for variant in summary.of("compressed") if variant.name not in drawn]


def _best_control(summary: Summary, column: str) -> VariantSummary | None:
    """What compresses nothing and is best on the validation set."""
    controls = summary.of("control")
    if column == "test_loss_tempered":
        # The tempered loss has a temperature already.
        controls = [v for v in controls if not _is_calibration(summary, v.method)]
    return best_variant(controls, criterion_of(column))


def _is_calibration(summary: Summary, method: str) -> bool:
    return summary.words.control_is_calibration and method == summary.words.control


def _limits(
    summary: Summary, curves: Sequence[_Curve], claims: dict[str, Claim]
) -> tuple[float, float]:
    """One scale for both panels: the region around the originals; what explodes is left out."""
    right = summary.ratio_range[1]
    lines: list[float] = []
    seen: list[float] = []
    for panel in PANELS:
        lines.append(summary.original.mean(panel.column))
        control = _best_control(summary, panel.column)
        if control is not None:
            lines.append(control.mean(panel.column))
        if panel.claim in claims:
            lines.append(claims[panel.claim].value)
        variants = [variant for curve in curves for variant in curve.variants]
        seen += [variant.mean(panel.column) for variant in variants if variant.ratio <= right]
    finite = [value for value in lines if np.isfinite(value)] or [0.0, 1.0]
    lowest = min([*finite, *(value for value in seen if np.isfinite(value))])
    highest = max(finite)
    # Differences that are small beside the loss are not blown up.
    span = max(highest - lowest, 0.15 * abs(highest), 2e-3)
    return lowest - 0.45 * span, highest + 0.9 * span


def _draw_panel(
    axis: Axes,
    panel: _Panel,
    summary: Summary,
    curves: Sequence[_Curve],
    claim: Claim | None,
    smallest: SmallestNetwork | None,
) -> None:
    original = summary.original
    others = _others(summary, curves)
    axis.plot(
        [variant.ratio for variant in others],
        [variant.mean(panel.column) for variant in others],
        linestyle="none",
        marker="o",
        markersize=3,
        color=OTHERS,
        zorder=2,
    )
    for curve in curves:
        ratios = np.array([variant.ratio for variant in curve.variants])
        levels = [variant.level_against(original, panel.column) for variant in curve.variants]
        mean, low, high = np.array([level[:3] for level in levels]).T
        axis.fill_between(ratios, low, high, color=curve.colour, alpha=0.15, linewidth=0, zorder=2)
        axis.plot(
            ratios,
            mean,
            color=curve.colour,
            marker=curve.marker,
            markersize=4.5,
            linewidth=1.6,
            zorder=3,
        )
    _draw_references(axis, panel, summary)
    if claim is not None and (variant := summary.variant(claim.variant)) is not None:
        level = Level(
            claim.value,
            claim.reference_value + claim.low,
            claim.reference_value + claim.high,
            np.nan,
        )
        _draw_point(axis, variant.ratio, level, "*", drawing.STAR, 13, INK)
    if smallest is not None and smallest.holds and panel.column == "test_loss_tempered":
        base = original.mean(panel.column)
        level = Level(base + smallest.effect, base + smallest.low, base + smallest.high, np.nan)
        _draw_point(axis, smallest.ratio, level, "D", NO_LOSS, 7, INK)
        axis.annotate(
            f"{smallest.ratio:.1f}x smaller\nat no loss",
            (smallest.ratio, level.low if np.isfinite(level.low) else level.mean),
            xytext=(0, -7),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=SMALL,
            fontweight="bold",
            color="#00664B",
            zorder=7,
        )
    low, high = axis.get_ylim()
    variants = [
        variant for variant in summary.of("compressed") if variant.ratio <= axis.get_xlim()[1]
    ]
    num_above = sum(variant.mean(panel.column) > high for variant in variants)
    if num_above:
        counted = "1 variant is" if num_above == 1 else f"{num_above} variants are"
        drawing.edge_note(axis, f"{counted} above this range", at_top=True)


def _draw_references(axis: Axes, panel: _Panel, summary: Summary) -> None:
    """The original and the best control: points at 1x, lines to the right, names on them."""
    original = summary.original
    lines: list[tuple[str, VariantSummary, Any, str, str]] = [("original", original, "-", INK, "s")]
    control = _best_control(summary, panel.column)
    if control is not None:
        lines.append(
            (f"best control: {control_name(control.method)}", control, (0, (5, 2)), GREY, "D")
        )
    heights = [variant.mean(panel.column) for _, variant, *_ in lines]
    for (label, variant, dashes, colour, marker), height in zip(lines, heights, strict=True):
        axis.axhline(height, color=colour, linestyle=dashes, linewidth=1.4, zorder=2.5)
        level = variant.level_against(original, panel.column)
        if variant is original:
            level = Level(height, np.nan, np.nan, np.nan)
        _draw_point(axis, 1.0, level, marker, colour, 5, colour)
        is_upper = height >= max(heights)
        axis.annotate(
            f"{label} {height:.3f}",
            (1.0, height),
            xytext=(7, 3 if is_upper else -3),
            textcoords="offset points",
            va="bottom" if is_upper else "top",
            fontsize=SMALL,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.9, "pad": 0.5},
            zorder=5.5,  # above intervals, which may cross it
        )


def _draw_point(
    axis: Axes, x: float, level: Level, marker: str, colour: str, size: float, edge: str
) -> None:
    if np.isfinite(level.low):
        axis.vlines(x, level.low, level.high, color=edge, linewidth=1.1, zorder=5)
    axis.plot(
        [x],
        [level.mean],
        linestyle="none",
        marker=marker,
        markersize=size,
        color=colour,
        markeredgecolor=edge,
        markeredgewidth=0.9,
        zorder=6,
    )


def _verdict(claim: Claim | None) -> tuple[str, ...]:
    """What the best variant came to, in words and in numbers."""
    if claim is None:
        return ()
    found = {
        "holds": "lower than the original",
        "opposite": "higher than the original",
        "no practical difference": "no difference that matters",
        "not shown": "not shown to be lower",
    }[claim.verdict]
    effect, low, high = (
        signed(value, 4).replace("-", "\N{MINUS SIGN}")
        for value in (claim.effect, claim.low, claim.high)
    )
    numbers = f"change {effect}, {percent(claim.confidence)} interval {low} to {high}"
    return f"best variant: {found} ({p_words(claim.p_adjusted)})", numbers


def _legend(
    summary: Summary,
    curves: Sequence[_Curve],
    claims: Sequence[Claim],
    smallest: SmallestNetwork | None,
    num_left_out: int,
) -> list[Entry]:
    entries = [
        sample(curve.label, curve.colour, dashes="-", marker=curve.marker) for curve in curves
    ]
    if num_others := len(_others(summary, curves)):
        entries.append(sample(f"{num_others} other variants", OTHERS, marker="o"))
    if claims:
        star = sample("best variant, chosen on the validation set", drawing.STAR, marker="*")
        star.handle.set(markersize=11, markeredgecolor=INK)
        entries.append(star)
    if smallest is not None and smallest.holds:
        least = sample(
            f"smallest at no loss (within {100 * smallest.margin:g} %)", NO_LOSS, marker="D"
        )
        least.handle.set(markersize=6, markeredgecolor=INK)
        entries.append(least)
    if num_left_out:
        counted = "1 variant" if num_left_out == 1 else f"{num_left_out} variants"
        entries.append(drawing.remark(f"{counted} right of the axis"))
    return entries
