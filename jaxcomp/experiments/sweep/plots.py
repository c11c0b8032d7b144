"""Pictures of a sweep in detail: every quantity against the ratio, the bound, the prediction.

The first picture, which says in two panels what was found, is in
`jaxcomp.experiments.sweep.overview`.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from jaxcomp import storage
from jaxcomp.experiments import drawing
from jaxcomp.experiments.drawing import (
    GREY,
    INK,
    SMALL,
    UNIFORM_COLOUR,
    Entry,
    Style,
    remark,
    sample,
)
from jaxcomp.experiments.sweep.claims import Claim
from jaxcomp.experiments.sweep.importance import IMPORTANCES, importance_name
from jaxcomp.experiments.sweep.methods import METHODS, method_label
from jaxcomp.experiments.sweep.overview import overview_figure
from jaxcomp.experiments.sweep.smallest import SmallestNetwork
from jaxcomp.experiments.sweep.summary import (
    BASELINE_NAMES,
    CONTROL_NAMES,
    CRITERIA,
    Curve,
    Family,
    Summary,
    VariantSummary,
    best_variant,
    claims_of,
    criterion_of,
    curves_by_importance,
    one_setting,
    picture_name,
    summarize,
)
from jaxcomp.experiments.verdicts import signed

__all__ = ["plot_bound", "plot_details", "plot_limit", "plot_predicted_rise", "save_figures"]

FORMATS = ("png", "svg", "pdf")


class Panel(NamedTuple):
    """One quantity of the picture."""

    column: str
    title: str
    unit: str
    factor: float = 1.0
    """From the table's unit to the one shown."""
    is_higher_better: bool | None = False
    """None if neither direction is."""
    may_be_logarithmic: bool = False
    quantity: str = ""
    """What the claims call it; empty if no claim is about it."""


PANELS = (
    Panel("train_loss", "Training loss", "nats", may_be_logarithmic=True),
    Panel("test_loss", "Test loss, raw", "nats", quantity="loss"),
    Panel("test_loss_tempered", "Test loss, tempered", "nats", quantity="loss_tempered"),
    Panel("generalization_gap", "Generalization gap", "nats", is_higher_better=None),
    Panel("accuracy", "Test accuracy", "%", 100.0, is_higher_better=True, quantity="accuracy"),
    Panel("calibration_error", "Expected calibration error", "%", 100.0),
)

CONTROL_LETTERS = {
    "temperature": "T",
    "last_layer_scaled": "S",
    "weights_clipped": "C",
    "early_stopping": "E",
}
CONTROL_DASHES: dict[str, Any] = {
    "temperature": (0, (6, 2)),
    "last_layer_scaled": (0, (3, 2)),
    "weights_clipped": (0, (6, 2, 1, 2)),
    "early_stopping": (0, (3, 1.5, 1, 1.5, 1, 1.5)),
    "gaussian_noise": (0, (1, 1.6)),
}
# A temperature changes no accuracy, and the tempered loss has one already.
COLUMNS_WITHOUT_TEMPERATURE = ("accuracy", "test_loss_tempered")
POINT_MARKERS = {"round_to_nearest": ("s", False), "magnitude_pruning": ("P", True)}
BOUND_COLUMNS = ("zero_one_bound", "train_accuracy")
RISE_COLUMNS = ("predicted_rise_nats", "measured_rise_nats")
LIMIT_COLUMNS = (
    "entropy_bits_per_weight",
    "predicted_rise_nats",
    "limit_bits_per_weight",
    "shannon_bits_per_weight",
    "excess_bits_per_weight",
)
UNIFORM = Style(UNIFORM_COLOUR, "-", "x", 1.2, True, "bars")
DOTTED = (0, (1, 1.5))
FAMILY_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
LEAST_SHARE, LEAST_SPAN = 0.3, 2e-3
# A legend of more groups than this would be wider than the figure.
MAX_LEGEND_GROUPS = 5


class _Frame:
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
                    METHODS[family.method].colour,
                    FAMILY_DASHES[importances.index(family.importance) % len(FAMILY_DASHES)],
                    METHODS[family.method].marker,
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


