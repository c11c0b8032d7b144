"""Six quantities of a sweep against the compression ratio, with all curves, points and controls."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxcomp.experiments import drawing
from jaxcomp.experiments.drawing import GREY, INK, Entry, Style, remark, sample
from jaxcomp.experiments.sweep.claims import Claim
from jaxcomp.experiments.sweep.importance import importance_name
from jaxcomp.experiments.sweep.pictures.curves import (
    POINT_MARKERS,
    UNIFORM,
    Frame,
    count_words,
    curve_groups,
    draw_curve,
    family_groups,
    means,
    ratios,
    times_smaller,
)
from jaxcomp.experiments.sweep.summary import (
    BASELINE_NAMES,
    Summary,
    VariantSummary,
    best_variant,
    control_names,
    criterion_of,
    one_setting,
)
from jaxcomp.experiments.sweep.task_words import CLASSIFICATION, TaskWords
from jaxcomp.experiments.sweep.words import signed_words


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
    Panel("test_loss_tempered", "Test loss, {}", "nats", quantity="loss_tempered"),
    Panel("generalization_gap", "Generalization gap", "nats", is_higher_better=None),
)

CONTROL_LETTERS = {
    "temperature": "T",
    "shrinkage": "R",
    "last_layer_scaled": "S",
    "weights_clipped": "C",
    "early_stopping": "E",
    "dropout": "D",
    "dropout_early_stopping": "D+E",
}
CONTROL_DASHES: dict[str, Any] = {
    "temperature": (0, (6, 2)),
    "shrinkage": (0, (6, 2)),
    "last_layer_scaled": (0, (3, 2)),
    "weights_clipped": (0, (6, 2, 1, 2)),
    "early_stopping": (0, (3, 1.5, 1, 1.5, 1, 1.5)),
    "dropout": (0, (9, 2)),
    "dropout_early_stopping": (0, (9, 2, 1, 2)),
    "gaussian_noise": (0, (1, 1.6)),
}
USER_DASHES = (0, (2, 1, 2, 3))
LEAST_SHARE, LEAST_SPAN = 0.3, 2e-3
LEAST_BETWEEN_MARKS = 0.03  # as a share of the axis: the width of a mark
# A legend of more groups than this would be wider than the figure.
MAX_LEGEND_GROUPS = 5


def plot_details(
    table: pd.DataFrame,
    *,
    claims: Sequence[Claim] | None = None,
    words: TaskWords = CLASSIFICATION,
) -> Figure:
    """Draw six quantities of one setting against the compression ratio.

    Training loss, test loss raw and tempered, generalization gap, the task's score (accuracy) and
    calibration error, or where it has none its calibration, means over networks. The originals are
    a black line; the grey band is the 95 % t-interval of their level. Bars and coloured bands are
    95 % t-intervals of the difference to the same networks' originals, which is what matters and is
    known far better than any level. Controls, which compress nothing, are thin grey lines with a
    letter at their end (where a control has a strength, the one best on the validation set;
    Gaussian noise at the ratio of the plain K-means whose distortion it has). Of more than three
    penalties the smallest, the largest and those best on the validation set are drawn. The axes
    show the region around the originals; what lies beyond is counted at the edge.

    Args:
        table: rows of one setting, columns as in `SweepResult.table`; losses in nats.
        claims: of the same setting; their variants are starred, verdicts written above the panels.
        words: of the task.

    Returns:
        A figure of 12 by 8.8 inches, shown by notebooks as it is.

    Raises:
        ValueError: if the table has several settings or none, lacks columns or the originals.
    """
    return details_figure(one_setting(table, words), claims or ())


def details_figure(summary: Summary, claims: Sequence[Claim]) -> Figure:
    """Draw the picture of `plot_details`."""
    frame = Frame(summary, summary.main_curves({claim.variant for claim in claims}))
    explanation = (
        "Grey lines: controls, which compress nothing. What is called best, and every "
        f"{summary.words.calibration}, was chosen on the validation set."
    )
    if summary.num_models > 1:
        explanation = (
            "Means over networks. Bars and coloured bands: 95 % interval of the difference to the "
            "same networks' originals (solid line); grey band: of the originals themselves.\n"
            + explanation
        )
    figure = drawing.new_figure(12.0, 8.8, summary.description, explanation)
    axes = figure.subplots(2, 3, sharex=True)
    for letter, axis, panel in zip("abcdef", axes.flat, _panels(summary), strict=True):
        _draw_panel(axis, panel, frame, claims)
        remarks = [_original_line(panel, summary)]
        if claims:
            remarks.append(_verdict_line(panel, claims, summary.words))
        drawing.panel_title(axis, f"{letter}  {panel.title}", *remarks)
        drawing.axis_labels(axis, y=_axis_title(panel))
    for axis in axes[1]:
        _cluster_scale(axis, frame)
        drawing.axis_labels(axis, x=times_smaller(frame.summary))
        axis.xaxis.labelpad = 15
    drawing.legend_below(figure, _legend_groups(frame, has_claims=bool(claims)))
    return figure


def _panels(summary: Summary) -> list[Panel]:
    """The quantities of the task; what has no calibration error shows its calibration."""
    words, score = summary.words, summary.words.score
    panels = [panel._replace(title=panel.title.format(words.tempered)) for panel in PANELS]
    panels.append(
        Panel(
            score.name,
            f"Test {score.label}",
            score.unit.strip(),
            score.factor,
            is_higher_better=score.is_higher_better,
            quantity=score.name,
        )
    )
    last = Panel(words.calibration, words.calibration.capitalize(), "", is_higher_better=None)
    if "calibration_error" in summary.columns:
        last = Panel("calibration_error", "Expected calibration error", "%", 100.0)
    return [*panels, last]


def _axis_title(panel: Panel) -> str:
    name = panel.title.split(",")[0].lower()
    return f"{name} [{panel.unit}]" if panel.unit else name


def _draw_panel(axis: Axes, panel: Panel, frame: Frame, claims: Sequence[Claim]) -> None:
    factor = panel.factor
    original = frame.summary.original.level(panel.column)
    controls = _controls(frame.summary, panel)
    (low, high), is_log = _limits(panel, frame, [original.mean, *controls.values()])
    if is_log:
        axis.set_yscale("log")
    axis.set_ylim(low * factor, high * factor)
    drawing.ratio_axis(axis, frame.ratio_low, frame.ratio_high)
    if is_log:
        drawing.plain_log_ticks(axis.yaxis)
    else:
        drawing.plain_linear_axis(axis)
    axis.axhline(original.mean * factor, color=INK, linewidth=1.6, zorder=2.5)
    if math.isfinite(original.low):
        axis.axhspan(
            original.low * factor, original.high * factor, color=INK, alpha=0.07, linewidth=0
        )
    for method, value in controls.items():
        dashes = CONTROL_DASHES.get(method, USER_DASHES)
        axis.axhline(value * factor, color=GREY, linewidth=0.9, linestyle=dashes, zorder=2)
    letters = _letters(frame.summary)
    drawing.letters(axis, [(letters[m], v * factor) for m, v in controls.items()])
    _draw_noise(axis, frame.summary, panel)
    for variants, style in frame.lines():
        draw_curve(axis, frame, variants, panel.column, style, factor)
    for method, (marker, filled) in POINT_MARKERS.items():
        style = Style(INK, "none", marker, 0.9, filled, "bars")
        variants = frame.summary.of("compressed", method)
        draw_curve(axis, frame, variants, panel.column, style, factor, zorder=4)
    for claim in claims:
        if claim.quantity == panel.quantity:
            _draw_star(axis, frame.summary, claim, panel)
    _mark_beyond(axis, frame, panel, low, high)


def _controls(summary: Summary, panel: Panel) -> dict[str, float]:
    """Mean of every control drawn as a line, at its strength best on the validation set."""
    found = {}
    words = summary.words
    # A calibration changes no score, and the tempered loss has one already.
    without = (words.score.name, "test_loss_tempered") if words.control_is_calibration else ()
    for method in _letters(summary):
        if method == words.control and panel.column in without:
            continue
        best = best_variant(summary.of("control", method), criterion_of(panel.column))
        if best is not None and not math.isnan(best.mean(panel.column)):
            found[method] = best.mean(panel.column)
    return found


def _letters(summary: Summary) -> dict[str, str]:
    """What marks every control that is a line; a user's are numbered."""
    own = [m for m in control_names(summary) if m not in (*CONTROL_LETTERS, "gaussian_noise")]
    return CONTROL_LETTERS | {method: f"U{number}" for number, method in enumerate(own, 1)}


