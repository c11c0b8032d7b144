"""The generalization bound for the 0-1 loss beside the gap that was measured."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxcomp.experiments import drawing
from jaxcomp.experiments.drawing import INK, SMALL, remark, sample
from jaxcomp.experiments.sweep.pictures.curves import (
    DOTTED,
    UNIFORM,
    Frame,
    count_words,
    curve_groups,
    draw_curve,
    family_groups,
    means,
    require,
    times_smaller,
)
from jaxcomp.experiments.sweep.summary import BASELINE_NAMES, Summary, one_setting

BOUND_COLUMNS = ("zero_one_bound", "train_accuracy")


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
    require(summary, BOUND_COLUMNS)
    if not has_bound(summary):
        raise ValueError("no variant of the table has a finite zero_one_bound: nothing to draw.")
    return bound_figure(summary)


def has_bound(summary: Summary) -> bool:
    """Whether any variant has a finite bound."""
    return any(not math.isnan(variant.mean("zero_one_bound")) for variant in summary.variants)


def _lesson(least: float) -> str:
    """What to see."""
    if least >= 1:
        return f"The least bound is {least:.2g}: none of them says anything about these networks."
    return f"The least bound is {least:.2g}: below 1, where a bound says something."


def bound_figure(summary: Summary) -> Figure:
    """Draw the picture of `plot_bound`."""
    frame = Frame(summary, summary.main_curves())
    lines = frame.lines()
    shown = [summary.original, *(variant for variants, _ in lines for variant in variants)]
    bounds, gaps = (means(shown, column) for column in ("zero_one_bound", "zero_one_gap"))
    figure = drawing.new_figure(
        8.0,
        5.4,
        summary.description,
        "Bound on the 0-1 generalization gap from the full description length, and the gap itself."
        "\n" + _lesson(float(np.nanmin(bounds))),
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
        draw_curve(axis, frame, variants, "zero_one_bound", of_bound)
        draw_curve(axis, frame, variants, "zero_one_gap", of_gap)
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
            axis, f"{count_words(num_below)} with a measured gap below {bottom:g}", at_top=False
        )
    drawing.plain_log_ticks(axis.yaxis)
    drawing.axis_labels(axis, x=times_smaller(summary), y="0-1 generalization gap")
    what = [
        sample("bound", INK, dashes="-", marker="o"),
        sample("measured: training", INK, dashes=DOTTED, marker="o", filled=False),
        remark("minus test accuracy"),
        sample("original", INK, marker="D"),
    ]
    groups = [("Lines and points", what), *curve_groups(frame), *family_groups(frame)]
    if summary.of("compressed", "uniform"):
        what.append(sample(BASELINE_NAMES["uniform"], UNIFORM.colour, dashes="-", marker="x"))
    drawing.legend_below(figure, groups)
    return figure