def plot_details(table: pd.DataFrame, *, claims: Sequence[Claim] | None = None) -> Figure:
    """Draw six quantities of one setting against the compression ratio.

    Training loss, test loss raw and tempered, generalization gap, accuracy, calibration error,
    means over networks. The originals are a black line; the grey band is the 95 % t-interval of
    their level. Bars and coloured bands are 95 % t-intervals of the difference to the same
    networks' originals, which is what matters and is known far better than any level. Controls,
    which compress nothing, are thin grey lines with a letter at their end (where a control has a
    strength, the one best on the validation set; Gaussian noise at the ratio of the plain
    K-means whose distortion it has). Of more than three penalties the smallest, the largest and
    those best on the validation set are drawn. The axes show the region around the originals;
    what lies beyond is counted at the edge.

    Args:
        table: rows of one setting, columns as in `SweepResult.table`; losses in nats.
        claims: of the same setting; their variants are starred, verdicts written above the panels.

    Returns:
        A figure of 12 by 8.8 inches, shown by notebooks as it is.

    Raises:
        ValueError: if the table has several settings or none, lacks columns or the originals.
    """
    return _details_figure(one_setting(table), claims or ())


def plot_bound(table: pd.DataFrame) -> Figure:
    """Draw the generalization bound for the 0-1 loss beside the gap that was measured.

    The bound is `sqrt(R / (2 n))` with R the full description length of the network in nats and n
    the number of distinct training examples. At 1 and above it says nothing (vacuous): the gap of
    a 0-1 loss cannot exceed 1. The measured gap is training minus test accuracy.

    Args:
        table: rows of one setting, with `zero_one_bound`, `train_accuracy`, `accuracy`.

    Returns:
        A figure of 8 by 5.4 inches.

    Raises:
        ValueError: as `plot_details`, or if no bound is finite.

    Source: Xu and Raginsky (2017), theorem 1, with sub-Gaussian scale 1/2 and the length of a
        prefix code in place of the information.
    """
    summary = one_setting(table)
    _require(summary, BOUND_COLUMNS)
    if not _has_bound(summary):
        raise ValueError("no variant of the table has a finite zero_one_bound: nothing to draw.")
    return _bound_figure(summary)


def plot_predicted_rise(table: pd.DataFrame) -> Figure:
    """Draw the measured rise of the training loss against the predicted one.

    The prediction is half the curvature-weighted distortion, `1/2 sum h (what - w)^2`; on the
    diagonal it is right. Every point is one compressed variant, mean over networks.

    Args:
        table: rows of one setting, with `predicted_rise_nats` and `measured_rise_nats`.

    Returns:
        A figure of 6.2 by 6.2 inches.

    Raises:
        ValueError: as `plot_details`, or if no variant has a positive prediction and rise.
    """
    summary = one_setting(table)
    _require(summary, RISE_COLUMNS)
    if not _has_rise(summary):
        raise ValueError(
            "no compressed variant has both a positive predicted and a positive measured rise of "
            "the training loss: nothing to draw on logarithmic axes."
        )
    return _rise_figure(summary)


def plot_limit(table: pd.DataFrame) -> Figure:
    """Draw every quantizer against the rate-distortion limit of the networks.

    Left the distortion against the entropy of the symbols, with the limit (certified lower bound,
    Gauss-Newton importance) and the Shannon bound as lines; right the bits above the limit. Every
    point is one compressed variant, mean over networks.

    Args:
        table: rows of one setting, with the columns of `LIMIT_COLUMNS`.

    Returns:
        A figure of 10.5 by 5.4 inches.

    Raises:
        ValueError: as `plot_details`, or if no variant has a limit.
    """
    summary = one_setting(table)
    _require(summary, LIMIT_COLUMNS)
    if not _has_limit(summary):
        raise ValueError("no compressed variant of the table has a limit: nothing to draw.")
    return _limit_figure(summary)