def _limits(panel: Panel, frame: Frame, lines: Sequence[float]) -> tuple[tuple[float, float], bool]:
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
    values = _finite(means([c for family in families.values() for c in family], panel.column))
    best = [best_variant(family, criterion_of(panel.column)) for family in families.values()]
    core = _finite([*lines, *means([variant for variant in best if variant], panel.column)])
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


def _draw_noise(axis: Axes, summary: Summary, panel: Panel) -> None:
    """Draw the noise control at the ratio of the plain K-means whose distortion it has."""
    plain = summary.plain_curve()
    noise = {variant.num_clusters: variant for variant in summary.of("control", "gaussian_noise")}
    if plain is None or not noise:
        return
    pairs = [(c.ratio, noise[c.num_clusters]) for c in plain.variants if c.num_clusters in noise]
    axis.plot(
        [ratio for ratio, _ in pairs],
        panel.factor * means([variant for _, variant in pairs], panel.column),
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
        ratios(variants),
        panel.factor * means(variants, panel.column),
        linestyle="none",
        marker="*",
        markersize=13,
        color=drawing.STAR,
        markeredgecolor=INK,
        markeredgewidth=0.9,
        zorder=6,
    )


def _mark_beyond(axis: Axes, frame: Frame, panel: Panel, low: float, high: float) -> None:
    """Show at the edge where variants lie beyond it, and say how many and how far.

    Marks that would cover each other are one, in ink if they differ in colour.
    """
    lines = [(variants, style.colour) for variants, style in frame.lines()]
    lines += [(frame.summary.of("compressed", method), INK) for method in POINT_MARKERS]
    above: list[tuple[float, float, Any]] = []
    below: list[tuple[float, float, Any]] = []
    for variants, colour in lines:
        values, places = means(variants, panel.column), ratios(variants)
        is_seen = np.array([frame.is_seen(variant) for variant in variants], dtype=bool)
        for is_beyond, found in (
            (is_seen & (values > high), above),
            (is_seen & (values < low), below),
        ):
            found += [
                (float(place), float(value), colour)
                for place, value in zip(places[is_beyond], values[is_beyond], strict=True)
            ]
    left, right = np.log(axis.get_xlim())
    for found, word, extreme, edge, marker in (
        (above, "above", max, 1.018, "^"),
        (below, "below", min, -0.018, "v"),
    ):
        if found:
            shares = (np.log([place for place, _, _ in found]) - left) / (right - left)
            kept = drawing.thinned(shares.tolist(), LEAST_BETWEEN_MARKS)
            for index in kept:
                distance = shares - shares[index]
                near = (distance >= 0) & (distance < LEAST_BETWEEN_MARKS)
                colours = {found[other][2] for other in np.flatnonzero(near)}
                axis.plot(
                    [found[index][0]],
                    [edge],
                    linestyle="none",
                    marker=marker,
                    markersize=4.5,
                    color=colours.pop() if len(colours) == 1 else INK,
                    transform=axis.get_xaxis_transform(),
                    clip_on=False,
                    zorder=7,
                )
            values = [value for _, value, _ in found]
            most = f"{panel.factor * extreme(values):.3g} {panel.unit}".replace(
                "-", "\N{MINUS SIGN}"
            )
            text = f"{count_words(len(found))} {word}, to {most}"
            drawing.edge_note(axis, text, at_top=word == "above")


