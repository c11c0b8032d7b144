"""The measured rise of the training loss against the predicted one."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from jaxcomp.experiments import drawing
from jaxcomp.experiments.drawing import GREY, INK, SMALL, Entry, remark, sample
from jaxcomp.experiments.sweep.pictures.curves import (
    DOTTED,
    count_words,
    means,
    require,
    scatter_groups,
)
from jaxcomp.experiments.sweep.summary import Summary, VariantSummary, one_setting

MUCH_MORE = 2.0  # times the prediction, from where on the picture says why
RISE_COLUMNS = ("predicted_rise_nats", "measured_rise_nats")


def plot_predicted_rise(table: pd.DataFrame) -> Figure:
    """Draw the measured rise of the training loss against the predicted one.

    The prediction is half the curvature-weighted distortion, `1/2 sum h (what - w)^2`; on the
    black line it is right. It takes every weight alone and the trained network as a minimum, so
    that it is too low wherever errors of weights add up, the gradient is not zero, or the curvature
    grows with the change (docs/findings.md). Every point is one compressed variant, mean over
    networks.

    Args:
        table: rows of one setting, with `predicted_rise_nats` and `measured_rise_nats`.

    Returns:
        A figure of 7.4 by 6 inches.

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


def _lesson(factors: Float[np.ndarray, " v"]) -> str:
    """What to see, and why the loss rises more where it does."""
    least, most = (f"{end:.2g}" if end < 10 else f"{end:,.0f}" for end in np.sort(factors)[[0, -1]])
    told = (
        "Predicted: half the curvature-weighted distortion. The loss rises "
        f"{least} to {most} times as much."
    )
    if np.median(factors) < MUCH_MORE:
        return told
    return told + (
        "\nThe prediction takes every weight alone, at a minimum. But errors of weights add up, "
        "the gradient is\nnot zero, and where examples are fitted well, curvature is small and "
        "grows as soon as weights move."
    )


def rise_figure(summary: Summary) -> Figure:
    """Draw the picture of `plot_predicted_rise`."""
    compressed = summary.of("compressed")
    usable = [variant for variant in compressed if _is_positive_rise(variant)]
    ends = np.array([means(usable, column) for column in RISE_COLUMNS])
    figure = drawing.new_figure(7.4, 6.0, summary.description, _lesson(ends[1] / ends[0]))
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
    low, high = 0.6 * float(ends[0].min()), 1.7 * float(ends[0].max())
    bottom, top = 0.6 * float(ends.min()), 1.7 * float(ends.max())
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top))
    drawing.light_grid(axis)
    for factor in (1, 10, 100, 1000):
        if factor * low > top:
            break
        right = min(high, top / factor)
        look: dict[str, Any] = (
            {"color": INK} if factor == 1 else {"color": GREY, "linestyle": DOTTED}
        )
        axis.plot([low, right], [factor * low, factor * right], linewidth=1.0, zorder=2, **look)
        name = "as predicted" if factor == 1 else f"{factor}x"
        is_cut = right < high
        axis.annotate(
            name,
            (right, factor * right),
            xytext=(0, 3) if is_cut else (4, 0),
            textcoords="offset points",
            ha="center" if is_cut else "left",
            va="bottom" if is_cut else "center",
            fontsize=SMALL,
            color=INK if factor == 1 else GREY,
            annotation_clip=False,
        )
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(LogLocator(numticks=8))
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