def save_figures(
    table: pd.DataFrame,
    directory: Path | str,
    *,
    formats: Sequence[str] = FORMATS,
    claims: Sequence[Claim] | None = None,
    smallest: Sequence[SmallestNetwork] = (),
) -> list[Path]:
    """Draw all pictures of all settings and write them; the same table gives the same bytes.

    The files are `sweep`, `sweep-details`, `bound`, `predicted-rise` and `limit`, followed by the
    setting's name if the table has several. A picture that the table has no numbers for (no bound,
    no prediction) is left out.

    Args:
        table: as `SweepResult.table`.
        directory: where to; it must exist.
        formats: of png, svg, pdf.
        claims: of all settings, to mark in the pictures.
        smallest: of all settings, likewise.

    Returns:
        The files, in the order written.

    Raises:
        ValueError: on another format, or a table that cannot be drawn.
        OSError: if the directory cannot be written to.
    """
    for form in formats:
        if form not in FORMATS:
            raise ValueError(f"pictures can be written as {', '.join(FORMATS)}; got {form!r}.")
    summaries = summarize(table)
    files: list[Path] = []
    for summary in summaries:
        members = claims_of(claims, summary.name, len(summaries))
        own = next((found for found in smallest if found.setting == summary.name), None)
        for stem, figure in _figures(summary, members, own):
            drawing.freeze_layout(figure)
            for form in formats:
                file = f"{picture_name(stem, summary.name, len(summaries))}.{form}"
                files.append(Path(directory) / file)
                storage.write_bytes_atomic(files[-1], drawing.encoded(figure, form))
    return files


def _figures(
    summary: Summary, claims: Sequence[Claim], smallest: SmallestNetwork | None
) -> Iterator[tuple[str, Figure]]:
    yield "sweep", overview_figure(summary, claims, smallest)
    yield "sweep-details", _details_figure(summary, claims)
    if summary.columns.issuperset(BOUND_COLUMNS) and _has_bound(summary):
        yield "bound", _bound_figure(summary)
    if summary.columns.issuperset(RISE_COLUMNS) and _has_rise(summary):
        yield "predicted-rise", _rise_figure(summary)
    if summary.columns.issuperset(LIMIT_COLUMNS) and _has_limit(summary):
        yield "limit", _limit_figure(summary)


def _details_figure(summary: Summary, claims: Sequence[Claim]) -> Figure:
    frame = _Frame(summary, summary.main_curves({claim.variant for claim in claims}))
    explanation = (
        "Grey lines: controls, which compress nothing. What is called best, and every temperature, "
        "was chosen on the validation set."
    )
    if summary.num_models > 1:
        explanation = (
            "Means over networks. Bars and coloured bands: 95 % interval of the difference to the "
            "same networks' originals (black line); grey band: of the originals themselves.\n"
            + explanation
        )
    figure = drawing.new_figure(12.0, 8.8, summary.description, explanation)
    axes = figure.subplots(2, 3, sharex=True)
    for letter, axis, panel in zip("abcdef", axes.flat, PANELS, strict=True):
        _draw_panel(axis, panel, frame, claims)
        remarks = [_original_line(panel, summary)]
        if claims:
            remarks.append(_verdict_line(panel, claims))
        drawing.panel_title(axis, f"{letter}  {panel.title}", *remarks)
        drawing.axis_labels(axis, y=f"{panel.title.split(',')[0].lower()} [{panel.unit}]")
    for axis in axes[1]:
        _cluster_scale(axis, frame)
        drawing.axis_labels(axis, x="compression ratio (estimated)")
        axis.xaxis.labelpad = 15
    drawing.legend_below(figure, _legend_groups(frame, has_claims=bool(claims)))
    return figure


