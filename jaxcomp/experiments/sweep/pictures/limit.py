"""Every quantizer of a sweep against the rate-distortion limit of the networks."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxcomp.experiments import drawing
from jaxcomp.experiments.drawing import INK, Entry, remark, sample
from jaxcomp.experiments.sweep.pictures.curves import (
    DOTTED,
    count_words,
    means,
    require,
    scatter_groups,
)
from jaxcomp.experiments.sweep.summary import Summary, VariantSummary, one_setting

LIMIT_COLUMNS = (
    "entropy_bits_per_weight",
    "predicted_rise_nats",
    "limit_bits_per_weight",
    "shannon_bits_per_weight",
    "excess_bits_per_weight",
)


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
    require(summary, LIMIT_COLUMNS)
    if not has_limit(summary):
        raise ValueError("no compressed variant of the table has a limit: nothing to draw.")
    return limit_figure(summary)


def has_limit(summary: Summary) -> bool:
    """Whether any variant has a limit."""
    return any(_has_limits(variant) for variant in summary.of("compressed"))


def _has_limits(variant: VariantSummary) -> bool:
    return variant.mean("predicted_rise_nats") > 0 and not math.isnan(
        variant.mean("excess_bits_per_weight")
    )


def _in_words(variant: VariantSummary) -> str:
    (label,) = [label for label, *_, members in scatter_groups([variant]) if members]
    return f"{label}, K = {variant.num_clusters}" if variant.num_clusters else label


def limit_figure(summary: Summary) -> Figure:
    """Draw the picture of `plot_limit`."""
    variants = [variant for variant in summary.of("compressed") if _has_limits(variant)]
    # A pruned network of float weights has bits that nothing else comes near.
    shown = [variant for variant in variants if variant.method != "magnitude_pruning"] or variants
    nearest = min(shown, key=lambda variant: variant.mean("excess_bits_per_weight"))
    distance = f"{nearest.mean('excess_bits_per_weight'):.2f} bits per weight"
    figure = drawing.new_figure(
        10.5,
        5.4,
        summary.description,
        "The limit holds for codes of independent symbols and one codebook per layer. Distortion: "
        "twice the predicted rise of the training loss.\n"
        f"Nearest to it: {_in_words(nearest)}, {distance} above; the distance is what a better "
        "quantizer of that kind could still save.",
    )
    plane, above = figure.subplots(1, 2)
    groups: list[Entry] = []
    for label, colour, marker, filled, members in scatter_groups(shown):
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
        bits = means(members, "entropy_bits_per_weight")
        plane.plot(bits, 2 * means(members, "predicted_rise_nats"), **look)
        above.plot(bits, means(members, "excess_bits_per_weight"), **look)
        groups.append(sample(label, colour, marker=marker, filled=filled))
    order = np.argsort(means(shown, "predicted_rise_nats"))
    distortions = 2 * means(shown, "predicted_rise_nats")[order]
    for column, dashes in (("limit_bits_per_weight", "-"), ("shannon_bits_per_weight", DOTTED)):
        bits = means(shown, column)[order]
        plane.plot(bits, distortions, color=INK, linestyle=dashes, linewidth=1.3, zorder=2)
    plane.set_yscale("log")
    above.axhline(0.0, color=INK, linewidth=1.3, zorder=2)
    for axis in (plane, above):
        drawing.light_grid(axis)
        axis.set_xlim(left=0)
    top = float(np.max(means(shown, "excess_bits_per_weight")))
    above.set_ylim(min(0.0, float(np.min(means(shown, "excess_bits_per_weight")))) - 0.1, 1.1 * top)
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
        references.append(remark(f"{count_words(num_left_out)} not shown"))
    half = -(-len(groups) // 2)
    columns = (
        [("Quantizers", groups)]
        if len(groups) <= 4
        else [("Quantizers", groups[:half]), ("", groups[half:])]
    )
    drawing.legend_below(figure, [*columns, ("Lines", references)])
    return figure
