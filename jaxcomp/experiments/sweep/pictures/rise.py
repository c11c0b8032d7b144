"""The measured rise of the training loss against the predicted one."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from jaxcomp.experiments import drawing
from jaxcomp.experiments.drawing import GREY, INK, SMALL, Entry, remark, sample
from jaxcomp.experiments.sweep.pictures.curves import count_words, means, require, scatter_groups
from jaxcomp.experiments.sweep.summary import Summary, VariantSummary, one_setting

RISE_COLUMNS = ("predicted_rise_nats", "measured_rise_nats")


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
    require(summary, RISE_COLUMNS)
    if not has_rise(summary):
        raise ValueError(
            "no compressed variant has both a positive predicted and a positive measured rise of "
            "the training loss: nothing to draw on logarithmic axes."
        )
    return rise_figure(summary)


def has_rise(summary: Summary) -> bool:
    """Whether any variant has a positive prediction and rise."""
    return any(_is_positive_rise(variant) for variant in summary.of("compressed"))


def _is_positive_rise(variant: VariantSummary) -> bool:
    # A comparison with NaN is false.
    return all(variant.mean(column) > 0 for column in RISE_COLUMNS)


def rise_figure(summary: Summary) -> Figure:
    """Draw the picture of `plot_predicted_rise`."""
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
    for label, colour, marker, filled, members in scatter_groups(usable):
        if not members:
            continue
        axis.plot(
            means(members, "predicted_rise_nats"),
            means(members, "measured_rise_nats"),
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
    ends = np.array([means(usable, column) for column in RISE_COLUMNS])
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
        others.append(remark(f"{count_words(num_left_out)} without a rise left out"))
    groups = [("K-means", weighted), ("Other quantizers", others)]
    drawing.legend_below(figure, [group for group in groups if group[1]])
    return figure