def _bound_figure(summary: Summary) -> Figure:
    frame = _Frame(summary, summary.main_curves())
    lines = frame.lines()
    shown = [summary.original, *(variant for variants, _ in lines for variant in variants)]
    bounds, gaps = (_means(shown, column) for column in ("zero_one_bound", "zero_one_gap"))
    figure = drawing.new_figure(
        8.0,
        5.4,
        summary.description,
        "Bound on the 0-1 generalization gap from the full description length, and the gap itself.",
    )
    axis = figure.subplots()
    # A measured gap may be zero or negative, which a logarithmic axis cannot show.
    positive = gaps[gaps > 0]
    least = max(float(positive.min()), 1e-3) if len(positive) else 1e-3
    bottom = 10.0 ** math.floor(math.log10(0.8 * least))
    top = 2.0 * max(2.0, float(np.nanmax(bounds)))
    axis.set_yscale("log")
    axis.set_ylim(bottom, top)
    drawing.ratio_axis(axis, min(0.9, frame.ratio_low), frame.ratio_high)
    axis.axhspan(1.0, top, facecolor="#f3ece7", zorder=0, linewidth=0)
    axis.axhspan(1.0, top, facecolor="none", edgecolor="#e3d5cb", hatch="//", zorder=0, linewidth=0)
    axis.axhline(1.0, color=INK, linewidth=1.0, zorder=2)
    axis.text(
        0.985,
        1.12,
        "vacuous: a bound of 1 or more says nothing",
        transform=axis.get_yaxis_transform(),
        ha="right",
        va="bottom",
        fontsize=SMALL + 0.5,
        color=INK,
        bbox={"facecolor": "#f3ece7", "edgecolor": "none", "pad": 1.5},
    )
    for variants, style in lines:
        of_bound = style._replace(dashes="-", is_filled=True, interval="none")
        of_gap = style._replace(dashes=DOTTED, is_filled=False, interval="none")
        _draw_curve(axis, frame, variants, "zero_one_bound", of_bound)
        _draw_curve(axis, frame, variants, "zero_one_gap", of_gap)
    for column, face in (("zero_one_bound", INK), ("zero_one_gap", "white")):
        axis.plot(
            [summary.original.ratio],
            [summary.original.mean(column)],
            linestyle="none",
            marker="D",
            markersize=6,
            color=INK,
            markerfacecolor=face,
            zorder=5,
        )
    num_below = int(np.sum(gaps < bottom))
    if num_below:
        drawing.edge_note(
            axis, f"{_variants(num_below)} with a measured gap below {bottom:g}", at_top=False
        )
    drawing.plain_log_axis(axis)
    axis.yaxis.set_major_locator(LogLocator(numticks=12))
    drawing.axis_labels(axis, x="compression ratio (estimated)", y="0-1 generalization gap")
    what = [
        sample("bound", INK, dashes="-", marker="o"),
        sample("measured: training", INK, dashes=DOTTED, marker="o", filled=False),
        remark("minus test accuracy"),
        sample("original", INK, marker="D"),
    ]
    groups = [("Lines and points", what), *_curve_groups(frame), *_family_groups(frame)]
    if summary.of("compressed", "uniform"):
        what.append(sample(BASELINE_NAMES["uniform"], UNIFORM.colour, dashes="-", marker="x"))
    drawing.legend_below(figure, groups)
    return figure


def _rise_figure(summary: Summary) -> Figure:
    compressed = summary.of("compressed")
    usable = [variant for variant in compressed if _is_positive_rise(variant)]
    figure = drawing.new_figure(
        6.2,
        6.2,
        summary.description,
        "Predicted: half the curvature-weighted distortion. On the line the prediction is right.",
    )
    axis = figure.subplots()
    weighted: list[Entry] = []
    others: list[Entry] = []
    for label, colour, marker, filled, members in _scatter_groups(usable):
        if not members:
            continue
        axis.plot(
            _means(members, "predicted_rise_nats"),
            _means(members, "measured_rise_nats"),
            linestyle="none",
            marker=marker,
            markersize=5.5,
            color=colour,
            markerfacecolor=colour if filled else "white",
            markeredgewidth=1.2,
            alpha=0.9,
            zorder=3,
        )
        entries = weighted if label.startswith("K-means,") else others
        entries.append(sample(label, colour, marker=marker, filled=filled))
    ends = np.array([_means(usable, column) for column in RISE_COLUMNS])
    low, high = 0.6 * float(ends.min()), 1.7 * float(ends.max())
    axis.plot([low, high], [low, high], color=INK, linewidth=1.0, zorder=2)
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    drawing.light_grid(axis)
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(LogLocator(numticks=8))
    for x, y, text, align, stand in (
        (0.03, 0.97, "rises more than predicted", "left", "top"),
        (0.97, 0.03, "rises less than predicted", "right", "bottom"),
    ):
        axis.text(
            x, y, text, transform=axis.transAxes, ha=align, va=stand, fontsize=SMALL, color=GREY
        )
    drawing.axis_labels(
        axis,
        x="predicted rise of the training loss [nats]",
        y="measured rise of the training loss [nats]",
    )
    if num_left_out := len(compressed) - len(usable):
        others.append(remark(f"{_variants(num_left_out)} without a rise left out"))
    groups = [("K-means", weighted), ("Other quantizers", others)]
    drawing.legend_below(figure, [group for group in groups if group[1]])
    return figure