def _original_line(panel: Panel, summary: Summary) -> str:
    """The originals' level in numbers, with its interval where there is one."""
    level = summary.original.level(panel.column)
    mean, low, high = (f"{panel.factor * value:#.3g}".rstrip(".") for value in level[:3])
    if math.isnan(level.low):
        return f"original {mean}"
    return f"original {mean} [{low}, {high}]".replace("-", "\N{MINUS SIGN}")


def _verdict_line(panel: Panel, claims: Sequence[Claim], words: TaskWords) -> str:
    """What the claim about compression against the original came to, in few words."""
    for claim in claims:
        if claim.quantity == panel.quantity and not claim.name.startswith("penalty"):
            quantity = words.quantity(claim.quantity)
            effect, low, high = (
                signed_words(value, quantity).replace("-", "\N{MINUS SIGN}")
                for value in (claim.effect, claim.low, claim.high)
            )
            aim = "higher" if quantity.is_higher_better else "lower"
            return f"{aim}: {claim.verdict}, {effect} [{low}, {high}]"
    return ""


def _cluster_scale(axis: Axes, frame: Frame) -> None:
    """Write below the ratios which K of the first curve without a penalty reaches them."""
    plain = frame.summary.plain_curve()
    if plain is not None:
        marks = [(variant.ratio, f"{variant.num_clusters}") for variant in plain.variants]
        drawing.scale_below(axis, "K =", marks, importance_name(plain.importance).colour)


def _legend_groups(frame: Frame, *, has_claims: bool) -> list[tuple[str, list[Entry]]]:
    groups = [*curve_groups(frame), *family_groups(frame)]
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
    places = ratios(summary.of("compressed"))
    for num_outside, where in (
        (int(np.sum(places < frame.ratio_low)), "left"),
        (int(np.sum(places > frame.ratio_high)), "right"),
    ):
        if num_outside:
            others.append(remark(f"{count_words(num_outside)} {where} of the axis"))
    if has_claims:
        star = sample("variant that a claim is about", drawing.STAR, marker="*")
        star.handle.set(markersize=11, markeredgecolor=INK)
        others.append(star)
    if others:
        groups.append(("Other quantizers", others))
    references = [sample("original", INK, dashes="-")]
    letters = _letters(summary)
    for method, name in control_names(summary).items():
        if not summary.of("control", method):
            continue
        letter = letters.get(method)
        label = f"{letter}  {name}" if letter else f"{name} as strong as K"
        references.append(sample(label, GREY, dashes=CONTROL_DASHES.get(method, USER_DASHES)))
        references[-1].handle.set(linewidth=1.0)
    groups.append(("Nothing compressed", references))
    reading = [
        "below the solid line is better,",
        "in e above it",
        "only b and f improve: calibration,",
        "which T has without compressing",
        "c or e improves: a better network",
        "d also falls where only a rises",
    ]
    if len(groups) < MAX_LEGEND_GROUPS and "calibration_error" in summary.columns:
        groups.append(("How to read it", [remark(text) for text in reading]))
    return groups