def _limit_figure(summary: Summary) -> Figure:
    variants = [variant for variant in summary.of("compressed") if _has_limits(variant)]
    # A pruned network of float weights has bits that nothing else comes near.
    shown = [variant for variant in variants if variant.method != "magnitude_pruning"] or variants
    figure = drawing.new_figure(
        10.5,
        5.4,
        summary.description,
        "The limit holds for codes of independent symbols and one codebook per layer. Distortion: "
        "twice the predicted rise of the training loss.",
    )
    plane, above = figure.subplots(1, 2)
    groups: list[Entry] = []
    for label, colour, marker, filled, members in _scatter_groups(shown):
        if not members:
            continue
        look = {
            "linestyle": "none",
            "marker": marker,
            "markersize": 5,
            "color": colour,
            "markerfacecolor": colour if filled else "white",
            "markeredgewidth": 1.1,
            "alpha": 0.9,
            "zorder": 3,
        }
        bits = _means(members, "entropy_bits_per_weight")
        plane.plot(bits, 2 * _means(members, "predicted_rise_nats"), **look)
        above.plot(bits, _means(members, "excess_bits_per_weight"), **look)
        groups.append(sample(label, colour, marker=marker, filled=filled))
    order = np.argsort(_means(shown, "predicted_rise_nats"))
    distortions = 2 * _means(shown, "predicted_rise_nats")[order]
    for column, dashes in (("limit_bits_per_weight", "-"), ("shannon_bits_per_weight", DOTTED)):
        bits = _means(shown, column)[order]
        plane.plot(bits, distortions, color=INK, linestyle=dashes, linewidth=1.3, zorder=2)
    plane.set_yscale("log")
    above.axhline(0.0, color=INK, linewidth=1.3, zorder=2)
    for axis in (plane, above):
        drawing.light_grid(axis)
        axis.set_xlim(left=0)
    top = float(np.max(_means(shown, "excess_bits_per_weight")))
    above.set_ylim(
        min(0.0, float(np.min(_means(shown, "excess_bits_per_weight")))) - 0.1, 1.1 * top
    )
    drawing.panel_title(plane, "a  Distortion")
    drawing.panel_title(above, "b  Above the limit")
    bits_label = "entropy of the symbols [bits per weight]"
    drawing.axis_labels(plane, x=bits_label, y="sum of h (w - c)\N{SUPERSCRIPT TWO} [nats]")
    drawing.axis_labels(above, x=bits_label, y="above the limit [bits per weight]")
    references = [
        sample("limit, certified", INK, dashes="-"),
        sample("Shannon bound", INK, dashes=DOTTED),
    ]
    if num_left_out := len(summary.of("compressed")) - len(shown):
        references.append(remark(f"{_variants(num_left_out)} not shown"))
    half = -(-len(groups) // 2)
    columns = (
        [("Quantizers", groups)]
        if len(groups) <= 4
        else [("Quantizers", groups[:half]), ("", groups[half:])]
    )
    drawing.legend_below(figure, [*columns, ("Lines", references)])
    return figure


def _has_limit(summary: Summary) -> bool:
    return any(_has_limits(variant) for variant in summary.of("compressed"))


def _has_limits(variant: VariantSummary) -> bool:
    return variant.mean("predicted_rise_nats") > 0 and not math.isnan(
        variant.mean("excess_bits_per_weight")
    )


def _require(summary: Summary, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in summary.columns]
    if missing:
        raise ValueError(f"the table lacks the columns {missing} that this picture shows.")


def _has_bound(summary: Summary) -> bool:
    return any(not math.isnan(variant.mean("zero_one_bound")) for variant in summary.variants)


def _has_rise(summary: Summary) -> bool:
    return any(_is_positive_rise(variant) for variant in summary.of("compressed"))


def _is_positive_rise(variant: VariantSummary) -> bool:
    # A comparison with NaN is false.
    return all(variant.mean(column) > 0 for column in RISE_COLUMNS)


def _means(variants: Sequence[VariantSummary], column: str) -> np.ndarray:
    return np.array([variant.mean(column) for variant in variants], dtype=float)


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


def _draw_panel(axis: Axes, panel: Panel, frame: _Frame, claims: Sequence[Claim]) -> None:
    factor = panel.factor
    original = frame.summary.original.level(panel.column)
    controls = _controls(frame.summary, panel)
    (low, high), is_log = _limits(panel, frame, [original.mean, *controls.values()])
    if is_log:
        axis.set_yscale("log")
    axis.set_ylim(low * factor, high * factor)
    drawing.ratio_axis(axis, frame.ratio_low, frame.ratio_high)
    if is_log:
        drawing.plain_log_axis(axis)
    else:
        drawing.plain_linear_axis(axis)
    axis.axhline(original.mean * factor, color=INK, linewidth=1.6, zorder=2.5)
    if math.isfinite(original.low):
        axis.axhspan(
            original.low * factor, original.high * factor, color=INK, alpha=0.07, linewidth=0
        )
    for method, value in controls.items():
        dashes = CONTROL_DASHES[method]
        axis.axhline(value * factor, color=GREY, linewidth=0.9, linestyle=dashes, zorder=2)
    drawing.letters(axis, [(CONTROL_LETTERS[m], v * factor) for m, v in controls.items()])
    _draw_noise(axis, frame.summary, panel)
    for variants, style in frame.lines():
        _draw_curve(axis, frame, variants, panel.column, style, factor)
    for method, (marker, filled) in POINT_MARKERS.items():
        style = Style(INK, "none", marker, 0.9, filled, "bars")
        variants = frame.summary.of("compressed", method)
        _draw_curve(axis, frame, variants, panel.column, style, factor, zorder=4)
    for claim in claims:
        if claim.quantity == panel.quantity:
            _draw_star(axis, frame.summary, claim, panel)
    _mark_beyond(axis, frame, panel, low, high)


def _controls(summary: Summary, panel: Panel) -> dict[str, float]:
    """Mean of every control drawn as a line, at its strength best on the validation set."""
    found = {}
    for method in CONTROL_LETTERS:
        if method == "temperature" and panel.column in COLUMNS_WITHOUT_TEMPERATURE:
            continue
        best = best_variant(summary.of("control", method), criterion_of(panel.column))
        if best is not None and not math.isnan(best.mean(panel.column)):
            found[method] = best.mean(panel.column)
    return found


def _limits(
    panel: Panel, frame: _Frame, lines: Sequence[float]
) -> tuple[tuple[float, float], bool]:
    """Limits of the y axis that keep the region around the originals large.

    Logarithmic where the values span much and may. Otherwise everything that is a line and the best
    variant of every importance stay in sight, and so does whatever is better still; worse variants
    do as far as they take less than half of the axis.
    """
    families: dict[tuple[str, str], list[VariantSummary]] = {}
    for variant in (
        variant for variants, _ in frame.lines() for variant in variants if frame.is_seen(variant)
    ):
        families.setdefault((variant.method, variant.importance), []).append(variant)
    values = _finite(_means([c for family in families.values() for c in family], panel.column))
    best = [best_variant(family, criterion_of(panel.column)) for family in families.values()]
    core = _finite([*lines, *_means([variant for variant in best if variant], panel.column)])
    if not len(core):
        core = values if len(values) else np.array([0.0, 1.0])
    low, high = (float(end) for end in (min([*core, *values]), max([*core, *values])))
    if panel.may_be_logarithmic and low > 0 and high > 8 * low:
        return (low / 1.4, high * 1.4), True
    core_low = low if panel.is_higher_better is False else float(core.min())
    core_high = high if panel.is_higher_better is True else float(core.max())
    # Differences that are small beside the loss or the error rate are not blown up.
    typical = frame.summary.original.mean(panel.column)
    scale = 1 - typical if panel.is_higher_better else abs(typical)
    span = max(core_high - core_low, LEAST_SHARE * scale, LEAST_SPAN)
    low, high = max(low, core_low - 0.6 * span), min(high, core_high + 0.6 * span)
    margin = max(0.07 * (high - low), 0.5 * (span - (high - low)))
    return (low - margin, high + margin), False


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    numbers = np.asarray(values, dtype=float)
    return numbers[np.isfinite(numbers)]


def _draw_curve(
    axis: Axes,
    frame: _Frame,
    variants: Sequence[VariantSummary],
    column: str,
    style: Style,
    factor: float = 1.0,
    *,
    zorder: float = 3.0,
) -> None:
    if not variants:
        return
    ratios = _means(variants, "ratio_estimated")
    original = frame.summary.original
    values = factor * np.array(
        [variant.level_against(original, column)[:3] for variant in variants]
    )
    mean, low, high = values.T
    if style.interval == "band":
        axis.fill_between(ratios, low, high, color=style.colour, alpha=0.15, linewidth=0, zorder=2)
    elif style.interval == "bars" and np.isfinite(low).any():
        axis.vlines(
            ratios, low, high, color=style.colour, linewidth=0.8, alpha=0.45, zorder=zorder - 0.5
        )
    axis.plot(
        ratios,
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


def _draw_noise(axis: Axes, summary: Summary, panel: Panel) -> None:
    """Draw the noise control at the ratio of the plain K-means whose distortion it has."""
    plain = summary.plain_curve()
    noise = {variant.num_clusters: variant for variant in summary.of("control", "gaussian_noise")}
    if plain is None or not noise:
        return
    pairs = [(c.ratio, noise[c.num_clusters]) for c in plain.variants if c.num_clusters in noise]
    axis.plot(
        [ratio for ratio, _ in pairs],
        panel.factor * _means([variant for _, variant in pairs], panel.column),
        color=GREY,
        linestyle=CONTROL_DASHES["gaussian_noise"],
        linewidth=1.1,
        marker=".",
        markersize=4,
        zorder=2.2,
    )


def _draw_star(axis: Axes, summary: Summary, claim: Claim, panel: Panel) -> None:
    variants = [variant for variant in summary.variants if variant.name == claim.variant]
    axis.plot(
        _means(variants, "ratio_estimated"),
        panel.factor * _means(variants, panel.column),
        linestyle="none",
        marker="*",
        markersize=13,
        color=drawing.STAR,
        markeredgecolor=INK,
        markeredgewidth=0.9,
        zorder=6,
    )


def _mark_beyond(axis: Axes, frame: _Frame, panel: Panel, low: float, high: float) -> None:
    """Show at the edge what lies beyond it, and say how far it goes."""
    lines = [(variants, style.colour) for variants, style in frame.lines()]
    lines += [(frame.summary.of("compressed", method), INK) for method in POINT_MARKERS]
    above: list[float] = []
    below: list[float] = []
    for variants, colour in lines:
        values, ratios = _means(variants, panel.column), _means(variants, "ratio_estimated")
        is_seen = np.array([frame.is_seen(variant) for variant in variants], dtype=bool)
        for is_beyond, edge, marker, found in (
            (is_seen & (values > high), 1.018, "^", above),
            (is_seen & (values < low), -0.018, "v", below),
        ):
            if not is_beyond.any():
                continue
            found += values[is_beyond].tolist()
            axis.plot(
                ratios[is_beyond],
                np.full(int(is_beyond.sum()), edge),
                linestyle="none",
                marker=marker,
                markersize=4.5,
                color=colour,
                transform=axis.get_xaxis_transform(),
                clip_on=False,
                zorder=7,
            )
    for found, word, extreme in ((above, "above", max), (below, "below", min)):
        if found:
            most = f"{panel.factor * extreme(found):.3g} {panel.unit}".replace(
                "-", "\N{MINUS SIGN}"
            )
            text = f"{_variants(len(found))} {word}, to {most}"
            drawing.edge_note(axis, text, at_top=word == "above")


def _variants(count: int) -> str:
    return "1 variant" if count == 1 else f"{count} variants"


def _original_line(panel: Panel, summary: Summary) -> str:
    """The originals' level in numbers, with its interval where there is one."""
    level = summary.original.level(panel.column)
    mean, low, high = (f"{panel.factor * value:#.3g}".rstrip(".") for value in level[:3])
    if math.isnan(level.low):
        return f"original {mean}"
    return f"original {mean} [{low}, {high}]".replace("-", "\N{MINUS SIGN}")


def _verdict_line(panel: Panel, claims: Sequence[Claim]) -> str:
    """What the claim about compression against the original came to, in few words."""
    for claim in claims:
        if claim.quantity == panel.quantity and not claim.name.startswith("penalty"):
            factor, digits = (100.0, 2) if claim.quantity == "accuracy" else (1.0, 4)
            effect, low, high = (
                signed(factor * value, digits).replace("-", "\N{MINUS SIGN}")
                for value in (claim.effect, claim.low, claim.high)
            )
            aim = "higher" if claim.quantity == "accuracy" else "lower"
            return f"{aim}: {claim.verdict}, {effect} [{low}, {high}]"
    return ""


def _cluster_scale(axis: Axes, frame: _Frame) -> None:
    """Write below the ratios which K of the first curve without a penalty reaches them."""
    plain = frame.summary.plain_curve()
    if plain is not None:
        marks = [(variant.ratio, f"{variant.num_clusters}") for variant in plain.variants]
        drawing.scale_below(axis, "K =", marks, importance_name(plain.importance).colour)


def _curve_groups(frame: _Frame) -> list[tuple[str, list[Entry]]]:
    """Legend entries of the K-means curves, one group per importance."""
    groups: list[tuple[str, list[Entry]]] = []
    all_curves = dict(curves_by_importance(frame.summary.curves))
    for importance, shown in curves_by_importance(frame.curves):
        family = all_curves[importance]
        variants = [variant for curve in family for variant in curve.variants]
        best = {
            name: best_variant(variants, criterion)
            for name, criterion in zip(("raw", "tempered"), CRITERIA, strict=True)
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


def _family_groups(frame: _Frame) -> list[tuple[str, list[Entry]]]:
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


def _legend_groups(frame: _Frame, *, has_claims: bool) -> list[tuple[str, list[Entry]]]:
    groups = [*_curve_groups(frame), *_family_groups(frame)]
    others: list[Entry] = []
    summary = frame.summary
    if summary.of("compressed", "uniform"):
        others.append(sample(BASELINE_NAMES["uniform"], UNIFORM.colour, dashes="-", marker="x"))
    for method, (marker, filled) in POINT_MARKERS.items():
        variants = summary.of("compressed", method)
        if not variants:
            continue
        label = BASELINE_NAMES[method]
        if method == "round_to_nearest":
            bits = sorted({variant.parameter for variant in variants}, reverse=True)
            label = f"{', '.join(f'int{number:g}' for number in bits)} per channel"
        others.append(sample(label, INK, marker=marker, filled=filled))
    ratios = _means(summary.of("compressed"), "ratio_estimated")
    for num_outside, where in (
        (int(np.sum(ratios < frame.ratio_low)), "left"),
        (int(np.sum(ratios > frame.ratio_high)), "right"),
    ):
        if num_outside:
            others.append(remark(f"{_variants(num_outside)} {where} of the axis"))
    if has_claims:
        star = sample("variant that a claim is about", drawing.STAR, marker="*")
        star.handle.set(markersize=11, markeredgecolor=INK)
        others.append(star)
    if others:
        groups.append(("Other quantizers", others))
    references = [sample("original", INK, dashes="-")]
    for method, name in CONTROL_NAMES.items():
        if not summary.of("control", method):
            continue
        letter = CONTROL_LETTERS.get(method)
        label = f"{letter}  {name}" if letter else f"{name} as strong as K"
        references.append(sample(label, GREY, dashes=CONTROL_DASHES[method]))
        references[-1].handle.set(linewidth=1.0)
    groups.append(("Nothing compressed", references))
    reading = [
        "below the black line is better,",
        "in e above it",
        "only b and f improve: calibration,",
        "which T has without compressing",
        "c or e improves: a better network",
        "d also falls where only a rises",
    ]
    if len(groups) < MAX_LEGEND_GROUPS:
        groups.append(("How to read it", [remark(text) for text in reading]))
    return groups


def _scatter_groups(
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
        if method in METHODS and (method, allocation) != ("kmeans", "equal"):
            looks = METHODS[method]
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
